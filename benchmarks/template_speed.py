"""The cost of templates, of steps without guidance, and of several people at once.

Usage::

    python benchmarks/template_speed.py [--model demo] [--rounds N] [--steps N] [--name template-speed]

Four folders are built on ONNX Runtime in a temporary folder: with guidance for one and for four images per call,
without guidance, and with templates of 8 bits. What is compared alternates in one run, so that the ratios of the
medians are meaningful on a busy machine too. A plain step is `text_step`: SDXL with guidance, without a person. K_t and
V_t instead of the features are measured on a copy of `identity_step` that takes them as inputs. The document goes to
benchmarks/results/<name>.json; nothing in it is edited by hand.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx.utils import Extractor

from benchmarks.provenance import RESULTS, measured_on
from benchmarks.publishing import publish
from infid_engines.backends import Engine
from infid_engines.device import CPU
from infid_engines.registry import get_backend
from infid_export.bench.recording import RecordingEngines, recording_pipeline, repeated
from infid_export.bench.stand_in import stand_in
from infid_export.bench.timing import take_turns
from infid_export.cli.output import Output
from infid_export.export.build_options import BuildOptions
from infid_export.export.builder import build
from infid_export.export.graphs import graphs_for
from infid_export.export.inspection import read_graph
from infid_export.runtime.denoise import FEATURES
from infid_export.runtime.pipeline import Pipeline
from infid_export.runtime.template import Template

Array = np.ndarray[Any, Any]
_PACKAGES = ("numpy", "onnxruntime")
_ROUNDS, _STEPS, _PEOPLE, _BURST = 9, 10, 4, 4
_PROMPT = "an oil painting of a person"


def folder(path: Path, model: str, **options: Any) -> tuple[Pipeline, RecordingEngines]:
    """Build a model's engines, and open them."""
    usual: dict[str, Any] = {"graphs": tuple(graphs_for("two")), "parity_size": 128, "parity_image": "off"}
    build(BuildOptions(path, model, backends=("onnxruntime",), **usual, **options))
    return recording_pipeline(path, backend="onnxruntime")


def cut_step(folder: Path, features: Mapping[str, Array]) -> tuple[Engine, dict[str, Array]]:
    """Return `identity_step` without the projections of text features, and their results, which it takes instead."""
    path = folder / "onnx" / "identity_step.onnx"
    extractor = Extractor(onnx.load(str(path), load_external_data=False))
    graph = extractor.model.graph
    projected = [node.output[0] for node in graph.node if set(features) & set(node.input)]
    if len(projected) != 2 * len(features):
        raise RuntimeError("not every text feature has two projections")
    others = [value.name for value in graph.input if value.name not in features]
    parts = {"projections": (list(features), projected), "rest": ([*others, *projected], ["next_identity_latents"])}
    engines = []
    for name, (inputs, outputs) in parts.items():
        file = path.with_name(f"{name}.onnx")
        onnx.save(extractor.extract_model(inputs, outputs), str(file))
        facts = read_graph(file)
        engines.append(get_backend("onnxruntime").load(file, facts.inputs, facts.outputs, CPU))
    return engines[1], engines[0].run(features)


def measure(arguments: argparse.Namespace, output: Output) -> dict[str, Any]:
    """Build, time, and return the document."""
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        model = arguments.model
        one, engines = folder(root / "one", model)
        four, _ = folder(root / "four", model, batch=_PEOPLE)
        unguided, unguided_engines = folder(root / "unguided", model, guidance=False)
        quantizing, quantizing_engines = folder(root / "quantizing", model, quantize_templates=True)
        person = stand_in(one)
        settings: dict[str, Any] = {"steps": arguments.steps, "seed": 1}
        template = one.template(_PROMPT, **settings)
        shared = four.template(_PROMPT, **settings)
        file = root / "template.safetensors"
        template.save(file)
        small = quantizing.template(_PROMPT, **settings)
        images = [
            pipe.generate(each, person, output_type="np") for pipe, each in ((one, template), (quantizing, small))
        ]
        error = float(np.square(images[0] - images[1]).mean())
        for pipe in (one, unguided):
            pipe.generate(_PROMPT, person, output_type="latents", **settings)
        taken = engines.inputs["identity_step"]
        cut, projected = cut_step(one.folder, {name: each for name, each in taken.items() if name.startswith(FEATURES)})
        others = {name: each for name, each in taken.items() if not name.startswith(FEATURES)}
        steps = _medians(
            {
                "plain step": engines.call("text_step"),
                "step from a template": engines.call("identity_step"),
                "step on 8-bit features": quantizing_engines.call("identity_step"),
                "step on keys and values": repeated(cut, {**others, **projected}),
                "joint step": engines.call("denoise_step"),
                "joint step without guidance": unguided_engines.call("denoise_step"),
            },
            arguments.rounds,
            burst=_BURST,
        )
        whole = _medians(
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
        "model": model,
        "rounds": arguments.rounds,
        "steps": arguments.steps,
        "people": _PEOPLE,
        "median_ms": {**steps, **whole},
        "bytes_per_step": template.nbytes // arguments.steps,
        "bytes_per_step_in_8_bits": small.nbytes // arguments.steps,
        "features_snr_db": round(float(small.snr or 0), 1),
        "image_psnr_db": round(-10 * math.log10(error), 1),
        "ratio": {
            "step from a template / plain step": round(steps["step from a template"] / steps["plain step"], 3),
            "step on 8-bit features / on fp32 ones": round(
                steps["step on 8-bit features"] / steps["step from a template"], 3
            ),
            "step on K_t and V_t, twice the size / on features": round(
                steps["step on keys and values"] / steps["step from a template"], 3
            ),
            "joint image / image from a template": round(whole["joint image"] / whole["image from a template"], 3),
            "step without guidance / with": round(steps["joint step without guidance"] / steps["joint step"], 3),
            "people in one batch / one by one": round(whole["people in one batch"] / whole["people one by one"], 3),
            "loading a template / making it": round(
                whole["loading the template"] / whole["making the template"], 3
            ),
        },
    }  # fmt: skip


def _medians(calls: Mapping[str, Callable[[], object]], rounds: int, burst: int = 1) -> dict[str, float]:
    return {name: each.median_ms for name, each in take_turns(calls, rounds, burst=burst).items()}


def table(documents: Sequence[dict[str, Any]]) -> str:
    """Return the ratios of documents, a column each."""
    heads = " | ".join(f"{each['model']}, {each['steps']} steps" for each in documents)
    lines = [f"| ratio of medians | {heads} |", "|---|" + "---|" * len(documents)]
    lines += [f"| {name} | " + " | ".join(str(each["ratio"][name]) for each in documents) + " |"
              for name in documents[0]["ratio"]]  # fmt: skip
    lines.append("")
    for each in documents:
        large, small = (each[name] / 1e6 for name in ("bytes_per_step", "bytes_per_step_in_8_bits"))
        lines.append(
            f"{each['model']}: medians of {each['rounds']} rounds on {each['machine']}. A template takes {large:.2f} "
            f"MB per step in fp32 and {small:.2f} MB in 8 bits; the features then have a signal-to-noise ratio of "
            f"{each['features_snr_db']} dB, and the image a PSNR of {each['image_psnr_db']} dB."
        )
    return "\n".join(lines)


def main(words: list[str]) -> int:
    """Measure, write the document and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo", help="(demo)")
    parser.add_argument("--rounds", type=int, default=_ROUNDS, metavar="N", help=f"({_ROUNDS})")
    parser.add_argument("--steps", type=int, default=_STEPS, metavar="N", help=f"per image ({_STEPS})")
    parser.add_argument("--name", default="template-speed", help="name of the document")
    parser.add_argument("--machine", default="", help="what it runs on, in words")
    return 1 if publish(measure, lambda document: table([document]), parser.parse_args(words), RESULTS) is None else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
