"""The scripts run as `python benchmarks/….py`, and their folder on the import path shadows no package."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.machinery import PathFinder
from pathlib import Path

import pytest

import benchmarks

FOLDER = Path(benchmarks.__file__).parent
SCRIPTS = (
    "kernels/static_configurations.py", "quality/ablation_scores.py", "quality/backend_scores.py",
    "quality/saver_scores.py", "rebuild_speed.py",
    "reliability.py", "serving", "template_speed.py", "world_speed.py",
)  # fmt: skip


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_runs_from_its_file(name: str, tmp_path: Path) -> None:
    """It runs from any folder, with the repository's root on the import path."""
    paths = os.pathsep.join(str(Path(entry or ".").resolve()) for entry in sys.path)
    command = [sys.executable, str(FOLDER / name), "--help"]
    ran = subprocess.run(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True,
                         check=False)  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith(f"usage: {Path(name).name} ")


def test_the_folder_of_the_scripts_hides_no_package(tmp_path: Path) -> None:
    """`gpu_suite.py` has its folder first on the import path, and transformers looks for a package named kernels."""
    package = tmp_path / "kernels" / "__init__.py"
    package.parent.mkdir()
    package.touch()
    found = PathFinder.find_spec("kernels", [str(FOLDER), str(FOLDER.parent), str(tmp_path)])
    assert found is not None
    assert found.origin == str(package)
