"""Imported weights compute what diffusers computes with the same file, and their LoRA is merged into the UNet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from adapter_layouts import DEMO, FAMILIES, adapter, write_adapter
from diffusers import StableDiffusionXLPipeline
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from infid_engines.errors import InputError
from infid_export.export.build_options import BuildOptions
from infid_export.export.builder import build
from infid_export.importing.adapter import import_adapter
from infid_export.importing.target import open_target
from infid_export.model.changes.updated_source import UpdatedSource
from infid_export.model.config import CONFIG_KEY, IdentityConfig, read_config
from infid_export.model.encoders import normalized
from infid_export.model.identity import IdentityModules
from infid_export.model.identity_lora import IdentityLora, identity_lora, merge_identity_lora
from infid_export.model.opening import open_source
from infid_export.model.processors import Streams, identity_blocks, install_processors
from infid_export.model.shipped import ShippedSource

STRENGTH, GUIDANCE = 0.7, 5.0


@pytest.fixture
def faceid(tmp_path: Path) -> Path:
    source = write_adapter(tmp_path / "faceid.safetensors", adapter("faceid", DEMO))
    import_adapter(source, tmp_path / "identity.safetensors", model="demo")
    return tmp_path / "identity.safetensors"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_unet_with_the_file_is_that_of_diffusers(family: str, tmp_path: Path) -> None:
    if family.startswith("faceid"):
        pytest.importorskip("peft", reason="diffusers loads FaceID's LoRA through peft")
    file = write_adapter(tmp_path / f"{family}.safetensors", adapter(family, DEMO))
    import_adapter(file, tmp_path / "identity.safetensors", model="demo")
    generator = torch.Generator().manual_seed(1)
    config = read_config(tmp_path / "identity.safetensors")
    clip = torch.randn(2, config.clip_tokens, config.clip_width, generator=generator) if config.reads_image else None
    face = torch.randn(2, config.face_width, generator=generator) if config.reads_face else None
    call = _call(generator)
    with torch.no_grad():
        found = _ours(tmp_path / "identity.safetensors", clip, face, call)
        expected = _of_diffusers(file, clip, face, call)
        plain = _unet("demo", None)(**call, return_dict=False)[0]
    assert (found - expected).abs().max() <= 1e-5
    assert (found - plain).abs().max() > 1e-2, "the weights have no effect, so nothing was compared"


@pytest.mark.parametrize("family", FAMILIES)
def test_engines_with_the_file_are_diffusers(family: str, tmp_path: Path) -> None:
    """From a photo's pixels and a face embedding through two ONNX graphs, to the guided prediction of one step."""
    if family.startswith("faceid"):
        pytest.importorskip("peft", reason="diffusers loads FaceID's LoRA through peft")
    file = write_adapter(tmp_path / f"{family}.safetensors", adapter(family, DEMO))
    identity = tmp_path / "identity.safetensors"
    config = import_adapter(file, identity, model="demo").config
    report = build(
        BuildOptions(
            tmp_path / "engines", identity=identity, height=64, width=64, backends=("onnxruntime",),
            graphs=("identity_encoder", "single_step"), allow_other_encoders=True,
        )
    )  # fmt: skip
    generator = torch.Generator().manual_seed(1)
    crop, face = torch.rand(1, 3, 224, 224, generator=generator), torch.randn(1, 512, generator=generator)
    both = (("face_crop", crop, config.reads_image), ("face_embedding", face, config.reads_face))
    _, keys, values = _run(report.folder, "identity_encoder", {name: value for name, value, reads in both if reads})
    call = _call(generator)
    call["sample"][1] = call["sample"][0]
    conditions = call["added_cond_kwargs"]
    found, _ = _run(
        report.folder,
        "single_step",
        {
            "identity_latents": call["sample"][:1],
            **{f"identity_{name}": torch.zeros(1, 4, 16, 16) for name in ("denoised", "noise")},
            "timestep": call["timestep"],
            "coefficients": torch.tensor([1.0, 0, 1, 0, 0, 0, 0]),  # a step to the prediction itself
            "prompt_embeds": call["encoder_hidden_states"],
            "pooled_prompt_embeds": conditions["text_embeds"],
            "time_ids": conditions["time_ids"],
            "identity_keys": keys,
            "identity_values": values,
            "identity_strength": torch.tensor([STRENGTH]),
            "guidance": torch.tensor([GUIDANCE]),
        },
    )
    with torch.no_grad():
        uncond, cond = _of_diffusers(file, *_features(identity, crop, face), call).split(1)
    expected = uncond + GUIDANCE * (cond - uncond)
    assert (found - expected).abs().max() / expected.abs().max() <= 1e-5


def _features(identity: Path, crop: Tensor, face: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Return what the adapter reads for both rows, the unconditional one first."""
    source = open_source("demo", identity=identity)
    clip = None
    if source.config.reads_image:
        encoder: Any = source.load("image_encoder", torch.float32)
        pixels = normalized(crop)
        if source.config.uncond_identity == "zero_image":
            clip = encoder.encode(torch.cat([torch.zeros_like(pixels), pixels]))
        else:
            clip = encoder.encode(pixels)
            clip = torch.cat([torch.zeros_like(clip), clip])
    return clip, torch.cat([torch.zeros_like(face), face]) if source.config.reads_face else None


def _run(folder: Path, graph: str, inputs: dict[str, Tensor]) -> list[Tensor]:
    session = onnxruntime.InferenceSession(folder / f"onnx/{graph}.onnx", providers=["CPUExecutionProvider"])
    outputs = session.run(None, {name: value.numpy() for name, value in inputs.items()})
    return [torch.from_numpy(each) for each in outputs]


def _call(generator: torch.Generator) -> dict[str, Any]:
    unet = ShippedSource.architecture.unet
    pooled = unet["projection_class_embeddings_input_dim"] - 6 * unet["addition_time_embed_dim"]
    return {
        "sample": torch.randn(2, 4, 16, 16, generator=generator),
        "timestep": torch.tensor([601.0]),
        "encoder_hidden_states": torch.randn(2, 77, DEMO.dim, generator=generator),
        "added_cond_kwargs": {
            "text_embeds": torch.randn(2, pooled, generator=generator),
            "time_ids": torch.tensor([[128.0, 128, 0, 0, 128, 128]] * 2),
        },
    }


def _unet(model: str, identity: Path | None) -> Any:
    return open_source(model, identity=identity).load("unet", torch.float32)


def _ours(identity: Path, clip: Tensor | None, face: Tensor | None, call: dict[str, Any]) -> Tensor:
    unet = _unet("demo", identity)
    modules = IdentityModules.load(identity, identity_blocks(unet))
    _, keys, values = modules(clip, face)
    install_processors(unet, modules.config)
    streams = Streams(text=False, identity_keys=keys, identity_values=values, style_strength=torch.zeros(2),
                      identity_strength=torch.full((2,), STRENGTH))  # fmt: skip
    found: Tensor = unet(**call, cross_attention_kwargs={"streams": streams}, return_dict=False)[0]
    return found


def _of_diffusers(file: Path, clip: Tensor | None, face: Tensor | None, call: dict[str, Any]) -> Tensor:
    parts = dict.fromkeys(("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler"))
    pipe: Any = StableDiffusionXLPipeline(**parts, unet=_unet("demo", None), add_watermarker=False)
    # it sets the strength 1 that a LoRA has anyway, and fails on UNets with different depths
    pipe.set_adapters = lambda *arguments, **settings: None
    pipe.load_ip_adapter(str(file.parent), subfolder="", weight_name=file.name, image_encoder_folder=None)
    for processor in pipe.unet.attn_processors.values():
        if hasattr(processor, "scale"):
            processor.scale = [STRENGTH]
    embeds = face if clip is None else clip
    assert embeds is not None
    if face is not None and clip is not None:
        (layer,) = pipe.unet.encoder_hid_proj.image_projection_layers
        layer.clip_embeds, layer.shortcut = clip[:, None], True
        embeds = face
    if file.stem != "ip-adapter":  # which has a pooled image, so one token already
        embeds = embeds[:, None]
    if file.stem == "instantid":
        embeds = embeds[:, None]
    conditions = {**call["added_cond_kwargs"], "image_embeds": [embeds]}
    found: Tensor = pipe.unet(**{**call, "added_cond_kwargs": conditions}, return_dict=False)[0]
    return found


def test_the_lora_is_merged_into_the_unet(faceid: Path) -> None:
    source, base = open_source("demo", identity=faceid), open_source("demo")
    weights, plain = dict(source.weights("unet", torch.float32)), dict(base.weights("unet", torch.float32))
    stored = load_file(faceid)
    changed = {name.split(".", 1)[1].removesuffix(".down.weight") for name in stored if name.endswith(".down.weight")}
    assert changed == set(open_target("demo")[0].layers)
    for name, value in weights.items():
        layer = name.removesuffix(".weight")
        expected = plain[name].double()
        if layer in changed:
            up, down = (stored[f"lora.{layer}.{half}.weight"].double() for half in ("up", "down"))
            assert (up @ down).abs().max() > 1e-3
            expected = expected + up @ down
        assert (value - expected).abs().max() <= 1e-6, name


def test_only_the_unet_changes_and_a_note_says_so(faceid: Path) -> None:
    source, base = open_source("demo", identity=faceid), open_source("demo")
    assert isinstance(source, UpdatedSource)
    assert source.fingerprint("unet") != base.fingerprint("unet")
    assert source.fingerprint("vae") == base.fingerprint("vae")
    assert f"LoRA of {faceid}: merged into 88 attention weights of the UNet at strength 1" in source.notes
    assert source.license.startswith("IP-Adapter-FaceID: research purposes only")


def test_the_stored_strength_scales_the_lora_and_0_leaves_it_out(faceid: Path) -> None:
    lora = identity_lora(faceid, read_config(faceid))
    assert lora is not None
    assert {low.scale for lows in lora.updates("unet").values() for low in lows} == {1.0}
    half = IdentityConfig.from_json('{"lora_scale": 0.5}')
    halved = identity_lora(faceid, half)
    assert halved is not None and halved.fingerprint != lora.fingerprint
    assert {low.scale for lows in halved.updates("unet").values() for low in lows} == {0.5}
    assert halved.updates("vae") == {}
    assert identity_lora(faceid, IdentityConfig(lora_scale=0.0)) is None


def test_a_loaded_unet_is_merged_alike(faceid: Path) -> None:
    unet = _unet("demo", None)
    merge_identity_lora(unet, faceid, read_config(faceid))
    expected = dict(open_source("demo", identity=faceid).weights("unet", torch.float32))
    assert all(torch.equal(value, expected[name]) for name, value in unet.named_parameters())


def test_a_lora_for_another_unet_is_rejected(faceid: Path) -> None:
    unet = open_source("random-medium").empty("unet")
    with pytest.raises(InputError, match=r"The LoRA of .*identity\.safetensors has for .* the shapes"):
        merge_identity_lora(unet, faceid, read_config(faceid))


def test_a_lora_with_half_a_pair_is_rejected(faceid: Path, tmp_path: Path) -> None:
    stored = load_file(faceid)
    del stored[next(name for name in stored if name.endswith(".up.weight"))]
    with safe_open(faceid, framework="pt") as file:
        save_file(stored, tmp_path / "half.safetensors", metadata={CONFIG_KEY: file.metadata()[CONFIG_KEY]})
    with pytest.raises(InputError, match=r"has an incomplete LoRA: lora\.down_blocks"):
        IdentityLora(tmp_path / "half.safetensors", 1.0)
