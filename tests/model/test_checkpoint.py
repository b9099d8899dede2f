"""A checkpoint folder as people have them: written by diffusers, read by its loaders."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import open_clip
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionXLPipeline
from tokenizers import Tokenizer
from transformers import CLIPTokenizer

from infid_engines.errors import InputError
from infid_export.export.build import build, verify
from infid_export.export.options import BuildOptions
from infid_export.export.reference import parity_face
from infid_export.model.identity import IdentityModules
from infid_export.model.pipeline import InfiniteIDPipeline
from infid_export.model.processors import identity_blocks
from infid_export.model.sources import RandomSource, open_source, remembered_sha256
from infid_export.scheduler import SDXL_SCHEDULER

ENCODER = "infid-test-vit"


@pytest.fixture(scope="module")
def parts(source: RandomSource, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The demo model's weights as a diffusers folder, an identity file and an OpenCLIP checkpoint."""
    root = tmp_path_factory.mktemp("checkpoint")
    vocabulary = json.loads(source.tokenizers()[0])["model"]
    for name, pad in (("tokenizer", "<|endoftext|>"), ("tokenizer_2", "!")):
        folder = root / "words" / name
        folder.mkdir(parents=True)
        (folder / "vocab.json").write_text(json.dumps(vocabulary["vocab"]))
        merges = "\n".join(" ".join(pair) for pair in vocabulary["merges"])
        (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
        special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
        (folder / "special_tokens_map.json").write_text(json.dumps({**special, "pad_token": pad}))
        (folder / "tokenizer_config.json").write_text(
            json.dumps({**special, "pad_token": pad, "model_max_length": 77, "tokenizer_class": "CLIPTokenizer"})
        )
    pipe = StableDiffusionXLPipeline(
        **{name: source.load(name, torch.float32) for name in ("vae", "text_encoder", "text_encoder_2", "unet")},
        **{name: CLIPTokenizer.from_pretrained(root / "words" / name) for name in ("tokenizer", "tokenizer_2")},
        scheduler=DDIMScheduler(**SDXL_SCHEDULER),
        add_watermarker=False,
    )
    pipe.save_pretrained(root / "base", safe_serialization=True)
    vision = {key: value for key, value in source.architecture.image_encoder.items() if key != "embed_dim"}
    text = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    (root / f"{ENCODER}.json").write_text(json.dumps({"embed_dim": 64, "vision_cfg": vision, "text_cfg": text}))
    open_clip.add_model_config(root / f"{ENCODER}.json")
    clip = open_clip.create_model(ENCODER)
    clip.visual.load_state_dict(source.load("image_encoder", torch.float32).visual.state_dict())
    torch.save(clip.state_dict(), root / "open_clip.pt")
    identity = source.load("identity", torch.float32)
    modules = IdentityModules(replace(source.config, image_encoder=ENCODER), identity_blocks(source.empty("unet")))
    modules.load_state_dict(identity.state_dict())
    modules.save(root / "identity.safetensors")
    return {"base": root / "base", "identity": root / "identity.safetensors", "encoder": root / "open_clip.pt"}


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
    assert pipe.identity_config.image_encoder == ENCODER
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
    with pytest.raises(InputError, match=r"unet/config.json cannot be read"):
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


REFUSED = {
    "scheduler/scheduler_config.json": {
        "prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "beta_end": 0.02,
    },
    "unet/config.json": {"in_channels": 9, "addition_embed_type": None},
}  # fmt: skip


@pytest.mark.parametrize(("file", "field"), [(file, field) for file, fields in REFUSED.items() for field in fields])
def test_a_checkpoint_of_another_kind_is_refused(parts, tmp_path, file, field):
    base = shutil.copytree(parts["base"], tmp_path / "base")
    values = json.loads((base / file).read_text())
    (base / file).write_text(json.dumps({**values, field: REFUSED[file][field]}))
    with pytest.raises(InputError, match=r"only SDXL's|takes 9 channels|not an SDXL checkpoint"):
        open_source(str(base), identity=parts["identity"], image_encoder=str(parts["encoder"]))


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


def test_truncated_weights_are_refused(parts, tmp_path):
    broken = shutil.copytree(parts["base"], tmp_path / "base")
    weights = next((broken / "vae").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:1000])
    opened = open_source(str(broken), identity=parts["identity"], image_encoder=str(parts["encoder"]))
    with pytest.raises(InputError, match=r"vae weights of .* cannot be loaded"):
        opened.load("vae", torch.float32)


def test_hashes_are_remembered_until_a_file_changes(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "a"
    path.write_text("one")
    first = remembered_sha256(path)
    monkeypatch.setattr("infid_export.model.sources.sha256_file", lambda _: "hashed again")
    assert remembered_sha256(path) == first
    path.write_text("three")
    assert remembered_sha256(path) == "hashed again"
