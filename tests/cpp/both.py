"""Calls that succeed or fail with the same sentences in Python and in C++."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from typing import Any

from infid_engines.errors import InfidError

Sentences = tuple[str, str]


def python_sentences(call: Callable[[], object]) -> Sentences | None:
    """Return the problem and the fix of an error; None if there is none."""
    try:
        call()
    except InfidError as error:
        return error.problem, error.fix
    return None


def cpp_sentences(run: subprocess.CompletedProcess[str]) -> Sentences | None:
    """Return the problem and the fix that a probe printed; None if there is none."""
    if run.returncode == 0:
        return None
    assert run.returncode == 1, run.stderr
    problem, fix = run.stderr.split("\n")[:2]
    return problem, fix


def printed(run: subprocess.CompletedProcess[str]) -> Any:
    """Return the JSON that a probe printed."""
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)
