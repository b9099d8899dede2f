"""`infid-export bench`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from infid_engines.atomic_files import whole_file
from infid_engines.errors import InputError
from infid_export.cli.flags import add_folder, add_running, add_steps
from infid_export.cli.generate import require_writable
from infid_export.cli.output import Output, size

EXAMPLES = (
    "infid-export bench infid-engines",
    "infid-export bench infid-engines --against diffusers --beside batch-2 batch-4 -o bench",
)
_ROUNDS, _IMAGE_ROUNDS = 15, 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    from infid_engines.registry import BACKENDS
    from infid_export.bench.others import OTHERS

    add_folder(parser, "folder", "engine folder")
    add_running(parser)
    parser.add_argument(
        "--against", nargs="+", choices=(*OTHERS, *BACKENDS), default=[], metavar="NAME",
        help=f"also time other software on the same model, in the same run: {', '.join(OTHERS)}; or other backends of "
        f"the folder: {', '.join(BACKENDS)}",
    )  # fmt: skip
    parser.add_argument(
        "--beside", nargs="+", type=Path, default=[], metavar="FOLDER",
        help="also time images of folders that differ only in batch, size or people",
    )  # fmt: skip
    add_steps(parser)
    parser.add_argument("--rounds", type=int, default=_ROUNDS, metavar="N", help=f"timings per graph ({_ROUNDS})")
    parser.add_argument(
        "--image-rounds", type=int, default=_IMAGE_ROUNDS, metavar="N", help=f"timings per image ({_IMAGE_ROUNDS})"
    )
    parser.add_argument("-o", "--output", type=Path, metavar="DIR", help="also write bench.json and report.html there")


def run(arguments: argparse.Namespace, output: Output) -> int:
    """Measure, and print tables."""
    files = {}
    if arguments.output is not None:
        try:
            arguments.output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"The folder {arguments.output} cannot be made ({error.strerror}).", fix="Choose another with -o."
            ) from error
        files = {name: arguments.output / name for name in ("bench.json", "report.html")}
        for path in files.values():
            require_writable(path)
    from infid_engines.validation import whole_number
    from infid_export.bench.folder import BenchOptions, bench
    from infid_export.bench.others import open_others

    for name in ("steps", "rounds", "image_rounds"):
        value = getattr(arguments, name)
        if value is not None:
            whole_number(f"--{name.replace('_', '-')}", value, "Give 1 or more.", least=1)
    options = BenchOptions(
        arguments.folder, arguments.backend, arguments.device, arguments.threads, arguments.rounds,
        arguments.image_rounds, arguments.steps, tuple(arguments.beside),
    )  # fmt: skip
    with output.progress() as reporter:
        others = open_others(arguments.against, arguments.folder, arguments.steps)
        document = bench(options, reporter, others)
    _show(document, output)
    if files:
        from infid_export.bench.report import html

        for name, text in (("bench.json", json.dumps(document, indent=1) + "\n"), ("report.html", html(document))):
            with whole_file(files[name]) as partial:
                partial.write_text(text, encoding="utf-8")
            output.line(str(files[name]))
    output.document(document)
    return 0


def _show(document: dict[str, Any], output: Output) -> None:
    machine, folder = document["machine"], document["folder"]
    from infid_export.bench.machine import where

    output.line(
        f"{folder['model']} {folder['precision']}, {folder['height']} × {folder['width']}, batch {folder['batch']}, "
        f"{document['backend']} on {where(document)} ({machine['cores']} cores)"
    )
    kinds = (("graphs", "Graphs, milliseconds"), ("images", f"Images of {document['steps']} steps, milliseconds"),
             ("others", "Beside it, the same image, milliseconds"))  # fmt: skip
    for kind, title in kinds:
        columns = {"median": "median_ms", "20 %": "p20_ms", "80 %": "p80_ms", "joules": "joules", "floor": "floor_ms"}
        rows = document[kind]
        known = {head: key for head, key in columns.items() if any(each.get(key) is not None for each in rows.values())}
        cells = [(name, *(_number(each[key]) for key in known.values())) for name, each in rows.items()]
        output.table(title, ("", *known), cells, numbers=tuple(known))
    points = [
        (name, str(value), kind, f"{milliseconds:.1f}")
        for name, kinds_of in document["scaling"].items()
        for kind, pairs in kinds_of.items()
        for value, milliseconds in pairs
    ]
    output.table(
        "Scaling, milliseconds an image", ("", "value", "image", "median"), points, numbers=("value", "median")
    )
    ratios = {name.replace("_", " "): value for name, value in document["ratios"].items() if value is not None}
    output.table("Ratios of medians", ("ratio", "value"), [(name, f"{value:.2f}") for name, value in ratios.items()],
                 numbers=("value",))  # fmt: skip
    device = document["device_bytes"]
    on_device = "" if device is None else f"; GPU memory in use {size(device)}"
    output.line(
        f"host: {document['host_ms_per_step']:.2f} ms per step ({document['host_share']:.1%}); first image of a new "
        f"process: {document['first_image_seconds']:.1f} s; peak memory {size(document['peak_bytes'])}{on_device}"
    )


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"
