"""Scored images of a model with one stream: no prompt has a style strength."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from evaluation_parts import dotted
from tiny_engines import write_folder

from infid_engines.errors import InputError
from infid_export.evaluation.generators import EngineGenerator
from infid_export.runtime.pipeline import Pipeline


def test_every_prompt_is_drawn_without_a_style_strength(tmp_path: Path) -> None:
    with Pipeline.load(write_folder(tmp_path / "engines", streams="one"), backend="onnxruntime") as pipe:
        generator = EngineGenerator(pipe)
        person = generator.enroll(dotted(90, size=128))
        images = [generator.generate(person, ["a knight"], [11], stylized) for stylized in (True, False)]
        (expected,) = pipe.generate("a knight", person, seed=11)
        assert all(np.array_equal(np.asarray(image), np.asarray(expected)) for (image,) in images)
        styled = EngineGenerator(pipe, {"style_strength": 1.0})
        assert styled.generate(person, ["a knight"], [11], False)
        with pytest.raises(InputError, match="The style strength has no effect"):
            styled.generate(person, ["a knight"], [11], True)
