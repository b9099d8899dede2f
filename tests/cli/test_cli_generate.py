from __future__ import annotations

import json
import re
import shlex
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cli_process import Cli
from PIL import Image

from infid_export.faces.choice import TakenFace
from infid_export.faces.detection import Face
from infid_export.runtime.person import Person
from infid_export.runtime.pipeline import Pipeline


class FakePipeline:
    """Records its arguments, and returns gray images."""

    backend, device, choice = "onnxruntime", "cpu", "onnxruntime: runs on every machine"

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.tokens = 1.0
        self.manifest = SimpleNamespace(model={"license": "of their publishers"})

    def __enter__(self) -> FakePipeline:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def enroll(self, photos: list[Path], face_index: int | None, reference: object = None) -> Person:
        self.calls.append(("enroll", (photos, face_index, reference)))
        return person(self.tokens)

    def generate(self, prompts: list[str], person: Person, **settings: Any) -> list[Image.Image]:
        self.calls.append(("generate", (prompts, {k: v for k, v in settings.items() if k != "reporter"})))
        warnings.warn("the prompt is too long", stacklevel=2)
        return [Image.new("RGB", (8, 8), (40 * index, 0, 0)) for index in range(len(prompts))]


def person(value: float) -> Person:
    tensor = np.full((2, 3, 4), value, np.float32)
    return Person(tensor, tensor, tensor, model="m")


@pytest.fixture
def pipeline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakePipeline]:
    fake = FakePipeline()

    def load(folder: Path, backend: str, device: str, reporter: object, threads: int | None) -> FakePipeline:
        fake.calls.append(("load", (folder, backend, device)))
        return fake

    monkeypatch.setattr(Pipeline, "load", load)
    monkeypatch.chdir(tmp_path)
    person(2.0).save(tmp_path / "other.safetensors")
    return fake


@pytest.mark.parametrize(("given", "passed"), [("auto", "auto"), ("cuda:0", "cuda"), ("cuda:1", "cuda:1")])
def test_the_device_is_passed_on(cli: Cli, pipeline: FakePipeline, given: str, passed: str) -> None:
    assert cli("generate", "a knight", "--person", "other.safetensors", "--device", given)[0] == 0
    assert pipeline.calls[0] == ("load", (Path("infid-engines"), "auto", passed))


def test_one_prompt(cli: Cli, pipeline: FakePipeline, tmp_path: Path) -> None:
    code, out, err = cli("generate", "a knight", "--person", "other.safetensors")
    assert (code, out) == (0, "out.png\n")
    assert Image.open(tmp_path / "out.png").size == (8, 8)
    assert pipeline.choice in err
    assert "note: the prompt is too long" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.safetensors", "out.png"]


def test_several_prompts_and_every_setting(cli: Cli, pipeline: FakePipeline, tmp_path: Path) -> None:
    words = shlex.split(
        "generate one two --photo a.jpg b.jpg --face-index 1 -o p.webp --negative-prompt blur --seed 5 "
        "--steps 4 --height 512 --width 768 --guidance 2.5 --style-strength 0.5 --identity-strength 0.8 "
        "--sampler euler --spacing karras "
        "--engines e --backend onnxruntime --device cpu"
    )
    code, out, _ = cli(*words)
    assert (code, out) == (0, "p-0.webp\np-1.webp\n")
    assert pipeline.calls == [
        ("load", (Path("e"), "onnxruntime", "cpu")),
        ("enroll", ([Path("a.jpg"), Path("b.jpg")], 1, None)),
        (
            "generate",
            (
                ["one", "two"],
                {"negative_prompt": "blur", "seed": 5, "height": 512, "width": 768, "steps": 4, "guidance": 2.5,
                 "style_strength": 0.5, "identity_strength": 0.8, "sampler": "euler", "spacing": "karras"},
            ),
        ),
    ]  # fmt: skip
    assert Image.open(tmp_path / "p-1.webp").format == "WEBP"


def test_what_was_taken_of_a_photo_is_noted_and_in_the_document(
    cli: Cli, pipeline: FakePipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    face = Face(np.array([1.0, 2, 41, 52]), 0.9, np.zeros((5, 2)))
    taken = TakenFace("a.jpg", 0, (face, face))
    monkeypatch.setattr(pipeline, "enroll", lambda photos, index, reference: replace(person(1.0), faces=(taken,)))
    for words in (("enroll", "a.jpg"), ("generate", "x", "--photo", "a.jpg")):
        code, out, err = cli(*words, "--json")
        assert code == 0
        assert "a.jpg: 2 faces found, used 0 at (1, 2) of 40 × 50 pixels (score 0.90" in err
        assert json.loads(out)["faces"] == [taken.to_json()]


def test_a_byte_order_mark_from_the_shell_is_no_prompt(cli: Cli, pipeline: FakePipeline) -> None:
    """`"$(cat prompt.txt)"` passes one on."""
    cli("generate", "\ufeffa knight", "--person", "other.safetensors", "--negative-prompt", "\ufeffblur")
    prompts, settings = pipeline.calls[-1][1]
    assert (prompts, settings["negative_prompt"]) == (["a knight"], "blur")


def test_as_json(cli: Cli, pipeline: FakePipeline) -> None:
    code, out, _ = cli("generate", "x", "y", "--person", "other.safetensors", "--json")
    assert code == 0
    assert json.loads(out) == {
        "images": ["out-0.png", "out-1.png"], "backend": "onnxruntime", "device": "cpu", "seed": 0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("output", "problem"),
    [
        ("missing/out.png", "does not exist"),
        ("out.tga", "out.tga does not end in .png or .jpg or .jpeg or .webp"),
        (".", ". does not end in .png or"),
        ("folder.png", "is a folder"),
        ("/proc/out.png", "cannot be written"),
        ("n" * 255 + ".png", "cannot be written"),
    ],
)
def test_an_unwritable_output_is_found_before_any_work(
    cli: Cli, pipeline: FakePipeline, tmp_path: Path, output: str, problem: str
) -> None:
    (tmp_path / "folder.png").mkdir()
    code, out, err = cli("generate", "x", "--person", "other.safetensors", "-o", output)
    assert (code, out) == (1, "")
    assert problem in err
    assert pipeline.calls == []


def test_a_picture_is_whole_or_not_there(
    cli: Cli, pipeline: FakePipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out-0.png").write_bytes(b"the old picture")
    saved = []

    def save(image: Image.Image, path: Path, **_: object) -> None:
        path.write_bytes(b"half")
        saved.append(path)
        if len(saved) == 2:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", save)
    code, _, err = cli("generate", "x", "y", "--person", "other.safetensors")
    assert code == 1
    assert "The disk with out-0.png is full" in err
    assert (tmp_path / "out-0.png").read_bytes() == b"the old picture"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.safetensors", "out-0.png"]


def test_a_prompt_after_the_photo_is_explained(cli: Cli, pipeline: FakePipeline) -> None:
    code, _, err = cli("generate", "--photo", "a.jpg", "a knight")
    assert code == 1
    assert "before --photo" in err


def test_person_or_photo_is_needed(cli: Cli) -> None:
    code, _, err = cli("generate", "a knight")
    assert code == 1
    assert "--person" in err
    assert "--photo" in err


def test_enroll_mixes_by_shares_and_stacks(cli: Cli, pipeline: FakePipeline, tmp_path: Path) -> None:
    code, out, _ = cli(
        "enroll",
        "a.jpg",
        "b.jpg",
        "--mix",
        "other.safetensors:0.25",
        "--stack",
        "other.safetensors",
        "-o",
        "p.safetensors",
    )
    assert (code, out) == (0, "p.safetensors\n")
    found = Person.load(tmp_path / "p.safetensors").identity_tokens
    assert found.shape == (2, 6, 4)
    np.testing.assert_allclose(found[:, :3], 1.0 * 0.75 + 2.0 * 0.25)
    np.testing.assert_allclose(found[:, 3:], 2.0)


@pytest.mark.parametrize("share", ["other.safetensors", "other.safetensors:", "other.safetensors:1", ":0.3", "a:-1"])
def test_a_share_must_be_a_share(cli: Cli, pipeline: FakePipeline, share: str) -> None:
    code, _, err = cli("enroll", "a.jpg", "--mix", share)
    assert code == 1
    assert "other.safetensors:0.3" in err
    assert pipeline.calls == []


def test_shares_leave_something_for_the_photos(cli: Cli, pipeline: FakePipeline) -> None:
    code, _, err = cli("enroll", "a.jpg", "--mix", "other.safetensors:0.6", "--mix", "other.safetensors:0.4")
    assert code == 1
    assert "sum to less than 1" in err


@pytest.mark.parametrize(
    ("words", "reference"),
    [("face", "face"), ("whole", "whole"), ("box 10 20 300 400", (10, 20, 300, 400))],
)
def test_enroll_passes_on_what_is_read(cli: Cli, pipeline: FakePipeline, words: str, reference: object) -> None:
    assert cli("enroll", "a.jpg", "--reference", *words.split(), "-o", "p.safetensors")[0] == 0
    assert pipeline.calls[-1] == ("enroll", ([Path("a.jpg")], None, reference))


@pytest.mark.parametrize("words", ["half", "whole a.jpg", "box 1 2 3", "box 1 2 3 -4", "box 1 2 3 4 5", "box a b c d"])
def test_enroll_names_what_is_no_reference(cli: Cli, pipeline: FakePipeline, words: str) -> None:
    code, _, err = cli("enroll", "a.jpg", "--reference", *words.split(), "-o", "p.safetensors")
    assert code != 0
    assert f"--reference takes face, whole, or box X Y W H, not {words}." in err or "-4" in words
    assert pipeline.calls == []


def test_enroll_checks_its_output_first(cli: Cli, pipeline: FakePipeline) -> None:
    code, _, err = cli("enroll", "a.jpg", "-o", "missing/p.safetensors")
    assert code == 1
    assert "mkdir -p" in err
    assert pipeline.calls == []


def test_photo_to_picture_on_real_engines(cli: Cli, demo_folder: Path, tmp_path: Path, portrait: Image.Image) -> None:
    photo, person_file, picture = tmp_path / "a.png", tmp_path / "p.safetensors", tmp_path / "out.png"
    portrait.save(photo)
    code, out, err = cli("enroll", photo, "-o", person_file, "--engines", demo_folder)
    assert (code, out) == (0, f"{person_file}\n"), err
    assert "note: These engines find faces with the demo model's detector, which knows drawn people only" in err
    assert re.search(rf"{photo}: 1 face found, score 0\.\d\d, \d+ pixels between the eyes\n", err)
    found = json.loads(cli("enroll", photo, "-o", person_file, "--engines", demo_folder, "--json")[1])["faces"]
    assert [(face["photo"], face["found"], face["taken"]) for face in found] == [(str(photo), 1, 0)]
    assert found[0]["faces"][0]["score"] > 0.6
    words = ("generate", "a knight", "--steps", "2", "--engines", demo_folder)
    code, out, err = cli(*words, "--person", person_file, "-o", picture)
    assert (code, out) == (0, f"{picture}\n"), err
    assert "%" in err
    again = tmp_path / "again.png"
    assert cli(*words, "--photo", photo, "-o", again, "--quiet")[2] == ""
    np.testing.assert_array_equal(np.asarray(Image.open(picture)), np.asarray(Image.open(again)))
    code, out, err = cli("inspect", demo_folder, "--hash")
    assert code == 0, err
    assert "PASSED" in out
    assert "FAILED" not in out
