"""Whether a backend's pictures score as well as another's on the same people, prompts and noise."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from infid_engines.errors import InputError
from infid_export.evaluation.bootstrap import Interval, mean_interval
from infid_export.evaluation.evaluation import Evaluation
from infid_export.evaluation.scorers import METRICS

LIMIT = 0.005  # of the other's score: what a backend may lose, and what people would not see
# A mean cosine near 0 has no shares that mean anything, rounding alone would be many: those of this are taken instead.
LEAST = 0.1


@dataclass(frozen=True)
class GateRow:
    """One score of two generators.

    Args:
        metric: a key of `METRICS`.
        score: mean of the generator that is judged.
        against: mean of the other one.
        difference: of the pictures' pairs, with its interval over people.
        loss: share of the other's score, or of `LEAST` if that is more, that is lost; negative where it is gained.
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
        rows: one a score.
        limit: largest share that may be lost.
    """

    rows: tuple[GateRow, ...]
    limit: float

    @property
    def passed(self) -> bool:
        """Whether every score is kept."""
        return all(row.passed for row in self.rows)

    def to_json(self) -> dict[str, Any]:
        """Return the document."""
        rows = [asdict(row) for row in self.rows]
        return {"passed": self.passed, "limit": self.limit, "least": LEAST, "rows": rows}


def paired(first: Evaluation, second: Evaluation, metric: str, subset: str = "all") -> Interval:
    """Return the mean of first − second over the same pictures, with its interval over people.

    Raises:
        InputError: the two do not hold the same pictures.
    """
    ours = {picture.key: picture for picture in first.subset(subset)}
    theirs = {picture.key: picture for picture in second.subset(subset)}
    if set(ours) != set(theirs):
        apart = sorted(set(ours) ^ set(theirs))[0]
        raise InputError(
            f"The evaluations hold different pictures: only one has {apart[0]}, '{apart[1]}', seed {apart[2]}.",
            fix="Evaluate both on the same set.",
        )
    return mean_interval(
        [getattr(picture, metric) - getattr(theirs[key], metric) for key, picture in ours.items()],
        [picture.person for picture in ours.values()],
    )


def compare(judged: Evaluation, against: Evaluation, limit: float = LIMIT) -> Gate:
    """Judge an evaluation against another of the same set.

    A score fails that loses more than `limit` of the other's mean over the same pictures, or of `LEAST` if that is
    more. The mean decides and not the interval: the pictures are the same, so their difference is the backend's and no
    sample of it.

    Args:
        judged: of the backend in question.
        against: usually of the PyTorch reference.
        limit: largest share of a score that may be lost.

    Raises:
        InputError: set, scorers or settings differ, so the scores cannot be compared.
    """
    for what, ours, theirs in (
        ("people, prompts or seeds", judged.set["fingerprint"], against.set["fingerprint"]),
        ("scorers", judged.scorers, against.scorers),
        ("settings", judged.generator["settings"], against.generator["settings"]),
    ):
        if ours != theirs:
            raise InputError(
                f"The evaluations have different {what}, so their scores cannot be compared.",
                fix="Evaluate both with the same arguments, but for the engines.",
            )
    rows = []
    for metric in METRICS:
        score, other = (each.interval(metric).mean for each in (judged, against))
        loss = (other - score) / max(abs(other), LEAST)
        rows.append(GateRow(metric, score, other, paired(judged, against, metric), loss, loss <= limit))
    return Gate(tuple(rows), limit)
