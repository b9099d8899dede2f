"""A typical checkpoint folder: written by diffusers, read by its loaders."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import CLIPTokenizer

from infid_engines.errors import InputError
from infid_export.export.build_options import BuildOptions
from infid_export.export.builder import build, verify
from infid_export.export.parity_case import parity_face
from infid_export.model.opening import open_source
from infid_export.model.processors import identity_blocks
from infid_export.model.reference_pipeline import InfiniteIDPipeline


def test_checkpoint_gives_the_weights_it_was_made_of(parts, source):
    opened = open_source(str(parts["base"]), identity=parts["identity"], image_encoder=str(parts["encoder"]))
    assert opened.architecture.size == source.architecture.size
    for component in ("unet", "vae", "text_encoder", "text_encoder_2", "image_encoder", "identity"):
        expected = dict(source.weights(component, torch.float32))
        found = dict(opened.weights(component, torch.float32))
        assert found.keys() == expected.keys()
        for name in expected:
            torch.testing.assert_close(found[name], expected[name], rtol=0, atol=0)


@pytest.mark.parametrize("files", ["as transformers writes them now", "as SDXL's own folders have them"])
def test_checkpoint_tokenizers_equal_transformers(parts, tmp_path, files):
    base = shutil.copytree(parts["base"], tmp_path / "base")
    if files.startswith("as SDXL"):
        for name in ("tokenizer", "tokenizer_2"):
            shutil.rmtree(base / name)
            shutil.copytree(parts["base"].parent / "words" / name, base / name)
    opened = open_source(str(base), identity=parts["identity"], image_encoder=str(parts["encoder"]))
    for text, name in zip(opened.tokenizers(), ("tokenizer", "tokenizer_2"), strict=True):
        slow = CLIPTokenizer.from_pretrained(parts["base"].parent / "words" / name)
        for prompt in ("a portrait in the rain", "Ünïcode, 123!", "w " * 90):
            expected = slow(prompt, padding="max_length", max_length=77, truncation=True).input_ids
            assert Tokenizer.from_str(text).encode(prompt).ids == expected


def test_reference_pipeline_loads_it(parts, source):
    pipe = InfiniteIDPipeline.from_pretrained(parts["base"], identity=parts["identity"])
    assert pipe.unet.config.sample_size == 32
    assert pipe.identity_config.image_encoder == "infid-test-vit"
    keys = torch.zeros(2, 54, sum(identity_blocks(pipe.unet).values()))
    pipe.set_progress_bar_config(disable=True)
    images = pipe("x", (keys, keys), height=64, width=64, num_inference_steps=1, output_type="np").images
    assert images.shape == (1, 64, 64, 3)


def test_choices_go_before_the_identity_files(parts):
    choices = {"self_attention": "plain", "cross_adain": "off", "adain": None}
    found = open_source(
        str(parts["base"]), identity=parts["identity"], image_encoder=str(parts["encoder"]), choices=choices
    )
    variant = InfiniteIDPipeline.from_source(found).identity_config
    assert (variant.self_attention, variant.cross_adain, variant.adain) == ("plain", "off", "mean")


def test_checkpoint_builds_and_passes_parity(parts, tmp_path, demo_folder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recognizer = Path("recognizer.onnx")
    shutil.copyfile(demo_folder / "faces/recognizer.onnx", recognizer)
    report = build(
        BuildOptions(
            output=tmp_path / "engines",
            model=str(parts["base"]),
            identity=parts["identity"],
            image_encoder=str(parts["encoder"]),
            recognizer=recognizer,
            backends=("onnxruntime",),
            graphs=("text_encoder_2", "identity_encoder", "vae_decoder"),
            height=64,
            width=64,
        )
    )
    assert report.parity.passed
    recognizer.unlink()  # the folder has its own
    monkeypatch.chdir("/")
    assert verify(tmp_path / "engines").passed
    assert any("non-commercial" in note for note in report.notes)


def test_a_checkpoint_needs_its_parts(parts, tmp_path):
    with pytest.raises(InputError, match="needs identity weights and an image encoder"):
        open_source(str(parts["base"]))
    with pytest.raises(InputError, match="not a checkpoint in diffusers' format: it is empty"):
        open_source(str(tmp_path), identity=parts["identity"], image_encoder="x")
    with pytest.raises(InputError, match="needs the face recognizer"):
        build(
            BuildOptions(
                output=tmp_path / "engines",
                model=str(parts["base"]),
                identity=parts["identity"],
                image_encoder=str(parts["encoder"]),
            )
        )


def test_a_changed_tokenizer_is_another_tokenizer(parts, tmp_path):
    base = shutil.copytree(parts["base"], tmp_path / "base")
    opened = open_source(str(base), identity=parts["identity"], image_encoder=str(parts["encoder"]))
    before = opened.tokenizer_fingerprint()
    file = base / "tokenizer/tokenizer.json"
    file.write_text(file.read_text().replace('"the</w>"', '"teh</w>"', 1))
    assert opened.tokenizer_fingerprint() != before


def test_a_pipeline_in_half_precision_takes_an_encoder_in_full(parts, source):
    encoder = source.load("image_encoder", torch.float32)
    pipe = InfiniteIDPipeline.from_pretrained(
        parts["base"], identity=parts["identity"], image_encoder=encoder, torch_dtype=torch.float16
    )
    keys, _ = pipe.encode_identity(parity_face(224, 512))
    assert keys.dtype == torch.float16
    held = []
    pipe.vae.decoder.conv_in.register_forward_pre_hook(lambda module, inputs: held.append(inputs[0].dtype))
    pipe.vae.register_to_config(force_upcast=True)
    assert pipe._decode(torch.zeros(1, 4, 8, 8)).isfinite().all()
    assert (held, pipe.vae.dtype) == ([torch.float32], torch.float16)
