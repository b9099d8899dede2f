"""AdaIN on attention features: statistics over tokens, per channel.

AdaIN-mean (Infinite-ID, arXiv 2403.11781, section 3.4): AdaIN(x, y) = x + s·(μ(y) − μ(x)).
Standard AdaIN (Huang and Belongie, arXiv 1703.06868): σ(y)·(x − μ(x)) / σ(x) + μ(y), blended with x by s.
μ and σ run over the token axis, so it makes no difference whether the channels are split into heads.
"""

from __future__ import annotations

from torch import Tensor


def mean_shift(x: Tensor, y: Tensor, strength: Tensor) -> Tensor:
    """Return s·(μ(y) − μ(x)), the constant that AdaIN-mean adds to every token of `x`.

    The means are taken in fp32: over 4096 tokens an fp16 sum would round away the difference.

    Args:
        x: `[..., N, C]` features to shift.
        y: `[..., M, C]` features that define the target mean; M need not equal N.
        strength: s, broadcastable to `[..., 1, 1]`; 1 is the paper's operation, 0 turns it off.

    Returns:
        `[..., 1, C]` in the dtype of `x`.
    """
    difference = y.float().mean(-2, keepdim=True) - x.float().mean(-2, keepdim=True)
    return (strength.float() * difference).to(x.dtype)


def adain_mean(x: Tensor, y: Tensor, strength: Tensor) -> Tensor:
    """Shift the token mean of `x` toward that of `y`.

    Args:
        x: `[..., N, C]` features to shift.
        y: `[..., M, C]` features that define the target mean.
        strength: s, broadcastable to `[..., 1, 1]`.

    Returns:
        `[..., N, C]`, x + s·(μ(y) − μ(x)).
    """
    return x + mean_shift(x, y, strength)


def adain(x: Tensor, y: Tensor, strength: Tensor, eps: float = 1e-5) -> Tensor:
    """Give `x` the token mean and standard deviation of `y` (the paper's ablation "standard AdaIN").

    Args:
        x: `[..., N, C]` features to transform.
        y: `[..., M, C]` features that define the target mean and deviation.
        strength: s, broadcastable to `[..., 1, 1]`; the result is x + s·(AdaIN(x, y) − x).
        eps: added to the variance of `x`.

    Returns:
        `[..., N, C]` in the dtype of `x`.
    """
    x32, y32 = x.float(), y.float()
    mean_x, mean_y = x32.mean(-2, keepdim=True), y32.mean(-2, keepdim=True)
    # Written out rather than Tensor.var: it exports to operators that every ONNX backend has.
    variance_x = (x32 - mean_x).square().mean(-2, keepdim=True)
    variance_y = (y32 - mean_y).square().mean(-2, keepdim=True)
    moved = (x32 - mean_x) * ((variance_y + eps) / (variance_x + eps)).sqrt() + mean_y
    return (x32 + strength.float() * (moved - x32)).to(x.dtype)
