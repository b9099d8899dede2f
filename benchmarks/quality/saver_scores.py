"""What training-free shortcuts save, and what they cost: scores on the demo model, work at SDXL's size.

Usage::

    python benchmarks/quality/saver_scores.py [--name savers] [--work DIR] [--machine WORDS]

A shortcut has to be better than what needs none: fewer steps. Every variant's images and scores are kept in the work
folder, where an interrupted run resumes. The table goes to benchmarks/results/<name>.json; nothing in it is edited by
hand.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks.provenance import RESULTS, measured_on
from benchmarks.publishing import publish
from benchmarks.quality.scoring_arguments import parser_of
from benchmarks.quality.step_savers import DeepCache, Gate, GuidanceInterval, StepSaver, teraflop
from infid_export.bench.timing import take_turns
from infid_export.cli.output import Output
from infid_export.evaluation.ablation import FULL, METHOD, Variant, place_of, run_variants
from infid_export.evaluation.bootstrap import Interval
from infid_export.evaluation.gate import paired
from infid_export.evaluation.generators import ReferenceGenerator, open_reference
from infid_export.evaluation.results import kept_pictures
from infid_export.evaluation.scorer_choice import open_scorers
from infid_export.evaluation.scorers import METRICS
from infid_export.evaluation.set_sources import open_set

STEPS = 30
Saver = Callable[[Any, int], StepSaver]
SAVERS: Mapping[str, Saver] = {
    "guidance in steps 3 to 20": partial(GuidanceInterval, first=2, last=19),
    "T-GATE after step 10": partial(Gate, gate=10),
    "T-GATE after step 20": partial(Gate, gate=20),
    "DeepCache every 2 steps": partial(DeepCache, every=2),
    "DeepCache every 3 steps": partial(DeepCache, every=3),
}
FEWER = {"20 steps": 20, "15 steps": 15, "10 steps": 10}
_ROUNDS = 5
_PACKAGES = ("torch", "diffusers", "transformers", "open_clip_torch", "onnxruntime")


class Saving:
    """The reference with a saver; a `Generator`.

    Args:
        name: the variant's name.
        generator: its step is wrapped.
        saver: the saver.
    """

    def __init__(self, name: str, generator: ReferenceGenerator, saver: Saver) -> None:
        self.batch = generator.batch
        self._name, self._generator = name, generator
        generator._pipe._step = saver(generator._pipe._step, STEPS)
        self.enroll, self.generate = generator.enroll, generator.generate

    def describe(self) -> dict[str, Any]:
        """Return the reference's description, with the saver's name."""
        return {**self._generator.describe(), "saver": self._name}


def open_variant(name: str) -> Any:
    """Return the generator of a variant."""
    generator = open_reference("demo", choices=METHOD, settings={"steps": FEWER.get(name, STEPS)})
    return Saving(name, generator, SAVERS[name]) if name in SAVERS else generator


def run(arguments: argparse.Namespace, output: Output) -> dict[str, Any]:
    """Evaluate all variants, time them, count their work, and return the document."""
    started = time.monotonic()
    chosen, scorers = open_set(arguments.references, arguments.prompts), open_scorers()
    names = [FULL, *FEWER, *SAVERS]
    with output.progress() as reporter:
        found = run_variants(
            [Variant(name) for name in names], lambda variant: open_variant(variant.name), chosen, scorers,
            arguments.work, reporter,
        )  # fmt: skip
    pictures = {name: kept_pictures(place_of(arguments.work, name), chosen) for name in names}
    seconds, work = _timed(names, chosen), _work(names)
    return {
        "kind": "savers",
        **measured_on(arguments.machine, _PACKAGES),
        "seconds": time.monotonic() - started,
        "set": found[FULL].to_json()["set"],
        "bootstrap": found[FULL].to_json()["bootstrap"],
        "steps": STEPS,
        "rounds": _ROUNDS,
        "variants": {
            name: {
                "scores": found[name].to_json()["scores"],
                "faces_missing": found[name].faces_missing,
                "differences": {}
                if name == FULL
                else {metric: paired(found[name], found[FULL], metric).to_json() for metric in METRICS},
                "psnr_db": None if name == FULL else _psnr(pictures[name], pictures[FULL]),
                "seconds_per_picture": seconds[name],
                "sdxl_teraflop": work[name],
            }
            for name in names
        },
    }


def _timed(names: list[str], chosen: Any) -> dict[str, float]:
    """Return the seconds of an image on this machine, one at a time; the variants take turns."""
    calls = {}
    for name in names:
        generator = open_variant(name)
        person = generator.enroll(chosen.people[0].photo)
        calls[name] = partial(generator.generate, person, [chosen.prompts[0].text], [1], True)
    return {name: each.median_ms / 1e3 for name, each in take_turns(calls, _ROUNDS).items()}


def _work(names: list[str]) -> dict[str, float]:
    """Return the operations of an image's steps with full-size SDXL at 1024 × 1024."""
    from infid_export.export.graphs.denoise_step import DENOISE_STEP
    from infid_export.export.graphs.sizes import Sizes
    from infid_export.model.opening import open_source
    from infid_export.model.processors import identity_blocks
    from infid_export.model.step import DenoiseStep, IdentityInputs, PromptInputs, SamplerInputs, StreamInputs

    source = open_source("random-sdxl")

    def inputs(sizes: Sizes) -> tuple[Any, Any, Any, Any]:
        a: dict[str, Any] = DENOISE_STEP.arguments(sizes, torch.float32)
        streams = [
            StreamInputs(*(a[f"{stream}_{part}"] for part in ("latents", "denoised", "noise")))
            for stream in ("text", "identity")
        ]
        sampler = SamplerInputs(a["timestep"], a["coefficients"], a["guidance"])
        prompt = PromptInputs(a["prompt_embeds"], a["pooled_prompt_embeds"], a["time_ids"])
        identity = IdentityInputs(a["identity_keys"], a["identity_values"], a["style_strength"], a["identity_strength"])
        return streams, sampler, prompt, identity

    found, counted = {}, dict[str, int]()
    for name in names:
        unet = source.empty("unet")
        size = source.architecture.size
        sizes = Sizes(source.architecture, source.config, identity_blocks(unet), 1, size, size)
        step = DenoiseStep(unet, source.config)
        saver = SAVERS.get(name, StepSaver)(step, FEWER.get(name, STEPS))
        found[name] = teraflop(saver, partial(inputs, sizes), counted)
    return found


def _psnr(found: list[Any], expected: list[Any]) -> float:
    """Return the median PSNR of images against others, in dB."""
    values = []
    for one, other in zip(found, expected, strict=True):
        error = float(np.mean((np.asarray(one, np.float64) - np.asarray(other, np.float64)) ** 2))
        values.append(10 * np.log10(255**2 / max(error, 1e-10)))
    return float(statistics.median(values))


def markdown(document: dict[str, Any]) -> str:
    """Return one row per variant: work, time, scores with their losses, and PSNR."""
    lines = [f"| variant | work | time | {' | '.join(METRICS.values())} | PSNR, dB |"]
    lines.append("|---|---|---|" + "---|" * (len(METRICS) + 1))
    full = document["variants"][FULL]
    for name, each in document["variants"].items():
        gained = {metric: f" ({Interval(**value):+.3f})" for metric, value in each["differences"].items()}
        scores = [f"{each['scores']['all'][metric]['mean']:.3f}{gained.get(metric, '')}" for metric in METRICS]
        psnr = "–" if each["psnr_db"] is None else f"{each['psnr_db']:.1f}"
        share = each["sdxl_teraflop"] / full["sdxl_teraflop"]
        slower = each["seconds_per_picture"] / full["seconds_per_picture"]
        lines.append(f"| {name} | {share:.0%} | {slower:.0%} | {' | '.join(scores)} | {psnr} |")
    chosen = document["set"]
    lines += [
        "",
        f"Work: operations of all steps with SDXL at 1024 × 1024, of {full['sdxl_teraflop']:.0f} TFLOP for "
        f"{document['steps']} joint steps. Time and scores: the demo model in PyTorch on {document['machine']}, "
        f"{len(chosen['people'])} people × {len(chosen['prompts'])} prompts, medians of {document['rounds']} images; "
        "in brackets the difference to all steps, image by image, with its "
        f"{document['bootstrap']['level']:.0%} interval over people. PSNR: median, against all steps.",
    ]
    return "\n".join(lines)


def main(words: list[str]) -> int:
    """Run, write the document and print the table."""
    return 1 if publish(run, markdown, parser_of(__doc__, "savers").parse_args(words), RESULTS) is None else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
