"""The C++ library beside `Pipeline`: the same images, and times and memory on the same engines.

Usage::

    python benchmarks/cpp_library.py BUILD FOLDER --person FILE FILE [--rounds N] [--images N] [--machine WORDS]

BUILD is the build folder of engines/cpp. Both run in processes of their own, in turns. The document goes to
benchmarks/results/cpp-library.json; nothing in it is edited by hand.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image

from benchmarks.page_tables import markdown as table
from benchmarks.provenance import RESULTS, measured_on
from benchmarks.publishing import publish
from infid_export.cli.output import Output
from infid_export.runtime.person import Person
from infid_export.runtime.pipeline import Pipeline

_LIBRARY = next((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so*"))
CASES: Sequence[tuple[str, int, Mapping[str, Any]]] = (
    ("a portrait in the rain", 7, {}),
    ("an oil painting of a person wearing a blue suit", 0, {"sampler": "euler_a"}),
    ("“naïve” café, 日本語, 🙂", 123456789, {"negative_prompt": "blurry"}),
    ("a flat poster of a person", 2**63, {"sampler": "dpmpp_2m", "spacing": "karras", "guidance": 1.5}),
    ("a photo of a person at night", 3, {"style_strength": 0.25, "identity_strength": 1.3}),
)
# What the times and the memory are compared by: the goal for C++ over Python.
GOALS = {"image_s": 1.02, "step_s": 1.02, "first_image_s": 0.5, "resident_mb": 0.6}
_NAMES = {
    "first_image_s": "start of the process to the first image", "loading_s": "the same without the image itself",
    "image_s": "an image", "step_s": "a step", "resident_mb": "resident memory",
}  # fmt: skip
# A Python program as short as the C++ one; what it imports is what a server would import.
_PYTHON = """
import json, statistics, sys, time
from infid_export import Person, Pipeline
folder, person, out, images = *sys.argv[1:4], int(sys.argv[4])
pipe, person = Pipeline.load(folder, backend="onnxruntime"), Person.load(person)
steps, times = [], []
pipe.generate("a portrait in the rain", person, seed=7)[0].save(out)
for _ in range(images):
    ends, begun = [], time.perf_counter()
    callback = lambda *_: ends.append(time.perf_counter())
    pipe.generate("a portrait in the rain", person, seed=7, callback=callback)
    times.append(time.perf_counter() - begun)
    steps += [after - before for before, after in zip(ends, ends[1:])]
if images:
    memory = dict(line.split(":", 1) for line in open("/proc/self/status") if ":" in line)
    print(json.dumps({"image_s": statistics.median(times), "step_s": statistics.median(steps),
                      "resident_mb": int(memory["VmRSS"].split()[0]) * 1024 / 1e6}))
"""


def compared(build: Path, folder: Path, people: Sequence[Path], scratch: Path) -> list[dict[str, Any]]:
    """Return the largest difference of each case, in steps of 1/255."""
    found = []
    with Pipeline.load(folder, backend="onnxruntime") as pipe:
        for number, (prompt, seed, settings) in enumerate(CASES):
            person = people[number % len(people)]
            flags = [str(word) for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", value)]
            out = scratch / "case.png"
            words = [*_program(build, folder, person, out), "--prompt", prompt, "--seed", str(seed), *flags]
            subprocess.run(words, check=True, capture_output=True)
            (image,) = pipe.generate(prompt, Person.load(person), seed=seed, **settings)
            difference = np.asarray(image).astype(int) - np.asarray(Image.open(out)).astype(int)
            found.append({"prompt": prompt, "seed": seed, "person": person.name, "settings": dict(settings),
                          "largest_difference": int(abs(difference).max())})  # fmt: skip
    return found


def timed(build: Path, folder: Path, person: Path, scratch: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return medians of times and memory of both, which run in turns."""
    out = scratch / "timed.png"
    program = [*_program(build, folder, person, out), "--prompt", "a portrait in the rain", "--seed", "7"]
    python = [sys.executable, "-c", _PYTHON, str(folder), str(person), str(out)]
    kinds = {"cpp": (program, [*program, "--bench", str(arguments.images)]),
             "python": ([*python, "0"], [*python, str(arguments.images)])}  # fmt: skip
    samples: dict[str, list[dict[str, float]]] = {kind: [] for kind in kinds}
    for number in range(arguments.rounds):
        print(f"round {number + 1} of {arguments.rounds}", file=sys.stderr)
        for kind, (first, several) in kinds.items():
            begun = time.perf_counter()
            subprocess.run(first, check=True, capture_output=True)
            ended = time.perf_counter()
            run = subprocess.run(several, check=True, capture_output=True, text=True)
            sample = json.loads(run.stdout.splitlines()[-1])
            sample.setdefault("resident_mb", sample.get("resident_bytes", 0) / 1e6)
            samples[kind].append({**sample, "first_image_s": ended - begun})
    return {
        kind: {name: statistics.median(each[name] for each in found) for name in GOALS}
        for kind, found in samples.items()
    }


def _program(build: Path, folder: Path, person: Path, out: Path) -> list[str]:
    words = (build / "infid", folder, "--backend", "onnxruntime", "--onnxruntime", _LIBRARY, "--person", person,
             "-o", out)  # fmt: skip
    return [str(word) for word in words]


def measure(arguments: argparse.Namespace, output: Output) -> dict[str, Any]:
    """Return the document."""
    with tempfile.TemporaryDirectory() as scratch:
        cases = compared(arguments.build, arguments.folder, arguments.person, Path(scratch))
        times = timed(arguments.build, arguments.folder, arguments.person[0], Path(scratch), arguments)
    return {
        **measured_on(arguments.machine, ("onnxruntime", "numpy")),
        "rounds": arguments.rounds,
        "images": arguments.images,
        "cases": cases,
        **times,
    }


def images_table(document: Mapping[str, Any]) -> str:
    """Return a row per image."""
    rows = []
    for each in document["cases"]:
        settings = ", ".join(f"{name} {value}" for name, value in each["settings"].items())
        difference = each["largest_difference"]
        rows.append([each["prompt"], str(each["seed"]), each["person"], settings or "the folder's",
                     "none" if difference == 0 else f"{difference}/255"])  # fmt: skip
    head = ["prompt", "seed", "person", "settings", "difference from Python's image"]
    return f"{table(head, rows)}\n\n{_measured(document)}"


def speed_table(document: Mapping[str, Any]) -> str:
    """Return a row per time, and one of the memory."""
    sides = [dict(document[side]) for side in ("cpp", "python")]
    for side in sides:
        side["loading_s"] = side["first_image_s"] - side["image_s"]
    rows = []
    for name, text in _NAMES.items():
        cpp, python = (f"{side[name]:.0f} MB" if name == "resident_mb" else f"{side[name]:.3f} s" for side in sides)
        ratio, goal = sides[0][name] / sides[1][name], GOALS.get(name)
        verdict = "–" if goal is None else f"{goal}, {'met' if ratio <= goal else 'missed'}"
        rows.append([text, cpp, python, f"{ratio:.2f}", verdict])
    what = f"Medians of {document['rounds']} processes each, in turns, with {document['images']} images."
    return f"{table(['', 'C++', 'Python', 'ratio', 'at most'], rows)}\n\n{what} {_measured(document)}"


def _measured(document: Mapping[str, Any]) -> str:
    version = document["versions"]["onnxruntime"]
    return f"Measured on {document['machine']}, with ONNX Runtime {version}, at commit {document['commit'][:7]}."


def _markdown(document: Mapping[str, Any]) -> str:
    return f"{images_table(document)}\n\n{speed_table(document)}"


def main(words: list[str]) -> int:
    """Measure, write the document and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build", type=Path, metavar="BUILD", help="build folder of engines/cpp")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="engine folder")
    parser.add_argument("--person", type=Path, nargs="+", required=True, metavar="FILE", help="person files")
    parser.add_argument("--rounds", type=int, default=9, metavar="N", help="processes of each (9)")
    parser.add_argument("--images", type=int, default=3, metavar="N", help="images per process, after the first (3)")
    parser.add_argument("--name", default="cpp-library", help="name of the document")
    parser.add_argument("--machine", default="", help="what it runs on, in words")
    document = publish(measure, _markdown, parser.parse_args(words), RESULTS)
    return 1 if document is None or any(each["largest_difference"] for each in document["cases"]) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
