"""Reads how an ONNX face model scales pixels from its first nodes, without the onnx package.

A recognizer from MXNet contains its normalization (`Sub` 127.5, `Mul` 1/128), one from PyTorch usually does not.
InsightFace's `ArcFaceONNX` looks for nodes with such names. Here the constants decide, since other exporters name their
nodes differently or not at all. The file format: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

Array = np.ndarray[Any, Any]
Range = Literal["signed", "unit", "raw"]

# Ranges that a photo's pixels can be scaled to: the lowest and the highest value.
RANGES: Mapping[Range, tuple[float, float]] = {"signed": (-1.0, 1.0), "unit": (0.0, 1.0), "raw": (0.0, 255.0)}
_PASSED = ("Identity", "Cast", "Transpose", "Dropout", "Gather")  # they move or cast pixels without scaling them
_UNCHANGED = ("Identity", "Cast", "Reshape", "Squeeze", "Unsqueeze")  # of constants: the values stay in the same order
_DTYPES = {1: "<f4", 2: "u1", 3: "i1", 6: "<i4", 7: "<i8", 10: "<f2", 11: "<f8"}  # TensorProto.DataType
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # protobuf's wire types


@dataclass(frozen=True)
class _Node:
    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, memoryview] = field(default_factory=dict)


def expected_range(path: Path, input_name: str) -> Range:
    """Return the range of pixels that a face model expects: [−1, 1], [0, 1], or unscaled from 0 to 255.

    The linear operations at the start of the model are followed. The input of the first layer should be centered and
    of about unit size, so the range that comes closest to this is the model's. A model without such operations
    expects [−1, 1], like InsightFace's.

    Args:
        path: .onnx file.
        input_name: name of the photo's input.

    Raises:
        ValueError: the file is not an ONNX model.
    """
    try:
        factor, shift = _first_scaling(memoryview(path.read_bytes()), input_name)
    except (struct.error, LookupError, ValueError, TypeError) as error:
        raise ValueError(f"{path} is not an ONNX model in protobuf's format") from error

    def oddness(name: Range) -> float:
        low, high = (factor * value + shift for value in RANGES[name])
        center, half = (low + high) / 2, np.maximum(np.abs(high - low) / 2, 1e-9)
        return float(np.mean(np.abs(center) / half + np.abs(np.log(half))))

    return min(RANGES, key=oddness)


def _first_scaling(model: memoryview, input_name: str) -> tuple[Array, Array]:
    """Return factor and shift that the first nodes apply to the input, each `[1]` or `[3]` fp64."""
    nodes, constants = _read_graph(model)
    factor, shift, name = np.ones(1), np.zeros(1), input_name
    while len(users := [node for node in nodes if name in node.inputs and node.kind != "Shape"]) == 1:
        (node,) = users
        others = [constants.get(other) for other in node.inputs if other != name]
        if node.kind not in _PASSED:
            found = _linear(node, name, factor, shift, others)
            if found is None:
                break
            factor, shift = found
        name = node.outputs[0]
    return factor, shift


def _linear(
    node: _Node, name: str, factor: Array, shift: Array, others: list[Array | None]
) -> tuple[Array, Array] | None:
    """Return factor and shift after a node; None if it is not linear with known constants."""
    known = [value for value in others if value is not None and value.size in (1, 3)]
    if len(known) < len(others) or len(known) != (4 if node.kind == "BatchNormalization" else 1):
        return None
    first, value = node.inputs[0] == name, known[0]
    if node.kind == "Add":
        return factor, shift + value
    if node.kind == "Sub":
        return (factor, shift - value) if first else (-factor, value - shift)
    if node.kind == "Mul":
        return factor * value, shift * value
    if node.kind == "Div" and first:
        return factor / value, shift / value
    if node.kind == "BatchNormalization":
        scale, bias, mean, variance = known
        epsilon = struct.unpack("<f", node.attributes["epsilon"])[0] if "epsilon" in node.attributes else 1e-5
        slope = scale / np.sqrt(variance + epsilon)
        return factor * slope, (shift - mean) * slope + bias
    return None


def _read_graph(model: memoryview) -> tuple[list[_Node], dict[str, Array]]:
    """Return the nodes, and the constants and initializers that are small enough to scale pixels."""
    (graph,) = [value for number, value in _fields(model) if number == 7]
    nodes: list[_Node] = []
    constants: dict[str, Array] = {}
    for number, value in _fields(graph):
        if number == 1:
            node = _node(value)
            if node.kind == "Constant" and "value" in node.attributes:
                _, constants[node.outputs[0]] = _tensor(node.attributes["value"])
            else:
                nodes.append(node)
        elif number == 5 and len(value) < 4096:
            name, tensor = _tensor(value)
            constants[name] = tensor
    for node in nodes:
        if node.kind in _UNCHANGED and node.inputs and node.inputs[0] in constants:
            constants[node.outputs[0]] = constants[node.inputs[0]]
    return nodes, constants


def _node(message: memoryview) -> _Node:
    inputs, outputs, kind, attributes = [], [], "", {}
    for number, value in _fields(message):
        if number == 1:
            inputs.append(str(value, "utf-8"))
        elif number == 2:
            outputs.append(str(value, "utf-8"))
        elif number == 4:
            kind = str(value, "utf-8")
        elif number == 5:
            parts = dict(_fields(value))
            attributes[str(parts[1], "utf-8")] = parts.get(5, parts.get(2, memoryview(b"")))  # a tensor, or a float
    return _Node(kind, tuple(name for name in inputs if name), tuple(outputs), attributes)


def _tensor(message: memoryview) -> tuple[str, Array]:
    """Return a tensor's name and its flat fp64 values; empty if they are stored outside the file."""
    name, dtype, values = "", "", b""
    for number, value in _fields(message):
        if number == 8:
            name = str(value, "utf-8")
        elif number == 2:
            dtype = _DTYPES.get(value, "")
        elif number in (4, 9, 10):  # as floats, as bytes, as doubles
            values += bytes(value)
    count = np.dtype(dtype).itemsize if dtype else 0
    whole = count and len(values) % count == 0
    return name, np.frombuffer(values, dtype).astype(np.float64) if whole else np.empty(0)


def _fields(message: memoryview) -> Iterator[tuple[int, Any]]:
    """Yield the number and value of each field in a protobuf message: an integer, or the bytes of anything else."""
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        kind = tag & 7
        if kind == _VARINT:
            value, position = _varint(message, position)
            yield tag >> 3, value
            continue
        if kind == _BYTES:
            length, position = _varint(message, position)
        elif kind in (_FIXED32, _FIXED64):
            length = 4 if kind == _FIXED32 else 8
        else:
            raise IndexError(kind)
        if position + length > len(message):
            raise IndexError(position)
        yield tag >> 3, message[position : position + length]
        position += length


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[position]
        value |= (byte & 127) << shift
        position, shift = position + 1, shift + 7
        if byte < 128:
            return value, position
