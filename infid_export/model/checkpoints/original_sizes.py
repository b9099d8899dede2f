"""Configurations of the networks in a file of SDXL's original layout, from the shapes of its tensors.

The layout has no configuration. What shapes do not show is SDXL's: heads of 64 channels, norms of 32 groups, activation
functions, the factor of the latents, and the size of images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from infid_engines.errors import InputError
from infid_export.model.architectures import SDXL
from infid_export.model.checkpoints.original_layout import PREFIXES

_HEAD = 64  # channels of an attention head in SDXL's UNet and text encoders


class Shapes:
    """The shapes of a network's tensors.

    Args:
        shapes: shapes of all tensors of a file.
        prefix: start of the network's names.
        where: the file, for errors.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], prefix: str, where: str) -> None:
        self._shapes = {name[len(prefix) :]: shape for name, shape in shapes.items() if name.startswith(prefix)}
        self._prefix, self._where = prefix, where

    def of(self, name: str, axes: int) -> tuple[int, ...]:
        """Return a tensor's shape.

        Raises:
            InputError: the file lacks it, or it has another number of axes.
        """
        shape = self._shapes.get(name, ())
        if len(shape) != axes:
            problem = "lacks the tensor" if name not in self._shapes else "has another shape for"
            raise InputError(f"{self._where} {problem} {self._prefix}{name}.", fix="Copy or download it again.")
        return shape

    def has(self, start: str) -> bool:
        """Return whether a name starts with this."""
        return any(name.startswith(start) for name in self._shapes)

    def count(self, start: str) -> int:
        """Return how many numbers follow `start` without a gap, from 0: layers, blocks or levels."""
        number = 0
        while self.has(f"{start}{number}."):
            number += 1
        return number


def original_configuration(component: str, shapes: Mapping[str, tuple[int, ...]], where: str) -> dict[str, Any]:
    """Return the configuration of a network.

    Args:
        component: `unet`, `vae`, `text_encoder` or `text_encoder_2`.
        shapes: shapes of all tensors of the file.
        where: the file, for errors.

    Raises:
        InputError: a tensor that shows a size is missing.
    """
    return _CONFIGURATIONS[component](Shapes(shapes, PREFIXES[component], where))


def _unet(shapes: Shapes) -> dict[str, Any]:
    channels, layers, depths = [shapes.of("input_blocks.0.0.weight", 4)[0]], [0], [0]
    for number in range(1, shapes.count("input_blocks.")):
        block = f"input_blocks.{number}"
        if shapes.has(f"{block}.0.op."):
            channels, layers, depths = [*channels, channels[-1]], [*layers, 0], [*depths, 0]
            continue
        channels[-1] = shapes.of(f"{block}.0.in_layers.2.weight", 4)[0]
        layers[-1] += 1
        depths[-1] = shapes.count(f"{block}.1.transformer_blocks.")
    kinds = ["CrossAttn" if depth else "" for depth in depths]
    context = "middle_block.1.transformer_blocks.0.attn2.to_k.weight"
    return {
        **SDXL.unet,
        "in_channels": shapes.of("input_blocks.0.0.weight", 4)[1],
        "out_channels": shapes.of("out.2.weight", 4)[0],
        "block_out_channels": channels,
        "layers_per_block": layers[0] if len(set(layers)) == 1 else layers,
        "down_block_types": [f"{kind}DownBlock2D" for kind in kinds],
        "up_block_types": [f"{kind}UpBlock2D" for kind in reversed(kinds)],
        "cross_attention_dim": shapes.of(context, 2)[1],
        "transformer_layers_per_block": [max(1, depth) for depth in depths],
        "attention_head_dim": [_heads(width) for width in channels],
        "projection_class_embeddings_input_dim": shapes.of("label_emb.0.0.weight", 2)[1],
    }


def _vae(shapes: Shapes) -> dict[str, Any]:
    levels = range(shapes.count("encoder.down."))
    return {
        **SDXL.vae,
        "latent_channels": shapes.of("decoder.conv_in.weight", 4)[1],
        "block_out_channels": [shapes.of(f"encoder.down.{level}.block.0.conv1.weight", 4)[0] for level in levels],
        "layers_per_block": shapes.count("encoder.down.0.block."),
        "down_block_types": ["DownEncoderBlock2D" for _ in levels],
        "up_block_types": ["UpDecoderBlock2D" for _ in levels],
    }


def _text_encoder(shapes: Shapes) -> dict[str, Any]:
    words, width = shapes.of("embeddings.token_embedding.weight", 2)
    return {
        **SDXL.text_encoder,
        "vocab_size": words,
        "hidden_size": width,
        "intermediate_size": shapes.of("encoder.layers.0.mlp.fc1.weight", 2)[0],
        "num_hidden_layers": shapes.count("encoder.layers."),
        "num_attention_heads": _heads(width),
        "projection_dim": width,
        "max_position_embeddings": shapes.of("embeddings.position_embedding.weight", 2)[0],
    }


def _text_encoder_2(shapes: Shapes) -> dict[str, Any]:
    words, width = shapes.of("token_embedding.weight", 2)
    return {
        **SDXL.text_encoder_2,
        "vocab_size": words,
        "hidden_size": width,
        "intermediate_size": shapes.of("transformer.resblocks.0.mlp.c_fc.weight", 2)[0],
        "num_hidden_layers": shapes.count("transformer.resblocks."),
        "num_attention_heads": _heads(width),
        "projection_dim": shapes.of("text_projection", 2)[1],
        "max_position_embeddings": shapes.of("positional_embedding", 2)[0],
    }


_CONFIGURATIONS: Mapping[str, Callable[[Shapes], dict[str, Any]]] = {
    "unet": _unet,
    "vae": _vae,
    "text_encoder": _text_encoder,
    "text_encoder_2": _text_encoder_2,
}


def _heads(width: int) -> int:
    return max(1, width // _HEAD)
