"""`vae_decoder`: from latents to an image."""

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


class VaeDecoder(Graph):
    """The VAE's decoder."""

    name = "vae_decoder"
    components: Mapping[str, str] = {"vae.": "vae"}
    depends_on: frozenset[Dependence] = frozenset({"batch", "size"})

    def module(self, parts: Mapping[str, nn.Module], config: IdentityConfig, ops: str = "torch") -> nn.Module:
        """Return the decoder with the scaling of latents and of the image."""
        from infid_export.model.exported import ImageDecoder

        return ImageDecoder(parts["vae"])

    def inputs(self, sizes: Sizes) -> Tensors:
        """Return the final latents."""
        return {"latents": sizes.latents}

    def outputs(self, sizes: Sizes) -> Tensors:
        """Return RGB images."""
        return {"image": TensorShape((sizes.batch, 3, sizes.height, sizes.width))}

    def parity_inputs(self, case: ParityCase) -> Values:
        """Return noise of about the magnitude of the latents that images are decoded from."""
        return {"latents": case.noise(2) / 1.5}


VAE_DECODER = VaeDecoder()
