"""The cost of templates, of steps without guidance, and of several people at once, on the demo model.

Usage::

    python benchmarks/template_speed.py [--rounds N] [--steps N] [--name template-speed] [--machine WORDS]

Three folders are built on ONNX Runtime in a temporary folder: with guidance for one and for four images per call, and
without guidance. What is compared alternates in one run, so that the ratios of the medians are meaningful on a busy
machine too. A plain step is `text_step`: SDXL with guidance, without a person. The document goes to
benchmarks/results/<name>.json; nothing in it is edited by hand.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.provenance import RESULTS, measured_on
from benchmarks.publishing import publish
from infid_engines.backends import Engine
from infid_export.cli.output import Output
from infid_export.export.build_options import BuildOptions
from infid_export.export.builder import build
from infid_export.export.graphs import GRAPHS
from infid_export.export.parity_case import parity_face
from infid_export.runtime.pipeline import Pipeline
from infid_export.runtime.template import Template

_PACKAGES = ("numpy", "onnxruntime")
_ROUNDS, _STEPS, _PEOPLE = 9, 10, 4
_PROMPT = "an oil painting of a person"


def folder(path: Path, **options: Any) -> Pipeline:
    """Build the demo model's engines, and open them."""
    build(BuildOptions(path, backends=("onnxruntime",), graphs=tuple(GRAPHS), parity_image="off", **options))
    return Pipeline.load(path, backend="onnxruntime")


def step_of(engine: Engine) -> Callable[[], object]:
    """Return a call of a step on fixed noise."""
    random = np.random.default_rng(0)
    inputs = {
        name: random.standard_normal([int(each) for each in spec.shape]).astype(spec.dtype)  # type: ignore[arg-type]
        for name, spec in engine.inputs.items()
    }
    return lambda: engine.run(inputs)


def medians(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the median seconds of calls that take turns, each after one call that is not timed."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            if number:
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(each) for name, each in seconds.items()}


def measure(arguments: argparse.Namespace, _: Output) -> dict[str, Any]:
    """Build, time, and return the document."""
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        one, four = folder(root / "one"), folder(root / "four", batch=_PEOPLE)
        unguided = folder(root / "unguided", guidance=False)
        person = one.encode(parity_face(224, 512))
        settings: dict[str, Any] = {"steps": arguments.steps, "seed": 1}
        template = one.template(_PROMPT, **settings)
        shared = four.template(_PROMPT, **settings)
        file = root / "template.safetensors"
        template.save(file)
        steps = medians(
            {
                "plain step": step_of(one._engines["text_step"]),
                "step from a template": step_of(one._engines["identity_step"]),
                "joint step": step_of(one._engines["denoise_step"]),
                "joint step without guidance": step_of(unguided._engines["denoise_step"]),
            },
            arguments.rounds,
        )
        whole = medians(
            {
                "joint image": lambda: one.generate(_PROMPT, person, output_type="latents", **settings),
                "image from a template": lambda: one.generate(template, person, output_type="latents"),
                "making the template": lambda: one.template(_PROMPT, **settings),
                "loading the template": lambda: Template.load(file),
                "people one by one": lambda: [
                    one.generate(template, person, output_type="latents") for _ in range(_PEOPLE)
                ],
                "people in one batch": lambda: four.generate(shared, [person] * _PEOPLE, output_type="latents"),
            },
            arguments.rounds,
        )
    return {
        "kind": "template speed",
        **measured_on(arguments.machine, _PACKAGES),
        "rounds": arguments.rounds,
        "steps": arguments.steps,
        "people": _PEOPLE,
        "median_seconds": {name: round(value, 5) for name, value in {**steps, **whole}.items()},
        "bytes_per_step": template.nbytes // arguments.steps,
        "ratio": {
            "step from a template / plain step": round(steps["step from a template"] / steps["plain step"], 3),
            "joint image / image from a template": round(whole["joint image"] / whole["image from a template"], 3),
            "step without guidance / with": round(steps["joint step without guidance"] / steps["joint step"], 3),
            "people in one batch / one by one": round(whole["people in one batch"] / whole["people one by one"], 3),
            "loading a template / making it": round(
                whole["loading the template"] / whole["making the template"], 3
            ),
        },
    }  # fmt: skip


def table(document: dict[str, Any]) -> str:
    """Return the ratios of a document."""
    rows = [f"| {name} | {value} |" for name, value in document["ratio"].items()]
    measured = f"Medians of {document['rounds']} rounds on {document['machine']}."
    return "\n".join(["| ratio of medians | |", "|---|---|", *rows, "", measured])


def main(words: list[str]) -> int:
    """Measure, write the document and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=_ROUNDS, metavar="N", help=f"({_ROUNDS})")
    parser.add_argument("--steps", type=int, default=_STEPS, metavar="N", help=f"per image ({_STEPS})")
    parser.add_argument("--name", default="template-speed", help="name of the document")
    parser.add_argument("--machine", default="", help="what it runs on, in words")
    return 1 if publish(measure, table, parser.parse_args(words), RESULTS) is None else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
