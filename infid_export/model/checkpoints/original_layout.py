"""Where each parameter is in a file of SDXL's original layout.

The original code names the same networks differently: UNet and VAE number their blocks in another order, and the second
text encoder is OpenCLIP's, with query, key and value in one matrix. The tables follow from a network's configuration,
so one parameter can be read at a time. Names are those of diffusers and transformers; those of text encoders are
without `text_model.`, which depends on the version of transformers. Imports are light.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Config = Mapping[str, Any]
Pairs = Iterator[tuple[str, str]]
_WITH_BIAS: tuple[str, ...] = ("weight", "bias")
_QKV = ("q", "k", "v")


@dataclass(frozen=True)
class Place:
    """The position of a parameter in a file.

    Args:
        key: name of the tensor.
        third: which third of the tensor's rows; None is all of it.
        transposed: whether the tensor is stored as `[in, out]`.
    """

    key: str
    third: int | None = None
    transposed: bool = False


# The prefix of each network's tensors in a file with all of them.
PREFIXES: Mapping[str, str] = {
    "unet": "model.diffusion_model.",
    "vae": "first_stage_model.",
    "text_encoder": "conditioner.embedders.0.transformer.text_model.",
    "text_encoder_2": "conditioner.embedders.1.model.",
}


def original_places(component: str, config: Config) -> dict[str, Place]:
    """Return the places of all parameters of a network.

    Args:
        component: `unet`, `vae`, `text_encoder` or `text_encoder_2`.
        config: the network's configuration, in its library's format.

    Returns:
        Places by parameter name; their keys lack the prefix of `PREFIXES`.
    """
    return _TABLES[component](config)


def _unet(config: Config) -> dict[str, Place]:
    return {ours: Place(theirs) for ours, theirs in _unet_pairs(config)}


def _unet_pairs(config: Config) -> Pairs:
    channels = list(config["block_out_channels"])
    levels = len(channels)
    layers, depths = (_each(config[name], levels) for name in ("layers_per_block", "transformer_layers_per_block"))
    for ours, theirs in (
        ("conv_in", "input_blocks.0.0"), ("time_embedding.linear_1", "time_embed.0"),
        ("time_embedding.linear_2", "time_embed.2"), ("add_embedding.linear_1", "label_emb.0.0"),
        ("add_embedding.linear_2", "label_emb.0.2"), ("conv_norm_out", "out.0"), ("conv_out", "out.2"),
    ):  # fmt: skip
        yield from _leaves(ours, theirs)
    number = 1
    for level in range(levels):
        attends = "CrossAttn" in config["down_block_types"][level]
        before = channels[max(level - 1, 0)]
        for layer in range(layers[level]):
            ours, theirs = f"down_blocks.{level}", f"input_blocks.{number}"
            shortcut = layer == 0 and before != channels[level]
            yield from _resnet(f"{ours}.resnets.{layer}", f"{theirs}.0", shortcut)
            if attends:
                yield from _transformer(f"{ours}.attentions.{layer}", f"{theirs}.1", depths[level])
            number += 1
        if level < levels - 1:
            yield from _leaves(f"down_blocks.{level}.downsamplers.0.conv", f"input_blocks.{number}.0.op")
            number += 1
    yield from _resnet("mid_block.resnets.0", "middle_block.0", shortcut=False)
    yield from _transformer("mid_block.attentions.0", "middle_block.1", depths[-1])
    yield from _resnet("mid_block.resnets.1", "middle_block.2", shortcut=False)
    yield from _up_pairs(config, channels[::-1], layers[::-1], depths[::-1])


def _up_pairs(config: Config, channels: Sequence[int], layers: Sequence[int], depths: Sequence[int]) -> Pairs:
    """Yield the pairs of the up blocks; all sizes are in their order, coarsest first."""
    number, last = 0, len(channels) - 1
    for level, width in enumerate(channels):
        attends = "CrossAttn" in config["up_block_types"][level]
        for layer in range(layers[level] + 1):
            ours, theirs = f"up_blocks.{level}", f"output_blocks.{number}"
            below = channels[max(level - 1, 0)] if layer == 0 else width
            skip = channels[min(level + 1, last)] if layer == layers[level] else width
            yield from _resnet(f"{ours}.resnets.{layer}", f"{theirs}.0", below + skip != width)
            if attends:
                yield from _transformer(f"{ours}.attentions.{layer}", f"{theirs}.1", depths[level])
            number += 1
        if level < last:  # the upsampler belongs to the last layer of its level
            yield from _leaves(f"up_blocks.{level}.upsamplers.0.conv", f"output_blocks.{number - 1}.{1 + attends}.conv")


def _resnet(ours: str, theirs: str, shortcut: bool) -> Pairs:
    parts = [("norm1", "in_layers.0"), ("conv1", "in_layers.2"), ("time_emb_proj", "emb_layers.1"),
             ("norm2", "out_layers.0"), ("conv2", "out_layers.3")]  # fmt: skip
    for mine, other in [*parts, ("conv_shortcut", "skip_connection")] if shortcut else parts:
        yield from _leaves(f"{ours}.{mine}", f"{theirs}.{other}")


def _transformer(ours: str, theirs: str, depth: int) -> Pairs:
    """Yield the pairs of a transformer, whose parts have the same names in both layouts."""
    parts: list[tuple[str, tuple[str, ...]]] = [("norm", _WITH_BIAS), ("proj_in", _WITH_BIAS), ("proj_out", _WITH_BIAS)]
    for index in range(depth):
        block = f"transformer_blocks.{index}"
        parts += [(f"{block}.norm{number}", _WITH_BIAS) for number in (1, 2, 3)]
        for attention in (f"{block}.attn1", f"{block}.attn2"):
            parts += [
                *((f"{attention}.to_{each}", ("weight",)) for each in _QKV),
                (f"{attention}.to_out.0", _WITH_BIAS),
            ]
        parts += [(f"{block}.ff.net.0.proj", _WITH_BIAS), (f"{block}.ff.net.2", _WITH_BIAS)]
    for part, leaves in parts:
        yield from _leaves(f"{ours}.{part}", f"{theirs}.{part}", leaves)


def _vae(config: Config) -> dict[str, Place]:
    return {ours: Place(theirs) for ours, theirs in _vae_pairs(config)}


def _vae_pairs(config: Config) -> Pairs:
    channels, layers = list(config["block_out_channels"]), config["layers_per_block"]
    last = len(channels) - 1
    for part in ("quant_conv", "post_quant_conv"):
        if config.get(f"use_{part}", True):
            yield from _leaves(part, part)
    for side, widths, blocks in (("encoder", channels, "down"), ("decoder", channels[::-1], "up")):
        for part in ("conv_in", "conv_out"):
            yield from _leaves(f"{side}.{part}", f"{side}.{part}")
        yield from _leaves(f"{side}.conv_norm_out", f"{side}.norm_out")
        yield from _vae_middle(f"{side}.mid_block", f"{side}.mid")
        for level, width in enumerate(widths):
            ours = f"{side}.{blocks}_blocks.{level}"
            theirs = f"{side}.{blocks}.{level if blocks == 'down' else last - level}"
            for layer in range(layers + (blocks == "up")):
                shortcut = layer == 0 and widths[max(level - 1, 0)] != width
                yield from _vae_resnet(f"{ours}.resnets.{layer}", f"{theirs}.block.{layer}", shortcut)
            if level < last:
                yield from _leaves(f"{ours}.{blocks}samplers.0.conv", f"{theirs}.{blocks}sample.conv")


def _vae_middle(ours: str, theirs: str) -> Pairs:
    for index in (0, 1):
        yield from _vae_resnet(f"{ours}.resnets.{index}", f"{theirs}.block_{index + 1}", shortcut=False)
    for mine, other in (("group_norm", "norm"), *((f"to_{each}", each) for each in _QKV), ("to_out.0", "proj_out")):
        yield from _leaves(f"{ours}.attentions.0.{mine}", f"{theirs}.attn_1.{other}")


def _vae_resnet(ours: str, theirs: str, shortcut: bool) -> Pairs:
    for part in ("norm1", "conv1", "norm2", "conv2"):
        yield from _leaves(f"{ours}.{part}", f"{theirs}.{part}")
    if shortcut:
        yield from _leaves(f"{ours}.conv_shortcut", f"{theirs}.nin_shortcut")


def _text_encoder(config: Config) -> dict[str, Place]:
    names = ["embeddings.token_embedding.weight", "embeddings.position_embedding.weight"]
    parts = ["final_layer_norm"]
    for layer in range(config["num_hidden_layers"]):
        each = f"encoder.layers.{layer}"
        parts += [f"{each}.self_attn.{part}_proj" for part in (*_QKV, "out")]
        parts += [f"{each}.{part}" for part in ("layer_norm1", "mlp.fc1", "mlp.fc2", "layer_norm2")]
    return {name: Place(name) for name in (*names, *(f"{part}.{leaf}" for part in parts for leaf in _WITH_BIAS))}


def _text_encoder_2(config: Config) -> dict[str, Place]:
    found = {
        "embeddings.token_embedding.weight": Place("token_embedding.weight"),
        "embeddings.position_embedding.weight": Place("positional_embedding"),
        "text_projection.weight": Place("text_projection", transposed=True),
    }
    found |= {ours: Place(theirs) for ours, theirs in _leaves("final_layer_norm", "ln_final")}
    for layer in range(config["num_hidden_layers"]):
        ours, theirs = f"encoder.layers.{layer}", f"transformer.resblocks.{layer}"
        for leaf in _WITH_BIAS:
            found |= {
                f"{ours}.self_attn.{each}_proj.{leaf}": Place(f"{theirs}.attn.in_proj_{leaf}", third=index)
                for index, each in enumerate(_QKV)
            }
        for mine, other in (("self_attn.out_proj", "attn.out_proj"), ("layer_norm1", "ln_1"), ("layer_norm2", "ln_2"),
                            ("mlp.fc1", "mlp.c_fc"), ("mlp.fc2", "mlp.c_proj")):  # fmt: skip
            found |= {name: Place(key) for name, key in _leaves(f"{ours}.{mine}", f"{theirs}.{other}")}
    return found


_TABLES: Mapping[str, Callable[[Config], dict[str, Place]]] = {
    "unet": _unet,
    "vae": _vae,
    "text_encoder": _text_encoder,
    "text_encoder_2": _text_encoder_2,
}


def _leaves(ours: str, theirs: str, leaves: Sequence[str] = _WITH_BIAS) -> Pairs:
    for leaf in leaves:
        yield f"{ours}.{leaf}", f"{theirs}.{leaf}"


def _each(value: int | Sequence[int], count: int) -> list[int]:
    """Return one number per level; a single one is for all of them."""
    return [value] * count if isinstance(value, int) else list(value)
