"""`identity_encoder`: from an aligned face to identity tokens and the keys and values of all transformer blocks."""

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
    """Image encoder, mappers and projections of one person, for both guidance conditions."""

    name = "identity_encoder"
    components: Mapping[str, str] = {"image_encoder.": "image_encoder", "identity.": "identity"}
    depends_on: frozenset[Dependence] = frozenset({"method"})  # not on the batch: people are encoded one at a time

    def module(self, parts: Mapping[str, nn.Module], config: IdentityConfig, ops: str = "torch") -> nn.Module:
        """Return both components as one module."""
        from infid_export.model.encoders import IdentityEncoder

        return IdentityEncoder(parts["image_encoder"], parts["identity"])  # type: ignore[arg-type]

    def inputs(self, sizes: Sizes) -> Tensors:
        """Return one aligned crop and its embedding."""
        side = sizes.architecture.image_encoder["image_size"]
        return {
            "face_crop": TensorShape((1, 3, side, side)),
            "face_embedding": TensorShape((1, sizes.config.face_width)),
        }

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
        face = case.face()
        return {"face_crop": face.face_crop, "face_embedding": face.face_embedding}


IDENTITY_ENCODER = IdentityEncoderGraph()
