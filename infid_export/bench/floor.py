"""The arithmetic floor of a graph: its matrix products and convolutions at the speed of a large matrix product.

The product runs in PyTorch and, on a CPU, in ONNX Runtime, and the faster one counts. No version of a graph runs much
faster than its floor in the same precision; what is above it is memory, small operations, and overhead.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path

from infid_engines.device import Device
from infid_engines.errors import BackendUnavailableError

_SIZES = {"cpu": 2048, "cuda": 8192}
_SECONDS = 1.0


def operations(graph: Path) -> int | None:
    """Return the floating-point operations of a graph's matrix products and convolutions: two per multiplication.

    Args:
        graph: the .onnx file.

    Returns:
        The number; None if it has none, its shapes are not fixed, or the package onnx is not installed.
    """
    if find_spec("onnx") is None:
        return None
    import onnx

    model = onnx.shape_inference.infer_shapes(onnx.load(str(graph), load_external_data=False), data_prop=True)
    values = (*model.graph.input, *model.graph.value_info, *model.graph.output)
    shapes: dict[str, list[int]] = {
        value.name: [int(dim.dim_value) for dim in value.type.tensor_type.shape.dim] for value in values
    }
    shapes |= {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    total = 0
    for node in model.graph.node:
        if node.op_type not in ("MatMul", "Gemm", "Conv"):
            continue
        result, first, second = (shapes.get(name, []) for name in (node.output[0], *node.input[:2]))
        if not all(result) or not result or not first or not second:
            return None
        total += 2 * math.prod(result) * _summed(node, first, second)
    return total or None


def _summed(node: object, first: list[int], second: list[int]) -> int:
    """Return how many products are added up for one element of a node's output."""
    flags = {each.name: each.i for each in node.attribute}  # type: ignore[attr-defined]
    kind = node.op_type  # type: ignore[attr-defined]
    if kind == "Conv":  # a filter has the shape [M, C / groups, kernel…]
        return math.prod(second[1:])
    return first[0] if kind == "Gemm" and flags.get("transA") else first[-1]


def ceiling(device: str, precision: str, threads: int | None) -> float | None:
    """Measure a large matrix product in a process of its own, and return its operations per second.

    Args:
        device: `cpu`, `cuda` or `cuda:1`.
        precision: `fp16` or `fp32`; on a CPU, both are computed in fp32.
        threads: CPU threads; None is one per core.

    Returns:
        The rate of the fastest library; None if none is installed that can use the device.
    """
    job = json.dumps([device, "fp32" if device == "cpu" else precision, threads])
    ended = subprocess.run(
        [sys.executable, "-m", "infid_export.bench.floor", job], capture_output=True, text=True, check=False
    )
    if ended.returncode != 0:
        raise RuntimeError(f"the matrix product failed:\n{ended.stderr}")
    return max(json.loads(ended.stdout), default=None)


def floors(
    graphs: Mapping[str, Path], device: str, precision: str, threads: int | None = None
) -> dict[str, float | None]:
    """Return the milliseconds of each graph's floor; None where it is not known."""
    rate = ceiling(device, precision, threads)
    counted = {name: operations(path) for name, path in graphs.items()}
    return {
        name: None if rate is None or each is None else round(1e3 * each / rate, 4) for name, each in counted.items()
    }


def _main(text: str) -> None:
    device, precision, threads = json.loads(text)
    size = _SIZES[Device.parse(device).kind]
    products = [_in_torch(size, device, precision, threads)]
    if device == "cpu":
        products.append(_in_onnxruntime(size, threads))
    json.dump([2 * size**3 / _best_seconds(each) for each in products if each is not None], sys.stdout)


def _best_seconds(product: Callable[[], object]) -> float:
    best, until = math.inf, time.perf_counter() + _SECONDS
    while time.perf_counter() < until:
        started = time.perf_counter()
        product()
        best = min(best, time.perf_counter() - started)
    return best


def _in_torch(size: int, device: str, precision: str, threads: int | None) -> Callable[[], object] | None:
    if find_spec("torch") is None:
        return None
    import torch

    if device != "cpu" and not torch.cuda.is_available():
        return None
    if threads is not None:
        torch.set_num_threads(threads)
    dtype = {"fp16": torch.float16, "fp32": torch.float32}[precision]
    # not zeros, which a GPU multiplies faster
    a, b = (torch.randn(size, size).to(device, dtype) for _ in range(2))

    def product() -> None:
        torch.matmul(a, b)
        if device != "cpu":
            torch.cuda.synchronize(device)

    return product


def _in_onnxruntime(size: int, threads: int | None) -> Callable[[], object] | None:
    from infid_engines.onnxruntime_backend import import_onnxruntime, session_options

    try:
        ort = import_onnxruntime()
    except BackendUnavailableError:
        return None
    if find_spec("onnx") is None:
        return None
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(0)
    a, b = (random.standard_normal((size, size), np.float32) for _ in range(2))
    given, result = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [size, size]) for name in ("a", "c"))
    node, weights = helper.make_node("MatMul", ["a", "b"], ["c"]), numpy_helper.from_array(b, "b")
    graph = helper.make_graph([node], "product", [given], [result], [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    session = ort.InferenceSession(
        model.SerializeToString(), session_options(ort, threads, spin=True), providers=["CPUExecutionProvider"]
    )
    return lambda: session.run(None, {"a": a})


if __name__ == "__main__":
    _main(sys.argv[1])
