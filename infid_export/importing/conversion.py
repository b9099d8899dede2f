"""Converts an adapter's tensors to those of an identity file: each is checked, renamed and copied."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from infid_engines.errors import InputError
from infid_engines.progress import Stage
from infid_export.importing.target import Target
from infid_export.importing.unsupported import ATTENTION, PROJECTION
from infid_export.importing.weights_file import TensorFacts, WeightsFile
from infid_export.model.config import IdentityConfig
from infid_export.model.finite import require_finite_tensor
from infid_export.model.identity import require_tensors, write_identity_file
from infid_export.model.identity_header import LORA
from infid_export.model.mappers import MAPPERS

_AGAIN = "Download it again from where it was published, or name its base model with --model."
_DTYPES = ("float32", "float16", "bfloat16")
# Width of the prompt and number of cross-attentions of well-known base models.
_BASES = {(768, 16): "Stable Diffusion 1.5", (1024, 16): "Stable Diffusion 2", (2048, 70): "SDXL"}
_HALVES = ("down.weight", "up.weight")


@dataclass(frozen=True)
class Copied:
    """A tensor of the identity file.

    Args:
        source: its name in the adapter's file.
        name: its name in the identity file.
        facts: dtype and shape, which do not change.
    """

    source: str
    name: str
    facts: TensorFacts


def check_base(path: Path, tensors: Mapping[str, TensorFacts], target: Target) -> None:
    """Check that an adapter is for the base model, by the number and the width of its image keys.

    Raises:
        InputError: it is for another one, or has none; the message names it if it is well known.
    """
    keys = [facts for name, facts in tensors.items() if re.fullmatch(r"ip_adapter\.\d+\.to_k_ip\.weight", name)]
    if not keys:
        raise InputError(
            f"{path} has no image keys (tensors such as {ATTENTION}1.to_k_ip.weight).",
            fix="Give the weights of IP-Adapter or of its relatives, as they were published.",
        )
    widths = {facts.shape[-1] if facts.shape else 0 for facts in keys}
    if widths == {target.width} and len(keys) == len(target.blocks):
        return
    width = widths.pop() if len(widths) == 1 else 0
    base = _BASES.get((width, len(keys)), "another base model")
    raise InputError(
        f"{path} is for {base}: it has image keys for {len(keys)} layers of width {width or 'that varies'}, but "
        f"{target.name} has {len(target.blocks)} of width {target.width}.",
        fix="Use the adapter's version for this base model, or name its own with --model.",
    )


def planned(
    path: Path, tensors: Mapping[str, TensorFacts], config: IdentityConfig, target: Target, lora: bool
) -> list[Copied]:
    """Return the tensors of the identity file, after checking that an adapter has exactly those.

    Args:
        path: the adapter's file, for errors.
        tensors: its tensors.
        config: configuration of its modules.
        target: the base model.
        lora: whether it has a LoRA for all attention layers.

    Raises:
        InputError: tensors are missing, unexpected, or of another shape or dtype.
    """
    wanted = {source: (name, shape) for source, name, shape in _modules(config, target)}
    if lora:
        wanted |= {source: (name, shape) for source, name, shape in _lora(path, tensors, target)}
    require_tensors(path, wanted, tensors, _AGAIN)
    for source, (_, shape) in wanted.items():
        facts = tensors[source]
        if facts.shape != shape:
            raise InputError(
                f"{path}: {source} has shape {list(facts.shape)}, but {list(shape)} is needed.", fix=_AGAIN
            )
        if facts.dtype not in _DTYPES:
            raise InputError(
                f"{path}: {source} is of {facts.dtype}, not of {', '.join(_DTYPES)}.",
                fix="Use the weights as they were published, in fp16 or fp32.",
            )
    return [Copied(source, name, tensors[source]) for source, (name, _) in wanted.items()]


def _modules(config: IdentityConfig, target: Target) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Yield an adapter's name, ours, and the shape of the tensors of mapper and projections."""
    with torch.device("meta"):
        mapper = MAPPERS[config.mapper](config)
    for name, value in mapper.state_dict().items():
        yield f"{PROJECTION}{name}", f"mapper.{name}", tuple(value.shape)
    for number, (path, channels) in enumerate(target.blocks.items()):
        for part in ("to_k", "to_v"):
            source = f"{ATTENTION}{2 * number + 1}.{part}_ip.weight"
            yield source, f"{path}.{part}_id.weight", (channels, config.cross_attention_dim)


def _lora(path: Path, tensors: Mapping[str, TensorFacts], target: Target) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Yield the same of a LoRA, which has one rank."""
    first = f"{ATTENTION}0.to_q_lora.down.weight"
    if first not in tensors:
        raise InputError(
            f"{path} has no LoRA, so it is not FaceID's but perhaps FaceID-Portrait's, which reads several photos side "
            "by side; infid-export averages them.",
            fix="Use ip-adapter-faceid_sdxl.bin or ip-adapter-faceid-plusv2_sdxl.bin.",
        )
    rank = tensors[first].shape[0] if tensors[first].shape else 0
    for name, layer in target.lora_layers():
        outputs, inputs = target.layers[layer]
        for half, shape in zip(_HALVES, ((rank, inputs), (outputs, rank)), strict=True):
            yield f"{ATTENTION}{name}_lora.{half}", f"{LORA}{layer}.{half}", shape


def write(
    weights: WeightsFile,
    copied: Sequence[Copied],
    config: IdentityConfig,
    metadata: Mapping[str, str],
    output: Path,
    stage: Stage,
) -> None:
    """Write the identity file atomically; tensors stay mapped from the safetensors file that they are in.

    Args:
        weights: the adapter's file.
        copied: what is copied.
        config: configuration of the modules.
        metadata: further entries of the header.
        output: file to write.
        stage: receives the progress.

    Raises:
        InputError: a value is not finite.
        DiskFullError: the disk is full.
    """
    tensors: dict[str, Tensor] = {}
    with safe_open(weights.readable(), framework="pt") as file:
        for number, each in enumerate(copied):
            value = file.get_tensor(each.source)
            require_finite_tensor(value, f"{weights.path}: {each.source}", value.dtype)
            tensors[each.name] = value
            stage.update(0.5 * number / len(copied), each.source)
        write_identity_file(output, config, tensors, metadata)
