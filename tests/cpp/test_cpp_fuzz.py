"""Ten seconds of libFuzzer for each parser, where clang is installed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from cpp_library import LIBRARY, built
from shared_folder import shared

TARGETS = sorted(path.stem for path in (LIBRARY / "fuzz").glob("fuzz_*.cpp"))
SECONDS = 10


@pytest.fixture(scope="module")
def fuzzers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("clang++") is None:
        pytest.skip("clang++ is missing: apt-get install clang libclang-rt-14-dev")
    compilers = "-DCMAKE_C_COMPILER=clang", "-DCMAKE_CXX_COMPILER=clang++"
    options = "-DINFID_FUZZ=ON", "-DINFID_TESTS=OFF", "-DINFID_PROGRAM=OFF"
    return built(shared(tmp_path_factory, "cpp_fuzz"), *compilers, *options)


@pytest.mark.parametrize("target", TARGETS)
def test_no_input_breaks_it(fuzzers: Path, target: str, tmp_path: Path) -> None:
    seeds = LIBRARY / "fuzz/corpus" / target.removeprefix("fuzz_")
    assert list(seeds.iterdir())
    (tmp_path / "found").mkdir()
    limits = f"-max_total_time={SECONDS}", f"-artifact_prefix={tmp_path}/", "-rss_limit_mb=2048"
    command = [fuzzers / "fuzz" / target, *limits, tmp_path / "found", seeds]
    run = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-4000:]
    assert "Done" in run.stderr
