"""`text_step`: one denoising step of the text stream alone; also returns the features for identity streams."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from infid_export.export.graphs.graph import Dependence, Graph, Sizes, Tensors
from infid_export.export.graphs.step_parts import UNET, common_inputs, common_values, text_features
from infid_export.export.graphs.text_encoders import TEXT_ENCODER, TEXT_ENCODER_2

if TYPE_CHECKING:
    from torch import nn

    from infid_export.export.graphs.graph import Values
    from infid_export.export.parity_case import ParityCase
    from infid_export.model.config import IdentityConfig


class TextStepGraph(Graph):
    """The text stream alone."""

    name = "text_step"
    components = UNET
    depends_on: frozenset[Dependence] = frozenset({"batch", "size"})
    by_default = False  # nothing runs it yet
    upstream: tuple[Graph, ...] = (TEXT_ENCODER, TEXT_ENCODER_2)

    def module(self, parts: Mapping[str, nn.Module], config: IdentityConfig, ops: str = "torch") -> nn.Module:
        """Return the step of the text stream."""
        from infid_export.model.step import TextStep

        return TextStep(parts["unet"], config, ops)

    def inputs(self, sizes: Sizes) -> Tensors:
        """Return the text stream's latents and the prompt."""
        return {"text_latents": sizes.latents, **common_inputs(sizes)}

    def outputs(self, sizes: Sizes) -> Tensors:
        """Return the next latents and the text features."""
        return {"next_text_latents": sizes.latents, "text_features": text_features(sizes)}

    def parity_inputs(self, case: ParityCase) -> Values:
        """Return the noise of `denoise_step`'s text stream."""
        return {"text_latents": case.noise(0), **common_values(case)}


TEXT_STEP = TextStepGraph()
