"""The errors of infid-export: one base class, and messages that say what to do.

Every message says what was expected, what was found, and how to fix it. The command line prints it without a traceback
and exits with code 1. Any other exception is a bug (exit code 2).
"""

from __future__ import annotations


class InfidError(Exception):
    """A problem that the user can fix.

    Args:
        problem: what was expected and what was found, in one sentence.
        fix: what to do, as one sentence or command.
    """

    def __init__(self, problem: str, *, fix: str) -> None:
        super().__init__(f"{problem} {fix}")
        self.problem = problem
        self.fix = fix


class InputError(InfidError):
    """An argument, photo, prompt, weights file or configuration cannot be used."""


class DiskFullError(InputError):
    """The disk is full; no partial files were left."""


class BusyError(InputError):
    """Another process or thread holds what is needed."""


class BackendUnavailableError(InfidError):
    """A backend's library, device or target is missing on this machine."""


class EngineFolderError(InfidError):
    """An engine folder is missing, incomplete, stale or damaged."""


class NonFiniteError(EngineFolderError):
    """Engines returned infinite values or NaN, for these inputs at least."""


class BuildError(InfidError):
    """An export or an engine build did not finish."""


class ParityError(InfidError):
    """A graph's outputs differ from the reference by more than the tolerance."""


class TrainingError(InfidError):
    """A training run cannot continue."""


class CancelledError(InfidError):
    """The caller asked for the work to stop."""
