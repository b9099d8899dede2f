"""`infid-export evaluate`."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from infid_engines.errors import InputError
from infid_export.cli.flags import (
    DRY_RUN_HELP,
    ENGINES,
    METHOD_CHOICES,
    add_folder,
    add_model,
    add_running,
    add_sampling,
    open_pipeline,
)
from infid_export.cli.output import Output, shown

if TYPE_CHECKING:
    from infid_engines.progress import Reporter
    from infid_export.evaluation.evaluation import Evaluation
    from infid_export.evaluation.gate import Gate
    from infid_export.evaluation.generators import Generator
    from infid_export.evaluation.scorers import Scorers
    from infid_export.evaluation.sets import EvaluationSet

_WORLD = "world:heldout"
_SETTINGS = (
    "steps", "sampler", "spacing", "guidance", "style_strength", "plain_style_strength", "identity_strength",
)  # fmt: skip
_SECONDS = 3.0  # per image of the demo model on two cores; only fractions of it are shown
EXAMPLES = (
    "infid-export evaluate infid-engines -o scores",
    "infid-export evaluate infid-engines --against reference/scores.json",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_folder(parser, "engines", "engine folder")
    chosen = parser.add_argument_group("people and prompts: every person with every prompt")
    chosen.add_argument(
        "--references", default=_WORLD, metavar="DIR",
        help="folder with one photo per person, or world:heldout[:N]: N drawn people not trained on (world:heldout:20)",
    )  # fmt: skip
    chosen.add_argument(
        "--prompts", default=_WORLD, metavar="FILE",
        help="one prompt per line, 'stylized:' before those with a style; or world:heldout[:N] (world:heldout:10)",
    )  # fmt: skip
    chosen.add_argument("--stylized", type=int, metavar="N", help="how many of the world's prompts are stylized (half)")
    chosen.add_argument("--seeds", type=int, metavar="N", help="images per person and prompt (1)")
    chosen.add_argument("--set", type=Path, metavar="FILE", help="people, prompts and seeds in one JSON file instead")
    scorers = parser.add_argument_group("scorers (the demo model's own, for drawn people)")
    scorers.add_argument("--clip", nargs=2, metavar=("NAME", "FILE"), help="OpenCLIP architecture and its checkpoint")
    scorers.add_argument("--facenet", type=Path, metavar="FILE", help="FaceNet-type recognizer (ONNX)")
    scorers.add_argument(
        "--facenet-scale", choices=("signed", "unit", "whitened", "raw"), default="signed",
        help="pixels in [−1, 1], in [0, 1], with mean 0 and deviation 1, or unscaled (signed)",
    )  # fmt: skip
    scorers.add_argument(
        "--facenet-crop", choices=("aligned", "box"), default="aligned", help="which crop the recognizer gets (aligned)"
    )
    scorers.add_argument(
        "--face-detector", default="drawn", metavar="FILE",
        help="drawn, centerface (for photos), an ONNX file of its kind, or an InsightFace folder (drawn)",
    )  # fmt: skip
    results = parser.add_argument_group("results")
    results.add_argument(
        "-o", "--output", type=Path, metavar="DIR", help="write scores.json, grid.png and all images to this folder"
    )
    results.add_argument(
        "--against",
        type=Path,
        metavar="FILE",
        help="scores.json of the reference; fail if a score drops by more than 0.5 %%",
    )
    sampling = parser.add_argument_group("sampling; --style-strength applies to prompts that ask for a style")
    add_sampling(sampling)
    sampling.add_argument(
        "--plain-style-strength", type=float, metavar="S", help="AdaIN-mean for the other prompts (0)"
    )
    add_running(parser.add_argument_group("engines"))
    reference = parser.add_argument_group("PyTorch reference in fp32, instead of engines; needs --model")
    add_model(reference)
    parser.set_defaults(engines=None, model=None)
    parser.add_argument("--dry-run", action="store_true", help=DRY_RUN_HELP)


def run(arguments: argparse.Namespace, output: Output) -> int:
    """Evaluate, and print the scores; exit code 1 if a score drops against another evaluation."""
    _reject_without_effect(arguments)
    from infid_export.evaluation.evaluation import Evaluation, evaluate
    from infid_export.evaluation.results import ResultFolder

    chosen = _set(arguments)
    against = Evaluation.load(arguments.against) if arguments.against else None
    scorers = _scorers(arguments)
    if arguments.dry_run:
        return _dry_run(chosen, arguments, output)
    results = ResultFolder(arguments.output, chosen)
    with output.progress() as reporter, output.warnings_as_notes(), _generator(arguments, reporter) as generator:
        reporter.plan({"pictures": _SECONDS * len(chosen)})
        with reporter.stage("pictures") as stage:
            found = evaluate(generator, chosen, scorers, stage, results.add)
    written = results.finish(found)
    gate = _judge(found, against, output)
    _show(found, output)
    for path in written:
        output.line(shown(path))
    document = {**found.to_json(), "files": written}
    output.document(document if gate is None else {**document, "against": gate.to_json()})
    return 0 if gate is None or gate.passed else 1


def _reject_without_effect(arguments: argparse.Namespace) -> None:
    """Reject arguments that have no effect with another one.

    Raises:
        InputError: the message names both arguments.
    """
    whole_set = {"--references": arguments.references != _WORLD, "--prompts": arguments.prompts != _WORLD,
                 "--stylized": arguments.stylized is not None, "--seeds": arguments.seeds is not None}  # fmt: skip
    running = {"an engine folder": arguments.engines, "--backend": arguments.backend != "auto",
               "--device": arguments.device != "auto"}  # fmt: skip
    model = {"--identity": arguments.identity, "--image-encoder": arguments.image_encoder,
             "--recognizer": arguments.recognizer, "--model-seed": arguments.seed}  # fmt: skip
    model |= {flag: getattr(arguments, name) for flag, (name, _) in METHOD_CHOICES.items()}
    facenet = {
        "--facenet-scale": arguments.facenet_scale != "signed",
        "--facenet-crop": arguments.facenet_crop == "box",
    }
    for idle, given, why in (
        (arguments.set is not None, whole_set, "--set, which has its own people, prompts and seeds"),
        (arguments.model is not None, running, "--model, which runs PyTorch"),
        (arguments.model is None, model, "engines; it is for --model"),
        (arguments.facenet is None, facenet, "the demo model's own recognizer; it is for --facenet"),
    ):
        names = [name for name, value in given.items() if value]
        if idle and names:
            raise InputError(f"{names[0]} has no effect with {why}.", fix="Leave one of the two out.")


def _set(arguments: argparse.Namespace) -> EvaluationSet:
    from infid_export.evaluation.set_sources import json_set, open_set

    if arguments.set is not None:
        return json_set(arguments.set)
    seeds = 1 if arguments.seeds is None else arguments.seeds
    return open_set(arguments.references, arguments.prompts, stylized=arguments.stylized, seeds=seeds)


def _scorers(arguments: argparse.Namespace) -> Scorers:
    from infid_export.evaluation.scorer_choice import open_scorers

    return open_scorers(
        clip=(arguments.clip[0], Path(arguments.clip[1])) if arguments.clip else None,
        facenet=arguments.facenet,
        facenet_scale=arguments.facenet_scale,
        facenet_crop=arguments.facenet_crop,
        face_detector=arguments.face_detector,
    )


def _dry_run(chosen: EvaluationSet, arguments: argparse.Namespace, output: Output) -> int:
    from infid_engines.manifest import Manifest

    if arguments.model is None:
        Manifest.load(arguments.engines or ENGINES)
    people, prompts, seeds = len(chosen.people), len(chosen.prompts), len(chosen.seeds)
    stylized = sum(prompt.stylized for prompt in chosen.prompts)
    output.line(
        f"{len(chosen)} images: {people} people × {prompts} prompts ({stylized} stylized) × {seeds} seeds; "
        "nothing was generated"
    )
    output.document({
        "pictures": len(chosen), "people": people, "prompts": prompts, "stylized": stylized, "seeds": seeds,
        "fingerprint": chosen.fingerprint(),
    })  # fmt: skip
    return 0


@contextmanager
def _generator(arguments: argparse.Namespace, reporter: Reporter) -> Iterator[Generator]:
    """Open the generator of the images, and close it afterwards."""
    settings = {name: getattr(arguments, name) for name in _SETTINGS}
    if arguments.model is not None:
        from infid_export.evaluation.generators import open_reference

        choices = {name: getattr(arguments, name) for name, _ in METHOD_CHOICES.values()}
        yield open_reference(
            arguments.model,
            settings=settings,
            choices=choices,
            identity=arguments.identity,
            image_encoder=arguments.image_encoder,
            seed=arguments.seed,
            recognizer=arguments.recognizer,
            face_detector=arguments.face_detector,
        )
        return
    from infid_export.evaluation.generators import EngineGenerator

    folder = arguments.engines or ENGINES
    with open_pipeline(arguments, folder, reporter) as pipe:
        yield EngineGenerator(pipe, settings)


def _judge(found: Evaluation, against: Evaluation | None, output: Output) -> Gate | None:
    """Compare with another evaluation, and print the verdict of every score."""
    if against is None:
        return None
    from infid_export.evaluation.gate import compare
    from infid_export.evaluation.scorers import METRICS

    gate = compare(found, against)
    rows = [
        ("PASSED" if row.passed else "FAILED", METRICS[row.metric], f"{row.score:.4f}", f"{row.against:.4f}",
         f"{row.difference:+.4f}", f"{row.loss:+.2%}", f"{gate.limit:.1%}")
        for row in gate.rows
    ]  # fmt: skip
    columns = ("verdict", "score", "here", "reference", "difference", "loss", "loss ≤")
    output.table("Compared with the reference evaluation, on the same images", columns, rows, numbers=columns[2:])
    output.line(f"{'PASSED' if gate.passed else 'FAILED'} no score may drop by more than {gate.limit:.1%}")
    return gate


def _show(found: Evaluation, output: Output) -> None:
    from infid_export.evaluation.scorers import METRICS

    rows = [
        (subset, str(len(found.subset(subset))), *(f"{interval:.3f}" for interval in scores.values()))
        for subset, scores in found.scores().items()
    ]
    columns = ("prompts", "images", *METRICS.values())
    people, prompts = len(found.set["people"]), len(found.set["prompts"])
    title = f"Cosine similarities for {people} people × {prompts} prompts, with 95 % intervals over people"
    output.table(title, columns, rows, numbers=columns[1:])
    output.line(f"{found.faces_missing} of {len(found.pictures)} images show no face and count as 0 in M_FaceNet")
