"""Face recognition: an ArcFace-type ONNX model of the user's (Deng et al., arXiv 1801.07698)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from infid_engines.errors import InputError
from infid_export.faces.detection import open_onnx

SIZE = 112
Array = np.ndarray[Any, Any]


class ArcFaceRecognizer:
    """An ONNX model from an aligned 112 × 112 face to an embedding.

    Args:
        onnx_path: model with input `[N, 3, 112, 112]` RGB scaled to [−1, 1] and output `[N, width]`.
        width: length of the embedding the identity modules were trained on.

    Raises:
        InputError: the model is missing or has other shapes.
    """

    def __init__(self, onnx_path: Path, width: int = 512) -> None:
        self._session = open_onnx(onnx_path)
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        if len(inputs) != 1 or list(inputs[0].shape[1:]) != [3, SIZE, SIZE]:
            raise InputError(
                f"{onnx_path} takes {[list(value.shape) for value in inputs]}, not [N, 3, {SIZE}, {SIZE}].",
                fix="Use an ArcFace-type recogniser.",
            )
        if len(outputs) != 1 or outputs[0].shape[-1] != width:
            raise InputError(
                f"{onnx_path} gives {[list(value.shape) for value in outputs]}, not [N, {width}].",
                fix="Use the recogniser the identity weights were trained with.",
            )
        self._input = inputs[0].name

    def embed(self, aligned: Array) -> Array:
        """Return the L2-normalised `[width]` fp32 embedding of a `[112, 112, 3]` uint8 RGB face.

        Raises:
            InputError: the model gives an embedding without direction.
        """
        pixels = (aligned.astype(np.float32).transpose(2, 0, 1)[None] - 127.5) / 127.5
        embedding = self._session.run(None, {self._input: pixels})[0][0].astype(np.float32)
        length = float(np.linalg.norm(embedding))
        if not np.isfinite(length) or length == 0:
            raise InputError("The recogniser gave no usable embedding.", fix="Check the recogniser's ONNX file.")
        return embedding / length
