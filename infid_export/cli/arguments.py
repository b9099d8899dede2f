"""Arguments that mean the same in every command that has them."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_common(parser: argparse.ArgumentParser) -> None:
    """Add what every command has."""
    group = parser.add_argument_group("output")
    group.add_argument("--json", action="store_true", help="print one JSON document on stdout")
    group.add_argument("--quiet", action="store_true", help="no progress and no notes")


def add_engines(parser: argparse.ArgumentParser) -> None:
    """Add the choice of an engine folder and how to run it."""
    group = parser.add_argument_group("engines")
    group.add_argument("--engines", type=Path, default=Path("engines"), metavar="DIR", help="engine folder (engines)")
    group.add_argument("--backend", default="auto", help="auto, onnxruntime, tensorrt or tensorrt_rtx (auto)")
    group.add_argument("--device", default="auto", help="auto, cpu or cuda (auto)")


def add_face_index(parser: argparse.ArgumentParser) -> None:
    """Add the choice among several faces."""
    parser.add_argument("--face-index", type=int, metavar="N", help="which face; 0 is the largest (0)")
