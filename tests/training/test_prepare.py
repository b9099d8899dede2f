from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from icc_profiles import DISPLAY_P3, rgb_profile, to_srgb
from PIL import Image
from small_face_models import write_recognizer

from infid_engines.documents import sealed
from infid_engines.errors import InputError
from infid_export.faces.detection import Face
from infid_training.preparation import PrepareOptions, PrepareReport, find_people, prepare, split_of
from infid_training.shards import PreparedPhoto, ShardIndex, read_shard

OPTIONS = PrepareOptions(size=64, crop_size=32, validation=0.0)
MARKS = np.array([[0.3, 0.4], [0.7, 0.4], [0.5, 0.6], [0.35, 0.75], [0.65, 0.75]])


class CornerDetector:
    """The first pixel encodes the faces: red is their number, green and blue are left and top in tens."""

    def detect(self, photo: np.ndarray) -> list[Face]:
        count, left, top = (int(value) for value in photo[0, 0])
        corner, side = np.array([left * 10, top * 10]), 40
        return [
            Face(np.concatenate([corner, corner + side]), 0.9, corner + MARKS * side) for _ in range(count)
        ]  # fmt: skip


def write_photo(path: Path, seed: int, faces: int = 1, size: tuple[int, int] = (80, 80), at: tuple[int, int] = (2, 2)):
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3)).astype(np.uint8)
    pixels[0, 0] = (faces, *at)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def recognizer(tmp_path: Path) -> Path:
    return write_recognizer(tmp_path / "recognizer.onnx")


@pytest.fixture
def people(tmp_path: Path) -> Path:
    folder = tmp_path / "people"
    for index, name in enumerate(("anna", "bert", "cleo", "dora")):
        for photo in range(3):
            write_photo(folder / name / f"{photo}.png", seed=10 * index + photo)
    (folder / "anna/1.txt").write_text("Anna at the sea – grüezi\n")
    return folder


def run(people: Path, output: Path, recognizer: Path, **changes: object) -> PrepareReport:
    options = PrepareOptions(**{**vars(OPTIONS), **changes})  # type: ignore[arg-type]
    return prepare(people, output, CornerDetector(), recognizer, options)


def photos_of(folder: Path, split: str = "train") -> list[PreparedPhoto]:
    return [photo for shard in ShardIndex.load(folder).of(split) for photo in read_shard(folder / shard.file)]


def test_every_photo_arrives_with_all_that_training_needs(people: Path, tmp_path: Path, recognizer: Path) -> None:
    output = tmp_path / "shards"
    report = run(people, output, recognizer, photos_per_shard=5)
    assert (report.people, report.photos) == ({"train": 4, "validation": 0}, {"train": 12, "validation": 0})
    assert report.dropped == {}
    index = ShardIndex.load(output)
    assert [(shard.file, shard.photos) for shard in index.shards] == [
        ("train-00000.tar", 5), ("train-00001.tar", 5), ("train-00002.tar", 2)
    ]  # fmt: skip
    photos = photos_of(output)
    everybody = ("anna", "bert", "cleo", "dora")
    assert [photo.name for photo in photos] == [f"{name}/{number}.png" for name in everybody for number in range(3)]
    assert [photo.caption for photo in photos[:3]] == [None, "Anna at the sea – grüezi", None]
    for photo in photos:
        assert photo.target.shape == (64, 64, 3)
        assert photo.face.shape == (32, 32, 3)
        assert float(np.linalg.norm(photo.embedding)) == pytest.approx(1, abs=1e-6)
        assert photo.time_ids == [80, 80, 0, 0, 64, 64]


def test_the_crop_holds_the_face_and_says_where_it_is(tmp_path: Path, recognizer: Path) -> None:
    people = tmp_path / "people"
    sizes = [((80, 160), (11, 2)), ((80, 160), (0, 2)), ((160, 80), (2, 12)), ((96, 96), (2, 2))]
    for index, (size, at) in enumerate(sizes):
        write_photo(people / "anna" / f"{index}.png", index, size=size, at=at)
    run(people, tmp_path / "shards", recognizer)
    found = photos_of(tmp_path / "shards")
    # scaled by 64 / 80 to 64 × 128: a centered crop would begin at 32; a face from 88 to 120 requires 56
    assert [photo.time_ids for photo in found] == [
        [80, 160, 0, 56, 64, 64], [80, 160, 0, 0, 64, 64], [160, 80, 64, 0, 64, 64], [96, 96, 0, 0, 64, 64]
    ]  # fmt: skip
    photo = np.asarray(Image.open(people / "anna/0.png").resize((128, 64), Image.Resampling.LANCZOS)).astype(float)
    assert np.abs(photo[:, 56:120] - found[0].target).mean() < 6  # JPEG on noise


def test_photos_are_trained_on_in_srgb(tmp_path: Path, recognizer: Path) -> None:
    pixels = np.full((80, 80, 3), (200, 120, 60), np.uint8)
    (tmp_path / "people/anna").mkdir(parents=True)
    for number in range(2):
        pixels[-1, -1] = 100 * number
        photo = tmp_path / f"people/anna/{number}.png"
        Image.fromarray(pixels).save(photo, icc_profile=rgb_profile(*DISPLAY_P3))

    class Everywhere:
        def detect(self, photo: np.ndarray) -> list[Face]:
            return [Face(np.array([20, 20, 60, 60]), 0.9, 20 + MARKS * 40)]

    prepare(tmp_path / "people", tmp_path / "shards", Everywhere(), recognizer, OPTIONS)
    expected = to_srgb((200, 120, 60), *DISPLAY_P3)
    for photo in photos_of(tmp_path / "shards"):
        np.testing.assert_allclose(photo.target[32, 32], expected, atol=4)
        np.testing.assert_allclose(photo.face[16, 16], expected, atol=2)


def test_a_photo_of_something_else_is_dropped(tmp_path: Path, recognizer: Path) -> None:
    class Doubtful:
        def detect(self, photo: np.ndarray) -> list[Face]:
            score = 0.9 if photo[0, 0, 0] == 1 else 0.4
            large = Face(np.array([10, 10, 70, 70]), 0.3, 10 + MARKS * 60)  # no face, and no second one either
            return [large, Face(np.array([20, 20, 60, 60]), score, 20 + MARKS * 40)]

    for number, faces in enumerate((1, 1, 7)):
        write_photo(tmp_path / "people/anna" / f"{number}.png", number, faces=faces)
    report = prepare(tmp_path / "people", tmp_path / "shards", Doubtful(), recognizer, OPTIONS)
    assert report.photos["train"] == 2
    assert list(report.dropped) == ["anna/2.png"]
    assert "No face was found" in report.dropped["anna/2.png"]
    assert "score is 0.40" in report.dropped["anna/2.png"]


def test_the_index_records_what_the_photos_were_prepared_with(people: Path, tmp_path: Path, recognizer: Path) -> None:
    prepare(people, tmp_path / "shards", CornerDetector(), recognizer, OPTIONS, detector_kind="centerface")
    index = ShardIndex.load(tmp_path / "shards")
    assert index.recognizer == hashlib.sha256(recognizer.read_bytes()).hexdigest()
    assert (index.recognizer_name, index.detector) == ("recognizer.onnx", "centerface")
    text = json.loads((tmp_path / "shards/index.json").read_text())
    for name in ("recognizer_name", "detector"):  # not every writer of such an index knows them
        del text[name]
    (tmp_path / "shards/index.json").write_text(json.dumps(sealed(text)))
    assert ShardIndex.load(tmp_path / "shards").recognizer_name == ""


def test_the_format_is_webdatasets(people: Path, tmp_path: Path, recognizer: Path) -> None:
    """Members of one photo are adjacent, and their names differ only after the first dot (webdataset's README)."""
    run(people, tmp_path / "shards", recognizer)
    with tarfile.open(tmp_path / "shards/train-00000.tar") as tar:
        names = tar.getnames()
    keys = [re.fullmatch(r"((?:.*/|)[^.]+)[.]([^/]*)", name).groups() for name in names]  # type: ignore[union-attr]
    kinds = ["target.jpg", "face.png", "embedding.npy", "json"]
    assert keys == [(f"{photo:08d}", kind) for photo in range(12) for kind in kinds]


def test_the_same_photos_make_the_same_bytes(people: Path, tmp_path: Path, recognizer: Path) -> None:
    for name in ("one", "other"):
        run(people, tmp_path / name, recognizer)
    assert ShardIndex.load(tmp_path / "one") == ShardIndex.load(tmp_path / "other")


def test_what_cannot_be_used_is_dropped_with_a_reason(people: Path, tmp_path: Path, recognizer: Path) -> None:
    write_photo(people / "anna/crowd.png", 50, faces=2)
    write_photo(people / "anna/nobody.png", 51, faces=0)
    write_photo(people / "anna/tiny.png", 52, size=(30, 80))
    (people / "anna/again.png").write_bytes((people / "anna/0.png").read_bytes())
    (people / "anna/cut.png").write_bytes((people / "anna/0.png").read_bytes()[:2000])
    (people / "anna/notes.pdf").write_bytes(b"%PDF")
    (people / "anna/2.txt").write_bytes(b"\xff\xfe\xff")
    (people / "anna/more").mkdir()
    (people / "anna/.hidden").write_bytes(b"")
    write_photo(people / "loose.png", 53)
    write_photo(people / "emil/only.png", 54)
    report = run(people, tmp_path / "shards", recognizer)
    wanted = {
        "anna/crowd.png": "Two faces", "anna/nobody.png": "No face", "anna/tiny.png": "Too small: 80 × 30",
        "anna/again.png": "The same image as 0.png", "anna/cut.png": "damaged or truncated",
        "anna/notes.pdf": "not an image", "anna/2.png": "The caption 2.txt cannot be read",
        "anna/more": "a folder within", "loose.png": "not in a person's folder", "emil/only.png": "only usable photo",
    }  # fmt: skip
    assert set(report.dropped) == set(wanted)
    for name, reason in wanted.items():
        assert reason in report.dropped[name], name
    stored = json.loads((tmp_path / "shards/report.json").read_text())
    assert stored["dropped"] == report.dropped
    assert report.photos["train"] == len(photos_of(tmp_path / "shards")) == 2 + 9
    assert report.people["train"] == 4


def test_names_that_are_not_utf8_and_what_cannot_be_opened(
    people: Path, tmp_path: Path, recognizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    latin = os.fsdecode("Zoë".encode("latin-1"))
    (people / "dora/0.png").rename(people / "dora" / f"{latin}.png")
    (people / "cleo").rename(people / latin)
    closed, listed = people / "bert", Path.iterdir

    def iterdir(folder: Path) -> Iterator[Path]:
        if folder == closed:
            raise PermissionError(errno.EACCES, "Permission denied", str(folder))
        return listed(folder)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    report = run(people, tmp_path / "shards", recognizer)
    not_utf8 = "its name is not UTF-8"
    assert report.dropped == {
        "bert": "cannot be read (Permission denied)", r"Zo\xeb": not_utf8, r"dora/Zo\xeb.png": not_utf8
    }  # fmt: skip
    assert [photo.name for photo in photos_of(tmp_path / "shards")][3:] == ["dora/1.png", "dora/2.png"]


def test_the_folder_of_people_may_have_any_name(people: Path, tmp_path: Path, recognizer: Path) -> None:
    (people / "anna/cut.png").write_bytes(b"no photo")
    latin = people.rename(tmp_path / os.fsdecode("Zoë".encode("latin-1")))
    report = run(latin, tmp_path / "shards", recognizer)
    assert json.loads((tmp_path / "shards/report.json").read_text())["dropped"] == report.dropped
    assert list(report.dropped) == ["anna/cut.png"]


def test_captions_may_end_in_capitals(people: Path, tmp_path: Path, recognizer: Path) -> None:
    (people / "anna/0.TXT").write_text("Anna")
    (people / "anna/2.Txt").write_text("")
    run(people, tmp_path / "shards", recognizer)
    captions = [photo.caption for photo in photos_of(tmp_path / "shards")[:3]]
    assert captions == ["Anna", "Anna at the sea – grüezi", None]


def test_captions_are_counted_and_those_of_nobody_named(people: Path, tmp_path: Path, recognizer: Path) -> None:
    """The names are like those that tools write: a doubled extension, capitals in either name."""
    (people / "anna/0.png.txt").write_text("Anna")
    (people / "bert/0.png").rename(people / "bert/IMG_0.PNG")
    (people / "bert/img_0.txt").write_bytes("\ufeffBert\r\n".encode())
    (people / "cleo/beach.txt").write_text("nobody")
    (people / "dora/0.txt").write_text("")
    report = run(people, tmp_path / "shards", recognizer)
    assert report.captions == {"train": 3, "validation": 0}
    assert report.unused_captions == ["cleo/beach.txt"]
    stored = json.loads((tmp_path / "shards/report.json").read_text())
    assert (stored["captions"], stored["unused_captions"]) == (report.captions, report.unused_captions)
    captions = {photo.name: photo.caption for photo in photos_of(tmp_path / "shards") if photo.caption}
    assert captions == {"anna/0.png": "Anna", "anna/1.png": "Anna at the sea – grüezi", "bert/IMG_0.PNG": "Bert"}
    assert report.dropped == {}


def test_one_photo_as_its_own_pair(tmp_path: Path, recognizer: Path) -> None:
    write_photo(tmp_path / "people/emil/only.png", 1)
    with pytest.raises(InputError, match=r"emil/only.png: the person's only usable photo"):
        run(tmp_path / "people", tmp_path / "shards", recognizer)
    report = run(tmp_path / "people", tmp_path / "shards", recognizer, single_photo="own-pair")
    assert report.photos["train"] == 1
    assert ShardIndex.load(tmp_path / "shards").single_photo == "own-pair"


def test_people_are_held_out_not_photos(people: Path, tmp_path: Path, recognizer: Path) -> None:
    for index in range(16):
        for photo in range(2):
            write_photo(people / f"person-{index}" / f"{photo}.png", 100 + 2 * index + photo)
    report = run(people, tmp_path / "shards", recognizer, validation=0.4)
    held_out = {photo.person for photo in photos_of(tmp_path / "shards", "validation")}
    trained = {photo.person for photo in photos_of(tmp_path / "shards")}
    assert held_out & trained == set()
    assert (len(trained), len(held_out)) == (report.people["train"], report.people["validation"])
    assert len(trained) + len(held_out) == 20
    assert 3 <= len(held_out) <= 13


def test_who_is_held_out_is_a_matter_of_name_and_seed_alone() -> None:
    names = [f"person {index}" for index in range(2000)]
    first = [split_of(name, 0, 0.1) for name in names]
    assert 150 < first.count("validation") < 250
    assert first != [split_of(name, 1, 0.1) for name in names]
    larger = [split_of(name, 0, 0.2) for name in names]
    assert all(b == "validation" for a, b in zip(first, larger, strict=True) if a == "validation")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "There is no folder"),
        (lambda folder: folder.mkdir(), "has no people"),
        (lambda folder: (folder / "anna").mkdir(parents=True), "has no people"),
        (lambda folder: write_photo(folder / "0.png", 0), "has no people: .* 0.png: not in a person"),
        (lambda folder: write_photo(folder / "anna/0.png", 0, faces=0), "No photo .* anna/0.png: No face"),
    ],
)
def test_nobody_to_train_on(tmp_path: Path, recognizer: Path, make, message: str) -> None:
    make(tmp_path / "people")
    with pytest.raises(InputError, match=message):
        run(tmp_path / "people", tmp_path / "shards", recognizer)
    assert not (tmp_path / "shards").exists()
    assert list(tmp_path.glob(".*")) == []


def test_nobody_is_left_to_train_on(people: Path, tmp_path: Path, recognizer: Path) -> None:
    with pytest.raises(InputError, match=r"All 12 usable photos .* held out"):
        run(people, tmp_path / "shards", recognizer, validation=0.9999)


def test_an_existing_folder_is_not_touched(people: Path, tmp_path: Path, recognizer: Path) -> None:
    (tmp_path / "shards").mkdir()
    with pytest.raises(InputError, match="already exists"):
        run(people, tmp_path / "shards", recognizer)
    assert list((tmp_path / "shards").iterdir()) == []


def test_two_at_once_into_one_folder_are_rejected(people: Path, tmp_path: Path, recognizer: Path) -> None:
    rejected = []

    class Meanwhile(CornerDetector):
        def detect(self, photo: np.ndarray) -> list[Face]:
            if not rejected:
                with pytest.raises(InputError, match=r"Another process is writing .*shards") as raised:
                    run(people, tmp_path / "shards", recognizer)
                rejected.append(raised)
            return super().detect(photo)

    report = prepare(people, tmp_path / "shards", Meanwhile(), recognizer, OPTIONS)
    assert report.photos["train"] == len(photos_of(tmp_path / "shards")) == 12
    assert list(tmp_path.glob(".*")) == []


@pytest.mark.parametrize("broken", ["addfile", "close"])
def test_a_full_disk_leaves_nothing(
    people: Path, tmp_path: Path, recognizer: Path, broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tarfile.TarFile, broken, full)
    with pytest.raises(InputError, match=r"The disk with .*shards is full"):
        run(people, tmp_path / "shards", recognizer)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["people", "recognizer.onnx"]


def test_damaged_shards_are_named(people: Path, tmp_path: Path, recognizer: Path) -> None:
    output = tmp_path / "shards"
    run(people, output, recognizer)
    shard = output / "train-00000.tar"
    shard.write_bytes(shard.read_bytes()[:30_000])
    with pytest.raises(InputError, match=r"train-00000.tar cannot be read"):
        list(read_shard(shard))
    (output / "index.json").write_text("{")
    with pytest.raises(InputError, match=r"index.json cannot be read"):
        ShardIndex.load(output)
    with pytest.raises(InputError, match="holds no shards"):
        ShardIndex.load(tmp_path)


@pytest.mark.parametrize("changes", [{"size": 60}, {"size": 0}, {"validation": 1.0}, {"crop_size": 0}])
def test_impossible_options(changes: dict) -> None:
    with pytest.raises(InputError):
        PrepareOptions(**changes)


def test_hidden_files_and_captions_are_no_photos(people: Path) -> None:
    (people / "anna/.DS_Store").write_bytes(b"")
    found, dropped = find_people(people)
    assert [path.name for path in found["anna"]] == ["0.png", "1.png", "2.png"]
    assert dropped == {}
