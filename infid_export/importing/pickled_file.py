"""Reads weights that were saved by torch.save (`.bin`, `.pt`, `.ckpt`) in a child process, and never in this one.

A pickle is a program. The child runs torch's restricted unpickler with a limit on its memory, and writes what it found
as safetensors, which the rest of the import reads.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from infid_engines.atomic_files import full_disk_explained, partial_of
from infid_engines.errors import InputError
from infid_export.importing.unpickling import WRITE

_AGAIN = "Download it again from where it was published."
# Isolated, so that nothing is imported from the current folder, where downloads often are.
_PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from infid_export.importing.unpickling import main; main(*sys.argv[2:])"
)


class PickledFile:
    """A pickled file that a child process has read; see `opened`."""

    def __init__(self, path: Path, target: Path, process: subprocess.Popen[str]) -> None:
        self._path, self._target, self._process = path, target, process
        self.layout: Mapping[str, tuple[str, tuple[int, ...]]] = {
            name: (dtype, tuple(shape)) for name, (dtype, shape) in self._answer()["tensors"].items()
        }

    def converted(self) -> Path:
        """Let the child write the tensors, and return the path of the safetensors file.

        Raises:
            InputError: there is not enough memory.
            DiskFullError: the disk is full.
        """
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # the answer says why
            self._process.stdin.write(f"{WRITE}\n")
            self._process.stdin.flush()
        self._answer()
        return self._target

    def _answer(self) -> Mapping[str, Any]:
        """Return the child's next answer.

        Raises:
            InputError: the file was rejected, or the child was killed.
            DiskFullError: the disk is full.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            if code >= 0:
                raise RuntimeError(f"the process that reads {self._path} ended with code {code}")
            kind = "killed" if -code == signal.SIGKILL else "crashed"  # the kernel kills for memory with SIGKILL
            raise _problem(self._path, kind, signal.Signals(-code).name)
        answer: dict[str, Any] = json.loads(line)
        if "problem" in answer:
            if answer["problem"] == "full":
                with full_disk_explained(self._target):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            raise _problem(self._path, answer["problem"], answer["detail"])
        return answer


@contextmanager
def opened(path: Path, output: Path) -> Iterator[PickledFile]:
    """Read a pickled file in a child process.

    Args:
        path: the file.
        output: the file that is made from it; the safetensors file is written next to it, and removed at the end.

    Raises:
        InputError: the file contains code, is damaged, or has something else than named tensors; or there is not enough
            memory.
    """
    target = partial_of(output.with_name(f"{output.name}.read"))
    paths = json.dumps([entry for entry in sys.path if entry])
    command = [sys.executable, "-I", "-c", _PROGRAM, paths, str(path), str(target)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
        ) as process,
    ):
        try:
            yield PickledFile(path, target, process)
        except BaseException:
            process.kill()
            process.wait()
            assert process.stdin is not None
            with suppress(BrokenPipeError):  # what the child did not read anymore
                process.stdin.close()
            raise
        finally:
            target.unlink(missing_ok=True)


def _problem(path: Path, kind: str, detail: str) -> InputError:
    sentences = {
        "code": (
            f"{path} contains code that runs when it is loaded ({detail}); nothing of it was run.",
            "Use weights from a source that you trust, as .safetensors or as a pickle of tensors only.",
        ),
        "memory": (
            f"{path} needs more memory to be read than a file of its size should ({detail}).",
            f"Free memory, or {_AGAIN[0].lower()}{_AGAIN[1:]}",
        ),
        "killed": (
            f"The process that reads {path} was killed ({detail}); the system probably ran out of memory.",
            "Free memory and run the same command again.",
        ),
        "crashed": (f"{path} is damaged: the process that reads it crashed ({detail}).", _AGAIN),
        "content": (f"{path} contains {detail}.", "Give a file with the weights of an adapter alone."),
        "damaged": (f"{path} is truncated or damaged, or was not written by torch.save ({detail}).", _AGAIN),
    }
    problem, fix = sentences[kind]
    return InputError(problem, fix=fix)
