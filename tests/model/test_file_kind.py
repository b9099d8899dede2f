"""What a file that is no SDXL checkpoint is, by its tensors or its first bytes, and what to do with it."""

from __future__ import annotations

import pytest
import torch
from single_files import original_tensors, small_source, write_file
from torch import Tensor

from infid_engines.errors import InputError
from infid_export.model.checkpoints.tensor_file import TensorFile
from infid_export.model.opening import open_source

UNET = "model.diffusion_model."


def named(*names: str) -> dict[str, Tensor]:
    return {name: torch.zeros(2) for name in names}


def first_convolution(channels: int) -> dict[str, Tensor]:
    return {**named(f"{UNET}label_emb.0.0.weight"), f"{UNET}input_blocks.0.0.weight": torch.zeros(8, channels, 3, 3)}


SD1 = named(f"{UNET}input_blocks.0.0.bias", "first_stage_model.x", "cond_stage_model.transformer.text_model.x")
SD2 = named(f"{UNET}input_blocks.0.0.bias", "first_stage_model.x", "cond_stage_model.model.x")
REFINER = named(f"{UNET}input_blocks.0.0.bias", "first_stage_model.x", "conditioner.embedders.0.model.x")
TEXT = ("conditioner.embedders.0.transformer.text_model.x", "conditioner.embedders.1.model.x")
KINDS: dict[str, tuple[dict[str, Tensor], str, str]] = {
    "SD 1": (SD1, "is a Stable Diffusion 1 checkpoint, not SDXL", "SDXL checkpoint"),
    "SD 2": (SD2, "is a Stable Diffusion 2 checkpoint, not SDXL", "SDXL checkpoint"),
    "refiner": (REFINER, "is SDXL's refiner", "SDXL checkpoint"),
    "SD 3": (named(f"{UNET}joint_blocks.0.x", "first_stage_model.x"), "Stable Diffusion 3", "SDXL checkpoint"),
    "Flux": (named("double_blocks.0.img_attn.x"), "is a Flux checkpoint", "SDXL checkpoint"),
    "Flux with a prefix": (named(f"{UNET}double_blocks.0.x"), "is a Flux checkpoint", "SDXL checkpoint"),
    "ControlNet": (named("control_model.input_blocks.x"), "is a ControlNet", "SDXL checkpoint"),
    "ControlNet of diffusers": (
        named("controlnet_cond_embedding.conv_in.weight", "down_blocks.0.x"), "is a ControlNet", "SDXL checkpoint"
    ),
    "textual inversion": (named("clip_g", "clip_l"), "is a textual inversion", "SDXL checkpoint"),
    "LoRA of kohya": (named("lora_unet_x.lora_down.weight"), "is a LoRA, not a checkpoint", "--lora"),
    "LoRA of diffusers": (named("unet.down_blocks.0.to_q.lora_A.weight"), "is a LoRA", "--lora"),
    "IP-Adapter": (named("image_proj.norm.weight"), "is an IP-Adapter", "infid-export import"),
    "identity file": (named("clip_mapper.0.weight"), "is an identity file", "--identity"),
    "identity file of another method": (
        named("mapper.norm.weight", "down_blocks.0.attn2.to_k_id.weight"), "is an identity file", "--identity"
    ),
    "OpenCLIP": (named("visual.conv1.weight", "transformer.resblocks.0.x"), "is an OpenCLIP", "--image-encoder"),
    "only a UNet": (
        named(f"{UNET}input_blocks.0.0.bias"), "only a UNet: the VAE and both text encoders are missing", "--unet"
    ),
    "only a UNet of diffusers": (named("down_blocks.0.x", "conv_in.weight"), "is only a UNet", "--unet"),
    "only a VAE": (named("first_stage_model.encoder.x"), "is only a VAE", "--vae"),
    "only a VAE without a prefix": (named("decoder.up.0.block.0.x", "encoder.conv_in.x"), "is only a VAE", "--vae"),
    "only a text encoder": (named("text_model.x"), "is only a text encoder", "SDXL checkpoint"),
    "without a VAE": (named(f"{UNET}x", *TEXT), "incomplete checkpoint: its vae is missing", "Add --vae PATH, or use"),
    "only UNet and VAE": (
        named(f"{UNET}x", "first_stage_model.x"), "its text_encoder and text_encoder_2 are missing", "Use a file with"
    ),
    "inpainting": ({**named("first_stage_model.x", *TEXT), **first_convolution(9)}, "is an inpainting model", "SDXL"),
    "instruct-pix2pix": (
        {**named("first_stage_model.x", *TEXT), **first_convolution(8)}, "is an instruct-pix2pix model", "SDXL"
    ),
    "EDM": (
        {**named("edm_mean", "first_stage_model.x", *TEXT), **first_convolution(4)}, "is an EDM checkpoint", "SDXL"
    ),
    "EDM with v": (
        {**named("edm_vpred.sigma_max", "first_stage_model.x", *TEXT), **first_convolution(4)}, "is an EDM", "SDXL"
    ),
    "no size input": (
        {**named("first_stage_model.x", *TEXT), f"{UNET}input_blocks.0.0.weight": torch.zeros(8, 4, 3, 3)},
        "its UNet does not read the image size", "SDXL",
    ),
    "something else": (named("a", "b"), r"another kind of file \(tensors such as a, b\)", "SDXL checkpoint"),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_another_kind_of_file_is_named(parts, tmp_path, kind):
    tensors, message, fix = KINDS[kind]
    path = write_file(tmp_path / "file.safetensors", tensors)
    with pytest.raises(InputError, match=message) as caught:
        open_source(str(path), identity=parts["identity"], image_encoder=str(parts["encoder"]))
    assert fix in caught.value.fix
    assert str(path) in caught.value.problem


FOREIGN = {
    b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 6938040682\n": ("git-lfs pointer", "git lfs pull"),
    b"PK\x03\x04" * 100: ("pickled weights", "safetensors file"),
    b"\x80\x02}q\x00." * 20: ("pickled weights", "safetensors file"),
    b"GGUF\x03\x00\x00\x00": ("GGUF", "fp16"),
    b"<!DOCTYPE html><html></html>": ("a web page", "Download the file"),
    b"": ("it is empty", "again"),
}


@pytest.mark.parametrize("content", FOREIGN)
def test_a_file_in_another_format_is_named(tmp_path, content):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    problem, fix = FOREIGN[content]
    with pytest.raises(InputError, match=problem) as caught:
        open_source(str(path), identity=path, image_encoder="x")
    assert fix in caught.value.fix


def test_a_truncated_file_is_named(tmp_path):
    path = write_file(tmp_path / "model.safetensors", named("a"))
    for size in (7, 20, path.stat().st_size - 3):
        path.write_bytes(path.read_bytes()[:size])
        with pytest.raises(InputError, match="is not an intact safetensors file"):
            TensorFile.open(path)


@pytest.mark.parametrize("first", [0x3C, 0x50, 0x80])  # as of a web page, an archive and a pickle
def test_a_truncated_file_is_not_taken_for_another_format(tmp_path, first):
    path = tmp_path / "model.safetensors"
    path.write_bytes((0x100 + first).to_bytes(8, "little") + b'{"a":{"dtype":"F32"')
    with pytest.raises(InputError, match="is not an intact safetensors file"):
        TensorFile.open(path)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8])
def test_weights_of_eight_bits_are_rejected(parts, tmp_path, dtype):
    tensors = original_tensors(small_source())
    key = f"{UNET}middle_block.1.proj_in.weight"
    path = write_file(tmp_path / "fp8.safetensors", {**tensors, key: tensors[key].to(dtype)})
    with pytest.raises(InputError, match=r"has weights of type (F8_E4M3|F8_E5M2|I8) \(model.diffusion") as caught:
        open_source(str(path), identity=parts["identity"], image_encoder=str(parts["encoder"]))
    assert "fp16, bf16 or fp32" in caught.value.fix
