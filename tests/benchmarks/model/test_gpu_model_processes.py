from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.model import aot, compiled, network
from benchmarks.model.compiled import NAMES
from benchmarks.model.network import Held
from benchmarks.model.turns import TIMING, turn
from benchmarks.suite import child
from benchmarks.suite.bench import DEMO, Bench, Result
from benchmarks.suite.runner import Suite
from infid_kernels.measure import Timing, relative_rms


def bench_of(seconds: float) -> Bench:
    ends = time.monotonic() + seconds
    return Bench(torch.device("cpu"), DEMO, False, lambda: ends - time.monotonic(), 1)


@pytest.fixture
def bench() -> Bench:
    return bench_of(300.0)


def test_what_does_not_compile_in_time_is_stopped_and_says_so(bench: Bench) -> None:
    bench.workload = replace(bench.workload, patience=0.0)
    results = compiled.compile_all(bench, NAMES[:2], seconds=0.5)  # starting Python alone takes longer
    assert all("stopped after" in result["error"] for result in results.values())
    assert not child._groups


def test_an_interrupt_ends_the_processes(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()

    def measure(function: str, bench: Bench, seconds: float, **arguments: object) -> Result:
        if arguments["name"] == NAMES[0]:
            raise KeyboardInterrupt
        assert ended.wait(20)
        return {}

    monkeypatch.setattr(child, "measure_in_child", measure)
    monkeypatch.setattr(child, "kill_all", ended.set)
    with pytest.raises(KeyboardInterrupt):
        compiled.compile_all(bench, NAMES[:2])


def test_all_compile_at_the_same_time_and_their_folders_outlive_them(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = threading.Barrier(len(NAMES), timeout=20)
    asked: dict[str, tuple[str, dict[str, Any]]] = {}

    def measure(function: str, bench: Bench, seconds: float, **arguments: Any) -> Result:
        together.wait()
        assert seconds == compiled.LIMIT
        asked[arguments["name"]] = function, arguments
        if arguments["name"] != aot.NAME:
            return {"median": 1.0}
        Path(arguments["memory"], "weights.bin").touch()
        child_is_killed = {"error": "it was stopped after 300 s"}
        assert Path(arguments["work"]).is_dir() and arguments["work"] != arguments["memory"]
        return child_is_killed

    monkeypatch.setattr(child, "measure_in_child", measure)
    found = compiled.compile_all(bench, NAMES)
    assert found[aot.NAME] == {"error": "it was stopped after 300 s"}
    assert {name: function.rpartition(".")[2] for name, (function, _) in asked.items()} == {
        "denoise_step compiled graph": "compiled:compile_step",
        "identity_step compiled graph": "compiled:compile_step",
        "text_step compiled graph": "compiled:compile_step",
        "vae_decoder compiled graph": "compiled:compile_decoder",
        "diffusers pipeline step compiled": "compiled:compile_pipeline",
        "identity_step AOTInductor package": "aot:package",
    }
    for _, arguments in asked.values():
        assert arguments["names"] == list(NAMES)
    _, of_package = asked[aot.NAME]
    assert not any(Path(of_package[name]).exists() for name in ("work", "memory", "folder"))


def test_an_error_that_is_no_number_is_beyond_the_limit() -> None:
    assert network.compared([1e-6, 1e-6], torch.float32)["passed"]
    for errors in ([1e-6, math.nan], [math.nan, 1e-6], [1e-6, 1.0]):
        assert not network.compared(errors, torch.float32)["passed"]


def test_the_first_compiled_item_compiles_them_all(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def compile_all(bench: Bench, names: Sequence[str]) -> dict[str, Result]:
        asked.append(names)
        return {name: {"median": float(len(name))} for name in names}

    monkeypatch.setattr(compiled, "compile_all", compile_all)
    found = [item.measure(bench) for item in compiled.items(Held(), "mixed_attention")]
    assert asked == [NAMES]
    assert found == [{"median": float(len(name))} for name in NAMES]


def test_without_the_first_the_others_are_left_for_another_time(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "compile_all", lambda bench, names: {})
    suite.bench.seconds_left = lambda: 100.0
    suite.run(compiled.items(Held(), "mixed_attention"))
    states = [suite.document["items"][name]["state"] for name in NAMES]
    assert states == ["skipped"] * len(NAMES)
    assert NAMES[0] in suite.document["items"][NAMES[1]]["why"]
    assert not suite.bench.results


class Turns:
    """Threads that take turns; records each one's name, and whether all had compiled and it was alone."""

    def __init__(self, folder: Path, names: list[str]) -> None:
        self.folder, self.names = folder, names
        self.inside: list[str] = []
        self.order: list[tuple[str, bool]] = []

    def take(self, name: str, bench: Bench) -> threading.Thread:
        def run() -> None:
            with turn(self.folder, name, self.names, bench):
                self.inside.append(name)
                ready = all((self.folder / other).exists() for other in self.names)
                time.sleep(0.2)
                self.order.append((name, ready and self.inside == [name]))
                self.inside.remove(name)

        thread = threading.Thread(target=run)
        thread.start()
        return thread


def test_nobody_is_timed_while_another_compiles_or_is_timed(tmp_path: Path, bench: Bench) -> None:
    turns = Turns(tmp_path, ["a", "b", "c"])
    threads = [turns.take("a", bench)]
    time.sleep(0.3)
    assert not turns.order and not turns.inside
    threads.append(turns.take("b", bench))
    (tmp_path / "c").touch()  # its process ended before it had compiled
    for thread in threads:
        thread.join(20)
    assert sorted(turns.order) == [("a", True), ("b", True)]


def test_who_has_compiled_does_not_wait_past_the_time_for_it(tmp_path: Path) -> None:
    turns = Turns(tmp_path, ["a", "b"])
    turns.take("a", bench_of(TIMING - 1)).join(20)
    assert turns.order == [("a", False)]


class Small(nn.Module):
    """A convolution in channels_last layout and a matrix product, which also takes a list of inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 8, 3).to(memory_format=torch.channels_last)
        self.second = nn.Linear(8, 6)

    def forward(self, image: Tensor, features: list[Tensor]) -> Tensor:
        rows = self.first(image).flatten(2).transpose(1, 2)
        return self.second(rows) * features[0] - features[1]


def small(bench: Bench) -> tuple[nn.Module, dict[str, object]]:
    draw = bench.generator
    features = [torch.randn(6, generator=draw), torch.randn(2, 16, 6, generator=draw)]
    return Small().eval(), {"image": torch.randn(2, 4, 6, 6, generator=draw), "features": features}


def test_a_package_without_weights_gives_the_same_from_python_and_from_cpp(bench: Bench, tmp_path: Path) -> None:
    compiler = aot.compile_program(tmp_path)
    module, arguments = small(bench)
    with torch.no_grad():
        expected = module(**arguments)
        path, result = aot._packaged(bench, module, arguments, tmp_path)
        model, weights = aot._loaded(path, module)
        assert relative_rms(model(**arguments), expected.double()) < 1e-5
    assert result["package_bytes"] > 0
    assert set(weights) == set(module.state_dict())
    aot.write_tensors(tmp_path / "weights", weights)
    aot.write_tensors(tmp_path / "inputs", aot.flat(arguments))
    aot.write_tensors(tmp_path / "outputs", {"output": expected})
    aot._finish(compiler, bench)
    program = tmp_path / "run_package"
    found = aot._from_cpp(bench, program, path, tmp_path, torch.float32)
    assert found["passed"] and found["constants"] == len(weights) and found["median"] > 0

    aot.write_tensors(tmp_path / "outputs", {"output": expected + 0.01})
    again = aot._from_cpp(bench, program, path, tmp_path, torch.float32)
    assert not again["passed"] and again["relative_rms"] > 1e-3

    lost = {name: each for name, each in weights.items() if name != "second.bias"}
    aot.write_tensors(tmp_path / "weights", lost)
    with pytest.raises(RuntimeError, match="exit code 1"):
        aot._from_cpp(bench, program, path, tmp_path, torch.float32)


def test_the_weights_are_not_in_the_package(bench: Bench, tmp_path: Path) -> None:
    module, arguments = small(bench)
    with torch.no_grad():
        path, _ = aot._packaged(bench, module, arguments, tmp_path)
        model, weights = aot._loaded(path, module)
        before = model(**arguments)
        weights["second.bias"].add_(1.0)  # it computes on the caller's memory
        assert torch.allclose(model(**arguments), before + arguments["features"][0], atol=1e-5)


class Recorder:
    """Stands for what a package needs; records each part with whether it ran in the turn."""

    def __init__(self) -> None:
        self.parts: list[tuple[str, bool]] = []
        self.in_turn = False

    @contextmanager
    def turn(self, folder: Path, name: str, names: Sequence[str], bench: Bench) -> Iterator[None]:
        self.in_turn = True
        yield
        self.in_turn = False

    def part(self, name: str, result: object) -> Callable[..., Any]:
        def run(*arguments: object, **named: object) -> object:
            self.parts.append((name, self.in_turn))
            return result

        return run


class SmallNetwork:
    """A module in the place of the identity step."""

    best_ops = "torch"

    def __init__(self, bench: Bench, small: bool = False) -> None:
        self.module, self.given = nn.Conv2d(4, 4, 1).eval(), torch.ones(1, 4, 2, 2)

    def dtype(self, ops: str) -> torch.dtype:
        return torch.float32

    def arguments(self, graph: str, dtype: torch.dtype) -> dict[str, Tensor]:
        return {"input": self.given}

    def step(self, graph: str, ops: str) -> nn.Module:
        return self.module

    def rated(self, timing: Timing, graph: str) -> Result:
        return {"median": timing.median}


def test_a_package_is_compiled_before_its_turn_and_timed_in_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    recorder, module = Recorder(), SmallNetwork(bench)
    monkeypatch.setattr(aot, "turn", recorder.turn)
    monkeypatch.setattr(aot, "Network", lambda bench, small: module)
    monkeypatch.setattr(aot, "compile_program", recorder.part("start of g++", None))
    monkeypatch.setattr(aot, "_finish", recorder.part("end of g++", None))
    monkeypatch.setattr(aot, "_packaged", recorder.part("compilation", ("step.pt2", {})))
    monkeypatch.setattr(aot, "_loaded", recorder.part("load", (module.module, {})))
    monkeypatch.setattr(aot, "write_tensors", recorder.part("files", None))
    monkeypatch.setattr(aot, "_from_cpp", recorder.part("C++", {"passed": True}))
    monkeypatch.setattr(bench, "time_long", recorder.part("timing", Timing(1.0, 1.0, 1.0, 2)))
    monkeypatch.setattr(bench, "graphed", recorder.part("capture", (module.module, None)))
    folders = {name: str(tmp_path) for name in ("work", "memory", "folder")}
    result = aot.package(bench, name=aot.NAME, names=NAMES, **folders)
    before = ("start of g++", "compilation", "load", "files", "files", "files", "end of g++")
    inside = ("timing", "C++", "capture", "timing")
    assert recorder.parts == [*((name, False) for name in before), *((name, True) for name in inside)]
    assert result["passed"] and result["graph"]["median"] == 1.0


def test_tensors_are_written_as_their_memory_is(tmp_path: Path) -> None:
    tensor = torch.arange(120.0).reshape(2, 3, 4, 5).to(memory_format=torch.channels_last)
    aot.write_tensors(tmp_path / "x", {"half": torch.ones(3, dtype=torch.float16), "conv.weight": tensor})
    lines = (tmp_path / "x.index").read_text().splitlines()
    assert lines[0] == "half float16 0 1 3 1"
    assert lines[1] == "conv.weight float32 64 4 2 3 4 5 60 1 15 3"
    memory = torch.frombuffer(bytearray((tmp_path / "x.bin").read_bytes()[64:][: 120 * 4]), dtype=torch.float32)
    assert torch.equal(memory.as_strided(tensor.shape, tensor.stride()), tensor)


def test_a_tensor_with_gaps_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="gaps"):
        aot.write_tensors(tmp_path / "x", {"part": torch.ones(4, 6)[:, :3]})
