"""Confidence intervals of a mean, by resampling people (Efron and Tibshirani, An Introduction to the Bootstrap)."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000  # at which the ends of a 95 % interval vary by about 2 % of its width from seed to seed
LEVEL = 0.95
SEED = 0


@dataclass(frozen=True)
class Interval:
    """A mean and where it lies.

    Args:
        mean: of all values.
        low: lower end; None where it is unknown.
        high: upper end, likewise.
    """

    mean: float
    low: float | None
    high: float | None

    def __format__(self, form: str) -> str:
        """Return `mean [low, high]` with every number in that form, and a dash where there is no interval."""
        if self.low is None or self.high is None:
            return f"{self.mean:{form}} [–]"
        return f"{self.mean:{form}} [{self.low:{form}}, {self.high:{form}}]"

    def to_json(self) -> dict[str, float | None]:
        """Return JSON-ready values."""
        return {"mean": self.mean, "low": self.low, "high": self.high}


def mean_interval(
    values: Sequence[float],
    people: Sequence[Hashable],
    *,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = SEED,
) -> Interval:
    """Return the mean and its percentile bootstrap interval.

    People are resampled with all their pictures, and not pictures: the pictures of one person resemble each other, so
    resampling pictures would claim more certainty than there is. The interval says what other people of the same kind
    would give; of other prompts it says nothing, since the prompts stay.

    Args:
        values: one a picture.
        people: whose picture it is, one a value.
        resamples: how many times people are drawn.
        level: probability of the interval.
        seed: of the draws.

    Returns:
        The mean, and the interval; of a single person there is none.

    Raises:
        ValueError: there are no values, or not one person a value.
    """
    if not len(values) or len(values) != len(people):
        raise ValueError(f"{len(values)} values of {len(people)} people cannot be averaged")
    numbers = {name: number for number, name in enumerate(dict.fromkeys(people))}
    rows = np.array([numbers[name] for name in people])
    count = len(numbers)
    array = np.asarray(values, dtype=np.float64)
    mean = float(array.mean())
    if count < 2:
        return Interval(mean, None, None)
    sums = np.bincount(rows, weights=array, minlength=count)
    sizes = np.bincount(rows, minlength=count).astype(np.float64)
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)
    means = (drawn @ sums) / (drawn @ sizes)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean, float(low), float(high))
