"""The fused kernels as ahead-of-time TensorRT plugins, so that an engine runs them without Python.

`tensorrt.plugin` gives TensorRT the PTX, the launch and the integer arguments as expressions of the inputs' shapes,
which become part of the engine. Each kernel's launch description has all of that, so nothing here knows what a kernel
computes. Every compiled variant of a kernel is one tactic, which TensorRT times. At least one needs no more than 48 KB
of shared memory, since TensorRT documents nothing above. Not yet run on TensorRT.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infid_engines.documents import read_json
from infid_engines.errors import EngineFolderError
from infid_engines.expressions import evaluate

NAMESPACE = "infid"
SCHEMA_VERSION = 3
_BUILD_AGAIN = "Build again with `infid-export build --kernels triton`."
_TYPES = {"*fp16": "FP16", "*bf16": "BF16", "*fp32": "FP32"}


@dataclass(frozen=True)
class Variant:
    """One compiled kernel.

    Args:
        launch: its launch description (`infid_kernels.compile`).
        ptx: its code.
    """

    launch: Mapping[str, Any]
    ptx: str

    @property
    def inputs(self) -> list[Mapping[str, Any]]:
        """Its input pointers."""
        return [each for each in self.launch["arguments"] if each["type"] in _TYPES and not each["output"]]

    @property
    def outputs(self) -> list[Mapping[str, Any]]:
        """Its output pointers."""
        return [each for each in self.launch["arguments"] if each["type"] in _TYPES and each["output"]]

    @property
    def integers(self) -> list[Mapping[str, Any]]:
        """Its int32 arguments."""
        return [each for each in self.launch["arguments"] if each["type"] == "i32"]

    def sizes(self, shapes: Sequence[Sequence[Any]]) -> dict[str, Any]:
        """Return the values of the description's symbols for inputs of these shapes."""
        return {
            symbol: extent
            for each, shape in zip(self.inputs, shapes, strict=True)
            for symbol, extent in zip(each["shape"], shape, strict=True)
            if not symbol.isdigit()
        }

    def takes(self, shapes: Sequence[Sequence[int]]) -> bool:
        """Return whether it supports inputs of these shapes; -1 is a dynamic extent."""
        fixed = (
            (int(symbol), extent)
            for each, shape in zip(self.inputs, shapes, strict=True)
            for symbol, extent in zip(each["shape"], shape, strict=True)
            if symbol.isdigit()
        )
        sizes = self.sizes(shapes)
        return all(required == extent for required, extent in fixed) and all(
            sizes[symbol] >= 0 and sizes[symbol] % multiple == 0
            for symbol, multiple in self.launch["multiples"].items()
        )


def read_variants(path: Path) -> dict[str, list[Variant]]:
    """Read a file of kernels for one GPU architecture, by operation.

    Raises:
        EngineFolderError: it is missing or broken, or has another format.
    """
    try:
        document = read_json(path)
        if document["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"it has schema version {document['schema_version']}, not {SCHEMA_VERSION}")
        variants: dict[str, list[Variant]] = {}
        for each in document["kernels"]:
            variants.setdefault(each["launch"]["op"], []).append(Variant(each["launch"], each["ptx"]))
        return variants
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise EngineFolderError(f"{path} does not contain kernels ({error}).", fix=_BUILD_AGAIN) from error


def register(trtp: Any, variants: Mapping[str, Sequence[Variant]]) -> None:
    """Register every operation as a plugin, before parsing a graph with its nodes.

    Args:
        trtp: the module `tensorrt.plugin`.
        variants: compiled kernels by operation, see `read_variants`.
    """
    for op, compiled in variants.items():
        _register(trtp, f"{NAMESPACE}::{op}", list(compiled))


def _register(trtp: Any, plugin: str, variants: Sequence[Variant]) -> None:
    first = variants[0]
    names = [each["name"] for each in first.inputs]
    described = dict.fromkeys(names, trtp.TensorDesc)
    several = len(first.outputs) > 1
    all_outputs = types.GenericAlias(tuple, (trtp.TensorDesc,) * len(first.outputs))
    returned = all_outputs if several else trtp.TensorDesc

    def describe(*inputs: Any) -> Any:
        """Return the outputs' shapes and dtypes."""
        found = tuple(_output(trtp, first, inputs, each) for each in first.outputs)
        return found if several else found[0]

    def autotune(*given: Any) -> Any:
        """Return the tactics for these shapes, numbered from 1. With an empty list, TensorRT would choose itself.

        Raises:
            EngineFolderError: no kernel supports these shapes.
        """
        shapes = [tuple(tensor.shape) for tensor in given[: len(names)]]
        tactics = [number for number, each in enumerate(variants, 1) if each.takes(shapes)]
        if not tactics:
            shown = ", ".join(f"{name} {list(shape)}" for name, shape in zip(names, shapes, strict=True))
            raise EngineFolderError(f"{plugin} has no kernel for {shown}.", fix=_BUILD_AGAIN)
        types = ", ".join(_TYPES[each["type"]] for each in (*first.inputs, *first.outputs))
        return [trtp.AutoTuneCombination(types, "LINEAR", tactics)]

    def aot_impl(*given: Any) -> Any:
        """Return one tactic's code, launch and integer arguments."""
        variant = variants[given[-1] - 1]
        sizes = variant.sizes([tensor.shape_expr for tensor in given[: len(names)]])
        launch = trtp.KernelLaunchParams()
        launch.grid_x, launch.grid_y, launch.grid_z = (
            evaluate(expression, sizes, trtp.SymInt32) for expression in variant.launch["grid"]
        )
        launch.block_x, launch.block_y, launch.block_z = variant.launch["block"]
        launch.shared_mem = variant.launch["shared_bytes"]
        integers = trtp.SymIntExprs(len(variant.integers))
        for index, each in enumerate(variant.integers):
            integers[index] = trtp.SymInt32(evaluate(each["value"], sizes, trtp.SymInt32))
        return variant.launch["entry"], variant.ptx, launch, integers

    outputs = {"outputs": all_outputs}
    combinations = list[trtp.AutoTuneCombination]
    result = tuple[str, str, trtp.KernelLaunchParams, trtp.SymIntExprs]
    trtp.register(plugin)(_signed(describe, described, returned))
    trtp.autotune(plugin)(_signed(autotune, {**described, **outputs}, combinations))
    trtp.aot_impl(plugin)(_signed(aot_impl, {**described, **outputs, "tactic": int}, result))


def _output(trtp: Any, variant: Variant, inputs: Sequence[Any], output: Mapping[str, Any]) -> Any:
    """Describe an output: its shape comes from the inputs' shapes, its dtype from an input with the same dtype."""
    sizes = variant.sizes([tensor.shape_expr for tensor in inputs])
    alike = [each["type"] for each in variant.inputs].index(output["type"])
    shape = tuple(evaluate(extent, sizes) for extent in output["shape"])
    return trtp.from_shape_expr(shape, dtype=inputs[alike].dtype)


def _signed(function: Callable[..., Any], parameters: Mapping[str, Any], returned: Any) -> Callable[..., Any]:
    """Give a function the signature that tells TensorRT its inputs and outputs."""
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    listed = [inspect.Parameter(name, kind, annotation=annotation) for name, annotation in parameters.items()]
    function.__signature__ = inspect.Signature(listed, return_annotation=returned)  # type: ignore[attr-defined]
    return function
