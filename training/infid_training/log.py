"""A run's logs: `log.jsonl`, and TensorBoard files where TensorBoard is installed."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from infid_engines.atomic_files import full_disk_explained, whole_file

LOG, BOARD = "log.jsonl", "tensorboard"


class RunLog:
    """One line of JSON per record, each with its `step`.

    Args:
        folder: the run's folder.
        step: the step that the run resumes from; records that a stopped run wrote after it are removed.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self._path = folder / LOG
        kept = [line for line in _lines(self._path) if _step(line) <= step]
        with whole_file(self._path) as partial:
            partial.write_text("".join(f"{line}\n" for line in kept))
        self._board = _board(folder / BOARD, step)

    @property
    def has_board(self) -> bool:
        """Whether TensorBoard is installed."""
        return self._board is not None

    def write(self, step: int, **values: float) -> None:
        """Add a record.

        Args:
            step: steps made so far.
            values: what was measured; values that are not finite are written as null, since JSON cannot hold them.
        """
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        with full_disk_explained(self._path), self._path.open("a") as file:
            file.write(json.dumps({"step": step, **finite}) + "\n")
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)

    def last(self, name: str) -> float | None:
        """Return the value last written under a name; None if there is none."""
        found = [record[name] for record in map(json.loads, _lines(self._path)) if name in record]
        return found[-1] if found else None

    def flush(self) -> None:
        """Flush what was written to disk."""
        with self._path.open("a") as file:
            os.fsync(file.fileno())
        if self._board is not None:
            self._board.flush()

    def close(self) -> None:
        """Finish."""
        self.flush()
        if self._board is not None:
            self._board.close()


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.is_file() else []


def _step(line: str) -> float:
    """Return a line's step; a truncated line counts as later than all others."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")


def _board(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=step + 1)
