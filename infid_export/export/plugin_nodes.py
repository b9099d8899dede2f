"""The fused kernels as ONNX nodes: one node of the domain `infid` replaces a subgraph of the native graph.

TensorRT maps such a node to the plugin of the same name (`infid_engines.tensorrt_plugin`). Tensors are
`[B, N, H, d]`, the layout of the projections' outputs, so that the kernels read them without a copy. Each node is also
defined here as an ONNX function of standard operators. With these functions added, the file for TensorRT runs in ONNX
Runtime, and its parity is measured like any other's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import torch
from onnx.defs import OpSchema
from onnx_ir.passes import common as passes
from onnxscript import opset18 as op
from onnxscript.values import Op, Opset

from infid_kernels.mean_shift import SPLITS

DOMAIN = "infid"
_SWAPPED = [0, 2, 1, 3]  # [B, N, H, d] <-> [B, H, N, d]
# Each node as an ONNX function. The shifts are split into equal parts, which the attention sums.
_FUNCTIONS = (
    f"""<domain: "{DOMAIN}", opset_import: ["": 18, "{DOMAIN}": 1]>
    mean_shift (k_id, v_id, k_t, v_t, strength) => (shift_k, shift_v) {{
        shift_k = {DOMAIN}.value_shift (k_id, k_t, strength)
        shift_v = {DOMAIN}.value_shift (v_id, v_t, strength)
    }}""",
    f"""<domain: "{DOMAIN}", opset_import: ["": 18]>
    value_shift (v_id, v_t, strength) => (shift_v) {{
        tokens = Constant <value_ints = [1]> ()
        wide_v_id = Cast <to = 1> (v_id)
        wide_v_t = Cast <to = 1> (v_t)
        mean_v_id = ReduceMean <keepdims = 0> (wide_v_id, tokens)
        mean_v_t = ReduceMean <keepdims = 0> (wide_v_t, tokens)
        difference_v = Sub (mean_v_t, mean_v_id)
        last = Constant <value_ints = [1, 2]> ()
        column = Unsqueeze (strength, last)
        splits = Constant <value_float = {SPLITS}.0> ()
        share = Div (column, splits)
        part_v = Mul (share, difference_v)
        axis = Constant <value_ints = [2]> ()
        rows_v = Unsqueeze (part_v, axis)
        shape = Constant <value_ints = [1, 1, {SPLITS}, 1]> ()
        shift_v = Expand (rows_v, shape)
    }}""",
    f"""<domain: "{DOMAIN}", opset_import: ["": 18]>
    mixed_attention (q, k_id, v_id, k_t, v_t, shift_k, shift_v) => (out) {{
        parts = Constant <value_ints = [2]> ()
        delta_k = ReduceSum <keepdims = 0> (shift_k, parts)
        delta_v = ReduceSum <keepdims = 0> (shift_v, parts)
        tokens = Constant <value_ints = [1]> ()
        row_k = Unsqueeze (delta_k, tokens)
        row_v = Unsqueeze (delta_v, tokens)
        typed_k = CastLike (row_k, k_id)
        typed_v = CastLike (row_v, v_id)
        moved_k = Add (k_id, typed_k)
        moved_v = Add (v_id, typed_v)
        keys = Concat <axis = 1> (moved_k, k_t)
        values = Concat <axis = 1> (moved_v, v_t)
        {{attention:q, keys, values, out}}
    }}""",
    f"""<domain: "{DOMAIN}", opset_import: ["": 18]>
    merged_cross_attention (q, k_t, v_t, k_id, v_id, shift_v, identity_strength) => (out) {{
        parts = Constant <value_ints = [2]> ()
        delta_v = ReduceSum <keepdims = 0> (shift_v, parts)
        tokens = Constant <value_ints = [1]> ()
        shift = Unsqueeze (delta_v, tokens)
        typed_shift = CastLike (shift, q)
        last = Constant <value_ints = [1, 2, 3]> ()
        factor_column = Unsqueeze (identity_strength, last)
        typed_factor = CastLike (factor_column, q)
        {{attention:q, k_t, v_t, text}}
        {{attention:q, k_id, v_id, identity}}
        moved = Add (identity, typed_shift)
        term = Mul (typed_factor, moved)
        out = Add (text, term)
    }}""",
)


def _operation(name: str, inputs: Mapping[str, str], outputs: Mapping[str, str]) -> Op:
    """Return an operator of the domain `infid`; `T` is the network's dtype, everything else is fp32."""
    parameters = [
        [OpSchema.FormalParameter(each, kind) for each, kind in values.items()] for values in (inputs, outputs)
    ]
    schema = OpSchema(
        name, DOMAIN, 1, inputs=parameters[0], outputs=parameters[1],
        type_constraints=[("T", ["tensor(float16)", "tensor(bfloat16)"], "the network's type")],
    )  # fmt: skip
    return Op(Opset(DOMAIN, 1), name, schema)


_WIDE = "tensor(float)"
_SEGMENTS = {"k_id": "T", "v_id": "T", "k_t": "T", "v_t": "T"}
_SHIFTS = {"shift_k": _WIDE, "shift_v": _WIDE}
_VALUES = {"v_id": "T", "v_t": "T", "strength": _WIDE}
_MERGED = {"q": "T", "k_t": "T", "v_t": "T", "k_id": "T", "v_id": "T", "shift_v": _WIDE, "identity_strength": _WIDE}
OPERATIONS: Mapping[str, Op] = {
    "mean_shift": _operation("mean_shift", {**_SEGMENTS, "strength": _WIDE}, _SHIFTS),
    "value_shift": _operation("value_shift", _VALUES, {"shift_v": _WIDE}),
    "mixed_attention": _operation("mixed_attention", {"q": "T", **_SEGMENTS, **_SHIFTS}, {"out": "T"}),
    "merged_cross_attention": _operation("merged_cross_attention", _MERGED, {"out": "T"}),
}


def translations() -> dict[Any, Callable[..., Any]]:
    """Return the exporter's translations of the operations in `infid_kernels`."""
    return {
        torch.ops.infid.mixed_attention.default: _translate_mixed,
        torch.ops.infid.merged_cross_attention.default: _translate_merged,
        torch.ops.infid.value_shift.default: _translate_value_shift,
    }


def _translate_mixed(
    q: Any, k_id: Any, v_id: Any, k_t: Any, v_t: Any, style_strength: Any, scale: float
) -> Any:  # fmt: skip
    _check_scale(q, scale)
    queries, *segments = (op.Transpose(tensor, perm=_SWAPPED) for tensor in (q, k_id, v_id, k_t, v_t))
    shifts = OPERATIONS["mean_shift"](*segments, style_strength)
    return op.Transpose(OPERATIONS["mixed_attention"](queries, *segments, *shifts), perm=_SWAPPED)


def _translate_merged(
    q: Any, k_t: Any, v_t: Any, k_id: Any, v_id: Any, shift_v: Any, identity_strength: Any, scale: float
) -> Any:
    _check_scale(q, scale)
    tensors = (op.Transpose(tensor, perm=_SWAPPED) for tensor in (q, k_t, v_t, k_id, v_id))
    return op.Transpose(OPERATIONS["merged_cross_attention"](*tensors, shift_v, identity_strength), perm=_SWAPPED)


def _translate_value_shift(v_id: Any, v_t: Any, style_strength: Any) -> Any:
    values = (op.Transpose(tensor, perm=_SWAPPED) for tensor in (v_id, v_t))
    return OPERATIONS["value_shift"](*values, style_strength)


def _check_scale(q: Any, scale: float) -> None:
    """Check the scale, which is compiled into the kernels, since TensorRT's plugins take no float."""
    if not math.isclose(scale, 1 / math.sqrt(q.shape[-1]), rel_tol=1e-6):
        raise ValueError(f"a plugin node has the scale 1/√d, not {scale}")


def output_type(node: ir.Node) -> ir.DataType | None:
    """Return the dtype of a plugin node's outputs."""
    if node.op_type in ("mean_shift", "value_shift"):
        return ir.DataType.FLOAT
    return None if node.inputs[0] is None else node.inputs[0].dtype


def finish(model: ir.Model) -> None:
    """Remove transposes that cancel, and add the attributes that TensorRT's parser needs.

    The parser reads the plugin's name from the node's type. Attributes give its namespace and request an ahead-of-time
    plugin.
    """
    for node in list(model.graph):
        if _swaps(node):
            straight = _before_swap(model, node.inputs[0])
            if straight is not None:
                ir.convenience.replace_all_uses_with(node.outputs[0], straight)
    passes.RemoveUnusedNodesPass()(model)
    for node in model.graph:
        if node.domain == DOMAIN:
            node.attributes["plugin_namespace"] = ir.AttrString("plugin_namespace", DOMAIN)
            node.attributes["aot"] = ir.AttrInt64("aot", 1)


def _before_swap(model: ir.Model, value: ir.Value | None) -> ir.Value | None:
    """Return a value before its transpose, or None if it was not transposed.

    A Slice or Concat of rows between the projections and the nodes is moved before the transpose.
    """
    node = None if value is None else value.producer()
    if node is None:
        return None
    if _swaps(node):
        return node.inputs[0]
    if node.op_type == "Slice" and _axes(node) == [0]:
        straight = _before_swap(model, node.inputs[0])
        return None if straight is None else _insert(model, node, "Slice", [straight, *node.inputs[1:]])
    if node.op_type == "Concat" and node.attributes["axis"].as_int() == 0:
        straights = [_before_swap(model, part) for part in node.inputs]
        if any(straights):
            parts = [
                straight or _insert(model, node, "Transpose", [part], before=True, perm=_SWAPPED)
                for straight, part in zip(straights, node.inputs, strict=True)
            ]
            return _insert(model, node, "Concat", parts, axis=0)
    return None


def _axes(node: ir.Node) -> list[int] | None:
    value = node.inputs[3].const_value if len(node.inputs) > 3 and node.inputs[3] is not None else None
    return None if value is None else list(value.numpy().tolist())


def _insert(
    model: ir.Model,
    node: ir.Node,
    kind: str,
    inputs: Sequence[ir.Value | None],
    before: bool = False,
    **attributes: Any,
) -> ir.Value:
    """Insert a new node next to another one, and return its output."""
    made = ir.node(kind, inputs, attributes=attributes)
    made.outputs[0].dtype = node.outputs[0].dtype
    (model.graph.insert_before if before else model.graph.insert_after)(node, made)
    return made.outputs[0]


def _swaps(node: ir.Node) -> bool:
    return node.op_type == "Transpose" and list(node.attributes["perm"].as_ints()) == _SWAPPED


def write_runnable(path: Path, copy: Path) -> None:
    """Write a copy of a graph in which the plugin nodes are ONNX functions, for ONNX Runtime.

    Args:
        path: the graph with plugin nodes.
        copy: path of the copy; the weights files must be next to it.
    """
    model = onnx.load(str(path), load_external_data=False)
    for node in model.graph.node:
        if node.domain == DOMAIN:
            del node.attribute[:]
    model.functions.extend(_functions())
    onnx.save(model, str(copy))


def _functions() -> list[onnx.FunctionProto]:
    """Return the nodes' functions."""
    return [onnx.parser.parse_function(_with_attention(text)) for text in _FUNCTIONS]


def _with_attention(text: str) -> str:
    """Expand `{attention:q, keys, values, result}` to softmax(QKᵀ/√d)V on `[B, N, H, d]`."""
    while "{attention:" in text:
        before, rest = text.split("{attention:", 1)
        arguments, after = rest.split("}", 1)
        q, keys, values, result = (name.strip() for name in arguments.split(","))
        lines = (
            f"{result}_shape = Shape <start = 3, end = 4> ({q})",
            f"{result}_d = Cast <to = 1> ({result}_shape)",
            f"{result}_root = Sqrt ({result}_d)",
            f"{result}_scale = Reciprocal ({result}_root)",
            f"{result}_typed = CastLike ({result}_scale, {q})",
            f"{result}_scaled = Mul ({q}, {result}_typed)",
            f"{result}_q = Transpose <perm = [0, 2, 1, 3]> ({result}_scaled)",
            f"{result}_k = Transpose <perm = [0, 2, 3, 1]> ({keys})",
            f"{result}_v = Transpose <perm = [0, 2, 1, 3]> ({values})",
            f"{result}_logits = MatMul ({result}_q, {result}_k)",
            f"{result}_weights = Softmax <axis = -1> ({result}_logits)",
            f"{result}_heads = MatMul ({result}_weights, {result}_v)",
            f"{result} = Transpose <perm = [0, 2, 1, 3]> ({result}_heads)",
        )
        text = before + "\n        ".join(lines) + after
    return text
