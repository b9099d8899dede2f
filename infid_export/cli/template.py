"""`infid-export template`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infid_engines.errors import InfidError, InputError
from infid_engines.text_files import without_marks
from infid_export.cli.flags import (
    add_engines,
    add_negative_prompt,
    add_sampler,
    add_seed,
    add_size,
    open_pipeline,
    prompt_settings,
)
from infid_export.cli.generate import output_paths, save_images
from infid_export.cli.output import Output, size

if TYPE_CHECKING:
    from PIL.Image import Image

    from infid_export.runtime.pipeline import Pipeline
    from infid_export.runtime.template import Template

_SUFFIX = ".safetensors"
_TEMPLATE, _SHEET = Path(f"template{_SUFFIX}"), Path("sheet.png")
EXAMPLES = (
    'infid-export template make "a pencil sketch of a person" "an oil painting of a person" -o style.safetensors',
    "infid-export template preview style-0.safetensors style-1.safetensors -o sheet.png",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "action", choices=("make", "list", "check", "preview", "delete"),
        help="make one per prompt; list, check or delete template files; draw a sheet of their own images, of nobody",
    )  # fmt: skip
    parser.add_argument("what", nargs="+", metavar="PROMPT|PATH", help="prompts, or files and folders of templates")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help=f"file to write (make: {_TEMPLATE}, preview: {_SHEET})"
    )
    parser.add_argument("--preview", type=Path, metavar="FILE", help="make: also draw the sheet")
    add_negative_prompt(parser)
    add_seed(parser)
    add_size(parser)
    add_sampler(parser)
    add_engines(parser)


def run(arguments: argparse.Namespace, output: Output) -> int:
    """Make, list, check, draw or delete templates."""
    if arguments.action == "make":
        return _make(arguments, output)
    paths = _files([Path(each) for each in arguments.what])
    if arguments.action == "preview":
        return _preview(paths, arguments, output)
    if arguments.action == "delete":
        return _delete(paths, output)
    return _show(paths, arguments.engines if arguments.action == "check" else None, output)


def _make(arguments: argparse.Namespace, output: Output) -> int:
    paths = output_paths(arguments.output or _TEMPLATE, len(arguments.what), (_SUFFIX,))
    sheets = [] if arguments.preview is None else output_paths(arguments.preview, 1)

    templates = {}
    with open_pipeline(arguments, arguments.engines) as pipe, output.progress() as reporter:
        reporter.note(pipe.choice)
        for prompt, path in zip(arguments.what, paths, strict=True):
            reporter.note(f"{path}: {prompt}")
            with output.warnings_as_notes():
                templates[path] = pipe.template(
                    without_marks(prompt),
                    **prompt_settings(arguments),
                    seed=arguments.seed or 0,
                    path=path,
                    reporter=reporter,
                )
        if sheets:
            save_images([_sheet(pipe, templates)], sheets)
    for path in (*paths, *sheets):
        output.line(str(path))
    for template in templates.values():
        output.note(f"{len(template)} steps, {size(template.nbytes)}{_loss(template)}")
    made = [{"template": path, **_facts(template)} for path, template in templates.items()]
    output.document({"templates": made, "preview": arguments.preview})
    return 0


def _preview(paths: list[Path], arguments: argparse.Namespace, output: Output) -> int:
    """Draw a sheet of templates, all of which are checked first."""
    sheets = output_paths(arguments.output or _SHEET, 1)
    from infid_export.runtime.template import Template, check_template

    templates = {path: Template.load(path) for path in paths}
    with open_pipeline(arguments, arguments.engines) as pipe:
        for template in templates.values():
            check_template(template, pipe.manifest)
        save_images([_sheet(pipe, templates)], sheets)
    output.line(str(sheets[0]))
    output.document({"preview": sheets[0], "templates": paths})
    return 0


def _sheet(pipe: Pipeline, templates: Mapping[Path, Template]) -> Image:
    """Return the templates' own images, with their files and prompts."""
    from infid_export.evaluation.grid import labeled_sheet

    return labeled_sheet(
        {f"{path}: {template.settings.prompt}": pipe.preview(template) for path, template in templates.items()}
    )


def _show(paths: list[Path], engines: Path | None, output: Output) -> int:
    """List templates; with engines, also read all of each, and say whether they can use it."""
    from infid_engines.manifest import Manifest
    from infid_export.runtime.template import Template, check_template

    manifest = None if engines is None else Manifest.load(engines)
    rows: list[tuple[str, ...]] = []
    problems: list[tuple[str, ...]] = []
    documents: list[dict[str, Any]] = []
    for path in paths:
        try:
            template = Template.load(path, check=manifest is not None)
            if manifest is not None:
                check_template(template, manifest)
        except InfidError as error:
            problems.append((str(path), error.problem, error.fix))
            documents.append({"template": path, "problem": error.problem, "fix": error.fix})
            continue
        made = template.settings
        how = f"{len(template)} × {made.sampler}" + (f", {made.spacing}" if made.spacing else "")
        rows.append((str(path), made.prompt, f"{made.height} × {made.width}", how, size(template.nbytes)))
        documents.append({"template": path, **_facts(template)})
    output.table("Templates", ("file", "prompt", "pixels", "steps", "size"), rows)
    output.table("Problems", ("file", "problem", "fix"), problems)
    output.document({"templates": documents})
    return 1 if problems else 0


def _delete(paths: list[Path], output: Output) -> int:
    """Delete templates; any other file is rejected before the first is deleted."""
    from infid_export.runtime.template import Template

    for path in paths:
        Template.load(path, check=False)
    for path in paths:
        try:
            path.unlink()
        except OSError as error:
            raise InputError(f"{path} cannot be deleted ({error.strerror}).", fix="Check its folder.") from error
        output.line(f"deleted {path}")
    output.document({"deleted": paths})
    return 0


def _files(paths: list[Path]) -> list[Path]:
    """Return the files, and those of folders, each once.

    Raises:
        InputError: a folder has none.
    """
    found: list[Path] = []
    for path in paths:
        inside = sorted(path.glob(f"*{_SUFFIX}")) if path.is_dir() else [path]
        if not inside:
            raise InputError(f"{path} has no file that ends in {_SUFFIX}.", fix="Give a folder with templates.")
        found += inside
    return list(dict.fromkeys(found))


def _facts(template: Template) -> dict[str, Any]:
    return {**asdict(template.settings), "bytes": template.nbytes, "snr_db": template.snr, "model": template.model}


def _loss(template: Template) -> str:
    return "" if template.snr is None else f", features in 8 bits (signal-to-noise ratio {template.snr:.1f} dB)"
