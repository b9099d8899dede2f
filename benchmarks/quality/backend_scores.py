"""Whether exported engines keep the scores: PyTorch fp32 against ONNX Runtime in fp32 and fp16, on the same images.

Usage::

    python benchmarks/quality/backend_scores.py [--name backends] [--work DIR] [--machine WORDS]

The engines are built into the work folder. Every backend's images and scores are kept there, and an interrupted run
resumes there. The reference's are those of ablation_scores.py, if it ran before. The document goes to
benchmarks/results/<name>.json; nothing in it is edited by hand. Exit code 1 if a backend loses more than 0.5 % of a
score.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, Literal

from benchmarks.provenance import RESULTS, measured_on
from benchmarks.publishing import publish
from benchmarks.quality.scoring_arguments import parser_of
from infid_export.cli.output import Output
from infid_export.evaluation.ablation import FULL, METHOD, Variant, run_variants
from infid_export.evaluation.bootstrap import Interval
from infid_export.evaluation.gate import compare
from infid_export.evaluation.generators import EngineGenerator, Generator, open_reference
from infid_export.evaluation.scorer_choice import open_scorers
from infid_export.evaluation.scorers import METRICS
from infid_export.evaluation.set_sources import open_set
from infid_export.export.build_options import BuildOptions
from infid_export.export.builder import build
from infid_export.runtime.pipeline import Pipeline

REFERENCE = "PyTorch fp32"
ENGINES: Mapping[str, Literal["fp32", "fp16"]] = {"ONNX Runtime fp32": "fp32", "ONNX Runtime fp16": "fp16"}
_PACKAGES = ("torch", "diffusers", "transformers", "open_clip_torch", "onnx", "onnxruntime")


def run(arguments: argparse.Namespace, output: Output) -> dict[str, Any]:
    """Build engines, evaluate all backends, and return the document."""
    started = time.monotonic()
    chosen, scorers = open_set(arguments.references, arguments.prompts), open_scorers()
    with output.progress() as reporter:
        for precision in ENGINES.values():
            build(
                BuildOptions(output=arguments.work / precision, precision=precision, backends=("onnxruntime",)),
                reporter,
            )

    def open_generator(variant: Variant) -> Generator:
        if variant.name == FULL:
            return open_reference("demo", choices=METHOD)
        return EngineGenerator(
            opened.enter_context(Pipeline.load(arguments.work / ENGINES[variant.name], "onnxruntime"))
        )

    variants = [Variant(name) for name in (FULL, *ENGINES)]
    with ExitStack() as opened, output.progress() as reporter:
        found = run_variants(variants, open_generator, chosen, scorers, arguments.work, reporter)
    gates = {name: compare(found[name], found[FULL]).to_json() for name in ENGINES}
    first = found[FULL].to_json()
    return {
        "kind": "backends",
        **measured_on(arguments.machine, _PACKAGES),
        "seconds": time.monotonic() - started,
        "set": first["set"],
        "scorers": first["scorers"],
        "bootstrap": first["bootstrap"],
        "backends": {
            (REFERENCE if name == FULL else name): {
                "scores": each.to_json()["scores"],
                "faces_missing": each.faces_missing,
                "gate": gates.get(name),
            }
            for name, each in found.items()
        },
    }


def markdown(document: dict[str, Any]) -> str:
    """Return one row per backend, with its scores, the loss in each, and the verdict."""
    lines = [f"| backend | {' | '.join(f'{name} | lost' for name in METRICS.values())} | verdict |"]
    lines.append("|---|" + "---|---|" * len(METRICS) + "---|")
    for name, each in document["backends"].items():
        gate = each["gate"]
        losses = {
            row["metric"]: f"{row['loss']:+.2%} ({Interval(**row['difference']):+.4f})"
            for row in (gate["rows"] if gate else ())
        }
        cells = " | ".join(
            f"{each['scores']['all'][metric]['mean']:.4f} | {losses.get(metric, '–')}" for metric in METRICS
        )
        verdict = "the reference" if gate is None else "PASSED" if gate["passed"] else "FAILED"
        lines.append(f"| {name} | {cells} | {verdict} |")
    chosen = document["set"]
    gate = next(each["gate"] for each in document["backends"].values() if each["gate"])
    lines += [
        "",
        f"{len(chosen['people'])} people × {len(chosen['prompts'])} prompts, the same noise for all backends, on "
        f"{document['machine']}; a backend may lose {gate['limit']:.1%} of a score (of {gate['least']} where the "
        "score is nearer to 0), and a loss below nothing is a gain. "
        "In brackets the difference of a picture's score, backend − PyTorch, with its "
        f"{document['bootstrap']['level']:.0%} interval over people.",
    ]
    return "\n".join(lines)


def main(words: list[str]) -> int:
    """Run, write the document and print the table."""
    document = publish(run, markdown, parser_of(__doc__, "backends").parse_args(words), RESULTS)
    if document is None:
        return 1
    return 0 if all(each["gate"] is None or each["gate"]["passed"] for each in document["backends"].values()) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
