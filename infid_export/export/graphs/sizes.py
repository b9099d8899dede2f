"""Shapes of the inputs and outputs of graphs, and what they depend on. Imports are light."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from infid_export.model.architectures import Architecture
    from infid_export.model.config import IdentityConfig

PROMPT_TOKENS = 77


class TensorShape(NamedTuple):
    """Shape and dtype of a tensor; `network` is the dtype of the graph's network, fp16 or fp32."""

    extents: tuple[int, ...]
    dtype: Literal["float32", "int32", "int8", "network"] = "float32"


# Keyed by argument or result. A mapping stands for a list of tensors, keyed by the names of its entries.
Tensors = Mapping[str, TensorShape | Mapping[str, TensorShape]]


@dataclass(frozen=True)
class Sizes:
    """Everything that the shapes of a graph depend on.

    Args:
        architecture: configurations of the components.
        config: sizes of the identity modules.
        blocks: paths of the UNet's cross-attention layers and their channels, see `identity_blocks`.
        batch: B, images per call.
        height: pixels.
        width: pixels.
        people: number of slots for people.
        guidance: whether each stream has unconditional rows too.
        quantize_templates: whether text features are kept in 8 bits.
    """

    architecture: Architecture
    config: IdentityConfig
    blocks: Mapping[str, int]
    batch: int
    height: int
    width: int
    people: int = 1
    guidance: bool = True
    quantize_templates: bool = False

    @property
    def copies(self) -> int:
        """Rows of one sample in a stream: unconditional and conditional, or conditional alone."""
        return 2 if self.guidance else 1

    @property
    def rows(self) -> int:
        """R, rows of one stream: unconditional ones, if there is guidance, then conditional ones."""
        return self.copies * self.batch

    @property
    def single(self) -> Sizes:
        """The sizes of one sample."""
        return replace(self, batch=1)

    @property
    def latents(self) -> TensorShape:
        """The latents of one stream."""
        return TensorShape((self.batch, *self.architecture.latents(self.height, self.width)))
