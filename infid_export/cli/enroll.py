"""`infid-export enroll`."""

from __future__ import annotations

import argparse
from pathlib import Path

from infid_engines.errors import InputError
from infid_export.cli.arguments import add_engines, add_face_index
from infid_export.cli.generate import require_writable
from infid_export.cli.output import Output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("photos", nargs="+", type=Path, metavar="PHOTO", help="photos of one person; averaged")
    add_face_index(parser)
    parser.add_argument("-o", "--output", type=Path, default=Path("person.safetensors"), metavar="FILE")
    parser.add_argument(
        "--mix", action="append", default=[], metavar="FILE:WEIGHT", help="blend with another person; own weight is 1"
    )
    parser.add_argument("--stack", action="append", default=[], type=Path, metavar="FILE", help="add another person")
    add_engines(parser)


def run(arguments: argparse.Namespace, output: Output) -> int:
    """Enroll, and print the path of the person file."""
    require_writable(arguments.output)
    from infid_export.runtime.person import Person, mix, stack
    from infid_export.runtime.pipeline import Pipeline

    others = [(Person.load(path), weight) for path, weight in map(_weighted, arguments.mix)]
    neighbours = [Person.load(path) for path in arguments.stack]
    with Pipeline.load(arguments.engines, arguments.backend, arguments.device) as pipe:
        person = pipe.enroll(arguments.photos, arguments.face_index)
    if others:
        person = mix([(person, 1.0), *others])
    if neighbours:
        person = stack([person, *neighbours])
    person.save(arguments.output)
    output.line(str(arguments.output))
    output.document({"person": arguments.output, "tokens": person.identity_tokens.shape[1], "model": person.model})
    return 0


def _weighted(text: str) -> tuple[Path, float]:
    path, _, weight = text.rpartition(":")
    try:
        return Path(path), float(weight)
    except ValueError as error:
        raise InputError(f"--mix {text} has no weight.", fix="Write it like --mix other.safetensors:0.3.") from error
