from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from evaluation_parts import plain, two_people

from infid_engines.errors import InputError
from infid_export.evaluation.set_sources import file_prompts, json_set, open_set
from infid_export.evaluation.sets import EvaluationSet, Prompt, Subject
from infid_training.recipe.pictures import PEOPLE, PICTURES
from infid_training.world.drawing import render
from infid_training.world.people import FIRST_HELD_OUT, person
from infid_training.world.scenes import STYLES, portrait, scene


def test_the_worlds_set_is_people_and_captions_kept_out_of_training() -> None:
    chosen = open_set("world:heldout:3", "world:heldout:7", stylized=4, seeds=2)
    assert FIRST_HELD_OUT > PEOPLE * PICTURES  # where the numbers used for training end
    assert len(chosen) == 3 * 7 * 2
    assert [prompt.stylized for prompt in chosen.prompts] == [False] * 3 + [True] * 4
    held_out = {scene(number, held_out=True).caption() for number in range(FIRST_HELD_OUT, FIRST_HELD_OUT + 500)}
    assert {prompt.text for prompt in chosen.prompts} <= held_out
    assert [sum(style in prompt.text for prompt in chosen.prompts) for style in STYLES[1:]] == [1, 1, 1, 1]
    drawn = render(person(FIRST_HELD_OUT + 1), portrait(FIRST_HELD_OUT + 1))
    np.testing.assert_array_equal(np.asarray(chosen.people[1].photo), np.asarray(drawn))


def test_the_worlds_set_is_always_the_same_and_a_larger_one_holds_it() -> None:
    small, large = (open_set(f"world:heldout:{n}", f"world:heldout:{n}", stylized=0) for n in (2, 3))
    assert small.fingerprint() == open_set("world:heldout:2", "world:heldout:2", stylized=0).fingerprint()
    assert small.fingerprint() != large.fingerprint()
    noise = [{r.noise_seed for who in each.people for r in each.requests(who)} for each in (small, large)]
    assert len(noise[0]) == 4 and noise[0] < noise[1]


def test_by_default_half_of_the_worlds_prompts_are_stylized() -> None:
    chosen = open_set()
    assert (len(chosen.people), len(chosen.prompts), len(chosen.seeds)) == (20, 10, 1)
    assert sum(prompt.stylized for prompt in chosen.prompts) == 5


def test_a_folder_of_people_and_a_file_of_prompts(tmp_path: Path) -> None:
    people, prompts = tmp_path / "people", tmp_path / "prompts.txt"
    (people / "bob").mkdir(parents=True)
    plain(1).save(people / "ann.png")
    plain(2).save(people / "bob" / "b.png")
    plain(3).save(people / "bob" / "a.png")
    (people / "empty").mkdir()
    (people / "notes.txt").write_text("no photo")
    (people / ".hidden.png").write_text("no photo")
    prompts.write_text("a knight\n\n  stylized: a knight as a woodcut \n", encoding="utf-8")
    chosen = open_set(str(people), str(prompts))
    assert [(each.name, each.photo.getpixel((0, 0))) for each in chosen.people] == [
        ("ann", (1, 0, 0)), ("bob", (3, 0, 0)),
    ]  # fmt: skip
    assert chosen.prompts == (Prompt("a knight"), Prompt("a knight as a woodcut", stylized=True))


def test_a_file_of_prompts_as_editors_write_it(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    lines = "a knight\u2028in armor\r\n\r\nstylized: a woodcut\0"
    for content in (lines.encode("utf-8-sig"), lines.encode("utf-16")):
        path.write_bytes(content)
        assert file_prompts(path) == (Prompt("a knight\u2028in armor"), Prompt("a woodcut", True))


def test_a_set_in_json(tmp_path: Path) -> None:
    plain(5).save(tmp_path / "x.png")
    values = {
        "people": [{"name": "ann", "photo": "x.png"}],
        "prompts": ["a knight", {"text": "a woodcut", "stylized": True}],
        "seeds": [4, 9],
    }
    (tmp_path / "set.json").write_text(json.dumps(values), encoding="utf-8-sig")
    chosen = json_set(tmp_path / "set.json")
    assert chosen.people[0].photo.getpixel((0, 0)) == (5, 0, 0)
    assert chosen.prompts == (Prompt("a knight"), Prompt("a woodcut", True))
    assert chosen.seeds == (4, 9)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"people": 3, "prompts": []}', '{"people": [{}], "prompts": []}'])
def test_json_of_another_shape_is_rejected(tmp_path: Path, text: str) -> None:
    (tmp_path / "set.json").write_text(text)
    with pytest.raises(InputError, match="not an evaluation set"):
        json_set(tmp_path / "set.json")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("world:heldout:0",), "The world has no set"),
        (("world:everyone",), "The world has no set"),
        (("nowhere",), "no folder of people at nowhere"),
        (("world:heldout", "nowhere.txt"), "nowhere.txt cannot be read"),
    ],
)
def test_what_is_no_source_is_rejected(arguments: tuple[str, ...], problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        open_set(*arguments)


def test_impossible_numbers_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="11 of 10 prompts"):
        open_set(stylized=11)
    with pytest.raises(InputError, match="0 seeds"):
        open_set(seeds=0)
    (tmp_path / "prompts.txt").write_text("a knight")
    with pytest.raises(InputError, match="only to the world's prompts"):
        open_set("world:heldout:1", str(tmp_path / "prompts.txt"), stylized=1)


@pytest.mark.parametrize(("text", "problem"), [("", "no prompt"), ("\n \n", "no prompt"), ("stylized:", "without")])
def test_a_file_without_prompts_is_rejected(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "prompts.txt").write_text(text)
    with pytest.raises(InputError, match=problem):
        open_set("world:heldout:1", str(tmp_path / "prompts.txt"))


def test_a_folder_without_photos_and_a_broken_photo_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no photos"):
        open_set(str(tmp_path))
    (tmp_path / "ann.jpg").write_text("no photo")
    with pytest.raises(InputError, match=r"ann\.jpg is not an image"):
        open_set(str(tmp_path))


@pytest.mark.parametrize("part", ["people", "prompts", "seeds"])
def test_an_empty_set_and_repetitions_are_rejected(part: str) -> None:
    with pytest.raises(InputError, match=f"has no {part}"):
        two_people(**{part: ()})
    twice = {"people": (Subject("ann", plain(1)),) * 2, "prompts": (Prompt("x"), Prompt("x", True)), "seeds": (1, 1)}
    with pytest.raises(InputError, match=f"{part} contain '.*' twice"):
        two_people(**{part: twice[part]})


@pytest.mark.parametrize(
    "change",
    [
        {"people": (Subject("ann", plain(3, 0, 4)), Subject("bob", plain(0, 1, 2)))},
        {"prompts": (Prompt("1 0 0"), Prompt("0 3 4"))},
        {"seeds": (1,)},
    ],
    ids=["a pixel", "a style", "a seed"],
)
def test_the_fingerprint_tells_sets_apart(change: dict) -> None:
    assert two_people().fingerprint() == two_people(name="other").fingerprint()
    assert two_people(**change).fingerprint() != two_people().fingerprint()
    assert isinstance(two_people(), EvaluationSet)
