"""The suite on a machine without a GPU: kernels in Triton's interpreter, tiny calls, times that are made up."""

from __future__ import annotations

import ctypes
import json
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import gpu_bundles
import gpu_items
import gpu_rivals
import gpu_suite
from gpu_items import AGAIN, OURS, Bench, Item
from gpu_rivals import RIVALS, Rival
from gpu_suite import Suite
from infid_engines import kernel_launch
from infid_engines.errors import BackendUnavailableError
from infid_engines.kernel_bundle import KernelBundle
from infid_engines.kernel_launch import Kernel
from infid_kernels import measure
from infid_kernels.autotune import LEVELS, Trial, Tuned, select
from infid_kernels.compile import CompiledKernel
from infid_kernels.mean_shift import SPLITS, launch_mean_shift
from infid_kernels.measure import Call, Inputs, Timing, relative_rms
from infid_kernels.tuning import Configuration

MIXED, MERGED = Call("mixed_attention", 2, 2, 40, 50, 30), Call("merged_cross_attention", 2, 2, 40, 50, 7)
TINY = {"mixed-4096": MIXED, "merged-4096": MERGED}


class FakeBench(Bench):
    """Runs every call once and says that it took a millisecond, and the next one a millisecond longer."""

    timed = 0

    def time(self, calls: Sequence[Callable[[], object]]) -> Timing:
        for call in calls:
            call()
        self.timed += 1
        return Timing(float(self.timed), self.timed - 0.1, self.timed + 0.1, 50)

    def sets(self, bytes_per_set: int) -> range:
        return range(2)


@pytest.fixture
def bench() -> FakeBench:
    return FakeBench(torch.device("cpu"), False, lambda: 100.0, 1)


@pytest.fixture
def suite(bench: FakeBench, tmp_path: Path) -> Suite:
    return Suite(bench, tmp_path / "result.json", {"schema_version": 1}, quiet=True)


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_items, "SDXL_CALLS", TINY)
    monkeypatch.setattr(gpu_items, "CORRECTNESS", TINY)
    monkeypatch.setattr(gpu_items, "DTYPES", {"float16": torch.float16})
    monkeypatch.setattr(gpu_suite, "SDXL_CALLS", TINY)
    for name, value in (("_RACES", 3), ("_MATRIX", 64), ("_COPY", 1024)):
        monkeypatch.setattr(gpu_items, name, value)


def timed(name: str, op: str | None = None, seconds: float = 1.0) -> Item:
    return Item(name, seconds, lambda bench: {"median": 1.0}, op)


def spoil(monkeypatch: pytest.MonkeyPatch) -> None:
    launch = measure.launch_mixed_attention

    def spoiled(*arguments: Any) -> None:
        launch(*arguments)
        arguments[8][:, :, -1] = float("nan")  # the last query is not written

    monkeypatch.setattr(measure, "launch_mixed_attention", spoiled)


def test_what_is_right_is_timed_and_written(suite: Suite) -> None:
    assert suite.run(gpu_items.correctness(), [timed("a", MIXED.op), timed("b", MERGED.op)])
    document = json.loads(suite.path.read_text())
    states = {name: item["state"] for name, item in document["items"].items()}
    assert states == {
        "correct mixed-4096 float16": "passed", "correct merged-4096 float16": "passed", "a": "measured",
        "b": "measured",
    }  # fmt: skip
    assert document["items"]["correct mixed-4096 float16"]["result"]["relative_rms"] <= 1e-3


def test_a_red_operation_is_not_timed_and_the_other_is(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch)
    assert not suite.run(gpu_items.correctness(), [timed("a", MIXED.op), timed("b", MERGED.op)])
    items = json.loads(suite.path.read_text())["items"]
    assert items["correct mixed-4096 float16"]["state"] == "FAILED"
    assert items["correct mixed-4096 float16"]["result"]["relative_rms"] == "nan"  # JSON has no NaN
    assert items["a"]["why"] == "mixed_attention is red: its checks did not all pass"
    assert items["b"]["state"] == "measured"


def test_the_public_operation_must_be_what_was_checked(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    right = gpu_items.mixed_attention
    monkeypatch.setattr(gpu_items, "mixed_attention", lambda *arguments: right(*arguments) + 1e-3)
    assert not suite.run(gpu_items.correctness(), [])
    result = suite.document["items"]["correct mixed-4096 float16"]["result"]
    assert (result["public_is_the_same"], result["passed"]) == (False, False)


def test_a_check_that_breaks_is_red(suite: Suite) -> None:
    def broken(bench: Bench) -> Any:
        raise RuntimeError("out of shared memory")

    assert not suite.run([Item("correct", 1.0, broken, MIXED.op)], [timed("a", MIXED.op)])
    assert suite.document["items"]["correct"]["why"] == "RuntimeError: out of shared memory"
    assert suite.document["items"]["a"]["state"] == "skipped"


def test_what_does_not_fit_is_skipped_and_said(suite: Suite) -> None:
    assert suite.run([], [timed("long", seconds=200.0), timed("short")])
    assert suite.document["items"]["long"]["why"] == "it takes about 200 s, 95 s are left"
    assert suite.document["items"]["short"]["state"] == "measured"


def test_only_takes_what_begins_so_and_what_is_always_taken(suite: Suite) -> None:
    always = Item("ceilings", 1.0, lambda bench: {}, always=True)
    suite.run([], [always, timed("speed x"), timed("race")], only=["speed"])
    assert list(suite.document["items"]) == ["ceilings", "speed x"]


def test_a_race_decides_the_exit_code(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    right, calls = gpu_items.mixed_attention, [0]

    def moving(*arguments: Any) -> Tensor:
        calls[0] += 1
        return right(*arguments) * (1 + (calls[0] == 2) * 1e-2)

    race = [item for item in gpu_items.items(quick=True) if item.name == "race"]
    assert suite.run([], race)
    monkeypatch.setattr(gpu_items, "mixed_attention", moving)
    assert not suite.run([], race)
    assert suite.document["items"]["race"]["result"]["differing"] == {"mixed-4096": 1, "merged-4096": 0}


def dense_with_lse(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    logits = q.double() @ k.double().transpose(-1, -2) * q.shape[-1] ** -0.5
    return (logits.softmax(-1) @ v.double()).to(q.dtype), logits.logsumexp(-1).float()


@pytest.mark.parametrize(
    ("function", "call"),
    [(gpu_rivals.concat, MIXED), (gpu_rivals.flex, MIXED), (gpu_rivals.two_flash, MIXED), (gpu_rivals.pair, MERGED)],
    ids=["concat", "flex", "two flash", "pair"],
)
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_the_rivals_compute_the_same(
    function: gpu_rivals.Function, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_rivals, "flash_with_lse", dense_with_lse)  # flash itself needs a GPU
    inputs = call.inputs(torch.float16, torch.Generator().manual_seed(2))
    assert relative_rms(function(inputs), call.reference(inputs)) <= 1e-3


def test_every_rival_of_the_issue_is_there() -> None:
    names = " ".join(rival.name for rival in RIVALS if rival.op == MIXED.op and rival.complete)
    for wanted in ("flash", "cuDNN", "FlexAttention", "log-sum-exp"):
        assert wanted in names
    assert next(rival.name for rival in RIVALS if rival.op == MERGED.op) == "two attentions, eager"


def test_rivals_that_cannot_run_or_are_wrong_are_kept(bench: FakeBench, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(inputs: Inputs) -> Tensor:
        return gpu_rivals.concat(inputs) * 1.1

    rivals = (
        Rival("wrong", MIXED.op, lambda inputs: partial(wrong, inputs)),
        Rival("right", MIXED.op, lambda inputs: partial(gpu_rivals.concat, inputs)),
        Rival("part", MIXED.op, lambda inputs: partial(gpu_rivals.concat, inputs), complete=False),
        next(rival for rival in RIVALS if rival.name == "two flash by log-sum-exp"),
        Rival("long", MIXED.op, lambda inputs: partial(gpu_rivals.concat, inputs), seconds=1000.0),
    )
    monkeypatch.setattr(gpu_rivals, "RIVALS", rivals)
    bench.ceilings = {"flops_per_second": 1e12, "bytes_per_second": 1e12}
    result = gpu_items.speed("mixed-4096", torch.float16, bench)
    found = result["contenders"]
    assert list(found) == [OURS, "attention kernel alone", *(rival.name for rival in rivals), AGAIN]
    assert not found["wrong"]["right"]
    assert "flash" in found["two flash by log-sum-exp"]["error"]
    assert found["long"]["error"] == "skipped: it takes about 1000 s, 100 s are left"
    assert (found[OURS]["median"], found["right"]["median"]) == (1.0, 4.0)
    assert (result["best_rival"], result["times_faster"]) == ("right", 4.0)
    assert found[OURS]["of_matrix_ceiling"] == pytest.approx(result["flops"] / 1e-3 / 1e12)
    assert found[OURS]["of_bytes_floor"] == pytest.approx(result["bytes"] / 1e12 / 1e-3)


def test_the_mean_shift_is_right_both_ways(bench: FakeBench, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(function: Any, **_: Any) -> Any:
        def compiled(*arguments: Any) -> None:
            raise RuntimeError("no compiler")

        return compiled

    monkeypatch.setattr(torch, "compile", refuse)
    result = gpu_items.mean_shift("mixed-4096", bench)
    assert max(result["relative_rms"].values()) <= 2e-3  # the keys it averages are rounded to fp16
    assert result["ways"]["by hidden states, compiled"] == {"error": "RuntimeError: no compiler"}
    assert result["ways"]["over keys and values"]["warm"]["samples"] == 50


class Driver:
    """Runs what is launched through the driver in the interpreter, from nothing but the addresses it is given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.launched: list[str] = []
        self.wrong = False
        driver = self

        def launch(kernel: Kernel, stream: int, pointers: dict[str, int], sizes: dict[str, int]) -> None:
            kernel.arguments(pointers, sizes)  # names, alignment and sizes
            kernel.grid(sizes)
            assert stream == 7
            driver.run(kernel.description["op"], pointers, sizes)

        monkeypatch.setattr(Kernel, "launch", launch)
        monkeypatch.setattr(gpu_bundles, "bundle_of", lambda *_: KernelBundle.load(folder))
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=7))

    def run(self, op: str, pointers: dict[str, int], sizes: dict[str, int]) -> None:
        self.launched.append(op)
        rows, heads = sizes["rows"], sizes["heads"]

        def at(name: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
            memory = (ctypes.c_char * (math.prod(shape) * dtype.itemsize)).from_address(pointers[name])
            return torch.frombuffer(memory, dtype=dtype).view(shape)

        def tokens(name: str, length: str) -> Tensor:
            return at(name, (rows, sizes[length], heads, 64), torch.float16).transpose(1, 2)

        identity = [tokens(name, "identity_length") for name in ("k_id", "v_id")]
        text = [tokens(name, "text_length") for name in ("k_t", "v_t")]
        if op == "mean_shift":
            for name, shift in zip(
                ("shift_k", "shift_v"), launch_mean_shift(*identity, *text, at("strength", (rows,))), strict=True
            ):
                at(name, tuple(shift.shape)).copy_(shift)
            return
        q, out, tiles = tokens("q", "queries"), tokens("out", "queries"), Configuration(32, 32, 4, 1)
        if op == MIXED.op:
            shifts = [at(name, (rows, heads, SPLITS, 64)) for name in ("shift_k", "shift_v")]
            measure.launch_mixed_attention(q, *identity, *text, *shifts, 0.125, out, tiles, False)
        else:
            strengths = [at(name, (rows,)) for name in ("style_strength", "identity_strength")]
            measure.launch_merged_cross_attention(q, *text, *identity, *strengths, 0.125, out, tiles, False)
        if self.wrong:
            out[:, :, -1] = float("nan")


@pytest.mark.parametrize(("name", "ops"), [("mixed-4096", ["mean_shift", MIXED.op]), ("merged-4096", [MERGED.op])])
def test_a_bundle_is_right_and_timed_next_to_torch(
    bench: FakeBench, monkeypatch: pytest.MonkeyPatch, kernels_bundle: Path, name: str, ops: list[str]
) -> None:
    driver = Driver(monkeypatch, kernels_bundle)
    result = gpu_items.bundle(name, bench)
    assert result["passed"] and result["relative_rms"] <= 1e-3
    assert driver.launched == ops * 3  # once to compare, then each of two sets
    assert all("machine code of sm_90" in kernel for kernel in result["kernels"])
    assert (result["torch"]["median"], result["driver"]["median"]) == (1.0, 2.0)


def test_a_wrong_bundle_decides_and_is_not_timed(
    suite: Suite, monkeypatch: pytest.MonkeyPatch, kernels_bundle: Path
) -> None:
    items = [item for item in gpu_items.items(quick=True) if item.name == "bundle merged-4096"]
    driver = Driver(monkeypatch, kernels_bundle)
    driver.wrong = True
    assert not suite.run([], items)
    outcome = suite.document["items"]["bundle merged-4096"]
    assert outcome["state"] == "FAILED"
    assert "driver" not in outcome["result"]


def test_without_cuda_python_that_is_recorded(
    suite: Suite, monkeypatch: pytest.MonkeyPatch, kernels_bundle: Path
) -> None:
    def missing() -> Any:
        raise BackendUnavailableError("Launching kernels needs cuda-python.", fix="pip install it")

    launch = Kernel.launch
    Driver(monkeypatch, kernels_bundle)
    monkeypatch.setattr(Kernel, "launch", launch)
    monkeypatch.setattr(kernel_launch, "_driver", missing)
    items = [item for item in gpu_items.items(quick=True) if item.name == "bundle merged-4096"]
    assert suite.run([], items)
    assert "needs cuda-python" in suite.document["items"]["bundle merged-4096"]["result"]["error"]


def test_a_bundle_of_the_tables_own_configuration(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, bench: FakeBench
) -> None:
    """With a form that a bundle cannot hold: its tiles are bundled in plain form."""
    chosen = Configuration(64, 128, 4, 2, persistent=2, descriptors=True)
    asked: dict[str, Any] = {}

    def compile_kernel(op: str, architecture: str, d: int, tiles: Configuration, whole: bool) -> CompiledKernel:
        asked[op] = (architecture, d, tiles, whole)
        launch = {
            "op": op, "architecture": architecture, "ptx_target": "sm_90a", "dtype": "float16", "head_size": d,
            "configuration": tiles.told(), "constants": {"WHOLE": whole, "BLOCK_N": tiles.block_n}, "grid": [],
            "arguments": [], "shared_bytes": 0,
        }  # fmt: skip
        return CompiledKernel("ptx", b"cubin", launch)

    monkeypatch.setattr(gpu_bundles, "compile_kernel", compile_kernel)
    monkeypatch.setattr(gpu_bundles, "choose", lambda *_: (chosen, True))
    monkeypatch.setattr(gpu_bundles, "architecture_of", lambda device: "sm_90")
    made = gpu_bundles.bundle_of(MIXED, bench.device, tmp_path / "bundle")
    assert asked[MIXED.op] == ("sm_90", 64, chosen.plain, True)
    assert made.find(MIXED.op, "sm_90", "float16", 64, (128, 256), 4096).description["queries"] == [0]
    assert made.find("mean_shift", "sm_90", "float16", 64, (77, 77)).form == "cubin"


def test_candidates_fill_an_entry(bench: FakeBench, monkeypatch: pytest.MonkeyPatch) -> None:
    def fake(level: Any, device: Any, timer: Any, tried: Any) -> Tuned:
        trials = [Trial(candidate, 1e-4, timer([])) for candidate in tried]
        return Tuned(level, trials, select(level, trials, "sm_90", "H100"))

    monkeypatch.setattr(gpu_items, "tune", fake)
    monkeypatch.setattr(gpu_items, "architecture_of", lambda device: "sm_90")
    result = gpu_items.candidates(LEVELS[0], bench)
    assert [trial["configuration"]["descriptors"] for trial in result["trials"]].count(True) > 1
    assert result["entry"]["evidence"] == "measured on H100: 1.000 ms median of 50, next best 2.000 ms"


@pytest.mark.parametrize("code", [0, 9])
def test_the_sanitizer_is_recorded(
    bench: FakeBench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: int
) -> None:
    program = tmp_path / "compute-sanitizer"
    program.write_text(f'#!/bin/sh\necho "$@"\nexit {code}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    result = gpu_items.sanitize("racecheck", bench)
    assert (result["exit_code"], result["clean"]) == (code, code == 0)
    assert result["said"][0].startswith("--tool racecheck --error-exitcode 9 ")
    assert result["said"][0].endswith("gpu_items.py")


def test_without_the_sanitizer_that_is_recorded(bench: FakeBench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_items.shutil, "which", lambda *_, **__: None)
    assert gpu_items.sanitize("memcheck", bench) == {"error": "compute-sanitizer is not on this machine"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_without_a_gpu_it_is_one_sentence(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert gpu_suite.main(["--output", str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert "torch sees none" in said.err
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_lists_everything(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the true calls
    assert gpu_suite.main(["--dry-run"]) == 0
    said = capsys.readouterr().out
    for item in (*gpu_items.correctness(), *gpu_items.items(quick=False)):
        assert item.name in said
    assert "mixed-4096     171.80   62.9  173.6, 173.6, 474.5, 1039.9" in said
    assert all(rival.name in said for rival in RIVALS)


def test_an_unknown_item_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_suite.main(["--only", "sped"]) == 1
    assert "no item begins with 'sped'" in capsys.readouterr().err


@pytest.mark.parametrize("right", [True, False], ids=["right", "wrong"])
def test_the_whole_run(
    right: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if not right:
        spoil(monkeypatch)
    card = {"gpu": {"name": "NVIDIA H100 80GB HBM3"}, "date": "2026-11-23T16:00:00+00:00"}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(gpu_suite, "machine", lambda device: dict(card))
    monkeypatch.setattr(gpu_suite, "Bench", lambda device, *rest: FakeBench(torch.device("cpu"), *rest))
    rivals = [rival for rival in RIVALS if rival.name in ("two attentions, eager", "two flash by log-sum-exp")]
    monkeypatch.setattr(gpu_rivals, "RIVALS", rivals)
    code = gpu_suite.main(["--output", str(tmp_path), "--only", "speed", "--quick"])
    said = capsys.readouterr()
    document = json.loads((tmp_path / "gpu-nvidia-h100-80gb-hbm3-20261123T160000.json").read_text())
    assert code == (0 if right else 1)
    assert said.out.splitlines()[-1].endswith("gpu-nvidia-h100-80gb-hbm3-20261123T160000.json")
    assert document["items"]["speed merged-4096 float16"]["result"]["best_rival"] == "two attentions, eager"
    assert "goal on an H200: " in said.out
    if right:
        assert "two flash by log-sum-exp: NotImplementedError" in said.out
        assert "TFLOP/s, missed by 100%" in said.out
    else:
        assert "mixed-4096 float16       skipped: mixed_attention is red" in said.out
