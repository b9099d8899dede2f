from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import onnx
import pytest
from infid_engines.errors import InputError
from infid_export.faces.alignment import ARCFACE_TEMPLATE, align, portrait_template, similarity
from infid_export.faces.detection import (
    CenterFaceDetector,
    Face,
    InsightFaceDetector,
    choose_face,
    find_centerface,
    make_dynamic_centerface,
)
from infid_export.faces.photos import load_photo
from infid_export.faces.recognition import ArcFaceRecognizer
from onnx import TensorProto, helper
from PIL import Image


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> CenterFaceDetector:
    path = tmp_path_factory.mktemp("faces") / "detector.onnx"
    make_dynamic_centerface(find_centerface(), path)
    return CenterFaceDetector(path)


def test_a_real_face_is_found_where_it_is(detector, astronaut):
    (face,) = detector.detect(astronaut)
    assert face.score > 0.9
    # eyes, nose and mouth of the photo, read off it by hand
    by_hand = np.array([[203, 102], [247, 104], [223, 125], [204, 142], [241, 144]])
    assert np.abs(face.landmarks - by_hand).max() < 4


def test_detection_follows_scale_and_position(detector, astronaut):
    (face,) = detector.detect(astronaut)
    wide = np.zeros((700, 1900, 3), np.uint8)
    large = np.asarray(Image.fromarray(astronaut).resize((640, 640)))
    wide[40:680, 1200:1840] = large
    (moved,) = detector.detect(wide)
    assert np.abs(moved.landmarks - (face.landmarks * 1.25 + [1200, 40])).max() < 6


def test_two_faces_are_ordered_by_size(detector, astronaut):
    both = np.zeros((512, 1024, 3), np.uint8)
    both[:, :512] = np.asarray(Image.fromarray(astronaut).resize((300, 300)).resize((512, 512)))
    both[:300, 600:900] = np.asarray(Image.fromarray(astronaut).resize((300, 300)))
    faces = detector.detect(both)
    assert len(faces) == 2
    assert faces[0].area > faces[1].area
    assert choose_face(faces) is faces[0]
    assert choose_face(faces, 1) is faces[1]
    with pytest.raises(InputError, match="2 face"):
        choose_face(faces, 2)


def test_no_face_and_tiny_faces_are_refused(detector, astronaut):
    with pytest.raises(InputError, match="No face"):
        choose_face(detector.detect(np.full((300, 300, 3), 128, np.uint8)))
    tiny = Face(np.array([0, 0, 12, 15.0]), 0.9, np.array([[2, 2], [8, 2], [5, 5], [3, 8], [7, 8.0]]))
    with pytest.raises(InputError, match="6 pixels between the eyes"):
        choose_face([tiny])


def test_similarity_recovers_a_known_transform():
    points = ARCFACE_TEMPLATE * 112
    angle = 0.4
    rotation = 1.7 * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    found = similarity(points, points @ rotation.T + [10, -5])
    np.testing.assert_allclose(found, np.column_stack([rotation, [10, -5]]), atol=1e-9)


@pytest.mark.parametrize("scale", [1, 3])
@pytest.mark.parametrize("angle", [0, 30])
def test_aligned_landmarks_lie_on_the_template(detector, astronaut, scale, angle):
    image = Image.fromarray(astronaut).rotate(angle, Image.Resampling.BICUBIC)
    photo = np.asarray(image.resize((512 * scale, 512 * scale)))
    face = choose_face(detector.detect(photo))
    crop = align(photo, face.landmarks, portrait_template(), 224)
    (again,) = detector.detect(crop)
    assert np.abs(again.landmarks - portrait_template() * 224).max() < 7


def encode(image: Image.Image, form: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def test_every_kind_of_photo_becomes_upright_rgb(astronaut):
    small = Image.fromarray(astronaut).resize((64, 48))
    rgb = np.asarray(small).astype(int)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated by 90 degrees
    turned = load_photo(encode(small.rotate(90, expand=True), "PNG", exif=exif))
    np.testing.assert_array_equal(turned, rgb)
    grey = np.asarray(small.convert("L")).astype(int)
    for found in (
        load_photo(encode(small.convert("L"), "PNG")),
        load_photo(encode(Image.fromarray((grey * 257).astype(np.uint16)), "PNG")),
        load_photo(encode(Image.fromarray((grey * 257).astype(np.uint16)), "TIFF")),
    ):
        assert np.abs(found - grey[..., None]).max() <= 1
    assert np.abs(load_photo(encode(small.convert("CMYK"), "TIFF")) - rgb).max() <= 2
    clear = small.convert("RGBA")
    clear.putalpha(0)
    assert (load_photo(encode(clear, "PNG")) == 255).all()
    np.testing.assert_array_equal(load_photo(small), rgb)
    assert load_photo(encode(small.quantize(16), "PNG")).shape == (48, 64, 3)


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory, astronaut) -> Path:
    folder = tmp_path_factory.mktemp("broken")
    image = Image.fromarray(astronaut)
    (folder / "empty.png").touch()
    (folder / "text.jpg").write_text("not a picture")
    (folder / "cut.png").write_bytes(encode(image, "PNG")[:20000])
    (folder / "cut.jpg").write_bytes(encode(image, "JPEG")[:3000])
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:])
    Image.new("1", (12000, 12000)).save(folder / "bomb.png")
    Image.new("1", (20000, 20000)).save(folder / "bigger_bomb.png")
    return folder


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.jpg", "There is no photo"),
        ("", "is a folder"),
        ("empty.png", "is an empty file"),
        ("text.jpg", "not an image"),
        ("cut.png", "damaged or cut off"),
        ("cut.jpg", "damaged or cut off"),
        ("moving.gif", r"animated \(2 frames\)"),
        ("bomb.png", "larger than 100 megapixels"),
        ("bigger_bomb.png", "larger than 100 megapixels"),
    ],
)
def test_bad_photos_are_refused_in_one_sentence(broken, name, message):
    with pytest.raises(InputError, match=message):
        load_photo(broken / name)


def test_arrays_of_other_types_are_refused():
    with pytest.raises(InputError, match="uint8"):
        load_photo(np.zeros((8, 8, 3), np.float32))


def recognizer(path: Path, size: int = 112, width: int = 512) -> Path:
    kernel = onnx.numpy_helper.from_array(np.ones((width, 3, size, size), np.float32), "k")
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "k"], ["c"]), helper.make_node("Flatten", ["c"], ["y"])],
        "r",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, size, size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", width])],
        [kernel],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), str(path))
    return path


def test_recognizer_normalises(tmp_path):
    embedding = ArcFaceRecognizer(recognizer(tmp_path / "r.onnx")).embed(np.full((112, 112, 3), 200, np.uint8))
    assert embedding.shape == (512,)
    assert np.linalg.norm(embedding) == pytest.approx(1)


@pytest.mark.parametrize(("size", "width", "message"), [(96, 512, "not .N, 3, 112, 112"), (112, 128, "not .N, 512")])
def test_other_recognizers_are_refused(tmp_path, size, width, message):
    with pytest.raises(InputError, match=message):
        ArcFaceRecognizer(recognizer(tmp_path / "r.onnx", size, width))


def test_embedding_without_direction_is_refused(tmp_path):
    path = recognizer(tmp_path / "r.onnx")
    model = onnx.load(path)
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(np.zeros((512, 3, 112, 112), np.float32), "k"))
    onnx.save(model, path)
    with pytest.raises(InputError, match="no usable embedding"):
        ArcFaceRecognizer(path).embed(np.zeros((112, 112, 3), np.uint8))


def test_insightface_needs_local_models(tmp_path):
    with pytest.raises(InputError, match=r"no \.onnx model.*non-commercial"):
        InsightFaceDetector(tmp_path)
    recognizer(tmp_path / "only_a_recogniser.onnx")
    with pytest.raises(InputError, match="no InsightFace detection model"):
        InsightFaceDetector(tmp_path)
