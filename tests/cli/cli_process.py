"""The command in a separate process, and hand-made parts of engine folders."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from infid_engines.documents import sealed

Cli = Callable[..., tuple[int, str, str]]
PROGRAM = "from infid_export.cli.main import entry_point; entry_point()"


def environment(**changes: str) -> dict[str, str]:
    """The environment in which a command finds this checkout from any folder."""
    paths = [str(Path(entry or ".").resolve()) for entry in sys.path]
    plain = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    return {**plain, "PYTHONPATH": os.pathsep.join(paths), **changes}


def infid_export(*arguments: str, program: str = PROGRAM, **changes: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a separate process."""
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment(**changes), check=False)


def write_parity(folder: Path, rms_error: float) -> None:
    row = {
        "graph": "vae_decoder", "output": "image", "dtype": "float32", "max_error": 1e-3, "rms_error": rms_error,
        "cosine": 1e-7, "max_tolerance": 1e-1, "rms_tolerance": 1e-2, "passed": rms_error <= 1e-2, "key": "",
        "size": [64, 64], "precision": "fp32",
    }  # fmt: skip
    image = {"psnr_db": 68.7, "threshold_db": 40.0, "steps": 30, "passed": True, "key": "", "precision": "fp32"}
    (folder / "parity.json").write_text(
        json.dumps(sealed({"rows": [row], "image": image, "version": 1, "passed": True}))
    )
