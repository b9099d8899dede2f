"""Quantiles of latencies, and the trend of a series of samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
QUANTILES = (0.5, 0.95, 0.99)


def quantiles_ms(seconds: Sequence[float]) -> dict[str, float]:
    """Return the quantiles of durations in milliseconds, by name: `p50_ms`, `p95_ms`, `p99_ms`.

    Between two samples they are interpolated linearly.
    """
    found = np.quantile(np.asarray(seconds, np.float64) * 1e3, QUANTILES)
    return {f"p{quantile * 100:.0f}_ms": round(float(each), 2) for quantile, each in zip(QUANTILES, found, strict=True)}


def median_ms(seconds: Sequence[float] | Array) -> dict[str, float]:
    """Return the median of durations in milliseconds, with the 20 % and 80 % quantiles."""
    low, middle, high = (float(each) for each in np.quantile(np.asarray(seconds, np.float64) * 1e3, (0.2, 0.5, 0.8)))
    return {"median_ms": round(middle, 3), "p20_ms": round(low, 3), "p80_ms": round(high, 3)}


def slope_per_hour(samples: Sequence[tuple[float, float]], part: float = 0.75) -> float:
    """Return the slope of a least-squares line through the last part of a series.

    Args:
        samples: pairs of seconds and a value.
        part: of the time from the first sample to the last one that counts, from the end.

    Returns:
        The value's change per hour; 0 if fewer than two samples count.
    """
    seconds, values = np.asarray(samples, np.float64).reshape(-1, 2).T
    if len(seconds) < 2:
        return 0.0
    counts = seconds >= seconds[-1] - part * (seconds[-1] - seconds[0])
    times, values = seconds[counts] - seconds[counts].mean(), values[counts]
    spread = float(times @ times)
    return float(times @ values) / spread * 3600 if spread else 0.0
