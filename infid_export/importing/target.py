"""The UNet that weights are imported for: its attention layers in the order in which adapters count them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from infid_export.importing.projection import Encoders
from infid_export.model.architectures import SDXL
from infid_export.model.checkpoints.folder import image_encoder_config
from infid_export.model.checkpoints.single_file import read_model
from infid_export.model.config import IdentityConfig
from infid_export.model.sources import BUILT_IN

# Of open_clip's ViT-bigG-14; reading it from open_clip takes longer than the rest of the check.
_BIG_G = {"ViT-bigG-14": {"embed_dim": 1280, "image_size": 224, "width": 1664, "patch_size": 14}}
# An adapter's layers of one attention, and the UNet's.
LORA_LAYERS = {"to_q": "to_q", "to_k": "to_k", "to_v": "to_v", "to_out": "to_out.0"}


@dataclass(frozen=True)
class Target:
    """What an adapter has to fit.

    Args:
        name: the base model's, for messages.
        blocks: path of every cross-attention (`attn2`) and its channels, in the UNet's order.
        width: of the prompt, and so of the identity tokens.
        layers: shapes `[out, in]` of the weights of all attention layers, by their path in the UNet.
    """

    name: str
    blocks: Mapping[str, int]
    width: int
    layers: Mapping[str, tuple[int, int]]

    @property
    def attentions(self) -> list[str]:
        """Paths of all attentions by an adapter's index: the j-th block has 2j (`attn1`) and 2j + 1 (`attn2`)."""
        return [f"{path.removesuffix('.attn2')}.{name}" for path in self.blocks for name in ("attn1", "attn2")]

    def lora_layers(self) -> Iterator[tuple[str, str]]:
        """Yield an adapter's name of every attention layer, such as `0.to_q`, and the UNet's path."""
        for index, path in enumerate(self.attentions):
            for name, layer in LORA_LAYERS.items():
                yield f"{index}.{name}", f"{path}.{layer}"


def open_target(model: str) -> tuple[Target, dict[str, Any] | None]:
    """Return the UNet of a base model, from its configuration alone, and its image encoder if it has one.

    Args:
        model: as in `open_source`.

    Raises:
        InputError: the model is missing or not SDXL's.
    """
    import torch

    from infid_export.model.components import construct
    from infid_export.model.processors import identity_blocks

    built_in = BUILT_IN.get(model)
    configuration = built_in.unet if built_in else read_model(model).parts["unet"]
    with torch.device("meta"):
        unet = construct("unet", replace(SDXL, unet=configuration), IdentityConfig())
    layers = {
        f"{path}.{layer}": (module.get_submodule(layer).out_features, module.get_submodule(layer).in_features)
        for path, module in unet.named_modules()
        if path.endswith((".attn1", ".attn2"))
        for layer in LORA_LAYERS.values()
    }
    target = Target(model, identity_blocks(unet), int(configuration["cross_attention_dim"]), layers)
    return target, None if built_in is None else built_in.image_encoder


def known_encoders(own: Mapping[str, Any] | None, name: str | None) -> Encoders:
    """Return the configurations of the image encoders that an adapter may read.

    Args:
        own: the base model's own, under the default name; None is ViT-H/14.
        name: open_clip's name of the only one; None means the base model's own and ViT-bigG/14.

    Raises:
        InputError: open_clip does not know the name.
    """
    if name is not None:
        return {name: image_encoder_config(name)}
    default = IdentityConfig.image_encoder
    return {default: own or image_encoder_config(default), **_BIG_G}
