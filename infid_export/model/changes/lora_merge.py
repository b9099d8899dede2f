"""Low-rank updates of weights, as a LoRA stores them: W + s·U·D, computed in fp32 for one weight at a time.

D is `[r, in]`, or `[r, in, kh, kw]` for a convolution; U is `[out, r]` or `[out, r, 1, 1]` (LoRA, arXiv 2106.09685,
section 4.1).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from infid_engines.errors import InputError


@dataclass(frozen=True)
class LowRank:
    """A low-rank update of one weight.

    Args:
        down: `[r, in]` or `[r, in, kh, kw]`, of any floating-point dtype.
        up: `[out, r]` or `[out, r, 1, 1]`, likewise.
        scale: factor of the product: strength · alpha / r.
    """

    down: Tensor
    up: Tensor
    scale: float

    def fits(self, shape: Sequence[int]) -> bool:
        """Return whether it updates a weight of this shape; layers and 1x1 convolutions can replace each other."""
        ranks = {self.down.shape[0], *self.up.shape[1:2]}
        product = (*self.up.shape[:1], *self.down.shape[1:])
        return len(shape) > 1 and len(ranks) == 1 and math.prod(self.up.shape[2:]) == 1 and _same(product, shape)


class WeightUpdates(Protocol):
    """Updates of a model's weights, such as those of one LoRA.

    Opening them reads only names and hashes; `updates` imports torch.
    """

    name: str  # for messages, capitalized: "The LoRA style.safetensors"
    note: str  # what they change, for the notes of a build
    fingerprint: str  # a sha256 that changes when an update changes
    components: frozenset[str]  # the components that they change

    def updates(self, component: str) -> Mapping[str, Sequence[LowRank]]:
        """Return the updates of a component by parameter name.

        Raises:
            InputError: a name belongs to no parameter.
        """


def merged(weight: Tensor, low_ranks: Sequence[LowRank]) -> Tensor:
    """Return W + Σ s·U·D in fp32, in the shape of W `[out, in]` or `[out, in, kh, kw]`."""
    result = weight.float().flatten(1)
    for each in low_ranks:
        result = torch.addmm(result, each.up.float().flatten(1), each.down.float().flatten(1), alpha=each.scale)
    return result.reshape(weight.shape)


def require_fitting(low_rank: LowRank, name: str, shape: Sequence[int] | None, what: str) -> None:
    """Check an update against the weight that it changes.

    Args:
        low_rank: the update.
        name: name of the weight.
        shape: its shape; None if there is no such weight.
        what: name of the updates for the error, capitalized.

    Raises:
        InputError: there is no such weight, its shape differs, or a value of the update is not finite.
    """
    if shape is None:
        raise InputError(f"{what} changes {name}, which this model does not have.", fix="Use one for SDXL.")
    if not low_rank.fits(shape):
        raise InputError(
            f"{what} has for {name} the shapes {list(low_rank.up.shape)} and {list(low_rank.down.shape)}, which do not "
            f"fit its {list(shape)}.",
            fix="Use one for SDXL.",
        )
    if not all(bool(part.isfinite().all()) for part in (low_rank.up, low_rank.down)):
        raise InputError(f"{what} has values for {name} that are not finite.", fix="Use an intact file.")


def _same(found: Sequence[int], shape: Sequence[int]) -> bool:
    """Return whether two shapes are equal, except for a kernel of 1x1."""
    longest = max(len(found), len(shape))
    return [*found, *[1] * (longest - len(found))] == [*shape, *[1] * (longest - len(shape))]
