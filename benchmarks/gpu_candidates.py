"""Every candidate of the kernels' table measured, one item for each level and form, and the entries that follow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import roofline
from gpu_bench import Bench, Item, Result, Workload
from gpu_checks import form_of
from infid_kernels.autotune import Level, NoCandidateError, Trial, measure, select
from infid_kernels.measure import Timing
from infid_kernels.tuning import Configuration, Entry, candidates, write

_FEW = 5  # candidates of a level that is not tried in full
_QUICK = 3
_SAMPLES = 20  # a candidate is compared with the others, not reported
_ITEM_SECONDS, _CANDIDATE_SECONDS = 1.0, 0.8


def in_full(level: Level) -> bool:
    """Return whether all candidates are tried: of mixed attention at whole lengths, where most of the time goes."""
    return level.call.op == "mixed_attention" and level.whole


def worth_trying(level: Level, quick: bool, architecture: str) -> Sequence[Configuration]:
    """Return what may be tried at a level, the most promising first."""
    tried = candidates(level.call.op, architecture)
    if quick:
        return tried[:_QUICK]
    # what is fastest at a whole length is tried at the odd one, and that is not known beforehand
    return tried if level.call.op == "mixed_attention" else tried[:_FEW]


def items(workload: Workload, quick: bool, architecture: str) -> list[Item]:
    """Return one item for each form of a level that is tried in full, then one for each other level.

    A form that nothing has launched before may bring the GPU down: then only its own item is lost.
    """
    found = []
    for level in workload.levels:
        tried = worth_trying(level, quick, architecture)
        if in_full(level):
            for form, those in by_form(tried).items():
                found.append(_item(f"candidates {level.name}: {form}", level, len(those), partial(whole, level, form)))
    for level in workload.levels:
        if not in_full(level):
            count = min(_FEW, len(worth_trying(level, quick, architecture)))
            found.append(_item(f"candidates {level.name}: few", level, count, partial(few, level)))
    return found


def _item(name: str, level: Level, count: int, measured: partial[Result]) -> Item:
    return Item(name, _ITEM_SECONDS + _CANDIDATE_SECONDS * count, measured, level.call.op)


def by_form(tried: Sequence[Configuration]) -> dict[str, list[Configuration]]:
    """Return candidates by what sets them apart beside their sizes."""
    forms: dict[str, list[Configuration]] = {}
    for each in tried:
        forms.setdefault(form_of(each), []).append(each)
    return forms


def whole(level: Level, form: str, bench: Bench) -> Result:
    """Check and time all candidates of one form."""
    tried = worth_trying(level, bench.quick, bench.architecture)
    return _measured(level, by_form(tried).get(form, []), bench)


def few(level: Level, bench: Bench) -> Result:
    """Check and time the few best candidates: the fastest of the same operation and size, or the most promising."""
    like = [
        trial
        for other in bench.workload.levels
        if in_full(other) and (other.call.op, other.queries) == (level.call.op, level.queries)
        for trial in timed(other, bench.results)
    ]
    fastest = [trial.configuration for trial in sorted(like, key=_median)]
    tried = fastest or worth_trying(level, bench.quick, bench.architecture)
    return _measured(level, tried[: _QUICK if bench.quick else _FEW], bench)


def _measured(level: Level, tried: Sequence[Configuration], bench: Bench) -> Result:
    sets = len(bench.sets(roofline.least_bytes(level.call)))
    trials = measure(level, bench.device, partial(bench.time, samples=_SAMPLES if bench.on_gpu else None), sets, tried)
    return {"level": level.name, "trials": [asdict(trial) for trial in trials]}


def timed(level: Level, results: Mapping[str, Result]) -> list[Trial]:
    """Return the candidates of a level that were right and timed, from all its items."""
    rows = [row for result in results.values() if result.get("level") == level.name for row in result["trials"]]
    return [
        Trial(**{**row, "configuration": Configuration(**row["configuration"]), "timing": Timing(**row["timing"])})
        for row in rows if row["timing"]
    ]  # fmt: skip


def _median(trial: Trial) -> float:
    assert trial.timing is not None
    return trial.timing.median


def entries(workload: Workload, results: Mapping[str, Result], architecture: str, machine: str) -> list[Entry]:
    """Return the entries of the table that the measurements imply; none of a level where nothing was right."""
    found = []
    for level in workload.levels:
        try:
            found.append(select(level, timed(level, results), architecture, machine))
        except NoCandidateError:
            continue  # its trials say why
    return found


def write_entries(path: Path, found: Sequence[Entry]) -> None:
    """Write the entries as a file that `infid_kernels.tuning.load` reads."""
    write(path, found)
