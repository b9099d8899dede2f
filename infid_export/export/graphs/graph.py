"""What a graph of an engine folder is: its components, its inputs and outputs with their shapes, and its forms.

Imports nothing heavy: the command line reads the graphs for its help, and an unchanged rebuild for its plan.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from infid_export.export.parity_case import Array, ParityCase
    from infid_export.model.architectures import Architecture
    from infid_export.model.config import IdentityConfig

    Values = Mapping[str, Array | Mapping[str, Array]]

PROMPT_TOKENS = 77

Dependence = Literal["batch", "size", "people", "method"]
Kernels = Literal["native", "triton"]
Value = TypeVar("Value")


class TensorShape(NamedTuple):
    """Shape and type of a tensor; `network` is the type of the graph's network, fp16 or fp32."""

    extents: tuple[int, ...]
    dtype: Literal["float32", "int32", "network"] = "float32"


# By argument or result; a mapping stands for a list of tensors, by the names of its entries.
Tensors = Mapping[str, TensorShape | Mapping[str, TensorShape]]


@dataclass(frozen=True)
class Sizes:
    """Everything that decides the shapes of a graph.

    Args:
        architecture: configurations of the components.
        config: sizes of the identity modules.
        blocks: cross-attention paths of the UNet and their channels, see `identity_blocks`.
        batch: B, images per call.
        height: pixels; likewise `width`.
        people: token slots for people.
    """

    architecture: Architecture
    config: IdentityConfig
    blocks: Mapping[str, int]
    batch: int
    height: int
    width: int
    people: int = 1

    @property
    def rows(self) -> int:
        """R, rows of one stream: unconditional, then conditional."""
        return 2 * self.batch

    @property
    def latents(self) -> TensorShape:
        """The latents of one stream."""
        return TensorShape((self.batch, *self.architecture.latents(self.height, self.width)))


class Graph(ABC):
    """One graph of an engine folder.

    To add one, write a subclass with all that follows in a file of its own, and put it into `GRAPHS`.

    Attributes:
        name: of the graph, and of its file.
        components: component by the prefix of its parameters in the module; graphs with the same component share its
            weights file.
        depends_on: which of a build's options decide the graph besides its precision.
        by_default: whether a build that names no graph has it.
        kernels: what can compute its attention inside a TensorRT engine.
        upstream: graphs whose outputs its parity inputs are made of, each after its own upstream graphs.
    """

    name: str
    components: Mapping[str, str]
    depends_on: frozenset[Dependence]
    by_default: bool = True
    kernels: tuple[Kernels, ...] = ("native",)
    upstream: tuple[Graph, ...] = ()

    @abstractmethod
    def module(self, parts: Mapping[str, nn.Module], config: IdentityConfig, ops: str = "torch") -> nn.Module:
        """Return what the graph is exported from, and compared with.

        Args:
            parts: the components by name.
            config: the method variant.
            ops: what computes the attention, see `install_processors`.
        """

    @abstractmethod
    def inputs(self, sizes: Sizes) -> Tensors:
        """Return the module's arguments, in the order of its signature."""

    @abstractmethod
    def outputs(self, sizes: Sizes) -> Tensors:
        """Return the module's results in order; those of one mapping are one row of the comparison."""

    @abstractmethod
    def parity_inputs(self, case: ParityCase) -> Values:
        """Return values for all inputs, in fp32; `case` has the sizes, fixed noise and the upstream graphs' outputs."""

    def arguments(self, sizes: Sizes, dtype: torch.dtype) -> dict[str, Tensor | list[Tensor]]:
        """Return the module's arguments as meta tensors, with networks of type `dtype`."""
        import torch

        types = {"float32": torch.float32, "int32": torch.int32, "network": dtype}

        def meta(shape: TensorShape) -> Tensor:
            return torch.empty(shape.extents, dtype=types[shape.dtype], device="meta")

        return {
            name: meta(each) if isinstance(each, TensorShape) else [meta(inner) for inner in each.values()]
            for name, each in self.inputs(sizes).items()
        }


@dataclass(frozen=True)
class GraphForm:
    """A graph as it is exported: one file of an engine folder.

    Args:
        graph: what it computes.
        kernels: what computes its attention: plain operators, or nodes for the Triton kernels.
    """

    graph: Graph
    kernels: Kernels = "native"

    @property
    def name(self) -> str:
        """The form in the manifest and in comparisons; to be shown, never to be taken apart."""
        return self.graph.name if self.kernels == "native" else f"{self.graph.name}.{self.kernels}"

    @property
    def file(self) -> str:
        """Path within the folder."""
        return f"onnx/{self.name}.onnx"

    @property
    def ops(self) -> str:
        """What computes the attention of the module that is exported, see `install_processors`."""
        return {"native": "torch", "triton": "triton"}[self.kernels]


def flat(values: Mapping[str, Value | Mapping[str, Value]]) -> dict[str, Value]:
    """Return arguments or results by the flat names that they have in an ONNX file: `argument` or `argument.entry`."""
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
