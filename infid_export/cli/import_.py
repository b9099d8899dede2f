"""`infid-export import`."""

from __future__ import annotations

import argparse
from pathlib import Path

from infid_export.cli.flags import DRY_RUN_HELP, MODEL_HELP
from infid_export.cli.generate import require_writable
from infid_export.cli.output import Output, shown, size
from infid_export.importing.licenses import LICENSES

EXAMPLES = (
    "infid-export import ip-adapter-plus_sdxl_vit-h.safetensors -o identity.safetensors",
    "infid-export import ip-adapter-faceid-plusv2_sdxl.bin --dry-run",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("file", type=Path, metavar="FILE", help="an adapter's weights (.safetensors, .bin, .pt, .ckpt)")
    default = Path("identity.safetensors")
    parser.add_argument(
        "-o", "--output", type=Path, default=default, metavar="FILE", help=f"identity file to write ({default})"
    )
    parser.add_argument(
        "--family", choices=tuple(LICENSES), metavar="NAME",
        help=f"{', '.join(LICENSES)} (recognized by its tensors; Plus-Face by its name)",
    )  # fmt: skip
    parser.add_argument("--model", default="random-sdxl", help=MODEL_HELP)
    parser.add_argument(
        "--image-encoder-name", metavar="NAME",
        help="open_clip's name of the image encoder that the adapter reads (ViT-H-14 or ViT-bigG-14, by its width)",
    )  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help=DRY_RUN_HELP)


def run(arguments: argparse.Namespace, output: Output) -> int:
    """Import, or show what would be written."""
    require_writable(arguments.output)
    from infid_export.importing.adapter import import_adapter

    with output.progress() as reporter:
        found = import_adapter(
            arguments.file,
            arguments.output,
            family=arguments.family,
            model=arguments.model,
            image_encoder=arguments.image_encoder_name,
            dry_run=arguments.dry_run,
            reporter=reporter,
        )
    family, config = found.found.family, found.config
    output.line(f"{arguments.file}: {family.title} ({found.found.reason})")
    rows = [(part, size(count)) for part, count in found.bytes.items() if count]
    output.table("Identity file", ("part", "size"), rows, numbers=("size",))
    reads = [f"image encoder {config.image_encoder}"] if config.reads_image else []
    reads += [f"recognizer of {family.recognizer}"] if family.recognizer else []
    output.line(f"build it with: {', '.join(reads)}")
    output.line(f"license: {found.license}")
    if family.missing:
        output.note(f"note: {family.missing}")
    end = "nothing was written" if arguments.dry_run else size(arguments.output.stat().st_size)
    output.line(f"{shown(arguments.output)}: {end}")
    output.document(
        {
            "family": found.found.name,
            "reason": found.found.reason,
            "config": config.to_dict(),
            "license": found.license,
            "missing": family.missing,
            "bytes": found.bytes,
            "identity": None if arguments.dry_run else arguments.output,
        }
    )
    return 0
