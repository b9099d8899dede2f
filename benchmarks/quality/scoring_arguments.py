"""The arguments of scripts that score pictures."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.provenance import ROOT
from infid_export.evaluation.set_sources import WORLD


def parser_of(description: str | None, name: str) -> argparse.ArgumentParser:
    """Return a parser of what every such script takes.

    Args:
        description: of the script.
        name: of its document, unless another one is given.
    """
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--references", default=WORLD)
    made.add_argument("--prompts", default=WORLD)
    made.add_argument("--machine", default="", help="what it runs on, in words")
    made.add_argument("--name", default=name)
    made.add_argument("--work", type=Path, default=ROOT / "ablation")
    return made
