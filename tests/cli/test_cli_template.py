"""`infid-export template`, and `generate --template`, on the demo model's engines with one step."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_process import Cli
from PIL import Image

from infid_export.runtime.person import Person


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, person: Person) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("anna", "bert"):
        person.save(tmp_path / f"{name}.safetensors")
    return tmp_path


def test_a_template_is_made_listed_checked_used_and_deleted(cli: Cli, here: Path, quick_folder: Path) -> None:
    engines = ("--engines", quick_folder)
    (here / "templates").mkdir()
    path = "templates/knight.safetensors"
    code, out, err = cli("template", "make", "a knight", "-o", path, "--preview", "knight.png", "--seed", 3, *engines)
    assert (code, out) == (0, f"{path}\nknight.png\n")
    assert "1 steps, 514.9 kB" in err
    assert Image.open(here / "knight.png").size == (256 + 16, 256 + 8 + 15 + 8)

    code, out, _ = cli("template", "list", "templates")
    assert code == 0
    assert all(words in out for words in (path, "a knight", "128 × 128", "1 × ddim, leading"))
    code, out, _ = cli("template", "check", path, "--json", *engines)
    (found,) = json.loads(out)["templates"]
    assert (code, found["prompt"], found["seed"], found["steps"]) == (0, "a knight", 3, 1)

    words = ("generate", "--template", path, "--person", "anna.safetensors", "bert.safetensors", "-o", "k.png")
    code, out, _ = cli(*words, "--json", *engines)
    assert (code, json.loads(out)["images"], json.loads(out)["seed"]) == (0, ["k-0.png", "k-1.png"], 3)
    code, out, _ = cli("generate", "a knight", "--person", "anna.safetensors", "--seed", 3, "-o", "j.png", *engines)
    images = [list(Image.open(here / name).getdata()) for name in ("k-0.png", "k-1.png", "j.png")]
    assert images[0] == images[1]
    different = sum(a != b for a, b in zip(images[0], images[2], strict=True))
    assert different < 0.1 * len(images[2])  # rounding to 8 bits of what differs by fp16's rounding

    code, out, _ = cli("template", "delete", path, path)
    assert (code, out) == (0, f"deleted {path}\n")
    assert not (here / path).exists()


def test_several_prompts_make_several_templates_and_one_sheet(cli: Cli, here: Path, quick_folder: Path) -> None:
    engines, prompts = ("--engines", quick_folder), ("a knight", "a pencil sketch of a person")
    words = ("template", "make", *prompts, "-o", "style.safetensors", "--preview", "sheet.png", "--json")
    code, out, err = cli(*words, *engines)
    made = json.loads(out)
    assert code == 0
    assert [each["template"] for each in made["templates"]] == ["style-0.safetensors", "style-1.safetensors"]
    assert [each["prompt"] for each in made["templates"]] == list(prompts)
    assert made["templates"][0]["snr_db"] is None
    assert "style-1.safetensors: a pencil sketch" in err
    sheet = Image.open(here / "sheet.png")
    assert sheet.width == 2 * 256 + 3 * 8
    assert sheet.height > 256
    code, out, _ = cli("template", "preview", "style-1.safetensors", "style-0.safetensors", *engines)
    assert (code, out) == (0, "sheet.png\n")
    turned = Image.open(here / "sheet.png")
    first, second = (8, 8, 264, 264), (272, 8, 528, 264)
    assert turned.crop(first).tobytes() == sheet.crop(second).tobytes() != sheet.crop(first).tobytes()


def test_what_is_no_template_is_neither_listed_nor_deleted(cli: Cli, here: Path, quick_folder: Path) -> None:
    (here / "cut.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    code, out, _ = cli("template", "check", "anna.safetensors", "cut.safetensors", "--json", "--engines", quick_folder)
    problems = [each["problem"] for each in json.loads(out)["templates"]]
    assert code == 1
    assert problems[0] == "anna.safetensors is not a template file."
    assert problems[1].startswith("cut.safetensors is not an intact template file")
    code, _, err = cli("template", "delete", "anna.safetensors")
    assert code == 1
    assert "is not a template file" in err
    assert (here / "anna.safetensors").exists()


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("template", "preview", "anna.safetensors"), "anna.safetensors is not a template file."),
        (("template", "preview", "empty", "-o", "s.png"), "empty has no file that ends in .safetensors."),
        (("template", "preview", "anna.safetensors", "-o", "s.pdf"), "s.pdf does not end in .png or .jpg or .jpeg"),
        (("template", "make", "a", "b", "-o", "none/t.safetensors"), "none does not exist."),
        (("template", "make", "a knight", "-o", "knight.png"), "knight.png does not end in .safetensors."),
        (("template", "make", "a knight", "--preview", "k.bmp"), "k.bmp does not end in .png or .jpg"),
        (("template", "list", "."), "is not a template file"),
        (("template", "list", "empty"), "empty has no file that ends in .safetensors."),
        (
            ("generate", "a knight", "--template", "t.safetensors", "--person", "anna.safetensors"),
            "has a prompt already",
        ),
        (("generate", "a knight", "--person", "anna.safetensors", "bert.safetensors"), "Several people were given"),
        (("generate", "--template", "t.safetensors", "--person", "anna.safetensors"), "There is no template file"),
    ],
)
def test_what_does_not_go_together_is_one_sentence(cli: Cli, here: Path, words: tuple[str, ...], problem: str) -> None:
    (here / "empty").mkdir()
    code, out, err = cli(*words)
    assert code == 1
    assert problem in err + out
    assert sorted(path.name for path in here.iterdir()) == ["anna.safetensors", "bert.safetensors", "empty"]
