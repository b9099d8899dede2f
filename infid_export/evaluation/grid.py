"""Contact sheets: with one row per person, the reference photo and an image per prompt; or of labeled images."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from infid_engines.atomic_files import whole_file
from infid_engines.errors import InputError
from infid_export.evaluation.sets import EvaluationSet, Request

_CELL = 160  # pixels per side; twelve columns then fit on a 2000-pixel screen
_LARGE_CELL, _COLUMNS = 256, 5
_GAP = 8
_FONT_SIZE = 12
_LINE = 15  # pixels between two lines of a label
_PAPER, _INK, _FAINT = (255, 255, 255), (20, 20, 20), (110, 110, 110)
_MISSING = (224, 224, 224)


class Grid:
    """Collects small copies of the images of the first seed.

    Args:
        chosen: the set.
        people: how many of its people are shown.
        prompts: how many of its prompts are shown, half of them stylized if there are enough.
    """

    def __init__(self, chosen: EvaluationSet, people: int = 12, prompts: int = 8) -> None:
        self._people = chosen.people[:people]
        styled = [prompt for prompt in chosen.prompts if prompt.stylized]
        plain = [prompt for prompt in chosen.prompts if not prompt.stylized]
        from_styled = min(len(styled), max(prompts // 2, prompts - len(plain)))
        self._prompts = [*plain[: prompts - from_styled], *styled[:from_styled]]
        self._seed = chosen.seeds[0]
        self._cells: dict[tuple[str, str], Image.Image] = {}

    def add(self, request: Request, image: Image.Image) -> None:
        """Add an image if the sheet shows it."""
        if request.seed == self._seed and request.person in self._people and request.prompt in self._prompts:
            self._cells[request.person.name, request.prompt.text] = _small(image)

    def draw(self) -> Image.Image:
        """Return the sheet; an image that was never added is a gray cell."""
        font = ImageFont.load_default(_FONT_SIZE)
        heads = ["reference", *(f"{'[style] ' if each.stylized else ''}{each.text}" for each in self._prompts)]
        labels = [_wrapped(text, font, _CELL) for text in heads]
        top = _GAP + _LINE * max(len(lines) for lines in labels)
        step, row = _CELL + _GAP, _CELL + _LINE + _GAP
        sheet = Image.new("RGB", (_GAP + step * len(heads), top + row * len(self._people)), _PAPER)
        pen = ImageDraw.Draw(sheet)
        for column, lines in enumerate(labels):
            for number, line in enumerate(lines):
                pen.text((_GAP + column * step, _GAP // 2 + number * _LINE), line, _INK, font)
        for index, subject in enumerate(self._people):
            y = top + index * row
            cells = [_small(subject.photo), *(self._cells.get((subject.name, each.text)) for each in self._prompts)]
            for column, cell in enumerate(cells):
                sheet.paste(cell or Image.new("RGB", (_CELL, _CELL), _MISSING), (_GAP + column * step, y))
            pen.text((_GAP, y + _CELL + 1), _wrapped(subject.name, font, _CELL)[0], _FAINT, font)
        return sheet


def labeled_sheet(images: Mapping[str, Image.Image]) -> Image.Image:
    """Return a sheet of images in rows of up to five, each with its label below."""
    font, width = ImageFont.load_default(_FONT_SIZE), min(len(images), _COLUMNS)
    labels = [_wrapped(text, font, _LARGE_CELL) for text in images]
    step, row = _LARGE_CELL + _GAP, _LARGE_CELL + _GAP + _LINE * max(map(len, labels))
    sheet = Image.new("RGB", (_GAP + step * width, _GAP + row * ceil(len(images) / width)), _PAPER)
    pen = ImageDraw.Draw(sheet)
    for index, (lines, image) in enumerate(zip(labels, images.values(), strict=True)):
        x, y = _GAP + index % width * step, _GAP + index // width * row
        sheet.paste(_small(image, _LARGE_CELL), (x, y))
        for number, line in enumerate(lines):
            pen.text((x, y + _LARGE_CELL + number * _LINE), line, _INK, font)
    return sheet


def save_png(image: Image.Image, path: Path) -> None:
    """Write a PNG atomically.

    Raises:
        InputError: it cannot be written.
    """
    try:
        with whole_file(path) as partial:
            image.save(partial, format="PNG")
    except OSError as error:
        raise InputError(
            f"{path} cannot be written ({error.strerror or error}).",
            fix="Free some space, or choose another folder with -o.",
        ) from error


def _small(image: Image.Image, size: int = _CELL) -> Image.Image:
    return ImageOps.fit(image.convert("RGB"), (size, size), Image.Resampling.LANCZOS)


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """Break a label into lines of at most `width` pixels, at spaces."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
