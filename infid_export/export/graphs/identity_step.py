"""`identity_step`: one denoising step of the identity stream alone, on the text features of the same step."""

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
    first_sample,
    guidance_input,
    guidance_value,
    identity_inputs,
    identity_values,
    stream_inputs,
    stream_outputs,
    stream_values,
    template_inputs,
    template_values,
)
from infid_export.export.graphs.text_encoders import TEXT_ENCODER, TEXT_ENCODER_2
from infid_export.export.graphs.text_step import TEXT_STEP

if TYPE_CHECKING:
    from torch import nn

    from infid_export.export.graphs.graph import Values
    from infid_export.export.parity_case import ParityCase
    from infid_export.model.config import IdentityConfig, StreamCount


class IdentityStepGraph(Graph):
    """The identity stream alone: one template, and as many people as the batch holds."""

    name = "identity_step"
    components = UNET
    depends_on: frozenset[Dependence] = frozenset({"batch", "guidance", "size", "people", "method", "templates"})
    streams: tuple[StreamCount, ...] = ("two",)
    by_default = False  # for templates, and as large as denoise_step
    kernels: tuple[Kernels, ...] = ("native", "triton")
    upstream: tuple[Graph, ...] = (TEXT_ENCODER, TEXT_ENCODER_2, IDENTITY_ENCODER, TEXT_STEP)

    def module(self, parts: Mapping[str, nn.Module], config: IdentityConfig, ops: str = "torch") -> nn.Module:
        """Return the step of the identity stream."""
        from infid_export.model.step import IdentityStep

        return IdentityStep(parts["unet"], config, ops)

    def inputs(self, sizes: Sizes) -> Tensors:
        """Return the identity stream's state and noise, the sampler's row, prompt, people and text features."""
        one = sizes.single
        stream = {**stream_inputs("identity", sizes), **common_inputs(one), **identity_inputs(sizes)}
        return {**stream, **template_inputs(one), **guidance_input(sizes)}

    def outputs(self, sizes: Sizes) -> Tensors:
        """Return the next state."""
        return stream_outputs("identity", sizes)

    def parity_inputs(self, case: ParityCase) -> Values:
        """Return the noise of `denoise_step`'s identity stream, and the features of the text step."""
        stream = {**stream_values("identity", case), **common_values(first_sample(case)), **identity_values(case)}
        return {**stream, **template_values(case, case.outputs[TEXT_STEP.name]), **guidance_value(case)}


IDENTITY_STEP = IdentityStepGraph()
