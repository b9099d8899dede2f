"""`single_step`: one denoising step of the identity stream where there is no text stream."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from infid_export.export.graphs.graph import Dependence, Graph
from infid_export.export.graphs.identity_encoder import IDENTITY_ENCODER
from infid_export.export.graphs.sizes import Sizes, Tensors
from infid_export.export.graphs.step_parts import (
    UNET,
    common_inputs,
    common_values,
    guidance_input,
    guidance_value,
    identity_values,
    person_inputs,
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


class SingleStepGraph(Graph):
    """Plain SDXL's rows, whose cross-attention also attends to the person."""

    name = "single_step"
    components = UNET
    depends_on: frozenset[Dependence] = frozenset({"batch", "guidance", "size", "people", "method"})
    streams: tuple[StreamCount, ...] = ("one",)
    upstream: tuple[Graph, ...] = (TEXT_ENCODER, TEXT_ENCODER_2, IDENTITY_ENCODER)

    def module(self, parts: Mapping[str, nn.Module], config: IdentityConfig, ops: str = "torch") -> nn.Module:
        """Return the step of the one stream."""
        from infid_export.model.step import SingleStep

        return SingleStep(parts["unet"], config, ops)

    def inputs(self, sizes: Sizes) -> Tensors:
        """Return the stream's state and noise, the sampler's row, the prompts and the people."""
        stream = {**stream_inputs("identity", sizes), **common_inputs(sizes)}
        return {**stream, **person_inputs(sizes), **guidance_input(sizes)}

    def outputs(self, sizes: Sizes) -> Tensors:
        """Return the next state."""
        return stream_outputs("identity", sizes)

    def parity_inputs(self, case: ParityCase) -> Values:
        """Return the noise of `denoise_step`'s identity stream."""
        stream = {**stream_values("identity", case), **common_values(case)}
        return {**stream, **identity_values(case), **guidance_value(case)}


SINGLE_STEP = SingleStepGraph()
