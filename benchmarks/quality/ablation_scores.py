"""The paper's ablations on people and prompts of the world, in the PyTorch reference.

Usage::

    python benchmarks/quality/ablation_scores.py --identity-with-text FILE [--name ablation] [--work DIR]

`--identity-with-text` gives the identity weights that were trained with text on; without it, the rows that need them
are left out, with a note. Every variant's images and scores are kept in the work folder, where an interrupted run
resumes. The table goes to benchmarks/results/<name>.json; nothing in it is edited by hand.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.provenance import RESULTS, measured_on
from benchmarks.publishing import publish
from benchmarks.quality.scoring_arguments import parser_of
from infid_engines.errors import InputError
from infid_export.cli.output import Output
from infid_export.evaluation.ablation import (
    THE_WORLD,
    VARIANTS,
    Variant,
    compare_rows,
    run_variants,
    text_stream_likeness,
)
from infid_export.evaluation.bootstrap import Interval
from infid_export.evaluation.generators import Generator, open_reference
from infid_export.evaluation.scorer_choice import open_scorers
from infid_export.evaluation.scorers import METRICS
from infid_export.evaluation.set_sources import of_world, open_set
from infid_export.evaluation.world_pictures import WorldGenerator
from infid_export.model.config import read_config

_PACKAGES = ("torch", "diffusers", "transformers", "open_clip_torch", "onnxruntime")


def run(arguments: argparse.Namespace, output: Output) -> dict[str, Any]:
    """Evaluate all variants and return the document."""
    started = time.monotonic()
    chosen = open_set(arguments.references, arguments.prompts, stylized=arguments.stylized, seeds=arguments.seeds)
    scorers = open_scorers()
    variants = [each for each in VARIANTS if each.training == "without text" or arguments.identity_with_text]
    if len(variants) < len(VARIANTS):
        output.note("note: without --identity-with-text, the rows trained with text are left out")
    else:
        require_trained(arguments.identity_with_text, with_text=True)
    if arguments.identity is not None:
        require_trained(arguments.identity, with_text=False)

    if of_world(arguments.references) and of_world(arguments.prompts):
        variants.append(THE_WORLD)

    def open_generator(variant: Variant) -> Generator:
        if variant is THE_WORLD:
            return WorldGenerator(len(chosen.people))
        with_text = variant.training == "with text"
        return open_reference(
            arguments.model,
            settings={"steps": arguments.steps, **variant.settings},
            choices=variant.method(),
            identity=arguments.identity_with_text if with_text else arguments.identity,
        )

    with output.progress() as reporter:
        found = run_variants(variants, open_generator, chosen, scorers, arguments.work, reporter)
    likeness = text_stream_likeness(found, chosen, scorers.face, arguments.work)
    first = next(iter(found.values())).to_json()
    return {
        "kind": "ablation",
        **measured_on(arguments.machine, _PACKAGES),
        "seconds": time.monotonic() - started,
        "set": first["set"],
        "settings": first["generator"]["settings"],
        "scorers": first["scorers"],
        "bootstrap": first["bootstrap"],
        "rows": compare_rows(found, likeness),
        "variants": {name: each.to_json() for name, each in found.items()},
    }


def require_trained(path: Path, with_text: bool) -> None:
    """Reject identity weights that were not trained this way.

    Raises:
        InputError: they were trained the other way, or are not identity weights.
    """
    if read_config(path).trained_with_text != with_text:
        words = ("without", "with") if with_text else ("with", "without")
        raise InputError(f"{path} was trained {words[0]} text.", fix=f"Give weights that were trained {words[1]} it.")


def markdown(document: dict[str, Any]) -> str:
    """Return the table of a document, with each of the paper's orderings and whether it is reproduced."""
    lines = [
        f"| variant | pictures | without a face | {' | '.join(METRICS.values())} | likeness to the text stream's face "
        "| the paper's ordering |"
    ]
    lines.append("|---|---|---|" + "---|" * (len(METRICS) + 2))
    for row in document["rows"]:
        cells = [f"{Interval(**row['scores'][metric]):.3f}" for metric in METRICS]
        orderings = [
            f"full {'>' if each['above'] else '<'} this in {METRICS[each['metric']]}: {each['verdict']} "
            f"({Interval(**each['difference']):+.3f})"
            for each in row["orderings"]
        ]
        said = "<br>".join(orderings) or "–"
        cells = [str(row["pictures"]), str(row["faces_missing"]), *cells, f"{Interval(**row['text_stream']):.3f}"]
        lines.append(f"| {row['label']} | {' | '.join(cells)} | {said} |")
    chosen, sampling = document["set"], document["settings"]
    lines += [
        "",
        f"{len(chosen['people'])} people × {len(chosen['prompts'])} prompts × {len(chosen['seeds'])} seeds; "
        f"{sampling['steps']} steps, guidance {sampling['guidance']:g}, λ = {sampling['identity_strength']:g}, "
        f"s = {sampling['style_strength']:g} for prompts with a style and {sampling['plain_style_strength']:g} for the "
        f"others; {document['bootstrap']['level']:.0%} intervals over people; differences are full − this, picture by "
        "picture.",
    ]
    return "\n".join(lines)


def main(words: list[str]) -> int:
    """Run, write the document and print the table."""
    parser = parser_of(__doc__, "ablation")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--identity", type=Path, help="identity weights (the model's own)")
    parser.add_argument("--identity-with-text", type=Path)
    parser.add_argument("--stylized", type=int)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int)
    return 1 if publish(run, markdown, parser.parse_args(words), RESULTS) is None else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
