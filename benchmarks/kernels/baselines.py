"""What the kernels are compared with: the same operations in PyTorch.

A baseline takes the same inputs as our kernels. `complete` baselines do all the work. The others get part of it
precomputed and only show how fast their attention is by itself, so no speedup is computed against them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from infid_kernels.arguments import empty_output, logit_scale
from infid_kernels.library_attention import Attention, cudnn_attention, flash_attention, launch_library
from infid_kernels.mean_shift import launch_mean_shift
from infid_kernels.measure import Inputs
from infid_kernels.tuning import Library

Function = Callable[[Inputs], Tensor]


@dataclass(frozen=True)
class Baseline:
    """One way to compute an operation.

    Args:
        name: readable name.
        op: operation.
        prepare: takes inputs and the backend of torch.compile, and returns the call to time.
        complete: whether the call does all the work.
        compiled: whether it is compiled, which takes seconds.
    """

    name: str
    op: str
    prepare: Callable[[Inputs, str], Callable[[], Tensor]]
    complete: bool = True
    compiled: bool = False


def shifts(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Return δ_k and δ_v, `[B, H, 1, d]` fp32, without an fp32 copy of keys and values."""
    style = inputs.style_strength.view(-1, 1, 1, 1)
    means = [x.mean(2, keepdim=True, dtype=torch.float32) for x in (inputs.k_t, inputs.k_id, inputs.v_t, inputs.v_id)]
    return style * (means[0] - means[1]), style * (means[2] - means[3])


def concatenated(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Return keys and values `[B, H, M + L, d]`, with those of the identity shifted."""
    shift_k, shift_v = (shift.to(inputs.q.dtype) for shift in shifts(inputs))
    keys = torch.cat([inputs.k_id + shift_k, inputs.k_t], 2)
    return keys, torch.cat([inputs.v_id + shift_v, inputs.v_t], 2)


def concat(inputs: Inputs) -> Tensor:
    """Concatenate, shift, and attend with what PyTorch chooses."""
    return scaled_dot_product_attention(inputs.q, *concatenated(inputs))


def flex(inputs: Inputs) -> Tensor:
    """Concatenate, shift, and attend with FlexAttention; only worth timing when compiled."""
    from torch.nn.attention.flex_attention import flex_attention

    out = flex_attention(inputs.q, *concatenated(inputs))
    assert isinstance(out, Tensor)
    return out


def two_by(library: Library, inputs: Inputs) -> Tensor:
    """Two attentions of a library merged by their log-sum-exp: an implementation that the tuning table may choose."""
    i, out = inputs, empty_output(inputs.q)
    parts = launch_mean_shift(*i.operands.segments, i.style_strength)
    launch_library(i.operands, parts, logit_scale(None, i.q.shape[-1]), out, library)
    return out


def two_flash(inputs: Inputs) -> Tensor:
    """Two flash attentions merged by their log-sum-exp in PyTorch, to be compiled."""
    return merged(flash_attention, inputs)


def two_cudnn(inputs: Inputs) -> Tensor:
    """Two cuDNN attentions merged by their log-sum-exp in PyTorch, to be compiled."""
    return merged(cudnn_attention, inputs)


def merged(attend: Attention, inputs: Inputs) -> Tensor:
    """Return w(o_id + δ_v) + (1 − w)o_t with w = sigmoid(lse_id + q·δ_k/√d − lse_t).

    Args:
        attend: returns an attention's output `[B, H, N, d]` and its log-sum-exp `[B, H, N]`.
        inputs: the call's inputs.
    """
    shift_k, shift_v = shifts(inputs)
    q, scale = inputs.q, logit_scale(None, inputs.q.shape[-1])
    out_id, lse_id = attend(q, inputs.k_id, inputs.v_id, scale)
    out_t, lse_t = attend(q, inputs.k_t, inputs.v_t, scale)
    offset = (q @ shift_k.to(q.dtype).transpose(-1, -2)).squeeze(-1).float() * scale
    weight = torch.sigmoid(lse_id + offset - lse_t).unsqueeze(-1)
    return (weight * (out_id + shift_v) + (1 - weight) * out_t).to(q.dtype)


def pair(inputs: Inputs) -> Tensor:
    """Two attentions and their sum: O_t + λ·(O_id + δ_v)."""
    return _pair(inputs, shifts(inputs)[1])


def _pair(inputs: Inputs, shift_v: Tensor) -> Tensor:
    text = scaled_dot_product_attention(inputs.q, inputs.k_t, inputs.v_t)
    identity = scaled_dot_product_attention(inputs.q, inputs.k_id, inputs.v_id)
    factor = inputs.identity_strength.view(-1, 1, 1, 1).to(text.dtype)
    return text + factor * (identity + shift_v.to(text.dtype))


def _eager(function: Function, inputs: Inputs, compiler: str) -> Callable[[], Tensor]:
    return partial(function, inputs)


def _on(backend: SDPBackend, function: Function, inputs: Inputs, compiler: str) -> Callable[[], Tensor]:
    def call() -> Tensor:
        with sdpa_kernel(backend):
            return function(inputs)

    return call


@cache
def _compile(function: Function, compiler: str) -> Any:
    """Compile once for all sets of inputs."""
    return torch.compile(function, dynamic=False, fullgraph=True, backend=compiler)


def _compiled(function: Function, inputs: Inputs, compiler: str) -> Callable[[], Tensor]:
    return partial(_compile(function, compiler), inputs)


def _ready_keys(backend: SDPBackend, inputs: Inputs, compiler: str) -> Callable[[], Tensor]:
    keys, values = concatenated(inputs)

    def attend(inputs: Inputs) -> Tensor:
        return scaled_dot_product_attention(inputs.q, keys, values)

    return _on(backend, attend, inputs, compiler)


def _ready_shift(inputs: Inputs, compiler: str) -> Callable[[], Tensor]:
    shift_v = shifts(inputs)[1]
    return lambda: _pair(inputs, shift_v)


_MIXED, _MERGED = "mixed_attention", "merged_cross_attention"
BASELINES: Sequence[Baseline] = (
    Baseline("two cuDNN by log-sum-exp", _MIXED, partial(_eager, partial(two_by, Library("cudnn")))),
    Baseline("concat + shift + cuDNN", _MIXED, partial(_on, SDPBackend.CUDNN_ATTENTION, concat)),
    Baseline("two flash by log-sum-exp", _MIXED, partial(_eager, partial(two_by, Library("flash")))),
    Baseline("concat + shift + flash", _MIXED, partial(_on, SDPBackend.FLASH_ATTENTION, concat)),
    Baseline("cuDNN, keys ready", _MIXED, partial(_ready_keys, SDPBackend.CUDNN_ATTENTION), complete=False),
    Baseline("flash, keys ready", _MIXED, partial(_ready_keys, SDPBackend.FLASH_ATTENTION), complete=False),
    Baseline("two cuDNN by log-sum-exp, compiled", _MIXED, partial(_compiled, two_cudnn), compiled=True),
    Baseline("concat + shift + SDPA, compiled", _MIXED, partial(_compiled, concat), compiled=True),
    Baseline("concat + shift + FlexAttention, compiled", _MIXED, partial(_compiled, flex), compiled=True),
    Baseline("two flash by log-sum-exp, compiled", _MIXED, partial(_compiled, two_flash), compiled=True),
    Baseline("two attentions, eager", _MERGED, partial(_eager, pair)),
    Baseline("two attentions, flash", _MERGED, partial(_on, SDPBackend.FLASH_ATTENTION, pair)),
    Baseline("two attentions, cuDNN", _MERGED, partial(_on, SDPBackend.CUDNN_ATTENTION, pair)),
    Baseline("two attentions, shift ready", _MERGED, _ready_shift, complete=False),
    Baseline("two attentions, compiled", _MERGED, partial(_compiled, pair), compiled=True),
)


def of(op: str, compiled: bool) -> list[Baseline]:
    """Return the eager or the compiled baselines of an operation."""
    return [baseline for baseline in BASELINES if (baseline.op, baseline.compiled) == (op, compiled)]
