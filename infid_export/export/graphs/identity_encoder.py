"""`identity_encoder`: from a face or an image to identity tokens and the keys and values of all transformer blocks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from infid_export.export.graphs.graph import Dependence, Graph
from infid_export.export.graphs.sizes import Sizes, Tensors, TensorShape

if TYPE_CHECKING:
    from torch import nn

    from infid_export.export.graphs.graph import Values
    from infid_export.export.parity_case import ParityCase
    from infid_export.model.config import IdentityConfig


class IdentityEncoderGraph(Graph):
    """Image encoder, mappers and projections of one person, for both guidance conditions.

    The variant of the method decides what it reads: an image, a face embedding, or both.
    """

    name = "identity_encoder"
    components: Mapping[str, str] = {"image_encoder.": "image_encoder", "identity.": "identity"}
    depends_on: frozenset[Dependence] = frozenset({"method"})  # not on the batch: people are encoded one at a time

    def used_components(self, config: IdentityConfig) -> Mapping[str, str]:
        """Return no image encoder where the mapper reads none."""
        return {
            prefix: name for prefix, name in self.components.items() if config.reads_image or name != "image_encoder"
        }

    def module(self, parts: Mapping[str, nn.Module], config: IdentityConfig, ops: str = "torch") -> nn.Module:
        """Return the components as one module."""
        from infid_export.model.encoders import IdentityEncoder

        return IdentityEncoder(parts.get("image_encoder"), parts["identity"])  # type: ignore[arg-type]

    def inputs(self, sizes: Sizes) -> Tensors:
        """Return what the mapper reads: one crop, its embedding, or both."""
        side, config = sizes.architecture.image_encoder["image_size"], sizes.config
        shapes = {
            "face_crop": TensorShape((1, 3, side, side)),
            "face_embedding": TensorShape((1, config.face_width)),
        }
        return {name: shapes[name] for name in config.encoder_inputs}

    def outputs(self, sizes: Sizes) -> Tensors:
        """Return tokens, keys and values; row 0 is unconditional."""
        tokens, channels = sizes.config.tokens, sum(sizes.blocks.values())
        stacked = TensorShape((2, tokens, channels), "network")
        return {
            "identity_tokens": TensorShape((2, tokens, sizes.config.cross_attention_dim), "network"),
            "identity_keys": stacked,
            "identity_values": stacked,
        }

    def parity_inputs(self, case: ParityCase) -> Values:
        """Return the fixed face."""
        return case.face().arrays(self.inputs(case.sizes))


IDENTITY_ENCODER = IdentityEncoderGraph()
