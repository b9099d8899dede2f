"""M_FaceNet's encoder: a face detector, and a FaceNet-type recognizer in ONNX.

FaceNet (Schroff et al., arXiv 1503.03832) has been exported in many forms, so the crop's size and layout are read
from the model. The scaling of pixels and the kind of crop are options.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from PIL import Image

from infid_engines.errors import InputError
from infid_engines.manifest import sha256_file
from infid_export.faces.alignment import ARCFACE_TEMPLATE, align
from infid_export.faces.detection import Face, FaceDetector
from infid_export.faces.model_files import open_onnx
from infid_export.faces.onnx_start import expected_range

Array = np.ndarray[Any, Any]
Scale = Literal["signed", "unit", "whitened", "raw"]
Crop = Literal["aligned", "box"]
_MARGIN = 0.1  # of the box's larger side, on each side: 32 of 160 pixels in total, like FaceNet's authors


def _signed(pixels: Array) -> Array:
    return (pixels - 127.5) / 127.5


def _unit(pixels: Array) -> Array:
    return pixels / 255


def _whitened(pixels: Array) -> Array:
    """Scale an image to mean 0 and deviation 1; the floor keeps a gray one finite, as in FaceNet's code."""
    floor = 1 / float(np.sqrt(pixels.size))
    whitened: Array = (pixels - pixels.mean()) / max(float(pixels.std()), floor)
    return whitened


def _raw(pixels: Array) -> Array:
    return pixels


_SCALES: dict[Scale, Callable[[Array], Array]] = {
    "signed": _signed, "unit": _unit, "whitened": _whitened, "raw": _raw
}  # fmt: skip


class DetectedFaceScorer:
    """Embeds the largest face of an image; a `FaceScorer`.

    Args:
        detector: finds the faces.
        onnx_path: recognizer with one input, `[N, 3, S, S]` or `[N, S, S, 3]` fp32 RGB with fixed S and N 1 or dynamic,
            and one output `[N, D]`. It runs once here, so that a wrong model fails immediately.
        scale: `signed` is [−1, 1], `unit` is [0, 1], `whitened` has mean 0 and deviation 1 in each crop, `raw` is 0 to
            255, for a model whose first nodes scale the pixels.
        crop: `aligned` warps eyes, nose and mouth to ArcFace's positions; `box` cuts out the detector's box with a
            margin, like FaceNet's authors.
        detector_name: name of the detector, for `describe`.
        model_name: name of the recognizer, for `describe`; None uses the file's hash.

    Raises:
        InputError: the model is missing, has other shapes or scales pixels itself; or there is no such scale or crop.
    """

    def __init__(
        self,
        detector: FaceDetector,
        onnx_path: Path,
        scale: Scale = "signed",
        crop: Crop = "aligned",
        detector_name: str = "",
        model_name: str | None = None,
    ) -> None:
        for name, value, choices in (("scale", scale, get_args(Scale)), ("crop", crop, get_args(Crop))):
            if value not in choices:
                raise InputError(f"There is no {name} '{value}'.", fix=f"Choose from {', '.join(choices)}.")
        self._detector, self._scale, self._crop = detector, scale, crop
        self._session = open_onnx(onnx_path)
        inputs = self._session.get_inputs()
        shape = inputs[0].shape if len(inputs) == 1 and inputs[0].type == "tensor(float)" else []
        self._channels_first, self._size = _layout(onnx_path, shape)
        self._input = inputs[0].name
        if scale != "raw" and expected_range(onnx_path, self._input) == "raw":
            raise InputError(
                f"{onnx_path} scales pixels itself, so pixels scaled with '{scale}' would all look the same to it.",
                fix="Use the scale raw.",
            )
        output = self._run(np.zeros((self._size, self._size, 3), np.uint8), onnx_path)
        if output.ndim != 2 or output.shape[0] != 1:
            raise InputError(f"{onnx_path} returns {list(output.shape)}, not [N, D].", fix="Use a face recognizer.")
        options = {"size": self._size, "scale": scale, "crop": crop, "detector": detector_name}
        self._described = {"model": model_name or sha256_file(onnx_path), **options}

    def describe(self) -> dict[str, Any]:
        """Return the recognizer's hash and how faces are cropped and scaled."""
        return dict(self._described)

    def embed_faces(self, images: Sequence[Image.Image]) -> list[Array | None]:
        """Return a `[D]` embedding of the largest face in each image, or None if no face is found."""
        found = []
        for image in images:
            photo = np.asarray(image.convert("RGB"))
            face = next((face for face in self._detector.detect(photo) if np.isfinite(face.landmarks).all()), None)
            found.append(None if face is None else self._run(self._cut(photo, face))[0])
        return found

    def _cut(self, photo: Array, face: Face) -> Array:
        """Return the `[S, S, 3]` uint8 crop of a face."""
        if self._crop == "aligned":
            return align(photo, face.landmarks, ARCFACE_TEMPLATE, self._size)
        left, top, right, bottom = face.box
        reach = max(right - left, bottom - top) * (0.5 + _MARGIN)
        x, y = (left + right + 1) / 2, (top + bottom + 1) / 2  # a box counts from the first pixel's center
        square = Image.fromarray(photo).transform(
            (self._size, self._size),
            Image.Transform.EXTENT,
            (x - reach, y - reach, x + reach, y + reach),
            resample=Image.Resampling.BICUBIC,
        )
        return np.asarray(square)

    def _run(self, crop: Array, path: Path | None = None) -> Array:
        pixels = _SCALES[self._scale](crop.astype(np.float32)).astype(np.float32)
        batch = (pixels.transpose(2, 0, 1) if self._channels_first else pixels)[None]
        try:
            outputs = self._session.run(None, {self._input: np.ascontiguousarray(batch)})
        except Exception as error:  # onnxruntime's exception types are not public
            raise InputError(
                f"{path or 'The face recognizer'} cannot be run ({error}).", fix="Export or copy it again."
            ) from error
        embedding: Array = outputs[0]
        return embedding


def _layout(path: Path, shape: list[int | str | None]) -> tuple[bool, int]:
    """Return whether channels come first, and the side of the crop."""
    if len(shape) == 4 and (not isinstance(shape[0], int) or shape[0] == 1):
        for first, channels, side in ((True, shape[1], shape[2:]), (False, shape[3], shape[1:3])):
            if channels == 3 and side[0] == side[1] and isinstance(side[0], int):
                return first, side[0]
    raise InputError(
        f"{path} takes {shape or 'no single fp32 tensor'}, not [N, 3, S, S] or [N, S, S, 3] in fp32 with a fixed S.",
        fix="Export the recognizer with a fixed crop size, and a batch of 1 or a dynamic one.",
    )
