"""Merged LoRAs equal those that diffusers and PEFT fuse, in every notation."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from diffusers.loaders import StableDiffusionXLLoraLoaderMixin
from lora_files import (
    COMPONENTS,
    CONVOLUTIONS,
    LAYERS,
    kohya,
    layers_of,
    matrices,
    older,
    original_names,
    peft,
    sdxl_like,
    write,
)
from torch import Tensor

from infid_export.model.changes import lora_file
from infid_export.model.changes.lora_file import with_loras
from infid_export.model.sources import ModelSource

Weights = dict[str, dict[str, Tensor]]


@pytest.fixture(scope="module")
def base() -> ModelSource:
    return sdxl_like()


def fused(base: ModelSource, files: list[tuple[Path, float]]) -> Weights:
    """Return the weights after diffusers has loaded and fused LoRAs, one after the other."""
    parts = {name: base.load(name, torch.float32) for name in COMPONENTS}
    names = {name: [each for each, _ in part.named_parameters()] for name, part in parts.items()}
    pipe = StableDiffusionXLPipeline(vae=None, tokenizer=None, tokenizer_2=None, scheduler=None, **parts)
    for path, strength in files:
        pipe.load_lora_weights(str(path))
        changed = [name for name, part in parts.items() if getattr(part, "peft_config", None)]
        pipe.fuse_lora(components=changed, lora_scale=strength)
        pipe.unload_lora_weights()
    found = {name: dict(part.named_parameters()) for name, part in parts.items()}
    assert {name: list(each) for name, each in found.items()} == names
    return found


def ours(base: ModelSource, files: list[tuple[Path, float]]) -> Weights:
    source = with_loras(base, [f"{path}:{strength}" for path, strength in files])
    return {name: dict(source.weights(name, torch.float32)) for name in COMPONENTS}


def difference(first: Weights, second: Weights) -> float:
    assert {name: each.keys() for name, each in first.items()} == {name: each.keys() for name, each in second.items()}
    return max(
        float((first[part][name] - second[part][name]).abs().max()) for part in COMPONENTS for name in first[part]
    )


def as_kohya_saves(base: ModelSource, folder: Path) -> Path:
    names, tensors = original_names(base), {}
    for component in COMPONENTS:
        layers = (*LAYERS[component], *(CONVOLUTIONS if component == "unet" else ()))
        for layer, pair in matrices(base, component, layers).items():
            tensors |= kohya(component, names.get(layer, layer), pair, alpha=3.0)
    return write(folder / "kohya.safetensors", tensors)


def with_diffusers_blocks(base: ModelSource, folder: Path) -> Path:
    layers = (*LAYERS["unet"], *CONVOLUTIONS)
    tensors = {}
    for layer, pair in matrices(base, "unet", layers).items():
        tensors |= kohya("unet", layer, pair)
    return write(folder / "blocks.safetensors", tensors)


def in_notation(notation: Callable[..., dict[str, Tensor]]) -> Callable[[ModelSource, Path], Path]:
    def file(base: ModelSource, folder: Path) -> Path:
        tensors = {}
        for component in COMPONENTS:
            for layer, pair in matrices(base, component, LAYERS[component]).items():
                tensors |= notation(component, layer, pair)
        return write(folder / f"{notation.__name__}.safetensors", tensors)

    return file


def with_settings(base: ModelSource, folder: Path) -> Path:
    """A file of newer versions of diffusers, with alpha in its header, and another alpha and rank for some layers."""
    tensors, settings = {}, {}
    for component in COMPONENTS:
        special = LAYERS[component][0]
        tensors |= peft(component, special, matrices(base, component, [special], rank=2)[special])
        for layer, pair in matrices(base, component, LAYERS[component][1:], rank=4).items():
            tensors |= peft(component, layer, pair)
        own = {
            "r": 4, "lora_alpha": 6, "rank_pattern": {special: 2}, "alpha_pattern": {special: 5},
            "use_rslora": component == "unet", "target_modules": list(LAYERS[component]),
        }  # fmt: skip
        settings |= {f"{component}.{name}": value for name, value in own.items()}
    return write(folder / "settings.safetensors", tensors, {"lora_adapter_metadata": json.dumps(settings)})


FILES = {
    "kohya": as_kohya_saves,
    "kohya, diffusers' blocks": with_diffusers_blocks,
    "older diffusers": in_notation(older),
    "diffusers and PEFT": in_notation(peft),
    "PEFT's settings": with_settings,
}


@pytest.mark.parametrize("strength", [0.7, -0.5])
@pytest.mark.parametrize("kind", FILES)
def test_a_merged_lora_equals_the_fused_one(base, tmp_path, kind, strength):
    file = FILES[kind](base, tmp_path)
    expected, found = fused(base, [(file, strength)]), ours(base, [(file, strength)])
    assert difference(found, expected) <= 1e-6
    assert difference(found, ours(base, [])) > 1e-2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_each_layer_has_its_own_rank_and_alpha(base, tmp_path, dtype):
    """Of several alphas in a file of kohya's, diffusers 0.42.1 uses the most frequent one for layers of attention."""
    expected, tensors = {name: dict(base.weights(name, torch.float64)) for name in COMPONENTS}, {}
    for component in COMPONENTS:
        for index, layer in enumerate(LAYERS[component]):
            rank, alpha = 2 + index, None if index == 1 else 1.5 * index + 1
            ((_, pair),) = matrices(base, component, [layer], rank).items()
            pair = tuple(each.to(dtype) for each in pair)
            tensors |= kohya(component, layer, pair, alpha)
            (name,) = (each for each in expected[component] if each.endswith(f"{layer}.weight"))
            factor = 0.8 * (1 if alpha is None else alpha / rank)
            expected[component][name] += factor * pair[1].double() @ pair[0].double()
    file = write(tmp_path / "mixed.safetensors", tensors)
    assert difference(ours(base, [(file, 0.8)]), expected) <= 1e-6


def test_several_loras_add_up(base, tmp_path):
    files = [(FILES["kohya"](base, tmp_path), 0.6), (FILES["diffusers and PEFT"](base, tmp_path), -1.25)]
    expected = fused(base, files)
    assert difference(ours(base, files), expected) <= 1e-6
    assert difference(ours(base, files[::-1]), expected) <= 1e-6


def test_a_merge_without_alpha_differs(base, tmp_path, monkeypatch):
    """The comparison can fail."""
    file = FILES["kohya"](base, tmp_path)
    expected = fused(base, [(file, 1.0)])
    monkeypatch.setattr(lora_file._Layer, "alpha", property(lambda self: None, lambda self, value: None), raising=False)
    assert difference(ours(base, [(file, 1.0)]), expected) > 1e-2


def test_every_layer_of_the_unet_has_the_original_name_that_diffusers_knows(base):
    """diffusers' conversion needs no PEFT; it names the layer that each name stands for."""
    names, tensors = original_names(base), {}
    layers = layers_of(base, "unet")
    assert names.keys() == set(layers)
    for layer, pair in matrices(base, "unet", layers, rank=1).items():
        tensors |= kohya("unet", names[layer], pair)
    converted, _ = StableDiffusionXLLoraLoaderMixin.lora_state_dict(
        tensors.copy(), unet_config=base.empty("unet").config
    )
    for layer in layers:
        values = older("unet", layer, (tensors[f"lora_unet_{names[layer]}.lora_down.weight"],) * 2)
        down = next(name for name in values if ".down." in name)
        assert converted[down] is tensors[f"lora_unet_{names[layer]}.lora_down.weight"], layer
