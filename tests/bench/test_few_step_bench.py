"""The measurement of folders of few-step models."""

from __future__ import annotations

import warnings
from pathlib import Path

from tiny_engines import FEW_STEPS, write_folder

from infid_engines.progress import SilentReporter
from infid_export.bench.folder import BenchOptions, bench
from infid_export.sampling.noise_schedule import SDXL_SCHEDULER


def test_fixed_timesteps_are_measured_at_their_own_number_of_steps(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "engines", **FEW_STEPS)
    found = bench(BenchOptions(folder, rounds=2, image_rounds=1), SilentReporter())
    assert found["steps"] == 4
    assert [value for value, _ in found["scaling"]["steps"]["joint"]] == [4]


def test_fewer_steps_than_the_presets_give_no_warning(tmp_path: Path) -> None:
    facts = {**FEW_STEPS, "scheduler": dict(SDXL_SCHEDULER)}
    folder = write_folder(tmp_path / "engines", **facts)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = bench(BenchOptions(folder, rounds=2, image_rounds=1), SilentReporter())
    assert [value for value, _ in found["scaling"]["steps"]["joint"]] == [1, 2, 4]
