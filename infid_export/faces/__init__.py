"""From a photo to an aligned face and its embedding; numpy, pillow and ONNX Runtime only."""
