"""What scripts of one document share: those that score pictures their arguments, all how it is kept and shown."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from infid_engines.errors import InfidError
from infid_export.cli.output import Output
from infid_training.evaluation.set_sources import WORLD
from provenance import ROOT


def parser(description: str | None, name: str) -> argparse.ArgumentParser:
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


def publish(
    run: Callable[[argparse.Namespace, Output], dict[str, Any]],
    markdown: Callable[[dict[str, Any]], str],
    arguments: argparse.Namespace,
    results: Path,
) -> dict[str, Any] | None:
    """Run, write the document and print its table.

    Args:
        run: makes the document.
        markdown: draws its table.
        arguments: of a `parser`.
        results: folder that gets `<name>.json`.

    Returns:
        The document; None if it could not be made, which has been said.
    """
    output = Output()
    try:
        document = run(arguments, output)
    except InfidError as error:
        output.problem(error)
        return None
    path = results / f"{arguments.name}.json"
    path.write_text(json.dumps(document, indent=1) + "\n")
    print(markdown(document))
    print(f"\n{path}")
    return document
