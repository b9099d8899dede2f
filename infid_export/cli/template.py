"""`infid-export template`."""

from __future__ import annotations

import argparse
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
    prompt_settings,
)
from infid_export.cli.generate import output_paths, require_writable, save_images
from infid_export.cli.output import Output, size

if TYPE_CHECKING:
    from infid_export.runtime.template import Template

_SUFFIX = ".safetensors"
EXAMPLES = (
    'infid-export template make "a pencil sketch of a person" -o sketch.safetensors --preview sketch.png',
    "infid-export template check sketch.safetensors --engines infid-engines",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "action", choices=("make", "list", "check", "delete"),
        help="make one from a prompt; list, check or delete template files",
    )  # fmt: skip
    parser.add_argument("what", nargs="+", metavar="PROMPT|PATH", help="the prompt, or files and folders of templates")
    default = Path(f"template{_SUFFIX}")
    parser.add_argument(
        "-o", "--output", type=Path, default=default, metavar="FILE", help=f"template file to write ({default})"
    )
    parser.add_argument("--preview", type=Path, metavar="FILE", help="also write the template's own image, of nobody")
    add_negative_prompt(parser)
    add_seed(parser)
    add_size(parser)
    add_sampler(parser)
    add_engines(parser)


def run(arguments: argparse.Namespace, output: Output) -> int:
    """Make, list, check or delete templates."""
    if arguments.action == "make":
        return _make(arguments, output)
    paths = _files([Path(each) for each in arguments.what])
    if arguments.action == "delete":
        return _delete(paths, output)
    return _show(paths, arguments.engines if arguments.action == "check" else None, output)


def _make(arguments: argparse.Namespace, output: Output) -> int:
    if len(arguments.what) > 1:
        raise InputError("A template has one prompt.", fix="Quote the prompt, or make one template for each.")
    if arguments.output.suffix != _SUFFIX:
        raise InputError(f"{arguments.output} does not end in {_SUFFIX}.", fix="Choose another with -o.")
    require_writable(arguments.output)
    previews = [] if arguments.preview is None else output_paths(arguments.preview, 1)
    from infid_export.runtime.pipeline import Pipeline

    with Pipeline.load(arguments.engines, arguments.backend, arguments.device) as pipe, output.progress() as reporter:
        reporter.note(pipe.choice)
        with output.warnings_as_notes():
            template = pipe.template(
                without_marks(arguments.what[0]),
                **prompt_settings(arguments),
                seed=arguments.seed or 0,
                path=arguments.output,
                reporter=reporter,
            )
        if previews:
            save_images([pipe.preview(template)], previews)
    for path in (arguments.output, *previews):
        output.line(str(path))
    output.note(f"{len(template)} steps, {size(template.nbytes)}{_loss(template)}")
    output.document({"template": arguments.output, "preview": arguments.preview, **_facts(template)})
    return 0


def _show(paths: list[Path], engines: Path | None, output: Output) -> int:
    """List templates; with engines, also read all of each, and say whether they can use it."""
    from infid_engines.manifest import Manifest
    from infid_export.runtime.template import Template, check_template

    manifest = None if engines is None else Manifest.load(engines)
    rows: list[tuple[str, ...]] = []
    documents: list[dict[str, Any]] = []
    for path in paths:
        try:
            template = Template.load(path, check=manifest is not None)
            if manifest is not None:
                check_template(template, manifest)
        except InfidError as error:
            rows.append((str(path), error.problem, "", "", ""))
            documents.append({"template": path, "problem": error.problem, "fix": error.fix})
            continue
        made = template.settings
        how = f"{len(template)} × {made.sampler}" + (f", {made.spacing}" if made.spacing else "")
        rows.append((str(path), made.prompt, f"{made.height} × {made.width}", how, size(template.nbytes)))
        documents.append({"template": path, **_facts(template)})
    output.table("Templates", ("file", "prompt, or problem", "pixels", "steps", "features"), rows)
    output.document({"templates": documents})
    return int(any("problem" in document for document in documents))


def _delete(paths: list[Path], output: Output) -> int:
    """Delete templates; any other file is rejected before the first is deleted."""
    from infid_export.runtime.template import Template

    for path in paths:
        Template.load(path, check=False)
    for path in paths:
        path.unlink()
        output.line(f"deleted {path}")
    output.document({"deleted": paths})
    return 0


def _files(paths: list[Path]) -> list[Path]:
    """Return the files, and those of folders.

    Raises:
        InputError: a folder has none.
    """
    found = []
    for path in paths:
        inside = sorted(path.glob(f"*{_SUFFIX}")) if path.is_dir() else [path]
        if not inside:
            raise InputError(f"{path} has no file that ends in {_SUFFIX}.", fix="Give a folder with templates.")
        found += inside
    return found


def _facts(template: Template) -> dict[str, Any]:
    return {**asdict(template.settings), "bytes": template.nbytes, "snr_db": template.snr, "model": template.model}


def _loss(template: Template) -> str:
    return "" if template.snr is None else f", features in 8 bits (signal-to-noise ratio {template.snr:.1f} dB)"
