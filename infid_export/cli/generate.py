"""`infid-export generate`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infid_engines.atomic_files import partial_of, whole_file
from infid_engines.errors import InputError
from infid_engines.text_files import without_marks
from infid_export.cli.flags import (
    add_engines,
    add_face_index,
    add_negative_prompt,
    add_sampling,
    add_seed,
    add_size,
    open_pipeline,
    prompt_settings,
)
from infid_export.cli.output import Output

if TYPE_CHECKING:
    from PIL.Image import Image

    from infid_export.faces.reference import Reference
    from infid_export.runtime.person import Person
    from infid_export.runtime.pipeline import Pipeline

# Suffix -> Pillow's format and its settings. At quality 95, JPEG's own error is below the engines'.
_FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    ".png": ("PNG", {}),
    ".jpg": ("JPEG", {"quality": 95}),
    ".jpeg": ("JPEG", {"quality": 95}),
    ".webp": ("WEBP", {"lossless": True}),
}
EXAMPLES = (
    'infid-export generate "a portrait in the rain" --person person.safetensors -o rain.png',
    "infid-export generate --template sketch.safetensors --person anna.safetensors bert.safetensors -o sketch.png",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("prompt", nargs="*", help="one or several prompts, before --photo and --person")
    parser.add_argument(
        "--template", type=Path, metavar="FILE",
        help="from `infid-export template make`, instead of prompts: one image per person, at about half the cost",
    )  # fmt: skip
    who = parser.add_mutually_exclusive_group(required=True)
    who.add_argument(
        "--person", type=Path, nargs="+", metavar="FILE",
        help="person file from `infid-export enroll`; several with --template",
    )  # fmt: skip
    who.add_argument("--photo", type=Path, nargs="+", metavar="FILE", help="photos of one person")
    add_face_index(parser)
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("out.png"), metavar="FILE", help="image file to write (out.png)"
    )
    add_negative_prompt(parser)
    add_seed(parser)
    add_size(parser)
    add_sampling(parser)
    add_engines(parser)


def run(arguments: argparse.Namespace, output: Output) -> int:
    """Generate, and print the paths of the images."""
    _check(arguments)
    count = len(arguments.prompt) if arguments.template is None else len(arguments.person or ["photo"])
    paths = output_paths(arguments.output, count)
    from infid_export.runtime.person import Person
    from infid_export.runtime.template import Template

    template = None if arguments.template is None else Template.load(arguments.template)
    with open_pipeline(arguments, arguments.engines) as pipe, output.progress() as reporter:
        reporter.note(pipe.choice)
        if arguments.person is not None:
            people = [Person.load(path) for path in arguments.person]
        else:
            people = [enrolled(pipe, arguments.photo, arguments.face_index, output)]
        seed = 0 if arguments.seed is None and template is None else arguments.seed
        with output.warnings_as_notes():
            images = pipe.generate(
                [without_marks(prompt) for prompt in arguments.prompt] if template is None else template,
                people[0] if template is None else people,
                **prompt_settings(arguments),
                seed=seed,
                style_strength=arguments.style_strength,
                identity_strength=arguments.identity_strength,
                reporter=reporter,
            )
    save_images(images, paths)
    for path in paths:
        output.line(str(path))
    used = template.settings.seed if seed is None and template is not None else seed
    document = {"images": paths, "backend": pipe.backend, "device": pipe.device, "seed": used}
    faces = {} if arguments.photo is None else {"faces": [face.to_json() for face in people[0].faces]}
    output.document({**document, **faces})
    return 0


def _check(arguments: argparse.Namespace) -> None:
    """Reject what does not go together.

    Raises:
        InputError: there is neither a prompt nor a template, there are both, or several people for a prompt.
    """
    if arguments.template is not None and arguments.prompt:
        raise InputError("A template has a prompt already.", fix="Leave the prompt out, or --template.")
    if arguments.template is None and not arguments.prompt:
        raise InputError(
            "No prompt was given.",
            fix='Give it before --photo, which takes every argument after it: generate "…" --photo a.jpg',
        )
    if arguments.template is None and len(arguments.person or ()) > 1:
        raise InputError(
            "Several people were given for a prompt.",
            fix="Use --template for an image of each, or `infid-export enroll --stack` for all in one image.",
        )


def enrolled(
    pipe: Pipeline, photos: Sequence[Path], face_index: int | None, output: Output, reference: Reference | None = None
) -> Person:
    """Enroll photos, and print notes on how many faces each has and which one was used.

    Raises:
        InputError: see `Pipeline.enroll`.
    """
    with output.warnings_as_notes():
        person = pipe.enroll(photos, face_index, reference=reference)
    for face in person.faces:
        output.note(str(face))
    if not person.faces:
        output.note("no face was searched in the photos")
    return person


def save_images(images: Sequence[Image], paths: Sequence[Path]) -> None:
    """Write all images, each atomically."""
    with ExitStack() as all_written:
        for image, path in zip(images, paths, strict=True):
            kind, settings = _FORMATS[path.suffix.lower()]
            image.save(all_written.enter_context(whole_file(path)), format=kind, **settings)


def output_paths(path: Path, count: int, suffixes: Collection[str] = _FORMATS) -> list[Path]:
    """Return one path per image or other file. Paths that cannot be written are rejected before any work is done.

    Raises:
        InputError: the folder is missing or not writable, or the suffix is not one of these.
    """
    if path.suffix.lower() not in suffixes:
        raise InputError(f"{path} does not end in {' or '.join(suffixes)}.", fix="Give another name.")
    paths = [path] if count == 1 else [path.with_name(f"{path.stem}-{i}{path.suffix}") for i in range(count)]
    for each in paths:
        require_writable(each)
    return paths


def require_writable(path: Path) -> None:
    """Reject a path that cannot be written, by making the same temporary file as a real output.

    Raises:
        InputError: its folder is missing or not writable, or it is a folder itself.
    """
    folder = path.absolute().parent
    try:
        if path.is_dir() or not path.name:
            raise InputError(f"{path} is a folder.", fix="Give the path of a file with -o.")
        partial = partial_of(path)
        if not folder.is_dir():
            raise InputError(f"The folder {folder} does not exist.", fix=f"mkdir -p {folder}")
        try:
            os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            partial.unlink()
        except FileExistsError:  # left by a killed process, or in use by another one: it must not be touched
            if not os.access(partial, os.W_OK):
                raise
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}).", fix="Choose another with -o.") from error
