"""`denoise_step`: one denoising step of both streams, with guidance and the sampler's update."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from infid_export.export.graphs.graph import Dependence, Graph, Kernels
from infid_export.export.graphs.identity_encoder import IDENTITY_ENCODER
from infid_export.export.graphs.sizes import Sizes, Tensors
from infid_export.export.graphs.step_parts import (
    UNET,
    common_inputs,
    common_values,
    guidance_input,
    guidance_value,
    identity_inputs,
    identity_values,
    stream_inputs,
    stream_outputs,
    stream_values,
)
from infid_export.export.graphs.text_encoders import TEXT_ENCODER, TEXT_ENCODER_2

if TYPE_CHECKING:
    from torch import nn

    from infid_export.export.graphs.graph import Values
    from infid_export.export.parity_case import ParityCase
    from infid_export.model.config import IdentityConfig, StreamCount


class DenoiseStepGraph(Graph):
    """Both streams in one UNet batch."""

    name = "denoise_step"
    components = UNET
    depends_on: frozenset[Dependence] = frozenset({"batch", "guidance", "size", "people", "method"})
    streams: tuple[StreamCount, ...] = ("two",)
    kernels: tuple[Kernels, ...] = ("native", "triton")
    upstream: tuple[Graph, ...] = (TEXT_ENCODER, TEXT_ENCODER_2, IDENTITY_ENCODER)

    def module(self, parts: Mapping[str, nn.Module], config: IdentityConfig, ops: str = "torch") -> nn.Module:
        """Return the step of both streams."""
        from infid_export.model.step import DenoiseStep

        return DenoiseStep(parts["unet"], config, ops)

    def inputs(self, sizes: Sizes) -> Tensors:
        """Return both streams' state and noise, the sampler's row, the prompts and the people."""
        streams = {**stream_inputs("text", sizes), **stream_inputs("identity", sizes)}
        return {**streams, **common_inputs(sizes), **identity_inputs(sizes), **guidance_input(sizes)}

    def outputs(self, sizes: Sizes) -> Tensors:
        """Return both streams' next state."""
        return {**stream_outputs("text", sizes), **stream_outputs("identity", sizes)}

    def parity_inputs(self, case: ParityCase) -> Values:
        """Return different noise for each stream, so that swapped streams show."""
        streams = {**stream_values("text", case), **stream_values("identity", case)}
        return {**streams, **common_values(case), **identity_values(case), **guidance_value(case)}


DENOISE_STEP = DenoiseStepGraph()
