"""Run the long reliability tests, and store their figures in benchmarks/results/reliability.json.

Usage::

    python benchmarks/reliability.py [--machine "2 CPU cores"] [SECTION ...]
    python benchmarks/document_tables.py draw

The tests marked `reliability` are the measurement: 15,000 damaged inputs, processes killed at random moments, a disk
that is full at each write, and eight threads. Each test records its figures, and this script collects them. The
document is written after each section, so that an interrupted run keeps its results.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from benchmarks.provenance import RESULTS, ROOT, measured_on

RESULT = RESULTS / "reliability.json"
SECTIONS: Mapping[str, str] = {
    "fuzz": "tests/fuzz",
    "kills": "tests/reliability/test_kills.py",
    "full disk": "tests/reliability/test_disk_full.py",
    "small disk": "tests/reliability/test_small_disk.py",
    "threads": "tests/reliability/test_threads.py",
}
_PACKAGES = ("numpy", "onnxruntime", "pillow", "safetensors", "tokenizers", "torch")


def run_section(path: str) -> dict[str, Any]:
    """Run the marked tests of a file or folder.

    Args:
        path: path relative to the repository's root.

    Returns:
        Seconds, the number of tests that failed, and the figures of each test.
    """
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-m", "reliability", path]
        command += [f"--junitxml={report}", "-o", "junit_family=xunit1"]
        paths = [str(ROOT / name) for name in ("", "engines", "kernels", "training")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        subprocess.run(command, cwd=ROOT, env=environment, check=False)
        cases = list(ElementTree.parse(report).iter("testcase"))
    figures = [
        json.loads(item.attrib["value"])
        for case in cases
        for item in case.iter("property")
        if item.attrib["name"] == "figures"
    ]
    failed = [
        case.attrib["name"]
        for case in cases
        if any(case.find(kind) is not None for kind in ("failure", "error", "skipped"))
    ]
    return {"seconds": time.monotonic() - started, "not passed": failed, "figures": figures}


def measure(sections: Sequence[str], machine: str) -> None:
    """Run sections one after the other, and write the document after each.

    Args:
        sections: keys of `SECTIONS`.
        machine: what it runs on, in words.
    """
    known: dict[str, Any] = json.loads(RESULT.read_text())["sections"] if RESULT.exists() else {}
    for name in sections:
        known[name] = {**run_section(SECTIONS[name]), **measured_on(machine, _PACKAGES)}
        document = {"sections": {each: known[each] for each in SECTIONS if each in known}}
        RESULT.write_text(json.dumps(document, indent=1) + "\n")


def markdown(document: Mapping[str, Any]) -> str:
    """Return the tables of docs/reliability.md."""
    sections = document["sections"]
    fuzz = sections["fuzz"]["figures"]
    lines = [
        "| damaged input | cases | rejected | harmless, accepted | faults | crashes | slowest | most memory |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [_fuzz_row(each) for each in fuzz]
    lines.append(_fuzz_row(_sum(fuzz)))
    lines += ["", "| what happened | how often | what was found |", "|---|---|---|"]
    lines += [_kill_row(each) for each in sections["kills"]["figures"]]
    lines += [_disk_row(each) for each in sections["full disk"]["figures"]]
    lines += [
        f"| a disk of {each['small disks']} sizes, too small for a {each['command']} | {each['small disks']} | "
        f"{_none(each['faults'])} |"
        for each in sections["small disk"]["figures"]
    ]
    lines += [_thread_row(each) for each in sections["threads"]["figures"]]
    commits = sorted({section["commit"][:7] for section in sections.values()})
    machines = sorted({section["machine"] for section in sections.values()})
    minutes = sum(section["seconds"] for section in sections.values()) / 60
    failed = sum(len(section["not passed"]) for section in sections.values())
    verdict = "PASSED" if not failed else f"FAILED ({failed} tests)"
    lines += ["", f"{verdict}, in {minutes:.0f} minutes on {', '.join(machines)}, at commit {', '.join(commits)}."]
    return "\n".join(lines)


def _fuzz_row(each: Mapping[str, Any]) -> str:
    return (
        f"| {each['kind']} | {each['cases']:,} | {each['rejected']:,} | {each['accepted']:,} | {each['faults']} | "
        f"{each['crashes']} | {each['slowest']['seconds']:.2f} s | {each['peak_bytes'] / 1e6:.0f} MB |"
    )


def _sum(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    counts = {name: sum(row[name] for row in rows) for name in ("cases", "rejected", "accepted", "faults", "crashes")}
    slowest = max((row["slowest"] for row in rows), key=lambda each: each["seconds"])
    return {"kind": "all", **counts, "slowest": slowest, "peak_bytes": max(row["peak_bytes"] for row in rows)}


def _kill_row(each: Mapping[str, Any]) -> str:
    done = f"nothing damaged was taken and the next run finished in {each['finished']}"
    return f"| kill −9 at a random moment of a {each['kind']} | {each['kills']} | {done} |"


def _disk_row(each: Mapping[str, Any]) -> str:
    return f"| the disk is full at a write of `{each['command']}` | {each['points']}, each | {_none(each['faults'])} |"


def _none(faults: int) -> str:
    return "one sentence, nothing lost, the next run finished" if not faults else f"{faults} faults"


def _thread_row(each: Mapping[str, Any]) -> str:
    pipelines = "one `Pipeline`" if each["pipelines"] == 1 else "a `Pipeline` each"
    return (
        f"| {each['threads']} threads on {pipelines} | {each['generations']:,} generations, {each['cancelled']} "
        f"cancelled | {each['different']} pictures differ from those of one thread; memory "
        f"{each['bytes_per_generation'] / 1000:+.2f} kB per generation |"
    )


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"{', '.join(SECTIONS)} (all)")
    parser.add_argument("--machine", default="", help="what it runs on, in words")
    arguments = parser.parse_args()
    unknown = set(arguments.sections) - set(SECTIONS)
    if unknown:
        parser.error(f"there is no section {', '.join(sorted(unknown))}; choose from {', '.join(SECTIONS)}")
    measure(arguments.sections or list(SECTIONS), arguments.machine)


if __name__ == "__main__":
    _main()
