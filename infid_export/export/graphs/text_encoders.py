"""`text_encoder` and `text_encoder_2`: from token ids to prompt embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from infid_export.export.graphs.graph import Dependence, Graph
from infid_export.export.graphs.sizes import PROMPT_TOKENS, Sizes, Tensors, TensorShape

if TYPE_CHECKING:
    from torch import nn

    from infid_export.export.graphs.graph import Values
    from infid_export.export.parity_case import ParityCase
    from infid_export.model.config import IdentityConfig


class TextEncoder(Graph):
    """The CLIP text encoder of which SDXL uses only the hidden states."""

    name = "text_encoder"
    components: Mapping[str, str] = {"encoder.": "text_encoder"}
    depends_on: frozenset[Dependence] = frozenset({"batch", "guidance"})
    tokenizer = 0  # the first of the model's two

    def module(self, parts: Mapping[str, nn.Module], config: IdentityConfig, ops: str = "torch") -> nn.Module:
        """Return the encoder as SDXL uses it."""
        from infid_export.model.exported import PromptEncoder

        (component,) = self.components.values()
        return PromptEncoder(parts[component])

    def inputs(self, sizes: Sizes) -> Tensors:
        """Return the token ids of all rows."""
        return {"input_ids": TensorShape((sizes.rows, PROMPT_TOKENS), "int32")}

    def outputs(self, sizes: Sizes) -> Tensors:
        """Return the penultimate hidden states."""
        width = sizes.architecture.text_encoder["hidden_size"]
        return {"hidden_states": TensorShape((sizes.rows, PROMPT_TOKENS, width), "network")}

    def parity_inputs(self, case: ParityCase) -> Values:
        """Return the ids of the fixed prompts."""
        return {"input_ids": case.token_ids(self.tokenizer)}


class TextEncoder2(TextEncoder):
    """The CLIP text encoder of which SDXL also uses the pooled projection."""

    name = "text_encoder_2"
    components: Mapping[str, str] = {"encoder.": "text_encoder_2"}
    tokenizer = 1

    def outputs(self, sizes: Sizes) -> Tensors:
        """Return the penultimate hidden states and the pooled embedding."""
        config = sizes.architecture.text_encoder_2
        return {
            "hidden_states": TensorShape((sizes.rows, PROMPT_TOKENS, config["hidden_size"]), "network"),
            "pooled": TensorShape((sizes.rows, config["projection_dim"]), "network"),
        }


TEXT_ENCODER, TEXT_ENCODER_2 = TextEncoder(), TextEncoder2()
