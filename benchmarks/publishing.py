"""Writes a script's result as a document in benchmarks/results, and prints it as a table."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from infid_engines.errors import InfidError
from infid_export.cli.output import Output


def publish(
    run: Callable[[argparse.Namespace, Output], dict[str, Any]],
    markdown: Callable[[dict[str, Any]], str],
    arguments: argparse.Namespace,
    results: Path,
) -> dict[str, Any] | None:
    """Run, write the document and print its table.

    Args:
        run: returns the document.
        markdown: draws its table.
        arguments: the script's arguments, with the document's `name`.
        results: folder to write `<name>.json` to.

    Returns:
        The document; None if it could not be made, in which case the error was printed.
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
