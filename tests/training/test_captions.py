from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest

from infid_engines.errors import InputError
from infid_training.captions import ENDINGS, Captions

COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "zoë") for form in ("NFC", "NFD"))


def write(folder: Path, photos: tuple[str, ...], captions: dict[str, str]) -> Captions:
    for name, text in captions.items():
        (folder / name).write_text(text, encoding="utf-8")
    return Captions(
        [folder / name for name in photos],
        [path for path in sorted(folder.iterdir()) if path.suffix.lower() in ENDINGS],
    )


@pytest.mark.parametrize(
    ("photo", "caption"),
    [
        ("0.png", "0.txt"),
        ("0.png", "0.TXT"),
        ("0.png", "0.png.txt"),
        ("0.png", "0.PNG.Txt"),
        ("0.png", "0.caption"),
        ("0.png", "0.cap"),
        ("0.png", "0.en.txt"),
        ("0.image.png", "0.txt"),
        ("0.target.png", "0.target.txt"),
        ("IMG_0.PNG", "img_0.txt"),
        ("img_0.png", "IMG_0.TXT"),
        ("IMG_0.PNG", "img_0.png.caption"),
        (f"{COMPOSED}.png", f"{DECOMPOSED}.txt"),
        (f"{DECOMPOSED}.png", f"{COMPOSED}.png.txt"),
    ],
)
def test_every_habit_is_understood(tmp_path: Path, photo: str, caption: str) -> None:
    captions = write(tmp_path, (photo, "other.png"), {caption: "\ufeffAnna\r\n"})
    assert captions.of(tmp_path / photo) == "Anna"
    assert captions.of(tmp_path / "other.png") is None
    assert captions.unused == ()


def test_a_name_of_another_photo_is_not_taken(tmp_path: Path) -> None:
    photos = ("IMG_0.png", "img_0.png", "a.png", "a.jpg", "b.1.png", "b.2.png", "v1.0 beach.png")
    files = {"img_0.txt": "small", "a.png.txt": "a", "b.txt": "either", "v1.0 sea.txt": "sea"}
    captions = write(tmp_path, photos, files)
    assert [captions.of(tmp_path / photo) for photo in photos] == [None, "small", "a", None, None, None, None]
    assert captions.unused == ("b.txt", "v1.0 sea.txt")


def test_the_whole_name_comes_first(tmp_path: Path) -> None:
    captions = write(tmp_path, ("a.png", "a.jpg"), {"a.txt": "both", "a.jpg.txt": "mine"})
    assert [captions.of(tmp_path / name) for name in ("a.png", "a.jpg")] == ["both", "mine"]


def test_captions_that_differ_are_rejected(tmp_path: Path) -> None:
    captions = write(tmp_path, ("a.png", "b.png"), {"a.txt": "one", "a.caption": "two", "b.txt": "x", "b.cap": "x\n"})
    assert captions.of(tmp_path / "b.png") == "x"
    with pytest.raises(InputError, match=r"The captions differ: a.caption, a.txt\."):
        captions.of(tmp_path / "a.png")


def test_json_counts_if_it_has_a_caption(tmp_path: Path) -> None:
    files = {"a.json": json.dumps({"caption": "Anna"}), "b.json": "{", "c.json": '{"width": 3}', "d.json": "null"}
    files |= {"e.json": '{"caption": 3}', "f.json": '{"caption": "nobody"}'}
    captions = write(tmp_path, tuple(f"{name}.png" for name in "abcde"), files)
    assert [captions.of(tmp_path / f"{name}.png") for name in "abcde"] == ["Anna", None, None, None, None]
    assert captions.unused == ("f.json",)


def test_an_empty_caption_is_none(tmp_path: Path) -> None:
    assert write(tmp_path, ("a.png",), {"a.txt": "\ufeff \n\0"}).of(tmp_path / "a.png") is None
