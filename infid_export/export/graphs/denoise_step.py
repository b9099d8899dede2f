"""`denoise_step`: one denoising step of both streams, with guidance and the sampler's update."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from infid_export.export.graphs.graph import Dependence, Graph, Kernels, Sizes, Tensors
from infid_export.export.graphs.identity_encoder import IDENTITY_ENCODER
from infid_export.export.graphs.step_parts import UNET, common_inputs, common_values, identity_inputs, identity_values
from infid_export.export.graphs.text_encoders import TEXT_ENCODER, TEXT_ENCODER_2

if TYPE_CHECKING:
    from torch import nn

    from infid_export.export.graphs.graph import Values
    from infid_export.export.parity_case import ParityCase
    from infid_export.model.config import IdentityConfig


class DenoiseStepGraph(Graph):
    """Both streams in one UNet batch."""

    name = "denoise_step"
    components = UNET
    depends_on: frozenset[Dependence] = frozenset({"batch", "size", "people", "method"})
    kernels: tuple[Kernels, ...] = ("native", "triton")
    upstream: tuple[Graph, ...] = (TEXT_ENCODER, TEXT_ENCODER_2, IDENTITY_ENCODER)

    def module(self, parts: Mapping[str, nn.Module], config: IdentityConfig, ops: str = "torch") -> nn.Module:
        """Return the step of both streams."""
        from infid_export.model.step import DenoiseStep

        return DenoiseStep(parts["unet"], config, ops)

    def inputs(self, sizes: Sizes) -> Tensors:
        """Return both streams' latents, the prompt and the person."""
        latents = {"text_latents": sizes.latents, "identity_latents": sizes.latents}
        return {**latents, **common_inputs(sizes), **identity_inputs(sizes)}

    def outputs(self, sizes: Sizes) -> Tensors:
        """Return both streams' next latents."""
        return {"next_text_latents": sizes.latents, "next_identity_latents": sizes.latents}

    def parity_inputs(self, case: ParityCase) -> Values:
        """Return different noise for each stream, so that swapped streams show."""
        latents = {"text_latents": case.noise(0), "identity_latents": case.noise(1)}
        return {**latents, **common_values(case), **identity_values(case)}


DENOISE_STEP = DenoiseStepGraph()
