from __future__ import annotations

import io
import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
from PIL import Image, ImageOps
from small_face_models import write_recognizer
from test_prepare import photos_of, run, write_photo

from infid_training import duplicates
from infid_training.duplicates import Link, keep_together, link_people, reasons, thumbnail
from infid_training.preparation import split_of
from infid_training.world.drawing import render
from infid_training.world.people import person
from infid_training.world.scenes import portrait

COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "Zoë") for form in ("NFC", "NFD"))


@pytest.fixture(scope="module")
def drawn() -> list[Image.Image]:
    return [render(person(index // 2), portrait(index), 128) for index in range(40)]


def encoded(image: Image.Image, kind: str, **options: Any) -> Image.Image:
    content = io.BytesIO()
    image.save(content, kind, **options)
    return Image.open(content).convert("RGB")


COPIES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "smaller": lambda image: image.resize((48, 48), Image.Resampling.LANCZOS),
    "larger": lambda image: image.resize((300, 300), Image.Resampling.BICUBIC),
    "jpeg": lambda image: encoded(image, "JPEG", quality=30),
    "smaller-jpeg": lambda image: encoded(image.resize((64, 64)), "JPEG", quality=50),
    "webp": lambda image: encoded(image, "WEBP", quality=50),
    "darker": lambda image: image.point(lambda value: int(value * 0.9)),
    "gray": lambda image: image.convert("L").convert("RGB"),
    "mirrored": ImageOps.mirror,
}


@pytest.mark.parametrize("copy", COPIES.values(), ids=COPIES)
def test_a_copy_is_found_and_nothing_else(drawn: list[Image.Image], copy: Callable[[Image.Image], Image.Image]) -> None:
    pictures = [*drawn, *map(copy, drawn)]
    photos = [(f"original {index}", "0.png") for index in range(40)] + [(f"copy {i}", "1.png") for i in range(40)]
    found = link_people(photos, [thumbnail(np.asarray(picture)) for picture in pictures])
    assert {(link.person, link.other) for link in found} == {(f"copy {i}", f"original {i}") for i in range(40)}
    assert "copy 7/1.png is the same image as original 7/0.png" in [link.reason for link in found]


def test_faces_of_different_people_are_not_the_same() -> None:
    faces = (skimage.data.lfw_subset()[:100] * 255).astype(np.uint8)
    thumbnails = [thumbnail(np.repeat(face[..., None], 3, axis=2)) for face in faces]
    assert link_people([(f"person {index}", "0.png") for index in range(100)], thumbnails) == []


def test_blocks_do_not_matter(drawn: list[Image.Image], monkeypatch: pytest.MonkeyPatch) -> None:
    photos = [(f"p{index % 8}", f"{index}.png") for index in range(20)]
    thumbnails = [thumbnail(np.asarray(drawn[index % 10])) for index in range(20)]
    whole = link_people(photos, thumbnails)
    assert len(whole) == 6  # p0…p7 by index mod 10: p0-p2, p1-p3 and so on form two chains
    monkeypatch.setattr(duplicates, "_BLOCK", 3)
    assert len(link_people(photos, thumbnails)) == 6


def test_what_shows_nothing_links_nobody() -> None:
    plain = np.full((64, 64, 3), 200, np.uint8)
    assert link_people([("a", "0"), ("b", "0")], [thumbnail(plain), thumbnail(plain)]) == []
    assert link_people([], []) == []


@pytest.mark.parametrize(
    ("one", "other"), [(COMPOSED, DECOMPOSED), ("Anna", "anna"), ("Anna Lee", "anna  lee "), ("Ａｎｎａ", "Anna")]
)
def test_a_name_written_differently_is_the_same(one: str, other: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3)).astype(np.uint8)
    photos = [(one, "0.png"), ("somebody", "0.png"), (other, "0.png")]
    (link,) = link_people(photos, [thumbnail(pixels) for pixels in noise])
    assert (link.person, link.other) == (other, one)
    assert "written differently" in link.reason


def test_a_group_with_one_of_training_is_trained_on() -> None:
    splits = {"a": "validation", "b": "train", "c": "validation", "d": "validation", "e": "validation", "f": "train"}
    links = [Link("b", "a", "x"), Link("c", "b", "y"), Link("e", "d", "z"), Link("c", "a", "w")]
    found = keep_together(splits, links)
    assert found == {**splits, "a": "train", "c": "train"}
    assert reasons(links, found) == {"b": "in train with a: x", "c": "in train with b: y; with a: w",
                                     "e": "in validation with d: z"}  # fmt: skip


def test_nobody_is_on_both_sides_of_the_split(tmp_path: Path) -> None:
    """Of 24 people, 12 repeat the other 12: resized, as JPEG, or under an equivalent name."""
    people, seed = tmp_path / "people", 0
    for index in range(12):
        for number in range(2):
            seed += 1
            write_photo(people / f"person {index}" / f"{number}.png", seed, size=(96, 96), at=(2, 2))
            original = people / f"person {index}" / f"{number}.png"
            again = people / (f"other {index}" if index % 3 else f"Person  {index}") / f"{number}.png"
            if index % 3:
                again.parent.mkdir(parents=True, exist_ok=True)
                smaller = Image.open(original).resize((72, 72), Image.Resampling.LANCZOS)
                pixels = np.array(smaller)
                pixels[0, 0] = (1, 2, 2)
                Image.fromarray(pixels).save(again)
            else:
                write_photo(again, 1000 + seed)
    pairs = [(f"person {i}", f"other {i}" if i % 3 else f"Person  {i}") for i in range(12)]
    apart = [pair for pair in pairs if len({split_of(name, 0, 0.4) for name in pair}) == 2]
    assert len(apart) >= 3  # by their names alone
    recognizer = write_recognizer(tmp_path / "recognizer.onnx")
    report = run(people, tmp_path / "shards", recognizer, validation=0.4, photos_per_shard=5)
    sides = {
        photo.person: split for split in ("train", "validation") for photo in photos_of(tmp_path / "shards", split)
    }
    assert len(sides) == 24
    assert {len({sides[name] for name in pair}) for pair in pairs} == {1}
    assert "validation" in sides.values()
    assert len(report.kept_together) == 12
    assert report.kept_together["person 1"].startswith(f"in {sides['person 1']} with other 1: person 1/")
    assert "written differently" in report.kept_together["person 3"]
    assert json.loads((tmp_path / "shards/report.json").read_text())["kept_together"] == report.kept_together
    assert report.people == {split: list(sides.values()).count(split) for split in ("train", "validation")}
    assert not (tmp_path / "shards/.waiting").exists()
