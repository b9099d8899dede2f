"""The arithmetic floor of a graph."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from infid_export.bench import floor
from infid_export.bench.floor import ceiling, floors, operations


def write(path: Path, nodes: list[onnx.NodeProto], inputs: dict[str, list[int | str]], result: list[int | str]) -> Path:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()]
    output = helper.make_tensor_value_info("out", TensorProto.FLOAT, result)
    graph = helper.make_graph(nodes, "g", values, [output])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), str(path))
    return path


def test_products_and_convolutions_are_counted(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], group=2, pads=[1, 1, 1, 1]),  # [1, 8, 6, 6], over 2 · 3 · 3
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("MatMul", ["r", "m"], ["p"]),  # [1, 8, 6, 5], over 6
        helper.make_node("Reshape", ["p", "s"], ["t"]),
        helper.make_node("Gemm", ["t", "g"], ["out"], transA=1),  # [5, 7], over 48
    ]
    inputs: dict[str, list[int | str]] = {
        "x": [1, 4, 6, 6], "w": [8, 2, 3, 3], "m": [6, 5], "g": [48, 7], "s": [2]
    }  # fmt: skip
    path = write(tmp_path / "g.onnx", nodes, inputs, [5, 7])
    model = onnx.load(str(path))
    model.graph.input[-1].type.tensor_type.elem_type = TensorProto.INT64
    model.graph.value_info.append(helper.make_tensor_value_info("t", TensorProto.FLOAT, [48, 5]))
    onnx.save(model, str(path))
    assert operations(path) == 2 * (8 * 6 * 6 * 18 + 8 * 6 * 5 * 6 + 5 * 7 * 48)


def test_a_graph_of_several_sizes_has_no_count(tmp_path: Path) -> None:
    node = helper.make_node("MatMul", ["x", "w"], ["out"])
    assert operations(write(tmp_path / "g.onnx", [node], {"x": ["n", 4], "w": [4, 4]}, ["n", 4])) is None


def test_the_floor_is_the_count_over_the_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = helper.make_node("MatMul", ["x", "w"], ["out"])
    known = write(tmp_path / "a.onnx", [node], {"x": [10, 4], "w": [4, 5]}, [10, 5])
    unknown = write(tmp_path / "b.onnx", [node], {"x": ["n", 4], "w": [4, 5]}, ["n", 5])
    monkeypatch.setattr(floor, "ceiling", lambda *asked: 1e5 if asked == ("cpu", "fp16", 3) else 1.0)
    assert floors({"a": known, "b": unknown}, "cpu", "fp16", 3) == {"a": 4.0, "b": None}
    monkeypatch.setattr(floor, "ceiling", lambda *asked: None)
    assert floors({"a": known}, "cpu", "fp16") == {"a": None}


def test_a_matrix_product_is_measured_in_a_process_of_its_own() -> None:
    found = ceiling("cpu", "fp16", 1)
    assert found is not None
    assert 1e9 < found < 1e13


def test_a_process_that_fails_is_a_fault() -> None:
    with pytest.raises(RuntimeError, match=r"(?s)the matrix product failed.*no such device"):
        ceiling("no such device", "fp16", None)


@pytest.mark.parametrize(
    ("device", "missing", "libraries"),
    [
        ("cpu", (), 2),
        ("cpu", ("torch",), 1),
        ("cpu", ("torch", "onnx"), 0),
        ("cuda", ("torch",), 0),
        ("cuda:1", ("torch",), 0),
    ],
)
def test_the_libraries_that_are_installed_are_measured(
    device: str,
    missing: tuple[str, ...],
    libraries: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(floor, "find_spec", lambda name: None if name in missing else name)
    monkeypatch.setattr(floor, "_SIZES", {"cpu": 64, "cuda": 64})
    monkeypatch.setattr(floor, "_SECONDS", 0.01)
    floor._main(json.dumps([device, "fp32", None]))
    assert len(json.loads(capsys.readouterr().out)) == libraries


def test_without_onnx_nothing_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(floor, "find_spec", lambda name: None)
    assert operations(tmp_path / "none.onnx") is None
