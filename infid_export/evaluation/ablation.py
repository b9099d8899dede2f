"""The paper's ablations as data, and what the paper claims about each.

The published figures are those of Infinite-ID (arXiv 2403.11781, tables 1 and 2), as public summaries of the paper
quote them. They were measured on SDXL with other people, prompts and scorers, so only their order is compared, never
their size. For AdaIN the paper shows images and no figures, so that claim is stated on its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from infid_engines.progress import Reporter
from infid_export.evaluation.bootstrap import Interval
from infid_export.evaluation.evaluation import SUBSETS, Evaluation, evaluate
from infid_export.evaluation.gate import paired
from infid_export.evaluation.generators import Generator
from infid_export.evaluation.results import SCORES, ResultFolder, kept_pictures
from infid_export.evaluation.scorers import FaceScorer, Scorers, face_similarity
from infid_export.evaluation.sets import EvaluationSet

Training = Literal["without text", "with text"]
Verdict = Literal["reproduced", "contradicted", "undecided"]
METHOD = {"self_attention": "mixed", "adain": "mean", "cross_adain": "kv"}


@dataclass(frozen=True)
class Variant:
    """A way of generating images.

    Args:
        name: a unique name.
        choices: differences from `METHOD`.
        training: the identity weights: from identity-enhanced training (without text), or trained with text on.
        settings: differences from the model's sampling settings.
    """

    name: str
    choices: Mapping[str, str] = field(default_factory=dict)
    training: Training = "without text"
    settings: Mapping[str, float] = field(default_factory=dict)

    def method(self) -> dict[str, str]:
        """Return all choices."""
        return {**METHOD, **self.choices}


@dataclass(frozen=True)
class Claim:
    """The full method's score is above (or below) the row's.

    Args:
        metric: a key of `METRICS`.
        above: whether it is above.
    """

    metric: str
    above: bool = True


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Args:
        label: name of the row.
        variant: variant whose scores it shows.
        subset: subset of the prompts.
        published: the paper's figures by metric, on the paper's people and prompts.
        claims: the paper's claims that have no figures.
    """

    label: str
    variant: str
    subset: str = "all"
    published: Mapping[str, float] = field(default_factory=dict)
    claims: tuple[Claim, ...] = ()

    def orderings(self, full: Row) -> tuple[Claim, ...]:
        """Return the paper's claims about the full method against this row: from its figures, and from its text."""
        if self.variant == full.variant:
            return ()
        figures = tuple(Claim(metric, full.published[metric] > value) for metric, value in self.published.items())
        return figures + self.claims


FULL, TEXT_STREAM = "full", "text stream"
_NO_INTERACTION = {"self_attention": "plain", "adain": "off", "cross_adain": "off"}
VARIANTS = (
    Variant(FULL),
    Variant("without identity-enhanced training", training="with text"),
    Variant("without mixed attention", {"self_attention": "plain"}),
    Variant("mutual attention", {"self_attention": "mutual"}),
    Variant("AdaIN", {"adain": "standard"}),
    Variant("without AdaIN-mean", {"adain": "off", "cross_adain": "off"}),
    Variant("IP-Adapter style", _NO_INTERACTION, training="with text"),
    Variant("without interaction", _NO_INTERACTION),
    Variant("AdaIN-mean for every prompt", settings={"plain_style_strength": 1.0}),
    Variant(TEXT_STREAM, _NO_INTERACTION, settings={"identity_strength": 0.0}),
)
THE_WORLD = Variant("the world itself")  # drawn without a model; only for sets of the world
ROWS = (
    Row("Infinite-ID", FULL, published={"clip_t": 0.340, "clip_i": 0.913, "m_facenet": 0.689}),
    Row(
        "without identity-enhanced training (trained with text on)",
        "without identity-enhanced training",
        published={"clip_t": 0.329, "clip_i": 0.891, "m_facenet": 0.593},
    ),
    Row(
        "without mixed attention",
        "without mixed attention",
        # M_FaceNet is the only score that mixed attention lowers in the paper
        published={"clip_t": 0.331, "clip_i": 0.905, "m_facenet": 0.700},
    ),
    Row(
        "mixed → mutual attention",
        "mutual attention",
        published={"clip_t": 0.316, "clip_i": 0.808, "m_facenet": 0.398},
    ),
    Row("AdaIN-mean (Infinite-ID), stylized prompts", FULL, "stylized"),
    Row("AdaIN-mean → AdaIN, stylized prompts", "AdaIN", "stylized", claims=(Claim("m_facenet"),)),
    Row("without AdaIN-mean, stylized prompts", "without AdaIN-mean", "stylized", claims=(Claim("clip_t"),)),
    Row(
        "IP-Adapter style: decoupled cross-attention alone, trained with text",
        "IP-Adapter style",
        published={"clip_t": 0.274, "clip_i": 0.905, "m_facenet": 0.474},
    ),
    Row("IP-Adapter style, but with identity-enhanced training", "without interaction"),
    Row("Infinite-ID, prompts without a style", FULL, "plain"),
    Row("AdaIN-mean for photos too, prompts without a style", "AdaIN-mean for every prompt", "plain"),
    Row("the text stream alone: nobody's picture", TEXT_STREAM),
    Row("no model: the world's own drawings of what is asked", THE_WORLD.name),
)


def run_variants(
    variants: Sequence[Variant],
    open_generator: Callable[[Variant], Generator],
    chosen: EvaluationSet,
    scorers: Scorers,
    folder: Path,
    reporter: Reporter,
) -> dict[str, Evaluation]:
    """Evaluate variants one after the other. Results that an earlier run finished with the same parts are reused.

    Args:
        variants: the variants to evaluate.
        open_generator: returns the generator of a variant.
        chosen: people, prompts and seeds, the same for all.
        scorers: score the images, the same for all.
        folder: folder with one `ResultFolder` per variant.
        reporter: receives the progress.

    Returns:
        The evaluations by variant.
    """
    found = {}
    reporter.plan({variant.name: float(len(chosen)) for variant in variants})
    for variant in variants:
        place = place_of(folder, variant.name)
        generator = open_generator(variant)
        with reporter.stage(variant.name) as stage:
            parts = {"set": chosen.to_json(), "generator": generator.describe(), "scorers": scorers.describe()}
            kept = Evaluation.load(place / SCORES) if (place / SCORES).is_file() else None
            if kept is not None and _same(parts, kept):
                reporter.note(f"{variant.name}: already in {place}")
                found[variant.name] = kept
                continue
            results = ResultFolder(place, chosen)
            found[variant.name] = evaluate(generator, chosen, scorers, stage, results.add)
            results.finish(found[variant.name])
    return found


def text_stream_likeness(
    evaluations: Mapping[str, Evaluation], chosen: EvaluationSet, face: FaceScorer, folder: Path
) -> dict[str, dict[str, Interval]]:
    """Return how similar each variant's faces are to the text stream's, from the same noise and prompt.

    This is M_FaceNet with the text stream's image instead of the reference photo. Both images share the pose, the light
    and all else that the noise decides, so a method that takes nothing from that face does not score 0. Only the part
    above the variant without interaction between the streams comes from that face.

    Args:
        evaluations: results of `run_variants`, including the text stream.
        chosen: the set of `run_variants`.
        face: finds and embeds faces.
        folder: the folder of `run_variants`.

    Returns:
        Intervals over people, by variant and subset. A pair in which one image has no face counts as 0.

    Raises:
        InputError: an image is missing in the folder.
    """
    faces = {name: face.embed_faces(kept_pictures(place_of(folder, name), chosen)) for name in evaluations}
    found = {}
    for name, evaluation in evaluations.items():
        likeness = [
            0.0 if theirs is None else face_similarity(own, theirs)
            for own, theirs in zip(faces[name], faces[TEXT_STREAM], strict=True)
        ]
        pairs = zip(evaluation.pictures, likeness, strict=True)
        judged = replace(evaluation, pictures=tuple(replace(picture, m_facenet=value) for picture, value in pairs))
        found[name] = {subset: judged.interval("m_facenet", subset) for subset in SUBSETS if judged.subset(subset)}
    return found


def place_of(folder: Path, variant: str) -> Path:
    """Return the folder where `run_variants` stores a variant's images and scores."""
    return folder / variant.replace(" ", "-")


def _same(parts: Mapping[str, Any], kept: Evaluation) -> bool:
    """Return whether an evaluation was made from these parts. They are compared as JSON, as they were stored."""
    return all(
        json.dumps(part, sort_keys=True) == json.dumps(getattr(kept, name), sort_keys=True)
        for name, part in parts.items()
    )


def verdict(claim: Claim, difference: Interval) -> Verdict:
    """Return whether a claim is reproduced.

    Args:
        claim: the paper's claim about full − row.
        difference: mean of full − row over pairs of images, with its interval over people.

    Returns:
        `reproduced` if the whole interval is on the claim's side of 0, `contradicted` if it is on the other side, else
        `undecided`: the difference is not significant, or there are too few people for an interval.
    """
    if difference.low is None or difference.high is None or difference.low <= 0 <= difference.high:
        return "undecided"
    return "reproduced" if (difference.low > 0) == claim.above else "contradicted"


def compare_rows(
    evaluations: Mapping[str, Evaluation],
    likeness: Mapping[str, Mapping[str, Interval]],
    rows: tuple[Row, ...] = ROWS,
) -> list[dict[str, Any]]:
    """Return the table: the scores of every row with intervals, and the paper's orderings with verdicts.

    Args:
        evaluations: by name of the variant, all on one set, including the full method.
        likeness: of the same variants, see `text_stream_likeness`.
        rows: rows of the table; the first is the full method. Rows whose variant or prompts are missing in the set
            are omitted.

    Raises:
        InputError: the evaluations have different images.
    """
    full, table = evaluations[FULL], []
    for row in rows:
        found = evaluations.get(row.variant)
        if found is None or not found.subset(row.subset):
            continue
        orderings = []
        for claim in row.orderings(rows[0]):
            difference = paired(full, found, claim.metric, row.subset)
            orderings.append({
                **asdict(claim), "difference": difference.to_json(), "verdict": verdict(claim, difference),
            })  # fmt: skip
        pictures = found.subset(row.subset)
        table.append({
            "label": row.label,
            "variant": row.variant,
            "subset": row.subset,
            "pictures": len(pictures),
            "faces_missing": sum(not picture.face_found for picture in pictures),
            "scores": {metric: value.to_json() for metric, value in found.scores()[row.subset].items()},
            "text_stream": likeness[row.variant][row.subset].to_json(),
            "published": dict(row.published),
            "orderings": orderings,
        })  # fmt: skip
    return table
