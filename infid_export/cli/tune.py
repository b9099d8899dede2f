"""`infid-export tune`."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from infid_engines.atomic_files import whole_file
from infid_engines.errors import BackendUnavailableError, ParityError
from infid_export.cli.generate import require_writable
from infid_export.cli.output import Output

if TYPE_CHECKING:
    import torch

    from infid_kernels.autotune import Tuned

_SAMPLES, _QUICK_SAMPLES = 50, 10
_QUICK_CANDIDATES = 6  # the most promising come first
_SECONDS = 3.0  # to compile and time one candidate; an estimate
EXAMPLES = ("infid-export tune", "infid-export tune --quick -o tuning.json")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    default = Path("tuning.json")
    parser.add_argument("-o", "--output", type=Path, default=default, metavar="FILE", help=f"file to write ({default})")
    parser.add_argument(
        "--quick", action="store_true",
        help=f"only the first {_QUICK_CANDIDATES} candidates, {_QUICK_SAMPLES} times each instead of {_SAMPLES}",
    )  # fmt: skip


def run(arguments: argparse.Namespace, output: Output) -> int:
    """Measure every candidate, write the fastest correct ones, and print the path of the file."""
    require_writable(arguments.output)
    device = _gpu()
    from infid_kernels.autotune import LEVELS, NoCandidateError, tune
    from infid_kernels.measure import time_on_gpu
    from infid_kernels.tuning import architecture_of, choices, write

    most = _QUICK_CANDIDATES if arguments.quick else None
    tried = {level.name: choices(level.call.op, architecture_of(device), level.call.d, most) for level in LEVELS}
    timer = partial(time_on_gpu, samples=_QUICK_SAMPLES if arguments.quick else _SAMPLES)
    results: list[Tuned] = []
    with output.progress() as reporter:
        reporter.plan({name: _SECONDS * len(each) for name, each in tried.items()})
        for level in LEVELS:
            with reporter.stage(level.name) as stage:
                try:
                    results.append(tune(level, device, timer, tried[level.name], stage.update))
                except NoCandidateError as error:
                    raise ParityError(
                        f"{str(error)[:1].upper()}{str(error)[1:]}.",
                        fix="Nothing was written. Please report this with the output of `infid-export doctor --json`.",
                    ) from error
    with whole_file(arguments.output) as file:
        write(file, [entry for result in results for entry in result.entries])
    _show(results, output)
    output.line(str(arguments.output))
    output.note(f"To use it in Python, call infid_kernels.tuning.load(Path({str(arguments.output)!r})).")
    output.note("To use it with compile-kernels or build, give it as --tuning.")
    output.document({"file": arguments.output, "levels": [_plain(result) for result in results]})
    return 0


def _gpu() -> torch.device:
    """Return the GPU to measure on.

    Raises:
        BackendUnavailableError: torch or Triton is missing, or torch finds no GPU that the kernels run on.
    """
    try:
        import torch
        import triton  # noqa: F401  (the kernels cannot be imported without it)
    except ImportError as error:
        raise BackendUnavailableError(
            f"tune needs {error.name}, which is not installed.", fix='pip install "infid-export[export]"'
        ) from error
    if not torch.cuda.is_available():
        raise BackendUnavailableError(
            "tune measures on an NVIDIA GPU, and torch finds none.",
            fix="Run it on the machine that will use the kernels (`infid-export doctor` says what is missing there). "
            "Without a tuning file, the kernels use the built-in table.",
        )
    from infid_kernels.tuning import architecture_of

    device = torch.device("cuda", torch.cuda.current_device())
    try:
        architecture_of(device)
    except ValueError as error:
        problem = f"{torch.cuda.get_device_name(device)} is too old: {error}."
        raise BackendUnavailableError(problem, fix="Use a GPU of sm_80 (Ampere) or newer.") from error
    return device


def _show(results: list[Tuned], output: Output) -> None:
    from infid_kernels.autotune import label

    rows = [
        [result.level.name, label(entry.configuration), str(_rejected(result)), entry.evidence]
        for result in results
        for entry in result.entries
    ]
    output.table("Fastest configurations", ["level", "configuration", "rejected", "evidence"], rows, {"rejected"})


def _rejected(result: Tuned) -> int:
    return sum(trial.timing is None for trial in result.trials)


def _plain(result: Tuned) -> dict[str, object]:
    """Return a level's result for JSON, where a NaN error is null."""
    trials = []
    for trial in result.trials:
        shown = asdict(trial)
        shown["error"] = trial.error if trial.error is not None and trial.error == trial.error else None
        trials.append(shown)
    return {"level": result.level.name, "entries": [asdict(entry) for entry in result.entries], "trials": trials}
