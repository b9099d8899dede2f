"""Entry point of `infid-export`: arguments, dispatch, errors and exit codes. Help needs only light imports."""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from enum import IntEnum
from importlib import import_module
from keyword import iskeyword
from typing import TYPE_CHECKING, Any, NoReturn

from infid_engines.errors import BackendUnavailableError, InfidError, InputError
from infid_export import __version__
from infid_export.cli.flags import add_common

if TYPE_CHECKING:
    from infid_export.cli.output import Output

COMMANDS = {
    "import": "convert identity weights of IP-Adapter and its relatives",
    "build": "build an engine folder from a model, and check its parity",
    "generate": "generate images of a person",
    "template": "run the text stream of a prompt once, for any number of people",
    "enroll": "turn photos of a person into a person file",
    "serve": "serve an engine folder over HTTP, with OpenAI's images API and a page",
    "bench": "measure the speed of an engine folder, beside other software",
    "evaluate": "score how well images match the person and the prompt",
    "prepare": "turn a folder of people's photos into shards for training",
    "train": "train identity modules on prepared shards",
    "verify": "check an engine folder's hashes and run its parity check again",
    "inspect": "show the contents of an engine folder or an ONNX file",
    "tune": "measure the kernels' tile sizes on this GPU and write the fastest to a file",
    "train-demo": "train a demo model on drawn people only",
    "doctor": "check this machine and its libraries",
    "compile-kernels": "compile the fused kernels ahead of time, without a GPU",
}
# Modules of the extra `export`. A server that only runs engines does not need them.
_EXPORT = ("accelerate", "diffusers", "onnx", "onnx_ir", "onnxscript", "open_clip", "torch", "transformers", "triton")
# Errors of the machine rather than bugs: no space, no permission, a name that is too long.
_MACHINE = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.EMFILE)

# Cache folders of libraries. The first is the home directory, which contains the others by default.
_CACHES = ("HOME", "XDG_CACHE_HOME", "HF_HOME", "TRITON_CACHE_DIR")


class ExitCode(IntEnum):
    """The exit codes of the command."""

    DONE = 0
    PROBLEM = 1  # the user's input, the machine, or a failed parity check
    FAULT = 2  # a bug
    INTERRUPTED = 130


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message[:1].upper()}{message[1:]}.", fix=f"See `{self.prog} --help`.")


def make_parser(command: str | None = None) -> argparse.ArgumentParser:
    """Return the argument parser, with the arguments of the named command only.

    Args:
        command: the command that is being called.
    """
    parser = _Parser(
        prog="infid-export",
        description="Identity-preserving SDXL from PyTorch to engines, with proof that the image is the same.",
        epilog="Exit codes: 0 done, 1 your input, the machine or a failed parity check, 2 our bug, 130 interrupted.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"infid-export {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, summary in COMMANDS.items():
        description = f"{summary[0].upper()}{summary[1:]}."
        child = commands.add_parser(
            name, help=summary, description=description, allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        if name == command:
            module = _module(name)
            module.add_arguments(child)
            add_common(child)
            child.epilog = "\n".join(("examples:", *(f"  {example}" for example in module.EXAMPLES)))
    return parser


def run(arguments: Sequence[str]) -> int:
    """Run the command line.

    Args:
        arguments: without the program's name.

    Returns:
        The exit code.
    """
    try:
        code = _dispatch(arguments)
        sys.stdout.flush()
        return code
    except OSError as error:
        if not isinstance(error, BrokenPipeError) and error.errno not in _MACHINE:
            raise
        # stdout is closed; keep Python from complaining when it flushes at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            sys.stderr.write(f"error: stdout: {error.strerror}.\n")
        return ExitCode.PROBLEM


def _dispatch(arguments: Sequence[str]) -> int:
    words = list(arguments)[: arguments.index("--")] if "--" in arguments else list(arguments)
    command = next((word for word in words if not word.startswith("-")), None)
    options: argparse.Namespace | InfidError
    try:
        options = _parse(command, arguments)
    except SystemExit as finished:  # --help and --version
        return int(finished.code or 0)
    except InfidError as error:
        options = error
    from infid_export.cli.output import Output  # after parsing: help does not need it

    output = Output("--json" in words, "--quiet" in words)
    if isinstance(options, InfidError):
        output.problem(options)
        return ExitCode.PROBLEM
    return _guarded(options, output)


def _guarded(options: argparse.Namespace, output: Output) -> int:
    """Run a command, and turn its exceptions into a message and an exit code."""
    try:
        # libraries may print anything; stdout is only for our data
        with redirect_stdout(sys.stderr):
            return int(_module(options.command).run(options, output))
    except InfidError as error:
        output.problem(error)
        return ExitCode.PROBLEM
    except KeyboardInterrupt:
        output.problem(_Interrupted(options.command))
        return ExitCode.INTERRUPTED
    except BrokenPipeError:
        raise
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] in _EXPORT:
            problem = f"`infid-export {options.command}` needs {error.name}, which is not installed."
            output.problem(BackendUnavailableError(problem, fix='pip install "infid-export[export]"'))
            return ExitCode.PROBLEM
        if _in_a_cache(error):
            output.problem(
                InputError(
                    f"A cache cannot be written: {error}.",
                    fix=f"Set {', '.join(_CACHES[:-1])} or {_CACHES[-1]} to a writable folder.",
                )
            )
            return ExitCode.PROBLEM
        if isinstance(error, OSError) and error.errno in _MACHINE:
            where = f"{error.filename}: " if error.filename else ""
            output.problem(
                InputError(
                    f"{where}{error.strerror}.",
                    fix="Free space or grant permission, and run again.",
                )
            )
            return ExitCode.PROBLEM
        if isinstance(error, MemoryError):
            output.problem(InputError("Out of memory.", fix="Close other programs, or use a smaller batch or size."))
            return ExitCode.PROBLEM
        import traceback

        output.fault(error, "".join(traceback.format_exception(error)))
        return ExitCode.FAULT


def _in_a_cache(error: Exception) -> bool:
    """Whether a library failed because the home or a cache folder is missing or not writable."""
    if isinstance(error, RuntimeError):
        return str(error) == "Could not determine home directory."  # pathlib's message
    if not isinstance(error, OSError) or not isinstance(error.filename, str):
        return False
    file = os.path.abspath(error.filename)
    folders = [os.path.abspath(folder) for name in _CACHES if (folder := os.environ.get(name))]
    closed = [folder for folder in folders if not (os.path.isdir(folder) and os.access(folder, os.W_OK))]
    # the error names a missing parent: /nowhere for HOME=/nowhere/me
    return any(os.path.commonpath((file, folder)) in (file, folder) for folder in closed)


def _module(command: str) -> Any:
    """Return a command's module: `compile-kernels` is `compile_kernels`, and `import`, a word of Python, `import_`."""
    name = command.replace("-", "_")
    return import_module(f"infid_export.cli.{name}_" if iskeyword(name) else f"infid_export.cli.{name}")


def _parse(command: str | None, arguments: Sequence[str]) -> argparse.Namespace:
    """Read the arguments.

    Raises:
        InputError: a command, flag or value is unknown; the message suggests the closest known one.
    """
    if command is not None and command not in COMMANDS:
        known = f"Choose from {', '.join(COMMANDS)}."
        raise InputError(f"There is no command '{command}'.", fix=_nearest(command, COMMANDS) or known)
    parser = make_parser(command)
    options, unknown = parser.parse_known_args(arguments)
    flag = next((word for word in unknown if word.startswith("-")), None)
    if flag in ("--json", "--quiet"):  # every command knows these, so it stood before the command
        raise InputError(f"{flag} has to follow the command.", fix=f"Write `infid-export {command} {flag}`.")
    if flag is not None:
        import re

        flags = re.findall(r"--[a-z0-9-]+", _help_of(parser, str(command)))
        see = f"See `infid-export {command} --help`."
        raise InputError(f"{command} has no flag {flag}.", fix=f"{_nearest(flag.split('=')[0], flags)} {see}".strip())
    if unknown:
        raise InputError(f"{command} does not take '{unknown[0]}'.", fix=f"See `infid-export {command} --help`.")
    return options


def _help_of(parser: argparse.ArgumentParser, command: str) -> str:
    """Return a command's help as text."""
    import io

    text = io.StringIO()
    with redirect_stdout(text):
        try:
            parser.parse_args([command, "--help"])
        except SystemExit:
            return text.getvalue()
    raise RuntimeError("the parser printed no help")


def _nearest(word: str, known: Sequence[str] | dict[str, str]) -> str:
    import difflib

    close = difflib.get_close_matches(word, list(known), n=1)
    return f"Did you mean `{close[0]}`?" if close else ""


class _Interrupted(InfidError):
    """The user pressed Ctrl-C."""

    def __init__(self, command: str) -> None:
        kept = {
            "build": "Finished artifacts are kept; the same command resumes.",
            "train": "The cache and the last checkpoint, if there is one yet, are kept; the same command resumes.",
        }.get(command)
        super().__init__("Interrupted.", fix=kept or "No partial files were left; run the same command again.")


def entry_point() -> NoReturn:
    """Run as the installed command."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without UTF-8 shows ? instead of failing
    sys.exit(run(sys.argv[1:]))
