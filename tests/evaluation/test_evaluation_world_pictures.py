from __future__ import annotations

import numpy as np
import pytest
from evaluation_parts import plain

from infid_engines.errors import InputError
from infid_export.evaluation.set_sources import open_set
from infid_export.evaluation.world_pictures import WorldGenerator
from infid_training.world.drawing import render
from infid_training.world.people import FIRST_HELD_OUT, person
from infid_training.world.scenes import captioned, scene


def test_a_caption_is_drawn_with_all_that_it_says_and_a_seeds_rest() -> None:
    for number in range(30):
        drawn = scene(number)
        assert captioned(drawn.caption(), number) == drawn
        other = captioned(drawn.caption(), number + 1)
        assert other.caption() == drawn.caption()
        assert (other.yaw, other.seed) == (scene(number + 1).yaw, scene(number + 1).seed)


def test_words_of_no_caption_are_rejected() -> None:
    with pytest.raises(InputError, match="'a knight' is not a caption of the world"):
        captioned("a knight", 0)


def test_the_world_draws_whom_it_is_shown() -> None:
    chosen = open_set("world:heldout:2", "world:heldout:2")
    generator = WorldGenerator(2)
    prompt = chosen.prompts[1].text
    (picture,) = generator.generate(generator.enroll(chosen.people[1].photo), [prompt], [5], True)
    expected = render(person(FIRST_HELD_OUT + 1), captioned(prompt, 5))
    np.testing.assert_array_equal(np.asarray(picture), np.asarray(expected))
    assert generator.describe()["kind"] == "world"


def test_photos_of_strangers_are_rejected() -> None:
    with pytest.raises(InputError, match="not a portrait from the world"):
        WorldGenerator(1).enroll(plain(3))
