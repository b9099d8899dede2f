"""The cases on which the kernels and their references are tested, and the formula in float64."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from infid_kernels.measure import LIMITS

__all__ = ["CASES", "LIMITS", "Case", "merged_oracle", "mixed_oracle", "relative"]


@dataclass(frozen=True)
class Case:
    """One call.

    Args:
        name: the test id.
        lengths: queries, identity tokens, text tokens.
        d: head size.
        rows: rows of the batch.
        heads: heads.
        dtype: of all tensors.
        layout: how they are stored: `packed` as `[B, N, H, d]`, `heads` as `[B, H, N, d]`, `sliced` out of one
            `[B, N, 3, H, d]` projection.
        content: `normal`, `large` logits, `ties` among the keys, or `means` 1e3 apart.
        strength: s; rows take turns between it and half of it.
    """

    name: str
    lengths: tuple[int, int, int] = (77, 63, 77)
    d: int = 64
    rows: int = 1
    heads: int = 3
    dtype: torch.dtype = torch.float16
    layout: str = "packed"
    content: str = "normal"
    strength: float = 1.0

    def tensors(self, seed: int, device: torch.device) -> list[Tensor]:
        """Return q, k_id, v_id, k_t, v_t with fresh values."""
        generator = torch.Generator().manual_seed(seed)
        queries, identity, text = self.lengths
        made = []
        for index, length in enumerate((queries, identity, identity, text, text)):
            values = torch.randn(self.rows, length, self.heads, self.d, generator=generator)
            if index >= 3:
                values = values * 0.7 + 0.3  # the text's statistics differ from the identity's
            made.append(self._lay_out(self._fill(values, index, generator), device))
        return made

    def _fill(self, values: Tensor, index: int, generator: torch.Generator) -> Tensor:
        if self.content == "large" and index == 0:
            return values * 30
        if self.content == "ties" and index in (1, 3) and values.shape[1]:
            return values[:, :1] + 1e-3 * torch.randn(values.shape, generator=generator)
        if self.content == "means" and index >= 3:
            return values + 1e3
        return values

    def _lay_out(self, values: Tensor, device: torch.device) -> Tensor:
        values = values.to(device, self.dtype)
        if self.layout == "heads":
            return values.transpose(1, 2).contiguous()
        if self.layout == "sliced":
            return torch.stack([values, values, values], 2)[:, :, 1].transpose(1, 2)
        return values.transpose(1, 2)

    def strengths(self, device: torch.device, largest: float | None = None) -> Tensor:
        """Return one strength per row, with different neighbors."""
        largest = self.strength if largest is None else largest
        return torch.tensor([largest / (1 + row % 2) for row in range(self.rows)], device=device)


CASES = (
    Case("one token", (1, 1, 1)),
    Case("square", (64, 64, 64), rows=2, heads=2),
    Case("odd 63", (63, 63, 63)),
    Case("odd 77, three rows of five heads", (77, 77, 77), rows=3, heads=5),
    Case("odd 261", (261, 261, 77)),
    Case("odd 500", (500, 500, 500), heads=1),
    Case("identity longer than text", (40, 500, 7)),
    Case("text longer than identity", (40, 7, 500)),
    Case("no person", (77, 0, 77), rows=2),
    Case("full blocks", (64, 128, 96), rows=2),
    *(Case(f"strength {s}", strength=s, rows=2) for s in (0.0, 0.5, 2.0)),
    *(Case(f"head size {d}", d=d) for d in (32, 40, 80, 96, 128)),
    *(Case(f"layout {layout}", layout=layout, rows=2) for layout in ("heads", "sliced")),
    *(Case(f"{content} content", content=content, rows=2) for content in ("large", "ties", "means")),
    Case("bf16", dtype=torch.bfloat16, rows=2),
    Case("bf16, full blocks", (64, 96, 128), dtype=torch.bfloat16),
    Case("bf16, large content", dtype=torch.bfloat16, content="large"),
)


def mixed_oracle(tensors: list[Tensor], strength: Tensor, scale: float | None = None) -> Tensor:
    """Return mixed attention computed directly from the formula, in float64."""
    q, k_id, v_id, k_t, v_t = (tensor.double() for tensor in tensors)
    s = strength.double().view(-1, 1, 1, 1)
    return _softmax_attention(
        q, torch.cat([_shifted(k_id, k_t, s), k_t], 2), torch.cat([_shifted(v_id, v_t, s), v_t], 2), scale
    )


def merged_oracle(tensors: list[Tensor], strength: Tensor, factor: Tensor, scale: float | None = None) -> Tensor:
    """Return merged cross-attention computed directly from the formula, with AdaIN on keys and values, in float64."""
    q, k_id, v_id, k_t, v_t = (tensor.double() for tensor in tensors)
    s = strength.double().view(-1, 1, 1, 1)
    text = _softmax_attention(q, k_t, v_t, scale)
    if k_id.shape[2] == 0:
        return text
    identity = _softmax_attention(q, _shifted(k_id, k_t, s), _shifted(v_id, v_t, s), scale)
    return text + factor.double().view(-1, 1, 1, 1) * identity


def _shifted(x: Tensor, y: Tensor, s: Tensor) -> Tensor:
    return x + s * (y.mean(2, keepdim=True) - x.mean(2, keepdim=True)) if x.shape[2] else x


def _softmax_attention(q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> Tensor:
    return torch.softmax(q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale), -1) @ v


def relative(found: Tensor, expected: Tensor) -> float:
    """Return the RMS of the error over the RMS of the expected values; NaN if any value is NaN."""
    return float((found.double() - expected).norm() / expected.norm())
