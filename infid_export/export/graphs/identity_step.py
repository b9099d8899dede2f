"""`identity_step`: one denoising step of the identity stream alone, on the text features of the same step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from infid_export.export.graphs.graph import Dependence, Graph, Kernels, Sizes, Tensors
from infid_export.export.graphs.identity_encoder import IDENTITY_ENCODER
from infid_export.export.graphs.step_parts import (
    UNET,
    common_inputs,
    common_values,
    identity_inputs,
    identity_values,
    text_features,
)
from infid_export.export.graphs.text_encoders import TEXT_ENCODER, TEXT_ENCODER_2
from infid_export.export.graphs.text_step import TEXT_STEP

if TYPE_CHECKING:
    from torch import nn

    from infid_export.export.graphs.graph import Values
    from infid_export.export.parity_case import ParityCase
    from infid_export.model.config import IdentityConfig


class IdentityStepGraph(Graph):
    """The identity stream alone."""

    name = "identity_step"
    components = UNET
    depends_on: frozenset[Dependence] = frozenset({"batch", "size", "people", "method"})
    by_default = False  # nothing runs it yet
    kernels: tuple[Kernels, ...] = ("native", "triton")
    upstream: tuple[Graph, ...] = (TEXT_ENCODER, TEXT_ENCODER_2, IDENTITY_ENCODER, TEXT_STEP)

    def module(self, parts: Mapping[str, nn.Module], config: IdentityConfig, ops: str = "torch") -> nn.Module:
        """Return the step of the identity stream."""
        from infid_export.model.step import IdentityStep

        return IdentityStep(parts["unet"], config, ops)

    def inputs(self, sizes: Sizes) -> Tensors:
        """Return the identity stream's latents, the prompt, the person and the text features."""
        latents = {"identity_latents": sizes.latents}
        features = {"text_features": text_features(sizes)}
        return {**latents, **common_inputs(sizes), **identity_inputs(sizes), **features}

    def outputs(self, sizes: Sizes) -> Tensors:
        """Return the next latents."""
        return {"next_identity_latents": sizes.latents}

    def parity_inputs(self, case: ParityCase) -> Values:
        """Return the noise of `denoise_step`'s identity stream, and the features of the text step."""
        step = case.outputs[TEXT_STEP.name]
        features = {path: step[f"text_features.{path}"] for path in text_features(case.sizes)}
        latents = {"identity_latents": case.noise(1)}
        return {**latents, **common_values(case), **identity_values(case), "text_features": features}


IDENTITY_STEP = IdentityStepGraph()
