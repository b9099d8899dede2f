from __future__ import annotations

from collections import Counter
from dataclasses import fields, replace

import numpy as np
import pytest

from infid_training.world.drawing import render
from infid_training.world.people import Person, person
from infid_training.world.scenes import ACTIONS, CLOTHES, COLORS, HATS, PLACES, STYLES, Scene, portrait, scene

FRONT = Scene()
# The values of other traits that make a trait visible.
SHOWN = {
    "mole_across": {"mole_size": 1.0},
    "mole_down": {"mole_size": 1.0},
    "frame_color": {"glasses": 0.9},
    "hair_volume": {"hair_length": 0.8},
}


def pixels(who: Person, where: Scene, size: int = 128) -> np.ndarray:
    return np.asarray(render(who, where, size)).astype(float)


def test_a_number_is_always_the_same_person_scene_and_picture() -> None:
    assert person(7) == person(7) != person(8)
    assert scene(7) == scene(7) != scene(8)
    np.testing.assert_array_equal(pixels(person(7), scene(7)), pixels(person(7), scene(7)))
    assert person(7).vector().shape == (27,)


@pytest.mark.parametrize("trait", [each.name for each in fields(Person)])
def test_every_trait_is_seen(trait: str) -> None:
    who = replace(person(3), beard=0.0, freckles=0.0, mole_size=0.0, glasses=0.0)
    who = replace(who, **SHOWN.get(trait, {}))
    low, high = (pixels(replace(who, **{trait: value}), FRONT) for value in (0.1, 0.95))
    assert np.abs(low - high).max() > 25


@pytest.mark.parametrize("style", STYLES[1:])
def test_a_style_visibly_changes_the_picture(style: str) -> None:
    for number in range(3):
        where = replace(scene(number), style="photo")
        assert np.abs(pixels(person(number), where) - pixels(person(number), replace(where, style=style))).mean() > 5


@pytest.mark.parametrize(
    ("choice", "values"), [("place", PLACES), ("clothes", CLOTHES), ("hat", HATS), ("action", ACTIONS)]
)
def test_every_choice_of_a_scene_is_drawn_differently(choice: str, values: tuple[str, ...]) -> None:
    found = {render(person(1), replace(FRONT, **{choice: value})).tobytes() for value in values}
    assert len(found) == len(values)


def test_pictures_are_smooth_at_their_edges_and_of_the_size_asked_for() -> None:
    picture = pixels(person(0), replace(FRONT, contrast=0.0))
    assert picture.shape == (128, 128, 3)
    assert pixels(person(0), FRONT, 192).shape == (192, 192, 3)
    colors = {tuple(pixel) for pixel in picture.reshape(-1, 3).astype(int).tolist()}
    assert len(colors) > 150  # about 30 are painted; the rest are mixtures along edges


def test_one_person_varies_less_in_the_face_than_people_do() -> None:
    """The traits, not the scene, determine the center of a frontal face."""

    def face(number: int, where: int) -> np.ndarray:
        plain = replace(FRONT, smile=scene(where).smile, place=scene(where).place, gaze=scene(where).gaze)
        return pixels(person(number), plain)[36:90, 40:88]

    same = np.mean([np.abs(face(n, n) - face(n, n + 100)).mean() for n in range(12)])
    other = np.mean([np.abs(face(n, n) - face(n + 50, n)).mean() for n in range(12)])
    assert other > 4 * same


def test_a_caption_says_what_is_drawn() -> None:
    where = Scene(
        style="oil painting", place="at night", clothes="hoodie", color="orange", hat="crown", action="waving"
    )
    assert where.caption() == "an oil painting of a person wearing an orange hoodie and a crown, waving, at night"
    plain = Scene(style="photo", place="in a room", clothes="dress", color="red")
    assert plain.caption() == "a photo of a person wearing a red dress, in a room"


def test_some_combinations_are_kept_out_of_training() -> None:
    training, held_out = [scene(n) for n in range(300)], [scene(n, held_out=True) for n in range(300)]

    def combination(where: Scene) -> tuple[str, ...]:
        return where.style, where.place, where.clothes, where.hat

    assert not {combination(s) for s in training} & {combination(s) for s in held_out}
    assert set(Counter(s.style for s in held_out)) == set(STYLES)
    everything = [
        Scene(style=s, place=p, clothes=c, hat=h) for s in STYLES for p in PLACES for c in CLOTHES for h in HATS
    ]
    assert 0.08 < np.mean([where.held_out for where in everything]) < 0.15


def test_a_reference_is_a_plain_photo() -> None:
    for number in range(20):
        where = portrait(number)
        assert (where.style, where.hat, where.action, where.eyes_closed) == ("photo", "", "", 0.0)
        assert abs(where.yaw) <= 0.18
    assert {scene(n).color for n in range(200)} == set(COLORS)
