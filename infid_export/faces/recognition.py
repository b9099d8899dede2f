"""Face recognition with the user's ArcFace-type ONNX model (Deng et al., arXiv 1801.07698)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from infid_engines.errors import InputError
from infid_engines.manifest import sha256_file
from infid_export.faces.alignment import ARCFACE_TEMPLATE
from infid_export.faces.model_files import open_onnx
from infid_export.faces.onnx_start import RANGES, Range, expected_range

SIZE = 112
# In the metadata of the demo model's networks, since their ONNX files differ between versions of the exporter.
FINGERPRINT = "infid_fingerprint"
# A recognizer with a higher cosine for the two drawn faces sees no difference. The demo model's two recognizers have
# 0.08 and 0.19; a model that scales pixels itself, but is fed scaled ones, has 0.99999.
SAME_FACE = 0.99
_DTYPES = {"tensor(float)": np.float32, "tensor(uint8)": np.uint8}
Array = np.ndarray[Any, Any]


class ArcFaceRecognizer:
    """An ONNX model that embeds an aligned 112 × 112 face.

    Args:
        onnx_path: a model with input `[N, 3, 112, 112]` or `[N, 112, 112, 3]`, RGB, and output `[N, width]`; N is 1 or
            dynamic. fp32 inputs are scaled to the range that the model's first nodes expect (`expected_range`), by
            default [−1, 1]; uint8 inputs are not scaled. The model runs here on two drawn faces, so that a wrong model
            fails immediately.
        width: length of the embedding that the identity modules were trained with.

    Raises:
        InputError: the model is missing, has other shapes, or returns no usable embedding or the same one for different
            faces.
    """

    def __init__(self, onnx_path: Path, width: int = 512) -> None:
        self.width = width
        self._path = onnx_path
        self._session = open_onnx(onnx_path)
        inputs = self._session.get_inputs()
        layout = _layout(inputs[0].shape) if len(inputs) == 1 and inputs[0].type in _DTYPES else None
        if layout is None:
            raise InputError(
                f"{onnx_path} takes {[f'{value.type} {value.shape}' for value in inputs]}, "
                f"not [N, 3, {SIZE}, {SIZE}] in fp32.",
                fix="Use an ArcFace-type recognizer.",
            )
        self._axes = layout
        self._input, self._dtype = inputs[0].name, _DTYPES[inputs[0].type]
        self.range: Range = "raw" if self._dtype is np.uint8 else self._expected_range()
        try:
            outputs = self._run(np.zeros((SIZE, SIZE, 3), np.uint8))
        except Exception as error:  # onnxruntime's exception types are not public
            raise InputError(f"{onnx_path} cannot be run ({error}).", fix="Export or copy it again.") from error
        if len(outputs) != 1 or outputs[0].shape != (1, width):
            raise InputError(
                f"{onnx_path} returns {[list(value.shape) for value in outputs]}, not [N, {width}].",
                fix="Use the recognizer that the identity weights were trained with.",
            )
        self._tell_faces_apart()

    @property
    def fingerprint(self) -> str:
        """Return the sha256 of the file; for a shipped network, that of its weights, independent of the exporter."""
        own: str = self._session.get_modelmeta().custom_metadata_map.get(FINGERPRINT, "")
        return own or sha256_file(self._path)

    @property
    def name(self) -> str:
        """Return the name of the recognizer for messages."""
        shipped = FINGERPRINT in self._session.get_modelmeta().custom_metadata_map
        return "the demo model's recognizer" if shipped else self._path.name

    def embed(self, aligned: Array, normalized: bool = True) -> Array:
        """Return the `[width]` fp32 embedding of a `[112, 112, 3]` uint8 RGB face: L2-normalized, or the model's own.

        Raises:
            InputError: the model returns an embedding that is zero or not finite.
        """
        embedding = self._run(aligned)[0][0].astype(np.float64)
        length = float(np.linalg.norm(embedding))
        if not np.isfinite(length) or length == 0:
            raise InputError(
                f"The recognizer returned no usable embedding (its norm is {length}).",
                fix="Check the recognizer's ONNX file.",
            )
        result: Array = (embedding / length if normalized else embedding).astype(np.float32)
        return result

    def _expected_range(self) -> Range:
        try:
            return expected_range(self._path, self._input)
        except ValueError as error:
            raise InputError(f"{error}.", fix="Use the recognizer's .onnx file.") from error

    def _run(self, aligned: Array) -> Any:
        low, high = RANGES[self.range]
        step = 255 / (high - low)  # pixel values per unit
        pixels = ((aligned.astype(np.float32) + low * step) / step).astype(self._dtype)
        return self._session.run(None, {self._input: pixels.transpose(self._axes)[None]})

    def _tell_faces_apart(self) -> None:
        """Reject a model that returns one embedding for two different faces: all people would look the same."""
        try:
            first, second = (self.embed(face) for face in drawn_faces())
        except InputError as error:
            raise InputError(f"{self._path}: {error.problem}", fix=error.fix) from error
        cosine = float(first @ second)
        if cosine > SAME_FACE:
            raise InputError(
                f"{self._path} cannot tell two different faces apart: the cosine of their embeddings is {cosine:.5f} "
                f"(pixels given as {self.range}, from {RANGES[self.range][0]:.0f} to {RANGES[self.range][1]:.0f}).",
                fix="Use a trained ArcFace-type recognizer that takes RGB in [−1, 1], or one that begins with "
                "nodes that scale the pixels (Sub, Mul).",
            )


def drawn_faces() -> tuple[Array, Array]:
    """Return two very different drawn faces in ArcFace's frame: `[112, 112, 3]` uint8 RGB each."""
    return (
        _drawn_face(skin=(244, 208, 184), hair=(40, 28, 22), iris=(70, 110, 160), back=(200, 220, 235), beard=False),
        _drawn_face(skin=(112, 72, 48), hair=(215, 190, 130), iris=(40, 24, 16), back=(60, 80, 60), beard=True),
    )


_Color = tuple[int, int, int]


def _drawn_face(skin: _Color, hair: _Color, iris: _Color, back: _Color, beard: bool) -> Array:
    image = Image.new("RGB", (SIZE, SIZE), back)
    draw = ImageDraw.Draw(image)
    draw.rectangle((6, 0, 106, 40 if beard else 90), fill=hair)
    draw.ellipse((14, 8, 98, 124), fill=skin)
    if beard:
        draw.ellipse((22, 72, 90, 126), fill=hair)
    eyes, nose, mouth = ARCFACE_TEMPLATE[:2] * SIZE, ARCFACE_TEMPLATE[2] * SIZE, ARCFACE_TEMPLATE[3:] * SIZE
    for x, y in eyes:
        draw.ellipse((x - 8, y - 4, x + 8, y + 4), fill=(250, 250, 250))
        draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill=iris)
        draw.rectangle((x - 10, y - 13, x + 10, y - (8 if beard else 11)), fill=hair)
        if beard:  # and glasses
            draw.ellipse((x - 14, y - 11, x + 14, y + 11), outline=(20, 20, 20), width=3)
    draw.line((nose[0], eyes[0][1], *nose), fill=tuple(value * 3 // 4 for value in skin), width=9 if beard else 5)
    draw.rectangle((*mouth[0], mouth[1][0], mouth[1][1] + 5), fill=(170, 60, 70))
    return np.asarray(image)


def _layout(shape: list[int | str | None]) -> tuple[int, int, int] | None:
    """Return an input's order of height, width and channels; None if it does not take such a face."""
    layouts = {(1, 3, SIZE, SIZE): (2, 0, 1), (1, SIZE, SIZE, 3): (0, 1, 2)}
    for wanted, axes in layouts.items():
        fits = (extent == size or not isinstance(extent, int) for extent, size in zip(shape, wanted, strict=False))
        if len(shape) == 4 and all(fits):
            return axes
    return None
