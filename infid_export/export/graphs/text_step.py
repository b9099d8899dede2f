"""`text_step`: one denoising step of the text stream alone; also returns the features for identity streams."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from infid_export.export.graphs.graph import Dependence, Graph
from infid_export.export.graphs.sizes import Sizes, Tensors
from infid_export.export.graphs.step_parts import (
    UNET,
    common_inputs,
    common_values,
    first_sample,
    guidance_input,
    guidance_value,
    stream_inputs,
    stream_outputs,
    stream_values,
    text_features,
)
from infid_export.export.graphs.text_encoders import TEXT_ENCODER, TEXT_ENCODER_2

if TYPE_CHECKING:
    from torch import nn

    from infid_export.export.graphs.graph import Values
    from infid_export.export.parity_case import ParityCase
    from infid_export.model.config import IdentityConfig, StreamCount


class TextStepGraph(Graph):
    """The text stream alone, of one sample: a template is made of one prompt."""

    name = "text_step"
    components = UNET
    depends_on: frozenset[Dependence] = frozenset({"guidance", "size"})
    streams: tuple[StreamCount, ...] = ("two",)
    by_default = False  # for templates, and as large as denoise_step
    upstream: tuple[Graph, ...] = (TEXT_ENCODER, TEXT_ENCODER_2)

    def module(self, parts: Mapping[str, nn.Module], config: IdentityConfig, ops: str = "torch") -> nn.Module:
        """Return the step of the text stream."""
        from infid_export.model.step import TextStep

        return TextStep(parts["unet"], config, ops)

    def inputs(self, sizes: Sizes) -> Tensors:
        """Return the text stream's state and noise, the sampler's row and the prompt."""
        one = sizes.single
        return {**stream_inputs("text", one), **common_inputs(one), **guidance_input(one)}

    def outputs(self, sizes: Sizes) -> Tensors:
        """Return the next state and the text features."""
        return {**stream_outputs("text", sizes.single), "text_features": text_features(sizes.single)}

    def parity_inputs(self, case: ParityCase) -> Values:
        """Return the noise of `denoise_step`'s text stream."""
        one = first_sample(case)
        return {**stream_values("text", one), **common_values(one), **guidance_value(one)}


TEXT_STEP = TextStepGraph()
