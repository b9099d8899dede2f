"""`infid-export enroll`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from infid_engines.errors import InputError
from infid_export.cli.flags import (
    add_engines,
    add_face_index,
    open_pipeline,
)
from infid_export.cli.generate import enrolled, require_writable
from infid_export.cli.output import Output

if TYPE_CHECKING:
    from infid_export.faces.reference import Reference

EXAMPLES = (
    "infid-export enroll anna-1.jpg anna-2.jpg -o anna.safetensors",
    "infid-export enroll anna.jpg --mix bert.safetensors:0.3 -o blend.safetensors",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("photos", nargs="+", type=Path, metavar="PHOTO", help="photos of one person; they are averaged")
    add_face_index(parser)
    parser.add_argument(
        "--reference", nargs="+", metavar="WHAT",
        help="what is read of the photos, given before it: face, whole (no face is searched), or box X Y W H in pixels "
        "(face, or whole for identity weights of whole images)",
    )  # fmt: skip
    default = Path("person.safetensors")
    parser.add_argument(
        "-o", "--output", type=Path, default=default, metavar="FILE", help=f"person file to write ({default})"
    )
    parser.add_argument(
        "--mix", action="append", default=[], metavar="FILE:SHARE",
        help="blend in another person with a share between 0 and 1; the photos get the rest; repeatable",
    )  # fmt: skip
    parser.add_argument(
        "--stack",
        action="append",
        default=[],
        type=Path,
        metavar="FILE",
        help="add another person to the image; repeatable",
    )
    add_engines(parser)


def run(arguments: argparse.Namespace, output: Output) -> int:
    """Enroll, and print the path of the person file."""
    require_writable(arguments.output)
    shares = [_share(text) for text in arguments.mix]
    reference = None if arguments.reference is None else _reference(arguments.reference)
    own = 1.0 - sum(share for _, share in shares)
    if own <= 0:
        raise InputError(
            "The shares of --mix leave no share for the photos.", fix="Give shares that sum to less than 1."
        )
    from infid_export.runtime.person import Person, mix, stack

    others = [(Person.load(path), share) for path, share in shares]
    neighbors = [Person.load(path) for path in arguments.stack]
    with open_pipeline(arguments, arguments.engines) as pipe:
        output.note(pipe.choice)
        if license := pipe.manifest.model.get("license"):
            output.note(f"license of the identity weights: {license}")
        person = enrolled(pipe, arguments.photos, arguments.face_index, output, reference)
    faces = person.faces
    if others:
        person = mix([(person, own), *others])
    if neighbors:
        person = stack([person, *neighbors])
    person.save(arguments.output)
    output.line(str(arguments.output))
    document = {"person": arguments.output, "tokens": person.identity_tokens.shape[1], "model": person.model}
    output.document({**document, "faces": [face.to_json() for face in faces]})
    return 0


def _reference(words: Sequence[str]) -> Reference:
    """Parse `face`, `whole` or `box X Y W H`."""
    if words == ["face"]:
        return "face"
    if words == ["whole"]:
        return "whole"
    numbers = [int(word) for word in words[1:] if word.isdecimal() and len(word) < 10]
    if words[0] != "box" or len(words) != 5 or len(numbers) != 4:
        raise InputError(
            f"--reference takes face, whole, or box X Y W H, not {' '.join(words)}.",
            fix="Give the photos first: infid-export enroll photo.jpg --reference box 10 20 300 400.",
        )
    left, top, width, height = numbers
    return left, top, width, height


def _share(text: str) -> tuple[Path, float]:
    path, _, number = text.rpartition(":")
    try:
        share = float(number)
    except ValueError:
        share = 0.0
    if not path or not 0 < share < 1:
        raise InputError(f"--mix {text} has no share between 0 and 1.", fix="For example: --mix other.safetensors:0.3.")
    return Path(path), share
