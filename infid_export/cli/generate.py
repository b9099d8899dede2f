"""`infid-export generate`."""

from __future__ import annotations

import argparse
import os
import warnings
from pathlib import Path

from infid_engines.errors import InputError
from infid_export.cli.arguments import add_engines, add_face_index
from infid_export.cli.output import Output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("prompt", nargs="+", help="one or several prompts")
    who = parser.add_mutually_exclusive_group(required=True)
    who.add_argument("--person", type=Path, metavar="FILE", help="made by `infid-export enroll`")
    who.add_argument("--photo", type=Path, nargs="+", metavar="FILE", help="photos of one person")
    add_face_index(parser)
    parser.add_argument("-o", "--output", type=Path, default=Path("out.png"), metavar="FILE", help="(out.png)")
    parser.add_argument("--negative-prompt", metavar="TEXT")
    parser.add_argument("--seed", type=int, default=0, help="of the first prompt; the others count up (0)")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--style-strength", type=float, metavar="S", help="AdaIN-mean; 1 is the paper's, 0 is off")
    parser.add_argument("--identity-strength", type=float, metavar="L", help="1 is the paper's")
    add_engines(parser)


def run(arguments: argparse.Namespace, output: Output) -> int:
    """Generate, and print the paths of the pictures."""
    paths = output_paths(arguments.output, len(arguments.prompt))
    from infid_export.runtime.person import Person
    from infid_export.runtime.pipeline import Pipeline

    with Pipeline.load(arguments.engines, arguments.backend, arguments.device) as pipe, output.progress() as reporter:
        output.note(pipe.choice)
        if arguments.person is not None:
            person = Person.load(arguments.person)
        else:
            person = pipe.enroll(arguments.photo, arguments.face_index)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            images = pipe.generate(
                arguments.prompt,
                person,
                negative_prompt=arguments.negative_prompt,
                seed=arguments.seed,
                steps=arguments.steps,
                guidance=arguments.guidance,
                style_strength=arguments.style_strength,
                identity_strength=arguments.identity_strength,
                reporter=reporter,
            )
        for warning in caught:
            output.note(f"note: {warning.message}")
    for image, path in zip(images, paths, strict=True):
        partial = path.with_name(f".{path.name}.partial")
        image.save(partial, format=FORMATS[path.suffix.lower()])
        partial.replace(path)
        output.line(str(path))
    output.document({"images": paths, "backend": pipe.backend, "seed": arguments.seed})
    return 0


FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}


def output_paths(path: Path, count: int) -> list[Path]:
    """Return one path a picture, refusing one that cannot be written before any work is done.

    Raises:
        InputError: the folder is missing or not writable, or the ending is unknown.
    """
    if path.suffix.lower() not in FORMATS:
        raise InputError(f"{path} has no known ending.", fix=f"Use one of {', '.join(FORMATS)}.")
    require_writable(path)
    if count == 1:
        return [path]
    return [path.with_name(f"{path.stem}-{index}{path.suffix}") for index in range(count)]


def require_writable(path: Path) -> None:
    """Refuse a path that cannot be written.

    Raises:
        InputError: its folder is missing or not writable, or it is a folder itself.
    """
    folder = path.absolute().parent
    if path.is_dir():
        raise InputError(f"{path} is a folder.", fix="Give the path of a file with -o.")
    if not folder.is_dir():
        raise InputError(f"The folder {folder} does not exist.", fix=f"mkdir -p {folder}")
    if not os.access(folder, os.W_OK):
        raise InputError(f"The folder {folder} cannot be written to.", fix="Choose another with -o.")
