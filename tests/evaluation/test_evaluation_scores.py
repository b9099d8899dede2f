from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from evaluation_parts import COLORS, TableGenerator, evaluation, plain, two_people
from PIL import Image

from infid_engines.errors import InputError
from infid_engines.progress import SilentReporter
from infid_export.evaluation.bootstrap import mean_interval
from infid_export.evaluation.evaluation import Evaluation, evaluate
from infid_export.evaluation.gate import compare, paired
from infid_export.evaluation.grid import Grid
from infid_export.evaluation.results import ResultFolder
from infid_export.evaluation.scorers import cosine
from infid_export.evaluation.sets import EvaluationSet, Prompt, Request, Subject

# The image for each prompt of `two_people`: the second has no blue, so it shows no face.
PICTURES = {"1 0 0": plain(3, 0, 4), "0 3 4": plain(0, 1, 0)}


def run(chosen: EvaluationSet, generator: TableGenerator | None = None, results: ResultFolder | None = None):
    with SilentReporter().stage("pictures") as stage:
        found = generator or TableGenerator(PICTURES)
        return evaluate(found, chosen, COLORS, stage, results.add if results else None)


def test_the_scores_are_those_worked_out_by_hand() -> None:
    ann_plain, ann_styled, bob_plain, bob_styled = run(two_people()).pictures
    assert (ann_plain.person, ann_plain.prompt, ann_plain.stylized) == ("ann", "1 0 0", False)
    # image (3, 0, 4); prompt (1, 0, 0); references (3, 0, 4) and (0, 1, 1)
    assert ann_plain.clip_t == pytest.approx(3 / 5)
    assert ann_plain.clip_i == ann_plain.m_facenet == pytest.approx(1)
    assert bob_plain.clip_i == bob_plain.m_facenet == pytest.approx(4 / (5 * math.sqrt(2)))
    # image (0, 1, 0); prompt (0, 3, 4)
    assert ann_styled.clip_t == pytest.approx(3 / 5)
    assert ann_styled.clip_i == pytest.approx(0)
    assert bob_styled.clip_i == pytest.approx(1 / math.sqrt(2))


def test_a_picture_without_a_face_counts_as_nobody() -> None:
    found = run(two_people())
    assert [picture.face_found for picture in found.pictures] == [True, False, True, False]
    assert [picture.m_facenet for picture in found.pictures if not picture.face_found] == [0, 0]
    assert found.faces_missing == found.to_json()["counts"]["faces_missing"] == 2
    whole = (1 + 4 / (5 * math.sqrt(2))) / 4
    assert found.interval("m_facenet").mean == pytest.approx(whole)


def test_a_reference_without_a_face_is_rejected_before_any_picture() -> None:
    chosen = two_people(people=(Subject("ann", plain(3, 0, 4)), Subject("cy", plain(1, 1, 0))))
    generator = TableGenerator(PICTURES)
    with pytest.raises(InputError, match="reference photo of cy"):
        run(chosen, generator)
    assert generator.calls == []


def test_what_enrolling_rejects_names_the_person() -> None:
    class Refusing(TableGenerator):
        def enroll(self, photo: Image.Image) -> None:
            raise InputError("The face is too small.", fix="Use a closer photo.")

    with pytest.raises(InputError, match="reference photo of ann: The face is too small"):
        run(two_people(), Refusing(PICTURES))


def test_prompts_go_in_batches_with_noise_of_their_own() -> None:
    chosen = two_people(seeds=(0, 1, 2))
    generator = TableGenerator(PICTURES)
    found = run(chosen, generator)
    # three seeds of a prompt without a style, then three of one with a style; never both at once
    assert [(len(prompts), styled) for _, prompts, _, styled in generator.calls] == [
        (2, False), (1, False), (2, True), (1, True),
    ] * 2  # fmt: skip
    seeds = [seed for _, _, several, _ in generator.calls for seed in several]
    assert len(set(seeds)) == len(chosen) == 12
    assert seeds == [picture.noise_seed for picture in found.pictures]
    fewer = run(two_people())
    assert {p.noise_seed for p in fewer.pictures} == {p.noise_seed for p in found.pictures if p.seed == 0}


@pytest.mark.parametrize("bad", [np.zeros(3), np.array([1.0, np.nan, 0.0])])
def test_an_embedding_without_direction_is_rejected(bad: np.ndarray) -> None:
    with pytest.raises(InputError, match="zero or not finite"):
        cosine(bad, np.ones(3))


def test_towers_that_do_not_belong_together_are_rejected() -> None:
    with pytest.raises(InputError, match="length 3 and 4"):
        cosine(np.ones(3), np.ones(4))


def test_the_interval_covers_the_true_mean() -> None:
    random = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        people = random.normal(0.3, 0.1, 25)
        pictures = (people[:, None] + random.normal(0, 0.05, (25, 4))).ravel()
        found = mean_interval(pictures, np.repeat(np.arange(25), 4), resamples=400, seed=trial)
        assert found.low is not None and found.high is not None
        assert found.low < found.mean < found.high
        covered += found.low <= 0.3 <= found.high
    assert 0.88 <= covered / 200 <= 0.99


def test_people_are_resampled_and_not_pictures() -> None:
    """Nine more identical images of each person add no information."""
    scores = np.random.default_rng(1).normal(0, 1, 12)
    once = mean_interval(scores, range(12))
    tenfold = mean_interval(np.repeat(scores, 10), np.repeat(np.arange(12), 10))
    assert asdict(tenfold) == pytest.approx(asdict(once))
    as_if_others = mean_interval(np.repeat(scores, 10), range(120))
    assert as_if_others.high - as_if_others.low < 0.5 * (once.high - once.low)


def test_the_interval_is_seeded_and_a_single_person_has_none() -> None:
    values = np.random.default_rng(2).normal(0, 1, 8)
    assert mean_interval(values, range(8), seed=3) == mean_interval(values, range(8), seed=3)
    assert mean_interval(values, range(8), seed=3) != mean_interval(values, range(8), seed=4)
    alone = mean_interval([0.2, 0.4], ["ann", "ann"])
    assert (alone.mean, alone.low, alone.high) == (pytest.approx(0.3), None, None)
    with pytest.raises(ValueError, match="0 values"):
        mean_interval([], [])


def test_people_with_more_pictures_weigh_more() -> None:
    found = mean_interval([1.0, 0.0, 0.0, 0.0], ["ann", "bob", "bob", "bob"])
    assert (found.mean, found.low, found.high) == (0.25, 0.0, 1.0)


def test_the_document_is_read_back_whole(tmp_path: Path) -> None:
    found = run(two_people(), results=(results := ResultFolder(tmp_path / "out", two_people())))
    paths = results.finish(found)
    assert paths == [tmp_path / "out/scores.json", tmp_path / "out/grid.png"]
    names = sorted(path.name for path in (tmp_path / "out/pictures").iterdir())
    assert names == ["0-0-0.png", "0-1-0.png", "1-0-0.png", "1-1-0.png"]
    assert Image.open(tmp_path / "out/pictures/0-0-0.png").getpixel((0, 0)) == (3, 0, 4)
    document = json.loads(paths[0].read_text())
    assert document["counts"] == {"people": 2, "prompts": 2, "seeds": 1, "pictures": 4, "faces_missing": 2}
    assert set(document["scores"]) == {"all", "plain", "stylized"}
    assert document["scores"]["plain"]["clip_i"]["mean"] == pytest.approx((1 + 4 / (5 * math.sqrt(2))) / 2)
    assert document["scores"]["stylized"]["clip_i"]["mean"] == pytest.approx(1 / math.sqrt(2) / 2)
    assert document["bootstrap"]["over"] == "people"
    again = Evaluation.load(paths[0])
    assert again == replace(found, set=again.set)
    assert compare(again, found).passed


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"kind": "ablation"}, "it is ablation"),
        ({"schema_version": 9}, "version 9"),
        ({"pictures": []}, "no pictures"),
        ({"pictures": [{"person": "ann"}]}, "not an evaluation"),
        ({"set": {}}, "lacks 'fingerprint'"),
    ],
)
def test_another_document_is_rejected(tmp_path: Path, change: dict, problem: str) -> None:
    path = tmp_path / "scores.json"
    path.write_text(json.dumps({**run(two_people()).to_json(), **change}))
    with pytest.raises(InputError, match=problem):
        Evaluation.load(path)


def test_no_document_a_cut_off_one_and_scores_that_are_no_numbers_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not an evaluation"):
        Evaluation.load(tmp_path / "missing.json")
    text = json.dumps(run(two_people()).to_json())
    (tmp_path / "half.json").write_text(text[:200])
    with pytest.raises(InputError, match="not an evaluation"):
        Evaluation.load(tmp_path / "half.json")
    (tmp_path / "nan.json").write_text(text.replace('"m_facenet": 0.0, "face', '"m_facenet": NaN, "face'))
    with pytest.raises(InputError, match="NaN is not a JSON number"):
        Evaluation.load(tmp_path / "nan.json")


SAME = {("ann", "a"): 0.5, ("ann", "b"): 0.7, ("bob", "a"): 0.4, ("bob", "b"): 0.8}


def test_the_same_scores_pass_the_gate() -> None:
    gate = compare(evaluation(SAME), evaluation(SAME))
    assert gate.passed
    assert [row.loss for row in gate.rows] == [0, 0, 0]


@pytest.mark.parametrize(("factor", "passed"), [(0.996, True), (0.994, False), (1.1, True)])
def test_the_gate_lets_half_a_percent_go(factor: float, passed: bool) -> None:
    judged = evaluation({key: value * factor for key, value in SAME.items()})
    gate = compare(judged, evaluation(SAME))
    assert gate.passed is passed
    assert all(row.loss == pytest.approx(1 - factor) for row in gate.rows)


def test_the_gate_fails_on_one_corrupted_score() -> None:
    judged = evaluation({**SAME, ("bob", "b"): (0.8, 0.1, 0.8)})
    gate = compare(judged, evaluation(SAME))
    assert [row.passed for row in gate.rows] == [True, False, True]
    assert not gate.to_json()["passed"]


@pytest.mark.parametrize(("score", "passed"), [(0.0, True), (-4e-4, True), (-6e-4, False)])
def test_of_a_score_near_zero_shares_of_a_tenth_are_taken(score: float, passed: bool) -> None:
    for other in (0.0, 1e-9):
        assert compare(evaluation(dict.fromkeys(SAME, score)), evaluation(dict.fromkeys(SAME, other))).passed is passed


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"set": {**evaluation(SAME).set, "fingerprint": "other"}}, "people, prompts or seeds"),
        ({"scorers": {"face": "other"}}, "scorers"),
        ({"generator": {"settings": {"steps": 4}}}, "settings"),
    ],
)
def test_what_cannot_be_compared_is_rejected(change: dict, what: str) -> None:
    with pytest.raises(InputError, match=what):
        compare(evaluation(SAME, **change), evaluation(SAME))


def test_differences_are_taken_picture_by_picture() -> None:
    first = evaluation({("ann", "a"): 0.9, ("bob", "a"): 0.2, ("cy", "a"): 0.6})
    second = evaluation({("cy", "a"): 0.5, ("ann", "a"): 0.8, ("bob", "a"): 0.1})
    found = paired(first, second, "clip_t")
    assert (found.low, found.high) == (pytest.approx(0.1), pytest.approx(0.1))
    with pytest.raises(InputError, match="different images: only one has bob"):
        paired(first, evaluation({("ann", "a"): 0.8, ("cy", "a"): 0.1}), "clip_t")


def test_the_grid_shows_references_and_pictures_in_their_places() -> None:
    chosen = two_people(
        people=(Subject("ann", plain(200)), Subject("bob", plain(0, 200))), prompts=(Prompt("one"), Prompt("two", True))
    )
    grid = Grid(chosen)
    for person, shade in zip(chosen.people, (40, 80), strict=True):
        grid.add(Request(person, chosen.prompts[1], 0, 0), plain(0, 0, shade))
        grid.add(Request(person, chosen.prompts[1], 7, 0), plain(9, 9, 9))  # another seed
    sheet = grid.draw()
    colors = {color: count for count, color in sheet.getcolors(1 << 20) or []}
    cell = 160 * 160
    for color in ((200, 0, 0), (0, 200, 0), (0, 0, 40), (0, 0, 80)):
        assert colors[color] == cell
    assert colors[224, 224, 224] >= 2 * cell  # prompt one was not generated
    assert (9, 9, 9) not in colors
    rows = {color: np.argwhere((np.asarray(sheet) == color).all(2)).mean(0) for color in colors}
    assert rows[200, 0, 0][0] == rows[0, 0, 40][0] < rows[0, 200, 0][0]  # the same row, references first
    assert rows[200, 0, 0][1] < rows[0, 0, 40][1]


def test_the_grid_shows_stylized_prompts_too() -> None:
    prompts = (*(Prompt(f"photo {n}") for n in range(9)), *(Prompt(f"style {n}", True) for n in range(3)))
    chosen = two_people(prompts=prompts)
    grid = Grid(chosen, prompts=6)
    assert [prompt.stylized for prompt in grid._prompts] == [False] * 3 + [True] * 3
    assert len(Grid(two_people(prompts=prompts[:9]), prompts=6)._prompts) == 6


@pytest.mark.parametrize("name", ["file/out", "/proc/out"])
def test_a_folder_that_cannot_be_written_is_rejected(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        ResultFolder(tmp_path / name, two_people())
