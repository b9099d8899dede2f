"""Make the images of README.md and docs/.

Usage::

    python benchmarks/document_pictures.py layers             # docs/images/layers.svg, from pyproject.toml
    python benchmarks/document_pictures.py sheet SHEET.png    # docs/images/contact-sheet.jpg, from `make demo`
    python benchmarks/document_pictures.py page URL           # docs/images/serve.png, of a running `infid-export serve`

`make pictures` does the first two. The layers are those that import-linter enforces, each with the beginning of its
docstring.
The contact sheet is the one from `make demo`, as a JPEG, which is a quarter as large.
"""

from __future__ import annotations

import ast
import re
import shutil
import sys
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.provenance import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

IMAGES = ROOT / "docs" / "images"
LAYERS, SHEET, PAGE = IMAGES / "layers.svg", IMAGES / "contact-sheet.jpg", IMAGES / "serve.png"
_SOURCES = ("", "engines", "kernels", "training")  # of the packages, from the repository's root
_WIDTH, _HEIGHT, _GAP, _MARGIN = 860, 62, 26, 16
_VIEWPORT: Any = {"width": 1280, "height": 1060}
_PROMPTS = (
    ("a pencil sketch of a person wearing a purple hoodie, in a forest", "3"),
    ("an oil painting of a person wearing a crown, in the city", "5"),
    ("a photo of a person wearing a red suit, at the beach", "7"),
)
_QUALITY = 90  # of the JPEG: labels stay sharp
_FREE, _TORCH = "#d9efe0", "#dce6f5"  # boxes without torch, and boxes with it
_LEGEND = ((_FREE, "imports neither torch nor diffusers"), (_TORCH, "may import them"))


def contracts() -> list[dict[str, Any]]:
    """Return import-linter's contracts as pyproject.toml has them."""
    document = tomllib.loads((ROOT / "pyproject.toml").read_text())
    found: list[dict[str, Any]] = document["tool"]["importlinter"]["contracts"]
    return found


def layers_svg() -> str:
    """Return the layers as SVG: one row per layer, imports going down."""
    layered = next(each for each in contracts() if each["type"] == "layers")
    rows = [[name.strip(" ()") for name in re.split(r"[|:]", layer)] for layer in layered["layers"]]
    height = _MARGIN + len(rows) * (_HEIGHT + _GAP) + 20
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img" '
        'font-family="Helvetica, Arial, sans-serif">',
        f"<title>{escape(layered['name'])}</title>",
        f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>',
    ]
    for index, row in enumerate(rows):
        top = _MARGIN + index * (_HEIGHT + _GAP)
        parts += _row(row, top)
        if index + 1 < len(rows):
            parts.append(_arrow(top + _HEIGHT))
    parts += _legend(height - 18)
    return "\n".join([*parts, "</svg>", ""])


def _row(names: list[str], top: int) -> list[str]:
    width = (_WIDTH - 2 * _MARGIN - _GAP * (len(names) - 1)) / len(names)
    parts = []
    for index, name in enumerate(names):
        left = _MARGIN + index * (width + _GAP)
        middle = left + width / 2
        parts += [
            f'<rect x="{left:.0f}" y="{top}" width="{width:.0f}" height="{_HEIGHT}" rx="6" '
            f'fill="{_FREE if _without_torch(name) else _TORCH}" stroke="#5b6b7f"/>',
            _text(middle, top + 25, 16, name, weight="bold"),
            _text(middle, top + 46, 12, _purpose(name)),
        ]
    return parts


def _without_torch(name: str) -> bool:
    """Whether a contract keeps torch out of a module."""
    return any(
        name in each["source_modules"] and "torch" in each["forbidden_modules"]
        for each in contracts()
        if each["type"] == "forbidden"
    )


def _purpose(name: str) -> str:
    """Return the purpose of a module or package: its docstring up to the first colon, semicolon or line end."""
    path = name.replace(".", "/")
    files = [ROOT / source / f"{path}{end}" for source in _SOURCES for end in ("/__init__.py", ".py")]
    file = next(each for each in files if each.is_file())
    text = ast.get_docstring(ast.parse(file.read_text())) or ""
    return re.split(r"[:;\n]", text, maxsplit=1)[0].rstrip(".").replace("`", "")


def _text(x: float, y: float, size: int, text: str, *, weight: str = "normal", anchor: str = "middle") -> str:
    return (
        f'<text x="{x:.0f}" y="{y:.0f}" font-size="{size}" font-weight="{weight}" text-anchor="{anchor}" '
        f'fill="#1d2733">{escape(text)}</text>'
    )


def _arrow(top: int) -> str:
    middle, end = _WIDTH // 2, top + _GAP - 4
    return (
        f'<path d="M{middle} {top + 3}V{end - 6}M{middle - 5} {end - 7}L{middle} {end}L{middle + 5} {end - 7}" '
        'stroke="#5b6b7f" stroke-width="2" fill="none"/>'
    )


def _legend(y: int) -> list[str]:
    parts = []
    for index, (color, text) in enumerate(_LEGEND):
        left = _MARGIN + index * 280
        parts.append(f'<rect x="{left}" y="{y}" width="14" height="12" fill="{color}" stroke="#5b6b7f"/>')
        parts.append(_text(left + 20, y + 11, 12, text, anchor="start"))
    return parts


def draw_sheet(source: Path) -> None:
    """Save a contact sheet of `infid-export evaluate` as the documentation's image.

    Args:
        source: the sheet, a PNG.
    """
    Image.open(source).convert("RGB").save(SHEET, quality=_QUALITY, optimize=True)


def draw_page(url: str) -> None:
    """Use the page of a server as a person would, and take a screenshot of it.

    Args:
        url: of a server of the demo model; Playwright, and a Chromium on the path, are needed.
    """
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport=_VIEWPORT)
        page.goto(url)
        page.locator("#drawn button").first.click()
        page.locator("#face-list li").wait_for()
        for number, (prompt, seed) in enumerate(_PROMPTS):
            page.fill("#prompt", prompt)
            page.fill("#seed", seed)
            page.click("#generate")
            page.locator("#history li").nth(number).wait_for(timeout=120_000)
        page.evaluate("document.activeElement.blur(), scrollTo(0, 0)")
        page.screenshot(path=PAGE)
        browser.close()
    Image.open(PAGE).convert("P", palette=Image.Palette.ADAPTIVE, colors=128).save(PAGE, optimize=True)


if __name__ == "__main__":
    IMAGES.mkdir(exist_ok=True)
    if sys.argv[1] == "page":
        draw_page(sys.argv[2])
    elif sys.argv[1] == "sheet":
        draw_sheet(Path(sys.argv[2]))
    else:
        LAYERS.write_text(layers_svg())
