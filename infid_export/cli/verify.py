"""`infid-export verify`."""

from __future__ import annotations

import argparse

from infid_export.cli.build import show_parity
from infid_export.cli.flags import add_folder
from infid_export.cli.output import Output

EXAMPLES = ("infid-export verify infid-engines", "infid-export verify infid-engines --json --quiet")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_folder(parser, "folder", "engine folder")


def run(arguments: argparse.Namespace, output: Output) -> int:
    """Verify, and print the comparisons; exit code 1 if one failed."""
    from infid_export.export.builder import verify

    with output.progress() as reporter:
        parity = verify(arguments.folder, reporter)
    show_parity(parity, output)
    output.line(f"{'PASSED' if parity.passed else 'FAILED'} {arguments.folder}: hashes and parity")
    output.document({"folder": arguments.folder, **parity.to_json()})
    return 0 if parity.passed else 1
