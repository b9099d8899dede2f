"""The layouts in which IP-Adapter and its relatives publish their weights, at any size, filled with random values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

FAMILIES = ("ip-adapter", "ip-adapter-plus", "ip-adapter-plus-face", "faceid", "faceid-plusv2", "instantid")
Shapes = dict[str, tuple[int, ...]]
Tree = dict[str, dict[str, Tensor]]


@dataclass(frozen=True)
class Sizes:
    """The sizes of a base model and its adapters.

    Args:
        blocks: channels of every cross-attention, in the UNet's order.
        dim: width of the prompt.
        width: width of the image encoder.
        pooled: width of its pooled image.
        hidden: width inside a resampler.
        queries: tokens of a resampler.
        rank: of FaceID's LoRA.
    """

    blocks: tuple[int, ...]
    dim: int = 128
    width: int = 128
    pooled: int = 64
    hidden: int = 192
    queries: int = 6
    rank: int = 3


DEMO = Sizes((64,) + (128,) * 6 + (64,) * 2 + (128,) * 2)
SDXL = Sizes((640,) * 4 + (1280,) * 50 + (640,) * 6 + (1280,) * 10, 2048, 1280, 1280, 1280, 16, 128)


def projection(family: str, sizes: Sizes) -> Shapes:
    """Return the shapes of `image_proj`; `faceid-plus` has those of `faceid-plusv2`."""
    dim = sizes.dim
    if family == "ip-adapter":
        return {**_linear("proj", 4 * dim, sizes.pooled), **_norm("norm", dim)}
    if family.startswith("faceid"):
        shapes = {**_linear("proj.0", 1024, 512), **_linear("proj.2", 4 * dim, 1024), **_norm("norm", dim)}
        if family != "faceid":
            shapes |= _perceiver("perceiver_resampler.", sizes.width, dim, dim)
        return shapes
    features = 512 if family == "instantid" else sizes.width
    return {"latents": (1, sizes.queries, sizes.hidden), **_perceiver("", features, sizes.hidden, dim)}


def attention(family: str, sizes: Sizes) -> Shapes:
    """Return the shapes of `ip_adapter`."""
    shapes: Shapes = {}
    for index, channels in ((i, sizes.blocks[i // 2]) for i in range(2 * len(sizes.blocks))):
        if family.startswith("faceid"):
            context = sizes.dim if index % 2 else channels
            for name, inputs in (("to_q", channels), ("to_k", context), ("to_v", context), ("to_out", channels)):
                shapes[f"{index}.{name}_lora.down.weight"] = (sizes.rank, inputs)
                shapes[f"{index}.{name}_lora.up.weight"] = (channels, sizes.rank)
        if index % 2:
            shapes |= {f"{index}.{name}_ip.weight": (channels, sizes.dim) for name in ("to_k", "to_v")}
    return shapes


def adapter(family: str, sizes: Sizes, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tree:
    """Return an adapter as a pickled file has it: `image_proj` and `ip_adapter`."""
    generator = torch.Generator().manual_seed(seed)

    def filled(shapes: Shapes) -> dict[str, Tensor]:
        return {
            name: torch.empty(shape).normal_(0, shape[-1] ** -0.5, generator=generator).to(dtype)
            for name, shape in shapes.items()
        }

    return {"image_proj": filled(projection(family, sizes)), "ip_adapter": filled(attention(family, sizes))}


def write_adapter(path: Path, tree: Mapping[str, Mapping[str, Tensor]], legacy: bool = False) -> Path:
    """Write an adapter as its authors do: as nested dictionaries, or flat in safetensors."""
    if path.suffix == ".safetensors":
        save_file(flat(tree), path)
    else:
        torch.save(tree, path, _use_new_zipfile_serialization=not legacy)
    return path


def flat(tree: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the tensors by dotted names."""
    return {f"{half}.{name}": value for half, tensors in tree.items() for name, value in tensors.items()}


def _linear(name: str, outputs: int, inputs: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _perceiver(start: str, features: int, hidden: int, outputs: int) -> Shapes:
    shapes = {**_linear(f"{start}proj_in", hidden, features), **_linear(f"{start}proj_out", outputs, hidden)}
    shapes |= _norm(f"{start}norm_out", outputs)
    for index in range(4):
        shapes |= dict(_layer(f"{start}layers.{index}", hidden))
    return shapes


def _layer(name: str, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    for norm in ("0.norm1", "0.norm2", "1.0"):
        yield from _norm(f"{name}.{norm}", width).items()
    yield f"{name}.0.to_q.weight", (width, width)
    yield f"{name}.0.to_kv.weight", (2 * width, width)
    yield f"{name}.0.to_out.weight", (width, width)
    yield f"{name}.1.1.weight", (4 * width, width)
    yield f"{name}.1.3.weight", (width, 4 * width)
