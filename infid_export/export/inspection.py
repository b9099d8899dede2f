"""Reads exported graphs without their weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx

from infid_engines.documents import require_plain
from infid_engines.errors import EngineFolderError
from infid_engines.manifest import TensorSpec


@dataclass(frozen=True)
class GraphFacts:
    """The facts in an ONNX file.

    Args:
        inputs: names, types and shapes.
        outputs: likewise.
        parameters: number of weights.
        opset: version of the standard operators.
        operators: how often each operator occurs.
        weights_files: files with its external data.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    parameters: int
    opset: int
    operators: Mapping[str, int]
    weights_files: tuple[str, ...]


def read_graph(path: Path) -> GraphFacts:
    """Read an ONNX file's inputs, outputs and operators; external weights are not loaded.

    Raises:
        EngineFolderError: it is missing or not an ONNX file.
    """
    try:
        require_plain(path)
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf's error type is not public
        raise EngineFolderError(f"{path} is not an ONNX file ({error}).", fix="Export it again.") from error
    graph = model.graph
    if not graph.node:
        raise EngineFolderError(f"{path} is not an ONNX file (it has no nodes).", fix="Export it again.")
    initializers = {tensor.name for tensor in graph.initializer}
    parameters, files = 0, set()
    for tensor in graph.initializer:
        locations = {entry.key: entry.value for entry in tensor.external_data}
        if "location" in locations:
            files.add(locations["location"])
            count = 1
            for extent in tensor.dims:
                count *= extent
            parameters += count
    return GraphFacts(
        tuple(_spec(value) for value in graph.input if value.name not in initializers),
        tuple(_spec(value) for value in graph.output),
        parameters,
        next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0),
        dict(Counter(node.op_type for node in graph.node).most_common()),
        tuple(sorted(files)),
    )


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    """Return a value's name, dtype and shape. A dynamic dimension is [0, 0, 0]; the manifest has its range."""
    tensor = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    return TensorSpec(value.name, dtype, tuple(dimension.dim_value or [0, 0, 0] for dimension in tensor.shape.dim))
