"""Checks that a backend's images score as well as another's on the same people, prompts and noise."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from infid_engines.errors import InputError
from infid_export.evaluation.bootstrap import Interval, mean_interval
from infid_export.evaluation.evaluation import Evaluation
from infid_export.evaluation.scorers import METRICS

LIMIT = 0.005  # of the other's score: a loss that people would not see
# Near 0, a relative loss means nothing: rounding alone would exceed the limit. The loss is relative to at least this.
LEAST = 0.1


@dataclass(frozen=True)
class GateRow:
    """One score of two generators.

    Args:
        metric: a key of `METRICS`.
        score: mean of the generator under test.
        against: mean of the other one.
        difference: mean difference of the paired images, with its interval over people.
        loss: loss relative to the other's score, or to `LEAST` if that is larger; negative for a gain.
        passed: whether the loss is within the limit.
    """

    metric: str
    score: float
    against: float
    difference: Interval
    loss: float
    passed: bool


@dataclass(frozen=True)
class Gate:
    """The verdict.

    Args:
        rows: one per score.
        limit: largest relative loss that passes.
    """

    rows: tuple[GateRow, ...]
    limit: float

    @property
    def passed(self) -> bool:
        """Whether every score passed."""
        return all(row.passed for row in self.rows)

    def to_json(self) -> dict[str, Any]:
        """Return the document."""
        rows = [asdict(row) for row in self.rows]
        return {"passed": self.passed, "limit": self.limit, "least": LEAST, "rows": rows}


def paired(first: Evaluation, second: Evaluation, metric: str, subset: str = "all") -> Interval:
    """Return the mean of first − second over the same images, with its interval over people.

    Raises:
        InputError: the two do not have the same images.
    """
    ours = {picture.key: picture for picture in first.subset(subset)}
    theirs = {picture.key: picture for picture in second.subset(subset)}
    if set(ours) != set(theirs):
        apart = sorted(set(ours) ^ set(theirs))[0]
        raise InputError(
            f"The evaluations have different images: only one has {apart[0]}, '{apart[1]}', seed {apart[2]}.",
            fix="Evaluate both on the same set.",
        )
    return mean_interval(
        [getattr(picture, metric) - getattr(theirs[key], metric) for key, picture in ours.items()],
        [picture.person for picture in ours.values()],
    )


def compare(judged: Evaluation, against: Evaluation, limit: float = LIMIT) -> Gate:
    """Judge an evaluation against another of the same set.

    A score fails if it is lower by more than `limit` of the other's mean over the same images, or of `LEAST` if that is
    larger. The mean decides instead of the interval: the images are the same, so their difference is not a sample but
    the backend's own.

    Args:
        judged: evaluation of the backend under test.
        against: usually the evaluation of the PyTorch reference.
        limit: largest relative loss that passes.

    Raises:
        InputError: set, scorers or settings differ, so the scores are not comparable.
    """
    for what, ours, theirs in (
        ("people, prompts or seeds", judged.set["fingerprint"], against.set["fingerprint"]),
        ("scorers", judged.scorers, against.scorers),
        ("settings", judged.generator["settings"], against.generator["settings"]),
    ):
        if ours != theirs:
            raise InputError(
                f"The evaluations have different {what}, so their scores are not comparable.",
                fix="Evaluate both with the same arguments, except for the engines.",
            )
    rows = []
    for metric in METRICS:
        score, other = (each.interval(metric).mean for each in (judged, against))
        loss = (other - score) / max(abs(other), LEAST)
        rows.append(GateRow(metric, score, other, paired(judged, against, metric), loss, loss <= limit))
    return Gate(tuple(rows), limit)
