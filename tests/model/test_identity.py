from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from infid_engines.errors import InputError
from infid_export.model.config import IdentityConfig, read_config
from infid_export.model.identity import IdentityModules
from infid_export.model.processors import identity_blocks, install_processors
from infid_export.model.sources import RandomSource
from infid_kernels import adain_mean
from infid_training.loss import identity_loss


@pytest.fixture
def saved(source: RandomSource, tmp_path: Path) -> Path:
    path = tmp_path / "identity.safetensors"
    source.load("identity", torch.float32).save(path)
    return path


def test_file_has_the_published_names_and_loads_equal(saved, source):
    blocks = identity_blocks(source.empty("unet"))
    with safe_open(saved, "pt") as file:
        keys = set(file.keys())
        assert json.loads(file.metadata()["infid_config"]) == source.config.to_dict()
    first = next(iter(blocks))
    assert {f"{first}.to_k_id.weight", f"{first}.to_v_id.weight", "clip_mapper.0.weight"} <= keys
    assert all(key.startswith(("clip_mapper.", "face_mapper.")) or key.split(".to_")[0] in blocks for key in keys)
    loaded, original = IdentityModules.load(saved, blocks), source.load("identity", torch.float32)
    for name, tensor in original.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], tensor, rtol=0, atol=0)


def test_of_centered_tokens_adain_mean_takes_nothing(source: RandomSource) -> None:
    blocks = identity_blocks(source.empty("unet"))
    torch.manual_seed(0)
    modules = IdentityModules(replace(source.config, center_tokens=True), blocks)
    features = torch.randn(2, source.config.clip_tokens, source.config.clip_width), torch.randn(2, 512)
    modules.requires_grad_(False)
    tokens, keys, values = modules(*features)
    for each in (tokens, keys, values):
        assert float(each.mean(1).abs().max()) < 1e-6 < float(each.abs().max())
    text = torch.randn(2, 77, values.shape[-1])
    torch.testing.assert_close(adain_mean(values, text, torch.tensor(1.0)), values + text.mean(1, keepdim=True))
    modules.config = replace(modules.config, center_tokens=False)
    torch.testing.assert_close(modules(*features)[0] - modules(*features)[0].mean(1, keepdim=True), tokens)


def test_zero_tokens_are_zero_rows_after_those_of_the_person(source: RandomSource) -> None:
    modules = source.load("identity", torch.float32)
    torch.manual_seed(0)
    features = torch.randn(2, source.config.clip_tokens, source.config.clip_width), torch.randn(2, 512)
    before = modules(*features)
    modules.config = replace(modules.config, zero_tokens=3)
    for found, expected in zip(modules(*features), before, strict=True):
        assert found.shape[1] == modules.config.tokens == source.config.tokens + 3
        assert torch.equal(found[:, :-3], expected)
        assert not found[:, -3:].any()


def test_sdxl_has_seventy_blocks():
    assert len(identity_blocks(RandomSource("random-sdxl").empty("unet"))) == 70


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "no identity file"),
        (lambda path: path.write_bytes(path.read_bytes()[:5000]), "not an intact safetensors file"),
        (lambda path: save_file({"a": torch.zeros(1)}, path), "not an Infinite-ID identity file"),
        (lambda path: rewrite(path, drop="face_mapper.norm.weight"), "lacks tensors: face_mapper.norm.weight"),
        (lambda path: rewrite(path, add="extra"), "unexpected tensors: extra"),
        (lambda path: rewrite(path, reshape="clip_mapper.0.bias"), "has shape"),
        (lambda path: rewrite(path, poison="clip_mapper.0.bias"), "non-finite"),
    ],
)
def test_broken_files_are_rejected(saved, source, damage, message):
    damage(saved)
    with pytest.raises(InputError, match=message):
        IdentityModules.load(saved, identity_blocks(source.empty("unet")))


def rewrite(path: Path, drop: str = "", add: str = "", reshape: str = "", poison: str = "") -> None:
    config = read_config(path).to_dict()
    tensors = load_file(path)
    if drop:
        del tensors[drop]
    if add:
        tensors[add] = torch.zeros(1)
    if reshape:
        tensors[reshape] = torch.zeros(3)
    if poison:
        tensors[poison][0] = float("nan")
    save_file(tensors, path, metadata={"infid_config": json.dumps(config)})


@pytest.mark.parametrize("values", [{"adain": "sometimes"}, {"face_tokens": 0}, {"clip_width": "wide"}])
def test_impossible_configurations_are_rejected(values):
    with pytest.raises(InputError):
        IdentityConfig(**values)


def test_configuration_text_with_unknown_field_is_rejected():
    with pytest.raises(InputError, match="unknown fields: color"):
        IdentityConfig.from_json('{"color": 1}')


def test_training_loss_reaches_the_identity_modules_alone(source):
    unet = source.load("unet", torch.float32)
    install_processors(unet, source.config)
    identity = source.load("identity", torch.float32).requires_grad_(True)
    generator = torch.Generator().manual_seed(0)
    latents, noise = (torch.randn(2, 4, 16, 16, generator=generator) for _ in range(2))
    features, face = torch.randn(2, 50, 128, generator=generator), torch.randn(2, 512, generator=generator)
    loss = identity_loss(unet, identity, latents, noise, torch.tensor([10, 900]), features, face, torch.zeros(2, 6))
    loss.backward()
    assert 0.1 < loss.item() < 100
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in identity.parameters())
    assert all(parameter.grad is None for parameter in unet.parameters())


def test_training_with_text_on_is_another_loss_and_asks_for_captions(source):
    unet = source.load("unet", torch.float32)
    config = replace(source.config, trained_with_text=True)
    install_processors(unet, config)
    identity = source.load("identity", torch.float32)
    generator = torch.Generator().manual_seed(0)
    draws = {
        "noisy_latents": (2, 4, 16, 16), "noise": (2, 4, 16, 16), "clip_features": (2, 50, 128),
        "face_embedding": (2, 512), "time_ids": (2, 6),
    }  # fmt: skip
    given = {name: torch.randn(*shape, generator=generator) for name, shape in draws.items()}
    given["timesteps"] = torch.tensor([10, 900])
    captions = {name: torch.randn(*shape, generator=generator)
                for name, shape in (("prompt_embeds", (2, 77, 128)), ("pooled_prompt_embeds", (2, 64)))}  # fmt: skip
    without = identity_loss(unet, identity, **given)
    with pytest.raises(ValueError, match="captions must not be given"):
        identity_loss(unet, identity, **given, **captions)
    identity.config = config
    with pytest.raises(ValueError, match="captions must be given"):
        identity_loss(unet, identity, **given)
    first = identity_loss(unet, identity, **given, **captions)
    captions["prompt_embeds"] = captions["prompt_embeds"].flip(0)
    second = identity_loss(unet, identity, **given, **captions)
    assert len({float(without), float(first), float(second)}) == 3
