from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from evaluation_parts import COLORS, TableGenerator, evaluation, plain, two_people

from benchmarks.quality import ablation_scores as script
from infid_engines.errors import InputError
from infid_engines.progress import SilentReporter
from infid_export.evaluation.ablation import (
    FULL,
    METHOD,
    ROWS,
    TEXT_STREAM,
    THE_WORLD,
    VARIANTS,
    Claim,
    Variant,
    compare_rows,
    run_variants,
    text_stream_likeness,
    verdict,
)
from infid_export.evaluation.bootstrap import Interval
from infid_export.evaluation.evaluation import SUBSETS, Evaluation
from infid_export.evaluation.scorers import METRICS
from infid_export.model.config import IdentityConfig

BY_NAME = {variant.name: variant for variant in VARIANTS}


def scored(shift: tuple[float, float, float], people: int = 12, plain_too: bool = True) -> Evaluation:
    """The same scores in every call plus a shift, for people on a plain and a style prompt (`plain_too`: both)."""
    random = np.random.default_rng(0)
    scores = {}
    for number in range(people):
        for prompt in ("a photo", "a style"):
            base = random.normal(0.4, 0.1, 3)
            added = shift if plain_too or prompt == "a style" else (0.0, 0.0, 0.0)
            scores[f"person {number}", prompt] = tuple(float(b + s) for b, s in zip(base, added, strict=True))
    return evaluation(scores)


def test_every_variant_is_a_method_the_model_knows() -> None:
    methods = set()
    for variant in VARIANTS:
        IdentityConfig().with_choices(**variant.method())
        methods.add((*variant.method().values(), variant.training, *variant.settings.items()))
    assert len(methods) == len(VARIANTS) == len(BY_NAME) == 10
    own = {name: getattr(IdentityConfig(), name) for name in METHOD}
    assert BY_NAME[FULL].method() == METHOD == own
    assert {row.variant for row in ROWS} == {*BY_NAME, THE_WORLD.name}
    assert {BY_NAME[row.variant].training for row in ROWS if "trained" in row.label} == {"with text"}


def test_the_orderings_follow_from_the_published_figures() -> None:
    said = {
        row.variant: {claim.metric: claim.above for claim in row.orderings(ROWS[0])} for row in ROWS[1:]
    }  # the last row of a variant counts
    every = dict.fromkeys(METRICS, True)
    assert said["without identity-enhanced training"] == said["mutual attention"] == said["IP-Adapter style"] == every
    assert said["without mixed attention"] == {**every, "m_facenet": False}
    assert said["AdaIN"] == {"m_facenet": True}
    assert said["without AdaIN-mean"] == {"clip_t": True}
    assert said[FULL] == {}


@pytest.mark.parametrize(
    ("low", "high", "above", "expected"),
    [
        (0.1, 0.3, True, "reproduced"),
        (0.1, 0.3, False, "contradicted"),
        (-0.3, -0.1, True, "contradicted"),
        (-0.3, -0.1, False, "reproduced"),
        (-0.1, 0.3, True, "undecided"),
        (0.0, 0.3, True, "undecided"),
        (None, None, True, "undecided"),
    ],
)
def test_a_verdict_needs_the_whole_interval(low, high, above: bool, expected: str) -> None:
    assert verdict(Claim("clip_t", above), Interval(0.2, low, high)) == expected


LIKENESS = {subset: Interval(0.3, 0.2, 0.4) for subset in SUBSETS}


def rows_of(evaluations: dict[str, Evaluation]) -> list[dict]:
    return compare_rows(evaluations, dict.fromkeys(evaluations, LIKENESS))


def test_the_table_says_what_the_pictures_say() -> None:
    table = rows_of(
        {
            FULL: scored((0.0, 0.0, 0.0)),
            "without identity-enhanced training": scored((-0.1, 0.1, 0.0)),
            "without AdaIN-mean": scored((-0.1, 0.0, 0.0), plain_too=False),
        }
    )
    labels = [row["label"] for row in table]
    assert labels == [row.label for row in ROWS if row.variant in (FULL, *(each["variant"] for each in table))]
    trained = next(row for row in table if row["variant"].startswith("without identity"))
    assert {each["metric"]: each["verdict"] for each in trained["orderings"]} == {
        "clip_t": "reproduced", "clip_i": "contradicted", "m_facenet": "undecided",
    }  # fmt: skip
    assert trained["orderings"][0]["difference"]["mean"] == pytest.approx(0.1)
    styled = next(row for row in table if row["variant"] == "without AdaIN-mean")
    assert (styled["subset"], styled["pictures"]) == ("stylized", 12)
    assert table[0]["pictures"] == 24
    assert styled["orderings"][0]["verdict"] == "reproduced"
    assert styled["orderings"][0]["difference"]["mean"] == pytest.approx(0.1)


def test_rows_of_other_pictures_are_rejected() -> None:
    with pytest.raises(InputError, match="different images"):
        rows_of({FULL: scored((0, 0, 0)), "mutual attention": scored((0, 0, 0), people=11)})


def test_the_text_streams_face_is_found_where_it_was_taken(tmp_path: Path) -> None:
    """An image without a face resembles none; the reference photo does not matter."""
    chosen = two_people()
    made = {
        FULL: {"1 0 0": plain(3, 0, 4), "0 3 4": plain(0, 1, 0)},
        TEXT_STREAM: {"1 0 0": plain(4, 0, 3), "0 3 4": plain(0, 1, 1)},
    }
    variants = [BY_NAME[name] for name in made]
    evaluations = run_variants(
        variants, lambda variant: TableGenerator(made[variant.name]), chosen, COLORS, tmp_path, SilentReporter()
    )
    found = text_stream_likeness(evaluations, chosen, COLORS.face, tmp_path)
    assert found[TEXT_STREAM]["all"].mean == pytest.approx(1.0)
    assert found[FULL]["plain"].mean == pytest.approx(24 / 25)
    assert found[FULL]["stylized"].mean == 0
    assert found[FULL]["all"].mean == pytest.approx(12 / 25)
    next((tmp_path / "full/pictures").iterdir()).unlink()
    with pytest.raises(InputError, match=r"full/pictures/.*png cannot be read"):
        text_stream_likeness(evaluations, chosen, COLORS.face, tmp_path)


class Counting(TableGenerator):
    """Describes itself by its variant."""

    def __init__(self, variant: Variant, red: int) -> None:
        super().__init__({"1 0 0": plain(red, 0, 4), "0 3 4": plain(0, 1, 1)})
        self.variant = variant

    def describe(self) -> dict:
        return {**super().describe(), "method": self.variant.method()}


def test_variants_are_run_once_and_again_only_when_something_changed(tmp_path: Path) -> None:
    made: list[Counting] = []

    def open_generator(variant: Variant) -> Counting:
        made.append(Counting(variant, red=3 if variant.name == FULL else 0))
        return made[-1]

    def run(seeds: tuple[int, ...] = (0,)) -> dict[str, Evaluation]:
        chosen = two_people(seeds=seeds)
        return run_variants(VARIANTS[:3], open_generator, chosen, COLORS, tmp_path, SilentReporter())

    first = run()
    assert list(first) == [variant.name for variant in VARIANTS[:3]]
    assert first[FULL].interval("clip_t").mean > first["without mixed attention"].interval("clip_t").mean
    assert (tmp_path / "without-mixed-attention/grid.png").is_file()
    made.clear()
    again = run()
    assert [generator.calls for generator in made] == [[], [], []]
    assert {name: each.pictures for name, each in again.items()} == {n: e.pictures for n, e in first.items()}
    run(seeds=(1,))
    assert all(generator.calls for generator in made[3:])


def test_the_script_prints_what_the_document_says() -> None:
    rows = rows_of({FULL: scored((0, 0, 0)), "mutual attention": scored((-0.2, -0.2, 0.2))})
    document = {
        "rows": rows,
        "set": {"people": [1] * 12, "prompts": [1, 2], "seeds": [0]},
        "settings": {
            "steps": 30,
            "guidance": 2.5,
            "style_strength": 1.0,
            "plain_style_strength": 0.0,
            "identity_strength": 1.0,
        },
        "bootstrap": {"level": 0.95},
    }
    text = script.markdown(document)
    assert "full > this in M_FaceNet: contradicted (-0.200 [-0.200, -0.200])" in text
    assert "full > this in CLIP-T: reproduced (+0.200 [+0.200, +0.200])" in text
    assert "| Infinite-ID | 24 | 0 | " in text
    assert text.count("| 0.300 [0.200, 0.400] |") == len(rows)
    assert (
        "12 people × 2 prompts × 1 seeds; 30 steps, guidance 2.5, λ = 1, s = 1 for prompts with a style and 0 for"
        in text
    )
