from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import small_face_models
import tiny_engines
import torch
from evaluation_parts import SMALL, dotted, plain
from safetensors.numpy import save_file

from infid_engines.errors import InputError
from infid_export.evaluation.generators import EngineGenerator, ReferenceGenerator, open_reference
from infid_export.faces.detection import CenterFaceDetector
from infid_export.faces.reader import FaceReader
from infid_export.faces.recognition import ArcFaceRecognizer
from infid_export.model.identity import IdentityModules
from infid_export.model.reference_pipeline import InfiniteIDPipeline
from infid_export.model.sources import BUILT_IN, RandomSource
from infid_export.runtime.pipeline import Pipeline, seeded_noise

PROMPTS, SEEDS = ["a knight", "a pirate", "a baker"], [11, 5, 7]
SHORT = {"steps": 2, "guidance": 3.0}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Such a small network is slower on two threads, and many times slower if they wait for a core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def source() -> Iterator[RandomSource]:
    """A built-in random model, as small as possible."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BUILT_IN, "random-sdxl", SMALL)
        yield RandomSource("random-sdxl")


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory, source: RandomSource) -> FaceReader:
    folder = tmp_path_factory.mktemp("faces")
    detector = CenterFaceDetector(small_face_models.write_dot_detector(folder / "detector.onnx"))
    recognizer = ArcFaceRecognizer(small_face_models.write_recognizer(folder / "recognizer.onnx"))
    return FaceReader(detector, recognizer, source.architecture.image_encoder["image_size"])


def drawn(
    generator, prompts: list[str] = PROMPTS[:1], seeds: list[int] = SEEDS[:1], stylized: bool = True
) -> list[np.ndarray]:
    images = generator.generate(generator.enroll(dotted(90, size=128)), prompts, seeds, stylized)
    return [np.asarray(image).astype(int) for image in images]


@pytest.mark.parametrize("stylized", [True, False])
def test_engines_make_what_the_pipeline_makes(tmp_path: Path, stylized: bool) -> None:
    with Pipeline.load(tiny_engines.write_folder(tmp_path / "engines"), backend="onnxruntime") as pipe:
        generator = EngineGenerator(pipe, {"steps": 3, "guidance": None, "style_strength": 0.5})
        assert generator.batch == tiny_engines.BATCH
        found = generator.generate(generator.enroll(dotted(90)), PROMPTS, SEEDS, stylized)
        settings = {"steps": 3, "style_strength": 0.5 if stylized else 0.0}
        expected = pipe.generate(PROMPTS, pipe.enroll(dotted(90)), seed=SEEDS, **settings)
        assert [np.asarray(a).tolist() for a in found] == [np.asarray(b).tolist() for b in expected]
        described = generator.describe()
    assert described["settings"] == {
        "steps": 3, "guidance": 5.0, "style_strength": 0.5, "identity_strength": 1.0, "plain_style_strength": 0.0,
        "sampler": "ddim", "spacing": "leading",
    }  # fmt: skip
    assert (described["backend"], described["precision"]) == ("onnxruntime", "fp32")
    assert described["model"]["id"] == tiny_engines.MODEL


def test_the_reference_makes_what_the_pytorch_pipeline_makes(reader: FaceReader, source: RandomSource) -> None:
    generator = ReferenceGenerator(source, reader, SHORT)
    pipe = InfiniteIDPipeline.from_source(source)
    pipe.set_progress_bar_config(disable=True)
    side = source.architecture.size // source.architecture.vae_scale_factor
    expected = pipe(
        PROMPTS[1],
        pipe.encode_identity(reader.read(dotted(90, size=128))),
        latents=torch.from_numpy(seeded_noise([5], (4, side, side))),
        num_inference_steps=2,
        guidance_scale=3.0,
    ).images[0]
    found = drawn(generator, PROMPTS[:2], SEEDS[:2])[1]
    # two prompts at once round differently from one
    assert np.abs(found - np.asarray(expected).astype(int)).max() <= 1
    described = generator.describe()
    assert described["settings"]["steps"] == 2
    assert described["precision"] == "fp32"


def test_prompts_without_a_style_are_drawn_without_adain_mean(reader: FaceReader, source: RandomSource) -> None:
    generator, asked = (
        ReferenceGenerator(source, reader, {**SHORT, **more}) for more in ({}, {"plain_style_strength": 1.0})
    )
    off = ReferenceGenerator(source, reader, {**SHORT, "style_strength": 0.0})
    plain_one = drawn(generator, stylized=False)[0]
    assert np.array_equal(plain_one, drawn(off)[0])
    assert np.abs(plain_one - drawn(generator)[0]).max() > 3
    assert np.array_equal(drawn(asked, stylized=False)[0], drawn(generator)[0])


@pytest.mark.parametrize(
    "choices",
    [
        {"self_attention": "plain"},
        {"self_attention": "mutual"},
        {"adain": "standard"},
        {"adain": "off", "cross_adain": "off"},
    ],
    ids=str,
)
def test_a_variant_of_the_method_changes_the_picture(
    reader: FaceReader, source: RandomSource, choices: dict[str, str], method: np.ndarray
) -> None:
    generator = ReferenceGenerator(source, reader, SHORT, choices)
    assert {name: generator.describe()["model"]["config"][name] for name in choices} == choices
    assert np.abs(drawn(generator)[0] - method).max() > 3


@pytest.fixture(scope="module")
def method(reader: FaceReader, source: RandomSource) -> np.ndarray:
    return drawn(ReferenceGenerator(source, reader, SHORT))[0]


def test_weights_of_another_training_change_the_picture(
    reader: FaceReader, source: RandomSource, method: np.ndarray, tmp_path: Path
) -> None:
    modules = source.load("identity", torch.float32)
    assert isinstance(modules, IdentityModules)
    modules.config = modules.config.with_choices(trained_with_text=True)
    own, other = tmp_path / "own.safetensors", tmp_path / "other.safetensors"
    modules.save(own)
    same = ReferenceGenerator(source, reader, SHORT, identity=own)
    with pytest.raises(InputError, match="No face was found"):
        same.enroll(plain(0, size=128))
    np.testing.assert_array_equal(drawn(same)[0], method)
    assert same.describe()["model"]["config"]["trained_with_text"] is True
    for parameter in modules.parameters():
        parameter.neg_()
    modules.save(other)
    changed = ReferenceGenerator(source, reader, SHORT, identity=other)
    assert np.abs(drawn(changed)[0] - method).max() > 3
    assert changed.describe() != same.describe()


def test_what_the_reference_cannot_do_is_rejected_before_the_model_is_loaded(
    reader: FaceReader, source: RandomSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(InfiniteIDPipeline, "from_source", None)
    with pytest.raises(InputError, match="self_attention must be one of"):
        ReferenceGenerator(source, reader, choices={"self_attention": "double"})
    with pytest.raises(InputError, match="no identity file"):
        ReferenceGenerator(source, reader, identity=tmp_path / "missing.safetensors")


def test_a_reference_opened_by_name(source: RandomSource, tmp_path: Path, method: np.ndarray) -> None:
    detector = small_face_models.write_dot_detector(tmp_path / "detector.onnx")
    recognizer = small_face_models.write_recognizer(tmp_path / "recognizer.onnx")
    faces = {"recognizer": recognizer, "face_detector": str(detector)}
    found = drawn(open_reference("random-sdxl", settings=SHORT, choices={"adain": None}, **faces))[0]
    assert found.shape == method.shape
    off = drawn(open_reference("random-sdxl", settings=SHORT, choices={"adain": "off"}, **faces))[0]
    assert np.abs(found - off).max() > 3
    with pytest.raises(InputError, match="There is no model at"):
        open_reference("random-sdxl", recognizer=tmp_path / "missing.onnx", face_detector=str(detector))


def test_identity_weights_with_a_lora_do_not_replace_others(
    source: RandomSource, reader: FaceReader, tmp_path: Path
) -> None:
    lora = {"lora.mid_block.attn1.to_q.down.weight": np.zeros((1, 2), np.float32)}
    save_file(lora, tmp_path / "faceid.safetensors", metadata={"infid_config": "{}"})
    with pytest.raises(InputError, match="has a LoRA, which changes the base model"):
        ReferenceGenerator(source, reader, identity=tmp_path / "faceid.safetensors")
