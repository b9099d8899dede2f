"""A graph of an engine folder: its components, its inputs and outputs with their shapes, and its forms.

Imports are light: the command line reads the graphs for its help, and an unchanged rebuild for its plan.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from infid_export.export.graphs.sizes import Sizes, Tensors, TensorShape

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from infid_export.export.parity_case import Array, ParityCase
    from infid_export.model.config import IdentityConfig, StreamCount

    Values = Mapping[str, Array | Mapping[str, Array]]

Dependence = Literal["batch", "guidance", "size", "people", "method", "templates"]
Kernels = Literal["native", "triton"]
Value = TypeVar("Value")


class Graph(ABC):
    """One graph of an engine folder.

    To add one, write a subclass with all of the following in a file of its own, and add it to `GRAPHS`.

    Attributes:
        name: name of the graph and of its file.
        components: component by the prefix of its parameters in the module. Graphs with the same component share its
            weights file.
        depends_on: the build options that the graph depends on, besides its precision.
        by_default: whether a build that names no graph includes it, if the model has as many streams.
        streams: the numbers of streams of the models that it can be built from, see `IdentityConfig`.
        kernels: the kernels that can compute its attention in a TensorRT engine.
        upstream: graphs whose outputs are used in its parity inputs, each after its own upstream graphs.
    """

    name: str
    components: Mapping[str, str]
    depends_on: frozenset[Dependence]
    by_default: bool = True
    streams: tuple[StreamCount, ...] = ("two", "one")
    kernels: tuple[Kernels, ...] = ("native",)
    upstream: tuple[Graph, ...] = ()

    def used_components(self, config: IdentityConfig) -> Mapping[str, str]:
        """Return those of `components` that a variant of the method uses."""
        return self.components

    @abstractmethod
    def module(self, parts: Mapping[str, nn.Module], config: IdentityConfig, ops: str = "torch") -> nn.Module:
        """Return the module that the graph is exported from and compared with.

        Args:
            parts: the used components by name.
            config: the method variant.
            ops: implementation of the attention, see `install_processors`.
        """

    @abstractmethod
    def inputs(self, sizes: Sizes) -> Tensors:
        """Return the module's arguments, in the order of its signature."""

    @abstractmethod
    def outputs(self, sizes: Sizes) -> Tensors:
        """Return the module's results in order. The entries of one mapping are compared as one row."""

    @abstractmethod
    def parity_inputs(self, case: ParityCase) -> Values:
        """Return values for all inputs, fp32 except integers. `case` has sizes, fixed noise and upstream outputs."""

    def arguments(self, sizes: Sizes, dtype: torch.dtype) -> dict[str, Tensor | list[Tensor]]:
        """Return the module's arguments as meta tensors, for networks in `dtype`."""
        import torch

        types = {"float32": torch.float32, "int32": torch.int32, "int8": torch.int8, "network": dtype}

        def meta(shape: TensorShape) -> Tensor:
            return torch.empty(shape.extents, dtype=types[shape.dtype], device="meta")

        return {
            name: meta(each) if isinstance(each, TensorShape) else [meta(inner) for inner in each.values()]
            for name, each in self.inputs(sizes).items()
        }


@dataclass(frozen=True)
class GraphForm:
    """One exported form of a graph: one file of an engine folder.

    Args:
        graph: the graph.
        kernels: implementation of its attention: native operators, or nodes for the Triton kernels.
    """

    graph: Graph
    kernels: Kernels = "native"

    @property
    def name(self) -> str:
        """The form's name in the manifest and in comparisons; for display, never parsed."""
        return self.graph.name if self.kernels == "native" else f"{self.graph.name}.{self.kernels}"

    @property
    def file(self) -> str:
        """Path within the folder."""
        return f"onnx/{self.name}.onnx"

    @property
    def ops(self) -> str:
        """Implementation of the attention in the exported module, see `install_processors`."""
        return {"native": "torch", "triton": "triton"}[self.kernels]


def flat(values: Mapping[str, Value | Mapping[str, Value]]) -> dict[str, Value]:
    """Return arguments or results by their flat names in an ONNX file: `argument` or `argument.entry`."""
    found: dict[str, Any] = {}
    for name, each in values.items():
        if isinstance(each, Mapping):
            found |= {f"{name}.{entry}": inner for entry, inner in each.items()}
        else:
            found[name] = each
    return found


def list_names(tensors: Tensors) -> dict[str, list[str]]:
    """Return the flat names of each list of tensors, by the list's name."""
    lists = {name: each for name, each in tensors.items() if isinstance(each, Mapping)}
    return {name: [f"{name}.{entry}" for entry in entries] for name, entries in lists.items()}
