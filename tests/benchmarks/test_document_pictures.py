from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from PIL import Image

from benchmarks import document_pictures as pictures

MOST = 400_000  # bytes of all images together


def test_the_layers_are_drawn_from_the_contracts() -> None:
    assert pictures.LAYERS.read_text() == pictures.layers_svg(), "run `python benchmarks/document_pictures.py layers`"
    ElementTree.parse(pictures.LAYERS)


def test_another_contract_draws_another_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[dict[str, Any]] = pictures.contracts()
    layered = next(each for each in found if each["type"] == "layers")
    layered["layers"].remove("infid_training")
    monkeypatch.setattr(pictures, "contracts", lambda: found)
    assert "infid_training" not in pictures.layers_svg()


def test_all_pictures_are_small() -> None:
    assert sum(file.stat().st_size for file in pictures.IMAGES.iterdir()) <= MOST
    assert Image.open(pictures.SHEET).format == "JPEG"


def test_a_sheet_is_reduced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "SHEET", tmp_path / "small.jpg")
    noise = Image.effect_noise((64, 64), 50).convert("RGB")
    noise.save(tmp_path / "large.png")
    pictures.draw_sheet(tmp_path / "large.png")
    assert Image.open(tmp_path / "small.jpg").size == (64, 64)
    assert (tmp_path / "small.jpg").stat().st_size < (tmp_path / "large.png").stat().st_size
