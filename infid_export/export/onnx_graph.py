"""Exports a module to ONNX: every dtype is explicit, every weight is an offset into a safetensors file.

The module is traced without reading its weights: their memory is reserved but not touched, so exporting the full SDXL
step needs about 1 GB. The exporter's output is simplified for TensorRT's parser and strongly typed networks: no shape
arithmetic, no CastLike, attention as scale → MatMul → Softmax → MatMul.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from onnx_ir.passes import common as passes
from onnxscript import opset18 as op
from onnxscript.optimizer import fold_constants_ir
from torch import Tensor, nn
from torch.export import Dim
from torch.utils._pytree import tree_map_only

from infid_export.export import plugin_nodes
from infid_export.export.weights import StoredTensor, WeightsLayout

OPSET = 18
_BLOCKED = -1e4  # logit of a masked key: finite in fp16, and its exponential is zero in every dtype
_IR_TYPES = {torch.float16: ir.DataType.FLOAT16, torch.float32: ir.DataType.FLOAT}


def export_onnx(
    module: nn.Module,
    inputs: Mapping[str, Tensor | list[Tensor]],
    input_names: Sequence[str],
    output_names: Sequence[str],
    weights: Mapping[str, tuple[str, WeightsLayout]],
    path: Path,
    dynamic: Mapping[str, Any] | None = None,
) -> None:
    """Write `module` as an ONNX file.

    Args:
        module: the graph's module, on the meta device except for buffers.
        inputs: an example of every argument, meta tensors in the order of the signature.
        input_names: flat names of the graph's inputs.
        output_names: flat names of the graph's outputs.
        weights: per prefix of parameter names (`"unet."`), the weights file next to `path` and its layout.
        path: the .onnx file to write.
        dynamic: per argument, the indices of the dynamic dimensions (a list for a list of tensors).
    """
    _reserve(module)
    inputs = tree_map_only(Tensor, lambda tensor: torch.empty_like(tensor, device="cpu"), dict(inputs))
    shapes = None if dynamic is None else {name: _free(dynamic[name]) for name in inputs}
    with torch.no_grad(), _plain_attention(), quiet():
        program = torch.export.export(module, (), kwargs=dict(inputs), dynamic_shapes=shapes, strict=False)
        exported = torch.onnx.export(
            program,
            kwargs=dict(inputs),
            dynamo=True,
            opset_version=OPSET,
            optimize=False,
            verbose=False,
            custom_translation_table={
                torch.ops.aten.scaled_dot_product_attention.default: _attention,
                **plugin_nodes.translations(),
            },
        )
    if exported is None:
        raise RuntimeError("torch.onnx.export returned no program")
    model = exported.model
    _name(model.graph.inputs, input_names)
    _name(model.graph.outputs, output_names)
    external = {name: _stored(name, weights) for name in model.graph.initializers}
    for name, stored in external.items():
        if stored is not None:
            model.graph.initializers[name].const_value = None  # constant folding must not look for values
    with quiet():
        _tidy(model)
    plugin_nodes.finish(model)
    _attach(model, external, path.parent)
    model.producer_name = "infid-export"
    for node in model.graph:
        node.doc_string = None
        node.metadata_props.clear()
    ir.save(model, path)


def _free(indices: Any) -> Any:
    """Return dynamic dimensions for torch.export; the tracer finds how they depend on each other."""
    if isinstance(indices, list):
        return [_free(entry) for entry in indices]
    return dict.fromkeys(sorted(indices), Dim.AUTO) or None


def _reserve(module: nn.Module) -> None:
    """Give meta parameters CPU storage without writing to it; the tracer needs one device for everything."""
    for layer in module.modules():
        for name, parameter in layer.named_parameters(recurse=False):
            if parameter.is_meta:
                empty = torch.empty_like(parameter, device="cpu")
                setattr(layer, name, nn.Parameter(empty, requires_grad=False))


def _attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """Translate attention. The query is scaled before the product, so that fp16 logits stay small.

    TensorRT also fuses this pattern into one kernel.
    """
    factor = scale if scale is not None else 1 / math.sqrt(query.shape[-1])
    scaled = op.Mul(query, op.Cast(op.Constant(value_float=factor), to=int(query.dtype)))
    logits = op.MatMul(scaled, op.Transpose(key, perm=[0, 1, 3, 2]))
    if is_causal:
        length = int(query.shape[-2])
        mask = torch.full((length, length), _BLOCKED).triu(1)
        logits = op.Add(logits, op.Cast(op.Constant(value=ir.tensor(mask.numpy())), to=int(query.dtype)))
    elif attn_mask is not None and attn_mask.dtype == ir.DataType.BOOL:
        blocked = op.Where(attn_mask, op.Constant(value_float=0.0), op.Constant(value_float=_BLOCKED))
        logits = op.Add(logits, op.Cast(blocked, to=int(query.dtype)))
    elif attn_mask is not None:
        logits = op.Add(logits, op.Cast(attn_mask, to=int(query.dtype)))
    return op.MatMul(op.Softmax(logits, axis=-1), value)


def _name(values: Sequence[ir.Value], names: Sequence[str]) -> None:
    if len(values) != len(names):
        raise RuntimeError(f"the graph has {len(values)} inputs or outputs, {len(names)} names were given")
    for value, name in zip(values, names, strict=True):
        value.name = name


def _stored(name: str, weights: Mapping[str, tuple[str, WeightsLayout]]) -> tuple[str, StoredTensor] | None:
    for prefix, (file, layout) in weights.items():
        if name.startswith(prefix) and name.removeprefix(prefix) in layout.tensors:
            return file, layout.tensors[name.removeprefix(prefix)]
    return None


def _tidy(model: ir.Model) -> None:
    """Fold constants and remove unused nodes; weights stay symbolic."""
    passes.InlinePass()(model)
    for _ in range(2):
        _explicit_casts(model)
        _drop_idle_transposes(model)
        fold_constants_ir(model, input_size_limit=1 << 14, output_size_limit=1 << 20)
        passes.RemoveUnusedNodesPass()(model)
    passes.CommonSubexpressionEliminationPass()(model)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    passes.RemoveUnusedOpsetsPass()(model)


def _explicit_casts(model: ir.Model) -> None:
    """Replace each CastLike by a Cast to its dtype."""
    for node in list(model.graph):
        for output in node.outputs:
            output.dtype = output.dtype or _type_of(node)
        if node.op_type == "CastLike" and node.outputs[0].dtype is not None:
            cast = ir.node("Cast", [node.inputs[0]], attributes={"to": int(node.outputs[0].dtype)})
            cast.outputs[0].dtype = node.outputs[0].dtype
            ir.convenience.replace_nodes_and_values(model.graph, node, [node], [cast], node.outputs, cast.outputs)


def _drop_idle_transposes(model: ir.Model) -> None:
    """Remove transposes that keep the order of the axes; ONNX Runtime before 1.30 fuses them into a Gemm wrongly."""
    for node in list(model.graph):
        if node.op_type == "Transpose" and "perm" in node.attributes:
            permutation = list(node.attributes["perm"].as_ints())
            if permutation == sorted(permutation):
                output = node.outputs[0]
                if output.is_graph_output():
                    continue
                ir.convenience.replace_all_uses_with(output, node.inputs[0])
                model.graph.remove(node, safe=True)


def _type_of(node: ir.Node) -> ir.DataType | None:
    """Return the dtype of a node's output that the exporter left open."""
    if node.domain == plugin_nodes.DOMAIN:
        return plugin_nodes.output_type(node)
    if node.op_type == "Cast":
        return ir.DataType(node.attributes["to"].as_int())
    if node.op_type in ("Shape", "Size", "ArgMax"):
        return ir.DataType.INT64
    if node.op_type in ("Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual", "Not", "And", "Or"):
        return ir.DataType.BOOL
    if node.op_type == "Constant":
        if "value" in node.attributes:
            return node.attributes["value"].as_tensor().dtype
        return ir.DataType.FLOAT if "value_float" in node.attributes else ir.DataType.INT64
    source = {"CastLike": 1, "Where": 1}.get(node.op_type, 0)
    value = node.inputs[source] if len(node.inputs) > source else None
    return None if value is None else value.dtype


def _attach(model: ir.Model, external: Mapping[str, tuple[str, StoredTensor] | None], folder: Path) -> None:
    """Point every weight into its file; a transposed weight replaces the graph's Transpose."""
    for name, location in external.items():
        if location is None or name not in model.graph.initializers:
            continue
        file, stored = location
        value = model.graph.initializers[name]
        value.const_value = ir.ExternalTensor(
            file, stored.offset, stored.length, _IR_TYPES[stored.dtype], shape=ir.Shape(stored.shape),
            name=name, base_dir=folder,
        )  # fmt: skip
        value.shape = ir.Shape(stored.shape)
        value.dtype = _IR_TYPES[stored.dtype]
        if stored.transposed:
            for use in list(value.uses()):
                _use_transposed(model, use.node, use.idx, value)
    passes.RemoveUnusedNodesPass()(model)


def _use_transposed(model: ir.Model, node: ir.Node, index: int, value: ir.Value) -> None:
    """Adapt one consumer of a weight that is stored as `[in, out]`."""
    if node.op_type == "Transpose":
        ir.convenience.replace_all_uses_with(node.outputs[0], value)
    elif node.op_type == "Gemm" and index == 1:
        node.attributes["transB"] = ir.AttrInt64("transB", 1 - node.attributes["transB"].as_int())
    else:
        restore = ir.node("Transpose", [value], attributes={"perm": [1, 0]})
        model.graph.insert_before(node, restore)
        node.replace_input_with(index, restore.outputs[0])


@contextlib.contextmanager
def _plain_attention() -> Iterator[None]:
    """Keep nn.MultiheadAttention off its fused inference path, which has no ONNX counterpart."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the exporter's messages on values that it cannot fold."""
    loggers = [logging.getLogger(name) for name in ("onnx_ir", "onnxscript", "torch.onnx")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
