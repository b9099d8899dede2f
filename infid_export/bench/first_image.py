"""How long a new process takes from its start to its first image: imports, hashes, loading, and the image."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from infid_export.bench import PROMPT, SEED
from infid_export.bench.stand_in import stand_in
from infid_export.runtime.pipeline import Pipeline

_MADE = "made"


def first_image_seconds(folder: Path, backend: str, device: str, threads: int | None, steps: int) -> float:
    """Start a process that makes a batch of images of a person, and return the seconds until they are made.

    Args:
        folder: the engine folder.
        backend: as in `Pipeline.load`.
        device: likewise.
        threads: likewise.
        steps: steps per image.
    """
    job = json.dumps([str(folder), backend, device, threads, steps])
    started = time.perf_counter()
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            [sys.executable, "-m", "infid_export.bench.first_image", job], stdout=subprocess.PIPE, stderr=errors,
            text=True,
        ) as process,
    ):  # fmt: skip
        assert process.stdout is not None
        try:
            made = process.stdout.readline().strip() == _MADE
            seconds = time.perf_counter() - started
        except BaseException:
            process.kill()
            raise
        process.wait()
        errors.seek(0)
        if not made:
            raise RuntimeError(f"the process that makes the first image failed:\n{errors.read()}")
    return seconds


def _main(text: str) -> None:
    folder, backend, device, threads, steps = json.loads(text)
    with Pipeline.load(Path(folder), backend=backend, device=device, threads=threads) as pipe:
        pipe.generate([PROMPT] * pipe.manifest.batch, stand_in(pipe), seed=SEED, steps=steps)
        sys.stdout.write(f"{_MADE}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _main(sys.argv[1])
