"""The kernels' items on a machine without a GPU: in Triton's interpreter, with made-up times."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from suite_parts import MERGED, MIXED, FakeBench
from torch import Tensor

from benchmarks.kernels import baselines, speeds
from benchmarks.kernels.baselines import BASELINES, Baseline
from benchmarks.kernels.speeds import AGAIN, ALONE, OURS
from benchmarks.suite.bench import Bench
from infid_kernels.measure import Call, Inputs, relative_rms
from infid_kernels.sass import MachineCode
from infid_kernels.tuning import Configuration, Library


def dense_with_lse(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    logits = q.double() @ k.double().transpose(-1, -2) * scale
    return (logits.softmax(-1) @ v.double()).to(q.dtype), logits.logsumexp(-1).float()


def two_dense(inputs: Inputs) -> Tensor:
    return baselines.merged(dense_with_lse, inputs)


@pytest.mark.parametrize(
    ("function", "call"),
    [(baselines.concat, MIXED), (baselines.flex, MIXED), (two_dense, MIXED), (baselines.pair, MERGED)],
    ids=["concat", "flex", "two by log-sum-exp", "pair"],
)
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_the_baselines_compute_the_same(function: baselines.Function, call: Call) -> None:
    inputs = call.inputs(torch.float16, torch.Generator().manual_seed(2))
    assert relative_rms(function(inputs), call.reference(inputs)) <= 1e-3


@pytest.mark.parametrize(
    ("name", "library", "shape"),
    [
        ("_scaled_dot_product_cudnn_attention", "cudnn", (2, 2, 40, 1)),
        ("_scaled_dot_product_flash_attention", "flash", (2, 2, 40)),
    ],
    ids=["cuDNN", "flash"],
)
def test_the_log_sum_exp_is_taken_as_each_library_returns_it(
    name: str, library: str, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def stand_in(q: Tensor, k: Tensor, v: Tensor, *rest: object, scale: float) -> tuple[Tensor, ...]:
        asked.append(rest)
        out, lse = dense_with_lse(q, k, v, scale)
        return out, lse.reshape(shape), torch.empty(0)

    monkeypatch.setattr(torch.ops.aten, name, stand_in)
    inputs = MIXED.inputs(torch.float16, torch.Generator().manual_seed(2))
    expected = MIXED.reference(inputs)
    assert relative_rms(baselines.two_by(Library(library), inputs), expected) <= 1e-3
    assert relative_rms(getattr(baselines, f"two_{library}")(inputs), expected) <= 1e-3
    assert asked == [(None, True)] * 4 if library == "cudnn" else [()] * 4  # no bias; with the log-sum-exp


def test_every_baseline_of_the_issue_is_there() -> None:
    eager = [each.name for each in baselines.of(MIXED.op, compiled=False) if each.complete]
    assert eager[0] == "two cuDNN by log-sum-exp"
    assert {"two flash by log-sum-exp", "concat + shift + flash", "concat + shift + cuDNN"} < set(eager)
    compiled = [each.name for each in baselines.of(MIXED.op, compiled=True)]
    assert any("FlexAttention" in name for name in compiled)
    assert all(name.endswith("compiled") for name in compiled)
    assert baselines.of(MERGED.op, compiled=False)[0].name == "two attentions, eager"


def baseline(name: str, factor: float = 1.0, complete: bool = True, compiled: bool = False) -> Baseline:
    def scaled(inputs: Inputs) -> Tensor:
        return baselines.concat(inputs) * factor

    return Baseline(name, MIXED.op, lambda inputs, compiler: partial(scaled, inputs), complete, compiled)


def test_baselines_that_cannot_run_or_are_wrong_are_kept(bench: FakeBench, monkeypatch: pytest.MonkeyPatch) -> None:
    flash = next(each for each in BASELINES if each.name == "two flash by log-sum-exp")
    chosen = (baseline("wrong", 1.1), baseline("right"), baseline("part", complete=False), flash)
    monkeypatch.setattr(baselines, "BASELINES", chosen)
    bench.ceilings = {"flops_per_second": 1e12, "bytes_per_second": 1e12}
    result = speeds.speed("mixed-4096", "float16", bench)
    found = result["contenders"]
    assert list(found) == [OURS, ALONE, *(each.name for each in chosen), AGAIN]
    assert not found["wrong"]["right"]
    assert "flash" in found["two flash by log-sum-exp"]["error"]
    assert (found[OURS]["median"], found["right"]["median"]) == (1.0, 4.0)
    assert (result["best_baseline"], result["times_faster"]) == ("right", 4.0)
    assert found[OURS]["of_matrix_ceiling"] == pytest.approx(result["flops"] / 1e-3 / 1e12)
    assert found[OURS]["of_bytes_floor"] == pytest.approx(result["bytes"] / 1e12 / 1e-3)
    assert "makes no machine code" in result["resources"]["unavailable"]


def test_compiled_baselines_are_kept_one_by_one(bench: FakeBench, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = (baseline("eager"), baseline("slow", compiled=True), baseline("wrong", 2.0, compiled=True))
    monkeypatch.setattr(baselines, "BASELINES", chosen)
    kept: list[int] = []
    bench.keep = lambda result: kept.append(len(result["calls"]["mixed-4096"]["contenders"]))
    result = speeds.measure_compiled(bench, MIXED.op)
    assert kept == [1, 2]
    assert list(result["calls"]) == ["mixed-4096"]
    assert result["calls"]["mixed-4096"]["best_baseline"] == "slow"


def test_a_compiled_baseline_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = next(each for each in baselines.of(MERGED.op, compiled=True))
    inputs = MERGED.inputs(torch.float16, torch.Generator().manual_seed(2))
    found = pair.prepare(inputs, "aot_eager")()
    assert relative_rms(found, MERGED.reference(inputs)) <= 1e-3


def test_the_mean_shift_is_right_both_ways(bench: FakeBench) -> None:
    result = speeds.mean_shift("mixed-4096", bench)
    assert max(result["relative_rms"].values()) <= 2e-3  # the keys it averages are rounded to fp16
    assert result["ways"]["over keys and values"]["warm"]["samples"] == 50
    assert set(result["ways"]) == set(result["relative_rms"]) == set(result["bytes"])


def test_ceilings_count_a_copy_as_read_and_written(bench: FakeBench) -> None:
    result = speeds.ceilings(bench)
    assert result["flops_per_second"] == pytest.approx(2 * 64**3 / 1e-3)
    assert result["bytes_per_second"] == pytest.approx(2 * 1024 / 2e-3)
    assert bench.ceilings == {name: result[name] for name in ("flops_per_second", "bytes_per_second")}


@pytest.mark.parametrize(("architecture", "at_once"), [("sm_90", 3), ("sm_89", None)])
def test_tiles_at_once_are_reported_of_hopper_alone(
    monkeypatch: pytest.MonkeyPatch, bench: FakeBench, architecture: str, at_once: int | None
) -> None:
    compiled = SimpleNamespace(asm={"cubin": b""}, metadata=SimpleNamespace(shared=74752))
    asked = []
    monkeypatch.setattr(Bench, "on_gpu", True)
    monkeypatch.setattr(Bench, "architecture", architecture)
    monkeypatch.setattr(speeds, "compile_code", lambda *given: asked.append(given) or compiled)
    monkeypatch.setattr(speeds, "read_machine_code", lambda cubin: MachineCode(147, 0, {}))
    form = Configuration(64, 128, 4, 2)
    used = speeds.resources(MIXED, form, True, "bfloat16", bench)
    assert asked == [("mixed_attention", architecture, 64, form, "bfloat16", True)]
    assert (used["registers"], used["shared_bytes"], used.get("tiles_at_once")) == (147, 74752, at_once)


def test_a_library_has_no_resources_of_ours(monkeypatch: pytest.MonkeyPatch, bench: FakeBench) -> None:
    monkeypatch.setattr(Bench, "on_gpu", True)
    assert "cudnn is a library" in speeds.resources(MIXED, Library("cudnn"), True, "float16", bench)["unavailable"]


def test_times_stand_without_resources(monkeypatch: pytest.MonkeyPatch, bench: FakeBench) -> None:
    def broken(*given: Any) -> None:
        raise OSError("no cuobjdump")

    monkeypatch.setattr(Bench, "on_gpu", True)
    monkeypatch.setattr(Bench, "architecture", "sm_90")
    monkeypatch.setattr(speeds, "compile_code", broken)
    used = speeds.resources(MIXED, Configuration(64, 128, 4, 2), True, "float16", bench)
    assert used == {"error": "OSError: no cuobjdump"}
