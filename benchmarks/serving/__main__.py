"""Measure `infid-export serve`, and store the figures in benchmarks/results.

Usage::

    python benchmarks/serving load FOLDER [--machine "2 CPU cores"]
    python benchmarks/serving overhead FOLDER
    python benchmarks/serving batching FOLDER [FOLDER_OF_BATCH_4]
    python benchmarks/serving soak FOLDER [--minutes 60]
    python benchmarks/serving hostile FOLDER [--requests 10000]

All requests go to a server of the script's own on 127.0.0.1. Each subcommand writes serving-<subcommand>.json; nothing
in these documents is edited by hand. The exit code is 1 if soak or hostile finds a fault.
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from benchmarks.provenance import RESULTS
from benchmarks.publishing import publish
from benchmarks.serving import batching, hostile, load, overhead, soak, tables

_COMMANDS = {"load": load, "overhead": overhead, "batching": batching, "soak": soak, "hostile": hostile}


def main(words: list[str]) -> int:
    """Measure, write the document and print its table."""
    parser = argparse.ArgumentParser(
        prog="serving", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module in _COMMANDS.items():
        sub = commands.add_parser(name, help=str(module.__doc__).split("\n", maxsplit=1)[0])
        sub.add_argument("folder", type=Path, metavar="FOLDER", help="engine folder")
        module.add_arguments(sub)
        sub.add_argument("--photo", nargs="+", type=Path, default=[], metavar="FILE", help="photos (drawn people)")
        sub.add_argument("--name", default=f"serving-{name}", help="name of the document")
        sub.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER", help="where it is written")
        sub.add_argument("--machine", default="", help="what it runs on, in words")
    arguments = parser.parse_args(words)
    command = _COMMANDS[arguments.command]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # the server is stopped as well
    document = publish(command.measure, tables.TABLES[f"serving-{arguments.command}"], arguments, arguments.results)
    return 1 if document is None or document.get("faults") else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
