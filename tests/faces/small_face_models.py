"""Small ONNX face models with known answers, written to the place where a test needs them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = [helper.make_opsetid("", 17)]
BOX = 80.0  # side of the dot detector's boxes
# y, x in units of the box: left eye, right eye, nose, left and right mouth corner
MARKS = [(0.4, 0.3), (0.4, 0.7), (0.6, 0.5), (0.75, 0.35), (0.75, 0.65)]


def write_dot_detector(path: Path) -> Path:
    """Write a detector with CenterFace's outputs that detects every white 4 × 4 cell of the photo as a face."""
    constants = {
        "kernel": np.full((1, 3, 4, 4), 1 / (48 * 255), np.float32),
        "white": np.array(0.99, np.float32),
        "nothing": np.zeros((2, 1, 1, 1), np.float32),
        "nothing10": np.zeros((10, 1, 1, 1), np.float32),
        "log_size": np.full((1, 2, 1, 1), np.log(BOX / 4), np.float32),
        "marks": np.array(MARKS, np.float32).reshape(1, 10, 1, 1),
    }
    nodes = [
        helper.make_node("Conv", ["image", "kernel"], ["mean"], strides=[4, 4]),
        helper.make_node("Greater", ["mean", "white"], ["is_white"]),
        helper.make_node("Cast", ["is_white"], ["heatmap"], to=TensorProto.FLOAT),
        helper.make_node("Conv", ["heatmap", "nothing"], ["offset"]),
        helper.make_node("Add", ["offset", "log_size"], ["scale"]),
        helper.make_node("Conv", ["heatmap", "nothing10"], ["blank"]),
        helper.make_node("Add", ["blank", "marks"], ["landmarks"]),
    ]
    outputs = [("heatmap", 1), ("scale", 2), ("offset", 2), ("landmarks", 10)]
    return _save(
        path,
        nodes,
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, "H", "W"])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", depth, "h", "w"]) for name, depth in outputs],
        constants,
    )


def write_recognizer(
    path: Path,
    width: int = 512,
    side: int = 112,
    batch: int | str = "N",
    dtype: type = np.float32,
    fill: float | None = None,
    start: Sequence[tuple] = (),
    pixels: type | None = None,
    channels_last: bool = False,
) -> Path:
    """Write a recognizer: a fixed random projection of 28 × 28 cells, or one that always returns `fill`.

    It begins with the operators in `start`, each a name and its constants. An array alone in a list is written as a
    node instead of an initializer; a dictionary holds attributes.
    """
    cells, shape = 3 * (side // 28) ** 2, [batch, side, side, 3] if channels_last else [batch, 3, side, side]
    projection = np.random.default_rng(0).standard_normal((cells, width)).astype(dtype)
    if fill is not None:
        projection[:] = 0
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    nodes, last, constants = [], "face", {}
    for number, (operator, *values) in enumerate(start):
        attributes, names = {}, []
        for place, value in enumerate(values):
            name = f"start_{number}_{place}"
            if isinstance(value, dict):
                attributes = value
                continue
            names.append(name)
            if isinstance(value, list):
                tensor = numpy_helper.from_array(np.asarray(value[0], dtype))
                nodes.append(helper.make_node("Constant", [], [name], value=tensor))
            else:
                constants[name] = np.asarray(value, dtype)
        nodes.append(helper.make_node(operator, [last, *names], [f"started_{number}"], **attributes))
        last = f"started_{number}"
    nodes += [
        helper.make_node("AveragePool", [last], ["pooled"], kernel_shape=[28, 28], strides=[28, 28]),
        helper.make_node("Flatten", ["pooled"], ["cells"]),
        helper.make_node("MatMul", ["cells", "projection"], ["product"]),
        helper.make_node("Add", ["product", "fill"], ["embedding"]),
    ]
    return _save(
        path,
        nodes,
        [helper.make_tensor_value_info("face", helper.np_dtype_to_tensor_dtype(np.dtype(pixels or dtype)), shape)],
        [helper.make_tensor_value_info("embedding", kind, [batch, width])],
        {"projection": projection, "fill": np.array(fill or 0, dtype), **constants},
    )


def quick_faces(folder: Path) -> dict[str, Any]:
    """Return build options that export no face models; the recognizer is written into the folder."""
    recognizer = write_recognizer(folder / "recognizer.onnx")
    return {"recognizer": recognizer, "detector": "centerface", "allow_other_encoders": True}


def write_scrfd(path: Path, landmarks: bool = True) -> Path:
    """Write a detector with InsightFace's SCRFD outputs: one face if red outweighs blue, else none.

    At 640 × 640 its anchor at (320, 320), with stride 8, gives the box (240, 240)–(400, 400).
    """
    nodes, outputs, constants = [], [], {"axes": np.array([0, 2, 3], np.int64)}
    nodes.append(helper.make_node("ReduceMean", ["image"], ["color"], axes=[0, 2, 3], keepdims=0))
    for name, index in (("red", 0), ("blue", 2)):
        constants[f"{name}_index"] = np.array(index, np.int64)
        nodes.append(helper.make_node("Gather", ["color", f"{name}_index"], [name]))
    nodes.append(helper.make_node("Greater", ["red", "blue"], ["is_red"]))
    nodes.append(helper.make_node("Cast", ["is_red"], ["redness"], to=TensorProto.FLOAT))
    marks = np.array([[-6, -4], [6, -4], [0, 0], [-4, 5], [4, 5]], np.float32).reshape(10)
    for kind, depth in (("score", 1), ("box", 4), ("marks", 10)):
        if kind == "marks" and not landmarks:
            continue
        for stride in (8, 16, 32):
            count = (640 // stride) ** 2 * 2
            values = np.zeros((count, depth), np.float32)
            if stride == 8:
                row = (40 * 80 + 40) * 2
                values[row] = {"score": 0.9, "box": 10.0, "marks": marks}[kind]
            name = f"{kind}_{stride}"
            constants[f"{name}_values"] = values
            factor = "redness" if kind == "score" else "one"
            nodes.append(helper.make_node("Mul", [f"{name}_values", factor], [name]))
            outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [count, depth]))
    constants["one"] = np.array(1, np.float32)
    del constants["axes"]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, "H", "W"])
    return _save(path, nodes, [image], outputs, constants)


def _save(path: Path, nodes: list, inputs: list, outputs: list, constants: dict[str, np.ndarray]) -> Path:
    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    model = helper.make_model(
        helper.make_graph(nodes, "test", inputs, outputs, initializers), opset_imports=OPSET, ir_version=9
    )
    onnx.save(model, str(path))
    return path
