"""`infid-export prepare`."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from infid_engines.errors import InputError
from infid_export.cli.flags import add_detector, add_recognizer
from infid_export.cli.output import Output, shown

if TYPE_CHECKING:
    from infid_export.faces.detection import FaceDetector

EXAMPLES = (
    "infid-export prepare people/ --recognizer arcface.onnx -o shards/",
    "infid-export prepare people/ --detector drawn --photo-size 128 -o shards/",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("people", type=Path, metavar="PEOPLE", help="folder with one subfolder of photos per person")
    default = Path("shards")
    parser.add_argument(
        "-o", "--output", type=Path, default=default, metavar="DIR", help=f"folder to write ({default})"
    )
    add_recognizer(parser)
    add_detector(parser)
    parser.add_argument(
        "--photo-size",
        dest="size",
        type=int,
        default=1024,
        metavar="PX",
        help="size of the target photos (1024, SDXL's)",
    )
    parser.add_argument(
        "--crop-size", type=int, default=224, metavar="PX", help="size of the aligned faces (224, ViT-H/14's)"
    )
    parser.add_argument(
        "--single-photo", choices=("refuse", "own-pair"), default="refuse",
        help="people with one usable photo: drop them, or pair the photo with itself (refuse)",
    )  # fmt: skip
    parser.add_argument(
        "--validation", type=float, default=0.05, metavar="SHARE", help="share of people held out (0.05)"
    )
    parser.add_argument(
        "--split-seed", dest="seed", type=int, default=0, metavar="N", help="seed of the held-out split (0)"
    )
    parser.add_argument("--photos-per-shard", type=int, default=1000, metavar="N", help="photos per shard (1000)")


def run(arguments: argparse.Namespace, output: Output) -> int:
    """Prepare, and print what was dropped and why."""
    from infid_export.export.face_models import recognizer_file
    from infid_training.preparation import PrepareOptions, prepare

    options = PrepareOptions(
        size=arguments.size, crop_size=arguments.crop_size, single_photo=arguments.single_photo,
        validation=arguments.validation, seed=arguments.seed, photos_per_shard=arguments.photos_per_shard,
    )  # fmt: skip
    if arguments.recognizer is None and arguments.detector != "drawn":
        raise InputError(
            "A face recognizer for photos is missing.",
            fix="Give an ArcFace-type recognizer with --recognizer FILE; --detector drawn has one for drawn people.",
        )
    kind = arguments.detector or "centerface"
    with output.progress() as reporter, output.warnings_as_notes(), recognizer_file(arguments.recognizer) as recognizer:
        detector = _detector(arguments)
        report = prepare(arguments.people, arguments.output, detector, recognizer, options, reporter, kind)
    output.table("Dropped, and why", ("photo", "why"), list(report.dropped.items()))
    output.table("Kept in one split, and why", ("person", "why"), list(report.kept_together.items()))
    columns = ("people", "photos", "captions")
    rows = [(split, *(str(getattr(report, name)[split]) for name in columns)) for split in report.people]
    output.table("Kept", ("split", *columns), rows, numbers=columns)
    total, captions = sum(report.photos.values()), sum(report.captions.values())
    output.line(f"captions: {captions} of {total} photos have one")
    if report.unused_captions:
        names = ", ".join(report.unused_captions[:3]) + (" …" if len(report.unused_captions) > 3 else "")
        output.note(
            f"note: {len(report.unused_captions)} captions have no photo: {names}; name each caption like its photo, "
            "with the suffix .txt"
        )
    output.line(f"{shown(arguments.output)}: {total} photos, {len(report.dropped)} dropped, {report.seconds:.1f} s")
    output.document(
        {
            "folder": arguments.output,
            "people": report.people,
            "photos": report.photos,
            "captions": report.captions,
            "unused_captions": report.unused_captions,
            "kept_together": report.kept_together,
            "dropped": report.dropped,
            "reasons": dict(Counter(report.dropped.values())),
            "seconds": report.seconds,
        }
    )
    return 0


def _detector(arguments: argparse.Namespace) -> FaceDetector:
    """Open the chosen detector.

    Raises:
        InputError: its models are missing, or the detector needs none.
    """
    from infid_export.export.face_models import open_detector

    if arguments.detector == "insightface":
        if arguments.face_models is None:
            raise InputError(
                "The insightface detector needs your InsightFace model folder.",
                fix="Give it with --face-models, or use --detector centerface.",
            )
        return open_detector(str(arguments.face_models))[0]
    detector = arguments.detector or "centerface"
    if arguments.face_models is not None:
        raise InputError(f"--face-models has no effect with the detector {detector}.", fix="Leave it out.")
    return open_detector(detector)[0]
