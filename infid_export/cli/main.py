"""Entry point of `infid-export`: arguments, dispatch, errors and exit codes. Help imports nothing heavy."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from enum import IntEnum
from importlib import import_module
from typing import NoReturn

from infid_engines.errors import InfidError, InputError
from infid_export import __version__
from infid_export.cli.arguments import add_common

COMMANDS = {
    "build": "make an engine folder from a model, with parity checked",
    "generate": "generate pictures of a person",
    "enroll": "turn photos of a person into a person file",
    "verify": "check an engine folder's hashes and repeat its parity",
    "inspect": "show what an engine folder or an ONNX file holds",
    "doctor": "check this machine and its libraries",
}


class ExitCode(IntEnum):
    """What the shell is told."""

    DONE = 0
    PROBLEM = 1  # the user's input, the machine, or a failed parity
    FAULT = 2  # ours
    INTERRUPTED = 130


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message[:1].upper()}{message[1:]}.", fix=f"See `{self.prog} --help`.")


def make_parser(command: str | None = None) -> argparse.ArgumentParser:
    """Return the argument parser; only the named command's arguments are filled in.

    Args:
        command: the command that is being called.
    """
    parser = _Parser(
        prog="infid-export",
        description="Identity-preserving SDXL from PyTorch to engines, with proof that the picture is the same.",
    )
    parser.add_argument("--version", action="version", version=f"infid-export {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, summary in COMMANDS.items():
        child = commands.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
        if name == command:
            import_module(f"infid_export.cli.{name}").add_arguments(child)
            add_common(child)
    return parser


def run(arguments: Sequence[str]) -> int:
    """Run the command line.

    Args:
        arguments: without the program's name.

    Returns:
        The exit code.
    """
    command = next((word for word in arguments if not word.startswith("-")), None)
    as_json = "--json" in arguments
    try:
        options = make_parser(command).parse_args(arguments)
        from infid_export.cli.output import Output

        output = Output(as_json=options.json, quiet=options.quiet)
        return int(import_module(f"infid_export.cli.{options.command}").run(options, output))
    except InfidError as error:
        _show_problem(error, as_json)
        return ExitCode.PROBLEM
    except KeyboardInterrupt:
        sys.stderr.write("\nInterrupted. What was finished is kept; run the same command again to go on.\n")
        return ExitCode.INTERRUPTED
    except BrokenPipeError:
        # the reader has gone; keep Python from complaining when it flushes at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.PROBLEM
    except Exception:
        traceback.print_exc()
        sys.stderr.write("This is a fault of infid-export, not of your input. Please report it with the lines above.\n")
        return ExitCode.FAULT


def _show_problem(error: InfidError, as_json: bool) -> None:
    if as_json:
        import json

        problem = {"error": {"kind": type(error).__name__, "problem": error.problem, "fix": error.fix}}
        sys.stdout.write(json.dumps(problem) + "\n")
    sys.stderr.write(f"error: {error.problem}\n  fix: {error.fix}\n")


def entry_point() -> NoReturn:
    """Run as the installed command."""
    sys.exit(run(sys.argv[1:]))
