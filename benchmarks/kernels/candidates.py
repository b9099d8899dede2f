"""Measures the candidates of the tuning table, one item per level and form, and returns the resulting entries.

What is measured after them, above all the whole model, runs with the fastest candidates, as after `infid-export tune`.
The operations are timed once before, with the table's choices.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.kernels import roofline
from benchmarks.kernels.checks import form_of
from benchmarks.suite.bench import Bench, Item, Result, Workload
from infid_kernels.autotune import Level, NoCandidateError, Trial, measure, select
from infid_kernels.measure import Timing
from infid_kernels.tuning import Choice, Configuration, Entry, choices, load, parse_choice, runs, write

_FEW = 5  # candidates of a level that is not tried in full
_QUICK = 3
_PLAIN = 2  # of them at least in plain form, which some callers need
_SAMPLES = 20  # enough to compare candidates, whose times are not reported
_ITEM_SECONDS, _CANDIDATE_SECONDS, _GFLOP_SECONDS = 0.1, 0.06, 0.002  # expected on an H200
ADOPTED = "fastest candidates"


def in_full(level: Level) -> bool:
    """Return whether all candidates are tried: for mixed attention with full blocks, which takes most of the time."""
    return level.call.op == "mixed_attention" and level.even_n


def worth_trying(level: Level, quick: bool, architecture: str) -> Sequence[Choice]:
    """Return the candidates for a level, the most promising first."""
    # the fastest candidates with full blocks are tried at the odd length, and they are not known beforehand
    most = _QUICK if quick else None if level.call.op == "mixed_attention" else _FEW
    return choices(level.call.op, architecture, level.call.d, most)


def items(workload: Workload, quick: bool, architecture: str) -> list[Item]:
    """Return one item for each form of a level that is tried in full, then one for each other level.

    A form that was never launched before may crash the GPU: then only its own item is lost.
    """
    found = []
    for level in workload.levels:
        tried = worth_trying(level, quick, architecture)
        if in_full(level):
            for form, those in by_form(tried).items():
                found.append(_item(f"candidates {level.name}: {form}", level, len(those), partial(whole, level, form)))
    for level in workload.levels:
        if not in_full(level):
            count = min(_FEW + _PLAIN, len(worth_trying(level, quick, architecture)))
            found.append(_item(f"candidates {level.name}: few", level, count, partial(few, level)))
    return [*found, Item(ADOPTED, 0.5, adopt, always=True)]


def _item(name: str, level: Level, count: int, measured: partial[Result]) -> Item:
    each = _CANDIDATE_SECONDS + _GFLOP_SECONDS * roofline.flops(level.call) / 1e9
    return Item(name, _ITEM_SECONDS + each * count, measured, level.call.op)


def by_form(tried: Sequence[Choice]) -> dict[str, list[Choice]]:
    """Return candidates by form, which is everything except their sizes."""
    forms: dict[str, list[Choice]] = {}
    for each in tried:
        forms.setdefault(form_of(each), []).append(each)
    return forms


def whole(level: Level, form: str, bench: Bench) -> Result:
    """Check and time all candidates of one form."""
    tried = worth_trying(level, bench.quick, bench.architecture)
    return _measured(level, by_form(tried).get(form, []), bench)


def few(level: Level, bench: Bench) -> Result:
    """Check and time a few candidates: the fastest for the same operation and size, or the most promising."""
    like = [
        trial
        for other in bench.workload.levels
        if in_full(other) and (other.call.op, other.queries) == (level.call.op, level.queries)
        for trial in timed(other, bench.results)
    ]
    fastest = [trial.configuration for trial in sorted(like, key=_median)]
    known = fastest or worth_trying(level, bench.quick, bench.architecture)
    ranked = [each for each in known if can_compute(level, each)]
    plain = [each for each in ranked if runs(each, "plain")]
    tried = dict.fromkeys((*ranked[: _QUICK if bench.quick else _FEW], *plain[:_PLAIN]))
    return _measured(level, list(tried), bench)


def can_compute(level: Level, choice: Choice) -> bool:
    """Return whether a choice can compute a level: full blocks must divide it, and Gluon only has full blocks."""
    even_only = level.even_n or (isinstance(choice, Configuration) and choice.gluon)
    return not even_only or choice.divides(level.call.lengths)


def _measured(level: Level, tried: Sequence[Choice], bench: Bench) -> Result:
    sets = len(bench.sets(roofline.least_bytes(level.call)))
    trials = measure(level, bench.device, partial(bench.time, samples=_SAMPLES if bench.on_gpu else None), sets, tried)
    return {"level": level.name, "trials": [asdict(trial) for trial in trials]}


def timed(level: Level, results: Mapping[str, Result]) -> list[Trial]:
    """Return the candidates of a level that were correct and timed, from all its items."""
    rows = [row for result in results.values() if result.get("level") == level.name for row in result["trials"]]
    return [
        Trial(**{**row, "configuration": parse_choice(row["configuration"]), "timing": Timing(**row["timing"])})
        for row in rows if row["timing"]
    ]  # fmt: skip


def _median(trial: Trial) -> float:
    assert trial.timing is not None
    return trial.timing.median


def entries(workload: Workload, results: Mapping[str, Result], architecture: str, machine: str) -> list[Entry]:
    """Return the table entries that follow from the measurements; none for a level without a correct candidate."""
    found = []
    for level in workload.levels:
        try:
            found.extend(select(level, timed(level, results), architecture, machine))
        except NoCandidateError:
            continue  # its trials say why
    return found


def adopt(bench: Bench) -> Result:
    """Use the fastest candidates from now on, in this process."""
    found = entries(bench.workload, bench.results, bench.architecture, "this run")
    with TemporaryDirectory() as folder:
        path = Path(folder) / "entries.json"
        write(path, found)
        load(path)
    return {"entries": [asdict(each) for each in found]}


def adopt_again(bench: Bench) -> None:
    """Use what an earlier process of this run adopted, if it got that far."""
    if ADOPTED in bench.results:
        adopt(bench)


def write_entries(path: Path, found: Sequence[Entry]) -> None:
    """Write the entries as a file that `infid_kernels.tuning.load` reads."""
    write(path, found)
