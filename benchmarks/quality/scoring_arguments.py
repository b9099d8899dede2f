"""The arguments of scripts that score images."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.provenance import ROOT
from infid_export.evaluation.set_sources import WORLD


def parser_of(description: str | None, name: str) -> argparse.ArgumentParser:
    """Return a parser of the arguments that all these scripts share.

    Args:
        description: the script's description.
        name: default name of its document.
    """
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--references", default=WORLD)
    made.add_argument("--prompts", default=WORLD)
    made.add_argument("--machine", default="", help="what it runs on, in words")
    made.add_argument("--name", default=name)
    made.add_argument("--work", type=Path, default=ROOT / "ablation")
    return made
