"""The time of the commands that do nothing: help, and a rebuild after no change.

Usage::

    python benchmarks/rebuild_speed.py [--rounds N] [--name rebuild-speed] [--machine WORDS]

Each runs as its own process. Its median is compared with that of `python -c "import numpy, onnxruntime"`; the processes
alternate in one run, so that the ratio is meaningful on a busy machine too. The rebuild is of the demo model on ONNX
Runtime, in a temporary folder. The document goes to benchmarks/results/<name>.json; nothing in it is edited by hand.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.provenance import RESULTS, measured_on
from benchmarks.publishing import publish
from infid_export.cli.output import Output

_PACKAGES = ("numpy", "onnxruntime")
_BASELINE = "import numpy, onnxruntime"
_ROUNDS = 15
_COMMAND = [sys.executable, "-m", "infid_export"]


def seconds_of(command: list[str]) -> float:
    """Run a process that must succeed, and return its time."""
    started = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    return time.perf_counter() - started


def measure(arguments: argparse.Namespace, _: Output) -> dict[str, Any]:
    """Build once, time the commands in alternation, and return the document."""
    with tempfile.TemporaryDirectory() as scratch:
        build = [*_COMMAND, "build", "--fp16", "--backend", "onnxruntime", "--quiet", "-o", str(Path(scratch) / "demo")]
        subprocess.run(build, stdout=subprocess.DEVNULL, check=True)
        again = subprocess.run([*build, "--json"], capture_output=True, text=True, check=True)
        assert json.loads(again.stdout)["made"] == {}
        commands = {
            "baseline": [sys.executable, "-c", _BASELINE],
            "help": [*_COMMAND, "build", "--help"],
            "unchanged rebuild": build,
        }
        times: dict[str, list[float]] = {name: [] for name in commands}
        for _round in range(arguments.rounds):
            for name, command in commands.items():
                times[name].append(seconds_of(command))
    medians = {name: statistics.median(each) for name, each in times.items()}
    return {
        "kind": "rebuild speed",
        **measured_on(arguments.machine, _PACKAGES),
        "rounds": arguments.rounds,
        "baseline": f'python -c "{_BASELINE}"',
        "median_seconds": {name: round(value, 4) for name, value in medians.items()},
        "ratio": {name: round(value / medians["baseline"], 3) for name, value in medians.items()},
    }


def sentence(document: dict[str, Any]) -> str:
    """Return the result of a document."""
    ratio = document["ratio"]
    return f"of {document['baseline']}: help {ratio['help']} ×, an unchanged rebuild {ratio['unchanged rebuild']} ×"


def main(words: list[str]) -> int:
    """Measure, write the document and print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=_ROUNDS, metavar="N", help=f"({_ROUNDS})")
    parser.add_argument("--name", default="rebuild-speed", help="name of the document")
    parser.add_argument("--machine", default="", help="what it runs on, in words")
    return 1 if publish(measure, sentence, parser.parse_args(words), RESULTS) is None else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
