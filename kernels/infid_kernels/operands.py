"""The tensors of one attention call as one value, and the strides that are passed to a kernel with them.

A launch on the host takes `Operands`. The kernels themselves take pointers first, then integers, then outputs, one by
one: TensorRT's ahead-of-time plugins pass arguments in that order, so a pointer and its strides cannot be one argument.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Operands(NamedTuple):
    """Queries, and keys and values of both segments.

    Args:
        q: `[B, H, N, d]` queries.
        k_id: `[B, H, M, d]` identity keys; M is 0 without a person.
        v_id: `[B, H, M, d]` identity values.
        k_t: `[B, H, L, d]` text keys.
        v_t: `[B, H, L, d]` text values.
    """

    q: Tensor
    k_id: Tensor
    v_id: Tensor
    k_t: Tensor
    v_t: Tensor

    @property
    def segments(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Keys and values of the identity, then of the text."""
        return self.k_id, self.v_id, self.k_t, self.v_t

    @property
    def described_segments(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The segments as tensor descriptors describe them: for an empty identity, which has none, the text's."""
        return self.segments if self.k_id.shape[2] else (self.k_t, self.v_t, self.k_t, self.v_t)

    @property
    def lengths(self) -> tuple[int, int]:
        """Numbers of keys M and L of the identity and the text."""
        return self.k_id.shape[2], self.k_t.shape[2]


def strides(*tensors: Tensor) -> list[int]:
    """Return the strides of rows, heads and tokens, in elements, of each `[B, H, N, d]`; channels are contiguous."""
    return [stride for tensor in tensors for stride in tensor.stride()[:3]]
