"""Evaluation sets from the procedural world, from a folder of photos and a file of prompts, or from JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from infid_engines.documents import parse_json
from infid_engines.errors import InputError
from infid_engines.text_files import read_text
from infid_export.evaluation.sets import EvaluationSet, Prompt, Subject
from infid_export.faces.photos import load_photo
from infid_training.world.drawing import render
from infid_training.world.people import FIRST_HELD_OUT, person
from infid_training.world.scenes import STYLES, portrait, scene

WORLD = "world:heldout"
PEOPLE, PROMPTS = 20, 10  # default size of the world's set
MOST = 1000  # of either, and of seeds; all portraits are drawn before the first image is generated
PORTRAIT_SIZE = 128  # pixels, the world's default
_STYLED = "stylized:"
_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")


def open_set(
    references: str = WORLD,
    prompts: str = WORLD,
    *,
    stylized: int | None = None,
    seeds: int = 1,
) -> EvaluationSet:
    """Assemble an evaluation set.

    Args:
        references: `world:heldout` or `world:heldout:N` for N people that were not used in training; or a folder with
            one photo per person, or with one subfolder per person, whose first photo by name is used.
        prompts: `world:heldout` or `world:heldout:N` for N captions of combinations that were not used in training; or
            a text file with one prompt per line, in which `stylized:` marks a prompt that asks for a style.
        stylized: how many of the world's prompts ask for a style; None is half of them.
        seeds: images per person and prompt.

    Raises:
        InputError: a source is missing or empty, or a number is impossible.
    """
    if not 1 <= seeds <= MOST:
        raise InputError(f"There cannot be {seeds} seeds.", fix=f"Give 1 to {MOST}.")
    people = world_people(_count(references, PEOPLE)) if of_world(references) else folder_people(Path(references))
    if of_world(prompts):
        count = _count(prompts, PROMPTS)
        asked = world_prompts(count, count // 2 if stylized is None else stylized)
    elif stylized is not None:
        raise InputError(
            "--stylized applies only to the world's prompts.", fix=f"Mark prompts in the file with '{_STYLED}'."
        )
    else:
        asked = file_prompts(Path(prompts))
    return EvaluationSet(f"{references} × {prompts}", people, asked, tuple(range(seeds)))


def of_world(source: str) -> bool:
    """Return whether people or prompts come from the world, and not from a file."""
    return source.startswith("world:")


def _count(text: str, default: int) -> int:
    """Read N of `world:heldout:N`."""
    name, _, number = text.removeprefix("world:").partition(":")
    digits = number.isascii() and number.isdecimal() and len(number) <= len(str(MOST))
    if name != "heldout" or (number and not (digits and 1 <= int(number) <= MOST)):
        raise InputError(
            f"The world has no set '{text}'.", fix=f"Use {WORLD}, or {WORLD}:8 for eight, at most {WORLD}:{MOST}."
        )
    return int(number) if number else default


def world_people(count: int) -> tuple[Subject, ...]:
    """Return people of the world that were not used in training, each with a plain portrait."""
    numbers = range(FIRST_HELD_OUT, FIRST_HELD_OUT + count)
    return tuple(
        Subject(f"person {number}", render(person(number), portrait(number), PORTRAIT_SIZE)) for number in numbers
    )


def world_prompts(count: int, stylized: int) -> tuple[Prompt, ...]:
    """Return captions of combinations that were not used in training: photos first, then the styles in turn.

    Args:
        count: number of prompts.
        stylized: how many of them ask for a style other than a photo's.

    Raises:
        InputError: `stylized` is not between 0 and `count`.
    """
    if not 0 <= stylized <= count:
        raise InputError(f"{stylized} of {count} prompts cannot be stylized.", fix=f"Give 0 to {count}.")
    wanted = ["photo"] * (count - stylized) + [STYLES[1 + index % (len(STYLES) - 1)] for index in range(stylized)]
    found: dict[str, Prompt] = {}
    number = FIRST_HELD_OUT
    for style in wanted:
        while True:
            drawn = scene(number, held_out=True)
            number += 1
            if drawn.style == style and drawn.caption() not in found:
                break
        found[drawn.caption()] = Prompt(drawn.caption(), style != "photo")
    return tuple(found.values())


def folder_people(folder: Path) -> tuple[Subject, ...]:
    """Read one reference photo per person from a folder.

    Raises:
        InputError: the folder is missing or has no photo, or a photo cannot be read.
    """
    if not folder.is_dir():
        raise InputError(
            f"There is no folder of people at {folder}.", fix=f"Give a folder with one photo per person, or {WORLD}."
        )
    photos: dict[str, Path] = {}
    for entry in sorted(folder.iterdir()):
        inside = sorted(entry.iterdir()) if entry.is_dir() else [entry]
        first = next((path for path in inside if path.is_file() and path.suffix.lower() in _ENDINGS), None)
        if first is not None and not entry.name.startswith("."):
            photos[entry.name if entry.is_dir() else entry.stem] = first
    if not photos:
        raise InputError(
            f"{folder} has no photos ({', '.join(_ENDINGS)}).", fix="Put one photo or one subfolder per person there."
        )
    return tuple(Subject(name, Image.fromarray(load_photo(path))) for name, path in photos.items())


def file_prompts(path: Path) -> tuple[Prompt, ...]:
    """Read one prompt per line; empty lines are skipped.

    Raises:
        InputError: the file cannot be read or is empty.
    """
    text = read_text(path, f"Give a text file with one prompt per line, or {WORLD}.")
    lines = [line.strip() for line in text.split("\n")]  # not splitlines, which would also split within a prompt
    found = tuple(Prompt(line.removeprefix(_STYLED).strip(), line.startswith(_STYLED)) for line in lines if line)
    if not found or not all(prompt.text for prompt in found):
        raise InputError(f"{path} has {'a line without' if found else 'no'} prompt.", fix="Write one prompt per line.")
    return found


def json_set(path: Path) -> EvaluationSet:
    """Read a set: `{"people": [{"name", "photo"}], "prompts": [{"text", "stylized"}], "seeds": [0]}`.

    Paths of photos are relative to the file's folder; a prompt may be a plain string; seeds are optional.

    Raises:
        InputError: the file cannot be read, lacks a part, or names a photo that cannot be read.
    """
    shape = 'Write {"people": [{"name": "ann", "photo": "ann.jpg"}], "prompts": [{"text": "…", "stylized": false}]}.'
    try:
        values: Any = parse_json(read_text(path, shape))
        people = [(str(each["name"]), path.parent / each["photo"]) for each in values["people"]]
        prompts = tuple(
            Prompt(each) if isinstance(each, str) else Prompt(str(each["text"]), bool(each.get("stylized", False)))
            for each in values["prompts"]
        )
        seeds = tuple(int(seed) for seed in values.get("seeds", [0]))
        for text in (*(name for name, _ in people), *(prompt.text for prompt in prompts)):
            text.encode()  # JSON can contain lone surrogates
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        what = f"lacks {error}" if isinstance(error, KeyError) else str(error)
        raise InputError(f"{path} is not an evaluation set ({what}).", fix=shape) from error
    subjects = tuple(Subject(name, Image.fromarray(load_photo(photo))) for name, photo in people)
    return EvaluationSet(str(path), subjects, prompts, seeds)
