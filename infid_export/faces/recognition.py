"""Face recognition: an ArcFace-type ONNX model of the user's (Deng et al., arXiv 1801.07698)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from infid_engines.errors import InputError
from infid_export.faces.model_files import open_onnx

SIZE = 112
Array = np.ndarray[Any, Any]


class ArcFaceRecognizer:
    """An ONNX model from an aligned 112 × 112 face to an embedding.

    Args:
        onnx_path: model with input `[N, 3, 112, 112]` fp32, RGB scaled to [−1, 1], and output `[N, width]`;
            N is 1 or free. It is run once here, so that a wrong model is found at once.
        width: length of the embedding the identity modules were trained on.

    Raises:
        InputError: the model is missing or has other shapes.
    """

    def __init__(self, onnx_path: Path, width: int = 512) -> None:
        self._session = open_onnx(onnx_path)
        inputs = self._session.get_inputs()
        if len(inputs) != 1 or inputs[0].type != "tensor(float)" or not _takes_a_face(inputs[0].shape):
            raise InputError(
                f"{onnx_path} takes {[f'{value.type} {value.shape}' for value in inputs]}, "
                f"not [N, 3, {SIZE}, {SIZE}] in fp32.",
                fix="Use an ArcFace-type recogniser.",
            )
        self._input = inputs[0].name
        try:
            outputs = self._session.run(None, {self._input: np.zeros((1, 3, SIZE, SIZE), np.float32)})
        except Exception as error:  # onnxruntime's exception types are not public
            raise InputError(f"{onnx_path} cannot be run ({error}).", fix="Export or copy it again.") from error
        if len(outputs) != 1 or outputs[0].shape != (1, width):
            raise InputError(
                f"{onnx_path} gives {[list(value.shape) for value in outputs]}, not [N, {width}].",
                fix="Use the recogniser the identity weights were trained with.",
            )

    def embed(self, aligned: Array) -> Array:
        """Return the L2-normalised `[width]` fp32 embedding of a `[112, 112, 3]` uint8 RGB face.

        Raises:
            InputError: the model gives an embedding without direction.
        """
        pixels = (aligned.astype(np.float32).transpose(2, 0, 1)[None] - 127.5) / 127.5
        embedding = self._session.run(None, {self._input: pixels})[0][0].astype(np.float64)
        length = float(np.linalg.norm(embedding))
        if not np.isfinite(length) or length == 0:
            raise InputError(
                f"The recogniser gave no usable embedding (its length is {length}).",
                fix="Check the recogniser's ONNX file.",
            )
        normalised: Array = (embedding / length).astype(np.float32)
        return normalised


def _takes_a_face(shape: list[int | str | None]) -> bool:
    wanted = (1, 3, SIZE, SIZE)
    return len(shape) == 4 and all(
        extent == size or not isinstance(extent, int) for extent, size in zip(shape, wanted, strict=True)
    )
