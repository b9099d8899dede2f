"""A fake of `tensorrt.plugin` that follows its documentation and validation, with numbers instead of symbols.

It enforces the rules that a plugin can break: names and annotations of every signature, tactics from 1 up, one type per
input and output, expressions of its own integers only.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable
from typing import Any


class SymInt32:
    def __init__(self, value: int | SymInt32) -> None:
        self.value: int = value.value if isinstance(value, SymInt32) else value

    def _operate(self, other: Any, operation: Callable[[int, int], int]) -> SymInt32:
        assert isinstance(other, (SymInt32, int)), "an operand that TensorRT does not know"
        return SymInt32(operation(self.value, SymInt32(other).value))

    def __add__(self, other: Any) -> SymInt32:
        return self._operate(other, int.__add__)

    def __sub__(self, other: Any) -> SymInt32:
        return self._operate(other, int.__sub__)

    def __mul__(self, other: Any) -> SymInt32:
        return self._operate(other, int.__mul__)

    def __floordiv__(self, other: Any) -> SymInt32:
        return self._operate(other, int.__floordiv__)


class TensorDesc:
    def __init__(self, shape: tuple[int, ...], dtype: str) -> None:
        self.shape, self.dtype = shape, dtype
        self.shape_expr = [SymInt32(extent) for extent in shape]

    def like(self) -> TensorDesc:
        return TensorDesc(self.shape, self.dtype)


class KernelLaunchParams:
    def __init__(self) -> None:
        for axis in "xyz":
            setattr(self, f"grid_{axis}", 1)
            setattr(self, f"block_{axis}", 1)
        self.shared_mem = 0


class SymIntExprs:
    def __init__(self, count: int) -> None:
        self.values: list[SymInt32 | None] = [None] * count

    def __setitem__(self, index: int, value: SymInt32) -> None:
        assert isinstance(value, SymInt32)
        self.values[index] = value


class AutoTuneCombination:
    def __init__(self, io_types: str, layouts: str, tactics: list[int]) -> None:
        assert all(tactic > 0 for tactic in tactics)
        self.types = [each.strip() for each in io_types.split(",")]
        self.layouts, self.tactics = layouts, tactics


def from_shape_expr(shape: tuple[SymInt32 | int, ...], dtype: str) -> TensorDesc:
    return TensorDesc(tuple(SymInt32(extent).value for extent in shape), dtype)


class Plugin:
    def __init__(self, describe: Callable[..., Any]) -> None:
        signature = inspect.signature(describe)
        for parameter in signature.parameters.values():
            assert parameter.default is inspect.Parameter.empty
            assert issubclass(parameter.annotation, TensorDesc)
        self.inputs = list(signature.parameters)
        returned = signature.return_annotation
        self.outputs = len(typing.get_args(returned)) if typing.get_origin(returned) is tuple else 1
        self.describe = describe
        self.autotune: Callable[..., Any] | None = None
        self.aot_impl: Callable[..., Any] | None = None


class Registry:
    """Stands for the module."""

    TensorDesc, KernelLaunchParams, SymInt32, SymIntExprs = TensorDesc, KernelLaunchParams, SymInt32, SymIntExprs
    AutoTuneCombination = AutoTuneCombination
    from_shape_expr = staticmethod(from_shape_expr)

    def __init__(self) -> None:
        self.plugins: dict[str, Plugin] = {}

    def register(self, plugin_id: str) -> Callable[..., Any]:
        namespace, name = plugin_id.split("::")
        assert "." not in plugin_id and namespace not in ("", "trt", "tensorrt", "std") and name

        def decorate(function: Callable[..., Any]) -> None:
            assert plugin_id not in self.plugins
            self.plugins[plugin_id] = Plugin(function)

        return decorate

    def autotune(self, plugin_id: str) -> Callable[..., Any]:
        def decorate(function: Callable[..., Any]) -> None:
            plugin = self.plugins[plugin_id]
            assert list(inspect.signature(function).parameters) == [*plugin.inputs, "outputs"]
            plugin.autotune = function

        return decorate

    def aot_impl(self, plugin_id: str) -> Callable[..., Any]:
        def decorate(function: Callable[..., Any]) -> None:
            plugin = self.plugins[plugin_id]
            signature = inspect.signature(function)
            assert list(signature.parameters) == [*plugin.inputs, "outputs", "tactic"]
            assert typing.get_args(signature.return_annotation)[2:] == (KernelLaunchParams, SymIntExprs)
            plugin.aot_impl = function

        return decorate
