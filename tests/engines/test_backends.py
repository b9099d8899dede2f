from __future__ import annotations

import importlib.util
import os
import re
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from infid_engines import tensorrt_backend
from infid_engines.backends import BuildRequest
from infid_engines.device import CPU, Device
from infid_engines.errors import BackendUnavailableError, BuildError, EngineFolderError, InputError
from infid_engines.manifest import TensorSpec
from infid_engines.onnxruntime_runner import OnnxRuntimeEngine
from infid_engines.registry import BACKENDS, get_backend
from infid_engines.worker import Children, build_in_subprocess

HALF = TensorProto.FLOAT16


class Listener:
    def __init__(self) -> None:
        self.fractions: list[float] = []

    def update(self, fraction: float, detail: str = "") -> None:
        self.fractions.append(fraction)


def graph(path: Path, rows: int | str = 4, mixed: bool = False) -> Path:
    """x → next = x·W + 1 in fp16; `mixed` adds a concatenation of two types, which is not valid ONNX."""
    weight = onnx.numpy_helper.from_array(np.eye(8, dtype=np.float16) * 2, "W")
    one = onnx.numpy_helper.from_array(np.ones(8, dtype=np.float16), "one")
    nodes = [helper.make_node("MatMul", ["x", "W"], ["y"]), helper.make_node("Add", ["y", "one"], ["next"])]
    if mixed:
        nodes[1] = helper.make_node("Cast", ["y"], ["wide"], to=TensorProto.FLOAT)
        nodes.append(helper.make_node("Concat", ["y", "wide"], ["next"], axis=0, name="two_types"))
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", HALF, [rows, 8])],
        [helper.make_tensor_value_info("next", HALF, [rows if not mixed else 8, 8])],
        [weight, one],
    )
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), str(path))
    return path


def specs(rows: int | list[int] = 4) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    return (TensorSpec("x", "float16", (rows, 8)),), (TensorSpec("next", "float16", (rows, 8)),)


@pytest.mark.parametrize("rows", [4, [1, 4, 16]], ids=["static", "profile"])
def test_rtx_builds_a_real_engine_without_a_gpu(tmp_path, rows):
    onnx_path = graph(tmp_path / "g.onnx", 4 if rows == 4 else "n")
    request = BuildRequest(onnx_path, tmp_path / "g.engine", "sm_89", specs(rows)[0])
    listener = Listener()
    peak = build_in_subprocess("tensorrt_rtx", request, listener)
    assert (tmp_path / "g.engine").stat().st_size > 1000
    assert peak > 1 << 20
    assert listener.fractions


def test_children_can_be_killed(tmp_path, monkeypatch):
    (tmp_path / "slow.py").write_text("import time\n\ndef build(job, stage):\n    time.sleep(job)\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    children, failures = Children(), []

    def build() -> None:
        try:
            children.build("slow", "graph", "slow:build", 60, Listener())
        except BuildError as error:
            failures.append(error.problem)

    threads = [threading.Thread(target=build) for _ in range(2)]
    for thread in threads:
        thread.start()
    while len(children._running) < 2:
        time.sleep(0.01)
    children.kill()
    build()  # one that is started later
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert len(failures) == 3
    assert all("The slow builder was killed (SIGKILL) while building graph" in each for each in failures)


def test_a_builder_that_says_much_does_not_hang(tmp_path, monkeypatch):
    # a sitecustomize for the worker: it prints more than a pipe holds before it answers
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.stderr.write('x' * 300_000)\nprint(7)\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    request = BuildRequest(graph(tmp_path / "g.onnx"), tmp_path / "g.engine", "sm_89", specs(4)[0])
    signal.signal(signal.SIGALRM, lambda *_: pytest.fail("the build hangs"))
    signal.alarm(60)
    try:
        build_in_subprocess("tensorrt_rtx", request, Listener())
    finally:
        signal.alarm(0)
    assert (tmp_path / "g.engine").is_file()


@pytest.mark.parametrize("flag", ["refit", "strip"])
def test_flags_that_need_a_gpu_are_rejected_without_one(tmp_path, flag):
    if importlib.util.find_spec("cuda") and gpu_present():
        pytest.skip("this machine has a GPU")
    request = BuildRequest(graph(tmp_path / "g.onnx"), tmp_path / "g.engine", "sm_89", **{flag: True})
    with pytest.raises(BuildError, match="needs a GPU to build refittable or stripped engines"):
        build_in_subprocess("tensorrt_rtx", request, Listener())


def gpu_present() -> bool:
    try:
        get_backend("tensorrt_rtx").check_device()
    except BackendUnavailableError:
        return False
    return True


@pytest.mark.gpu
def test_flags_reach_the_builder(tmp_path):
    sizes = {}
    for strip in (False, True):
        weight = np.random.default_rng(0).standard_normal((512, 512)).astype(np.float16)
        path = graph(tmp_path / "g.onnx")
        model = onnx.load(path)
        model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weight, "W"))
        model.graph.initializer[1].CopyFrom(onnx.numpy_helper.from_array(weight[0], "one"))
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.shape.dim[1].dim_value = 512
        onnx.save(model, path)
        request = BuildRequest(path, tmp_path / f"{strip}.engine", "sm_89", strip=strip)
        build_in_subprocess("tensorrt_rtx", request, Listener())
        sizes[strip] = request.output.stat().st_size
    assert sizes[True] < sizes[False] - 300_000


def test_parser_rejection_names_the_node(tmp_path):
    request = BuildRequest(graph(tmp_path / "g.onnx", mixed=True), tmp_path / "g.engine", "sm_89")
    with pytest.raises(BuildError, match="two_types"):
        build_in_subprocess("tensorrt_rtx", request, Listener())
    assert not (tmp_path / "g.engine").exists()


def test_unknown_targets_are_rejected():
    backend = get_backend("tensorrt_rtx")
    backend.check_target("sm_120")
    with pytest.raises(InputError, match="cannot build for sm_90"):
        backend.check_target("sm_90")
    with pytest.raises(InputError, match="not a GPU architecture"):
        backend.check_target("hopper")
    with pytest.raises(InputError, match="no target 'sm_89'"):
        get_backend("onnxruntime").check_target("sm_89")


def test_tensorrt_rtx_says_which_gpus_it_runs_on(monkeypatch):
    backend = get_backend("tensorrt_rtx")
    monkeypatch.setattr(tensorrt_backend, "present_architecture", lambda index: ("sm_90", "sm_89")[index])
    backend.check_device(1)
    with pytest.raises(BackendUnavailableError, match="does not run on sm_90, only on sm_75"):
        backend.check_device()


@pytest.mark.skipif(importlib.util.find_spec("tensorrt") is not None, reason="tensorrt is installed")
def test_missing_tensorrt_says_how_to_install_it():
    with pytest.raises(BackendUnavailableError, match=r'pip install "infid-export\[tensorrt\]"'):
        get_backend("tensorrt").versions()


def test_unknown_backend_is_rejected():
    with pytest.raises(InputError, match=", ".join(BACKENDS)):
        get_backend("openvino")


def test_only_its_own_module_knows_a_backend_by_name():
    root = Path(__file__).parents[2]
    named = re.compile("|".join(f"[\"']{name}[\"']" for name in BACKENDS))
    found = {
        path.name
        for package in ("infid_export", "engines/infid_engines", "training/infid_training", "kernels/infid_kernels")
        for path in (root / package).rglob("*.py")
        if named.search(path.read_text())
    }
    assert found == {f"{kind.__module__.rpartition('.')[2]}.py" for kind in map(type, BACKENDS.values())}


def test_onnxruntime_runs_and_loops(tmp_path):
    engine = get_backend("onnxruntime").load(graph(tmp_path / "g.onnx"), *specs(), CPU)
    x = np.ones((4, 8), np.float16)
    np.testing.assert_array_equal(engine.run({"x": x})["next"], 2 * x + 1)
    loop = engine.loop({}, {"x": "next"}, {"x": x}, [{}] * 3)
    for _ in range(3):
        loop.step()
    np.testing.assert_array_equal(loop.read("next"), np.full((4, 8), 15, np.float16))


@pytest.fixture
def captured(tmp_path):
    """An engine as on a GPU, on the CPU: next = 2x + y and seen = x."""
    half = [helper.make_tensor_value_info(name, HALF, [2, 8]) for name in ("x", "y", "next", "seen")]
    nodes = [
        helper.make_node("Add", ["x", "x"], ["twice"]),
        helper.make_node("Add", ["twice", "y"], ["next"]),
        helper.make_node("Identity", ["x"], ["seen"]),
    ]
    made = helper.make_graph(nodes, "g", half[:2], half[2:])
    onnx.save(
        helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), str(tmp_path / "g.onnx")
    )
    x, y, following, seen = (TensorSpec(name, "float16", (2, 8)) for name in ("x", "y", "next", "seen"))
    plain = get_backend("onnxruntime").load(tmp_path / "g.onnx", (x, y), (following, seen), CPU)
    return OnnxRuntimeEngine(plain.session, (x, y), (following, seen), CPU, captures=True)


def test_captured_steps_run_in_memory_that_is_used_again(captured):
    x = np.ones((2, 8), np.float16)

    def steps(start, added):
        loop = captured.loop({}, {"x": "next"}, {"x": start}, [{"y": y * x} for y in added])
        expected = start
        for y in added:
            loop.step()
            np.testing.assert_array_equal(loop.read("seen"), expected)
            expected = 2 * expected + y
            np.testing.assert_array_equal(loop.read("next"), expected)
            yield loop
        with pytest.raises(RuntimeError, match="no further step"):
            loop.step()
        loop.close()
        loop.close()

    memories = [loop._memory for loop in steps(x, [1, 2, 3])]
    assert [loop._memory for loop in steps(5 * x, [4, 5])] == memories[:2]
    first, second = steps(x, [1, 2, 3]), steps(7 * x, [5, 6, 7])
    for one, other in zip(first, second, strict=True):  # two loops at once have memory of their own
        runs = [*one._memory.runs, *other._memory.runs]
        names = [options.get_run_config_entry("gpu_graph_annotation_id") for _, options, _ in runs]
        assert sorted(names) == ["0", "1", "2", "3"]
    np.testing.assert_array_equal(captured.run({"x": x, "y": x})["next"], 3 * x)


@pytest.mark.parametrize("refuses", [False, True])
def test_steps_with_known_shapes_are_captured_on_a_gpu(tmp_path, monkeypatch, refuses):
    import onnxruntime

    asked = []

    class Session:
        def __init__(self, path, options, providers):
            asked.append(providers)
            if refuses and "enable_cuda_graph" in providers[0][1]:
                raise RuntimeError("not all nodes are on the GPU")

        def get_providers(self):
            return ["CUDAExecutionProvider"]

        def get_inputs(self):
            return [TensorSpec("x", "float16", (4, 8))]

        def get_outputs(self):
            return [TensorSpec("next_x", "float16", (4, 8))]

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    (given,), (result,) = specs()
    backend = get_backend("onnxruntime")
    for shape in ((4, 8), ([1, 4, 8], 8)):
        backend.load(tmp_path, (given,), (replace(result, name="next_x", shape=shape),), Device("cuda", 1))
    name, place = "CUDAExecutionProvider", {"device_id": "1"}
    capturing, plain = [(name, {**place, "enable_cuda_graph": "1"})], [(name, place)]
    assert asked == [capturing, *([plain] if refuses else []), plain]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "lacks input x"),
        ({"x": np.ones((4, 8), np.float16), "z": np.ones(1)}, "has no input z"),
        ({"x": np.ones((4, 8), np.float32)}, "must be float16"),
        ({"x": np.ones((3, 8), np.float16)}, r"must be float16 \[4, 8\], not float16 \[3, 8\]"),
    ],
)
def test_wrong_inputs_are_named(tmp_path, inputs, message):
    engine = get_backend("onnxruntime").load(graph(tmp_path / "g.onnx"), *specs(), CPU)
    with pytest.raises(InputError, match=message):
        engine.run(inputs)


def test_onnxruntime_never_falls_back(tmp_path):
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    with pytest.raises(BackendUnavailableError, match="cannot run on cuda"):
        get_backend("onnxruntime").load(graph(tmp_path / "g.onnx"), *specs(), Device("cuda"))


@pytest.mark.parametrize("captures", [False, True])
def test_memory_is_allocated_on_the_gpu_of_the_engine(captured, monkeypatch, captures):
    """The CPU stands for the GPU, and what onnxruntime is asked for is noted."""
    import onnxruntime

    places = []

    def on_the_cpu(kind, name, first):
        real = getattr(kind, name)

        def call(*arguments):
            places.append(arguments[first:])
            return real(*arguments[:first])

        monkeypatch.setattr(kind, name, call)

    on_the_cpu(onnxruntime.OrtValue, "ortvalue_from_numpy", 1)
    on_the_cpu(onnxruntime.OrtValue, "ortvalue_from_shape_and_type", 2)
    on_the_cpu(onnxruntime.IOBinding, "bind_output", 2)
    x = np.ones((2, 8), np.float16)
    specs = [tuple(each.values()) for each in (captured.inputs, captured.outputs)]
    engine = OnnxRuntimeEngine(captured.session, *specs, Device("cuda", 1), captures)
    loop = engine.loop({"y": x}, {"x": "next"}, {"x": x}, [{}, {}])
    for _ in range(2):
        loop.step()
    np.testing.assert_array_equal(loop.read("next"), 7 * x)
    np.testing.assert_array_equal(loop.read("seen"), 3 * x)
    assert places == [("cuda", 1)] * 4  # x, y, next and seen


def test_broken_graph_is_rejected(tmp_path):
    (tmp_path / "g.onnx").write_bytes(b"not a graph")
    with pytest.raises(EngineFolderError, match="cannot load"):
        get_backend("onnxruntime").load(tmp_path / "g.onnx", *specs(), CPU)


@pytest.mark.gpu
@pytest.mark.parametrize("name", [pytest.param("tensorrt", marks=pytest.mark.tensorrt), "tensorrt_rtx"])
def test_tensorrt_runs_and_loops(tmp_path, name):
    pytest.importorskip(name)
    backend = get_backend(name)
    target = get_backend("tensorrt").default_targets()[0]
    backend.check_target(target)
    request = BuildRequest(graph(tmp_path / "g.onnx"), tmp_path / "g.engine", target, specs()[0])
    build_in_subprocess(name, request, Listener())
    engine = backend.load(request.output, *specs(), Device("cuda"))
    x = np.ones((4, 8), np.float16)
    np.testing.assert_array_equal(engine.run({"x": x})["next"], 2 * x + 1)
    loop = engine.loop({}, {"x": "next"}, {"x": x}, [{}] * 3)
    for _ in range(3):
        loop.step()
    np.testing.assert_array_equal(loop.read("next"), np.full((4, 8), 15, np.float16))


def test_onnxruntime_takes_threads_and_spins_only_between_steps(tmp_path, monkeypatch):
    import onnxruntime

    seen, real = [], onnxruntime.InferenceSession

    def session(path, options, providers):
        spins = options.get_session_config_entry("session.intra_op.allow_spinning")
        seen.append((options.intra_op_num_threads, spins))
        return real(path, options, providers=providers)

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    path = graph(tmp_path / "g.onnx")
    inputs, (output,) = specs()
    backend = get_backend("onnxruntime")
    backend.load(path, inputs, (output,), CPU, threads=3)
    step = onnx.load(str(path))
    step.graph.output[0].name = step.graph.node[1].output[0] = "next_x"
    onnx.save(step, str(tmp_path / "step.onnx"))
    backend.load(tmp_path / "step.onnx", inputs, (replace(output, name="next_x"),), CPU)
    assert seen == [(3, "0"), (0, "1")]
