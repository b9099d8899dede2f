"""Runs tests on mutated kernels, each in a fork of a process that has already imported everything else.

A line of JSON on stdin names a folder with the mutated package, a test file and a test expression; a line on stdout
gives the exit code and the output.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile

import numpy
import pytest
import torch
import triton
import triton.language

LOADED = (numpy, torch, triton, triton.language)  # imports that forks share; the kernels are not among them


def run(folder: str, tests: str, expression: str) -> tuple[int, str]:
    """Return pytest's exit code and output."""
    with tempfile.TemporaryFile("w+") as output:
        child = os.fork()
        if child == 0:
            for descriptor in (1, 2):
                os.dup2(output.fileno(), descriptor)
            sys.path.insert(0, folder)
            options = ["-x", "-q", "-p", "no:cacheprovider", "--confcutdir", os.path.dirname(tests)]
            code = pytest.main([*options, tests, "-k", expression])
            sys.stdout.flush()
            os._exit(code)
        _, status = os.waitpid(child, 0)
        output.seek(0)
        return os.waitstatus_to_exitcode(status), output.read()


if __name__ == "__main__":
    for line in sys.stdin:
        sys.stdout.write(json.dumps(run(**json.loads(line))) + "\n")
        sys.stdout.flush()
