"""The measurement of a folder of one stream."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_engines import write_folder

from infid_engines.errors import InputError
from infid_engines.progress import SilentReporter
from infid_export.bench.folder import BenchOptions, bench
from infid_export.bench.report import html


def test_a_single_stream_is_measured(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "engines", streams="one")
    found = bench(BenchOptions(folder, rounds=2, image_rounds=1, steps=4), SilentReporter())
    assert set(found["images"]) == {"single"}
    assert {"single_step"} == {name for name in found["graphs"] if name.endswith("_step")}
    assert [value for value, _ in found["scaling"]["steps"]["single"]] == [1, 2, 4]
    assert found["folder"]["streams"] == "one"
    assert found["host_ms_per_step"] > 0
    assert set(found["ratios"].values()) == {None}
    page = html(found)
    assert "single_step" in page
    assert "The price of an identity" not in page


def test_a_folder_of_two_streams_is_no_neighbor(tmp_path: Path) -> None:
    single = write_folder(tmp_path / "single", streams="one", batch=4)
    options = BenchOptions(write_folder(tmp_path / "joint"), steps=1, beside=(single,))
    with pytest.raises(InputError, match="must differ from"):
        bench(options, SilentReporter())
