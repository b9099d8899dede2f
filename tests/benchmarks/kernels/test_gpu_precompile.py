"""Kernels compiled in advance: without a GPU, into Triton's own cache, under the key of the launch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from suite_parts import FakeBench

from benchmarks.kernels import checks, precompile
from benchmarks.suite.bench import SDXL, Bench
from infid_kernels.autotune import LEVELS
from infid_kernels.measure import SDXL_CALLS
from infid_kernels.tuning import candidates, choices, choose

H100: Any = SimpleNamespace(type="cuda")


@pytest.fixture
def hopper(bench: FakeBench, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """A bench that passes for one on an H100."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    bench.device, bench.workload = H100, SDXL
    return bench


def test_everything_that_is_launched_is_compiled(hopper: Bench) -> None:
    jobs = precompile.jobs(hopper, 1)
    keys = {precompile._specialization(job) for job in jobs}
    assert len(keys) == len(jobs)

    def compiled(*given: Any) -> bool:
        return precompile._specialization(precompile._job(*given, "float16")) in keys

    for each in checks.checks(SDXL).values():
        call = each.call
        assert compiled(call, *choose(call.op, H100, call.d, call.queries, call.lengths))
    for call in SDXL_CALLS.values():
        assert compiled(replace(call, rows=1), *choose(call.op, H100, call.d, call.queries, call.lengths))
    for choice in choices("mixed_attention", "sm_90", 64):
        assert compiled(LEVELS[0].call, choice, True)
        assert compiled(LEVELS[2].call, choice, False) != getattr(choice, "gluon", False)  # it has full blocks only
    assert not compiled(replace(SDXL_CALLS["mixed-4096"], heads=1), candidates("mixed_attention", "sm_90")[0], True)
    bundles = {(job["bundle"], job["call"]["queries"]) for job in jobs if "bundle" in job}
    assert {op for op, _ in bundles} == {"mean_shift", "value_shift", "mixed_attention", "merged_cross_attention"}


def test_the_second_command_compiles_bf16_and_what_is_sanitized(hopper: Bench) -> None:
    kinds = [job["dtype"] for job in precompile.jobs(hopper, 2)]
    assert set(kinds) == {"bfloat16", "float16"}


def test_the_interpreter_compiles_nothing(bench: FakeBench) -> None:
    assert precompile.compiled(1, bench) == {"unavailable": "Triton's interpreter compiles nothing"}


# Compiles two jobs, then launches one of them as the suite does, in a process whose launches stop before the GPU.
PROGRAM = """
import json
import torch, triton
from benchmarks.kernels import precompile
from benchmarks.suite.bench import DEMO, Bench
from infid_kernels import mixed_attention
from infid_kernels.tuning import Configuration
from infid_kernels.measure import Call

if __name__ == "__main__":
    kept = []
    bench = Bench(torch.device("cpu"), DEMO, False, lambda: 100.0, 1, keep=kept.append)
    call, broken = Call("mixed_attention", 2, 2, 64, 64, 64), Call("mixed_attention", 2, 2, 64, 64, 64, 48)
    jobs = [precompile._job(each, Configuration(64, 64, 4, 2), True, "float16") for each in (call, broken)]
    jobs[1]["configuration"]["num_warps"] = 3
    found = precompile.compile_all(bench, jobs, "sm_90", [9, 0])
    again = precompile.compile_all(bench, jobs[:1], "sm_90", [9, 0])
    assert kept[-2]["failed"] == found["failed"]
    print(json.dumps([found, again]))
"""


def test_jobs_are_compiled_once(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    paths = os.pathsep.join(str(Path(entry or ".").resolve()) for entry in sys.path)
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": paths, "TRITON_CACHE_DIR": str(tmp_path / "cache")}
    ran = subprocess.run([sys.executable, program], env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    found, again = json.loads(ran.stdout)
    assert (found["jobs"], found["compiled"], found["in_cache"]) == (2, 3, 0)  # the mean shift counts twice
    (failure,) = found["failed"]
    assert "num_warps" in failure
    assert (again["compiled"], again["in_cache"], again["failed"]) == (0, 2, [])
