"""The reference for parity: the PyTorch modules in fp32, run in the order of a generation, on fixed inputs.

Only one component is in memory at a time: for full-size SDXL, 10 GB instead of 18. If a GPU has room for it, the
reference runs there, in fp32 all the same: without TF32.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from infid_export.export.graphs.graph import Graph, flat
from infid_export.export.graphs.sizes import Sizes
from infid_export.export.parity_case import Array, ParityCase
from infid_export.model.sources import ModelSource


class Reference:
    """Inputs and reference outputs of graphs.

    Args:
        source: the model.
        sizes: shapes of the comparison.
    """

    def __init__(self, source: ModelSource, sizes: Sizes) -> None:
        self._source, self._sizes = source, sizes
        self._values: dict[str, dict[str, Array]] = {}

    def inputs(self, graph: Graph) -> dict[str, Array]:
        """Return a graph's inputs by flat name, in fp32; upstream graphs run in PyTorch if necessary."""
        return flat(self._arguments(graph))

    def outputs(self, graphs: Iterable[Graph]) -> dict[str, dict[str, Array]]:
        """Return reference outputs by graph and flat name; consecutive graphs share their loaded components."""
        graphs = tuple(graphs)
        ordered = dict.fromkeys(each for graph in graphs for each in (*graph.upstream, graph))
        missing = [graph for graph in ordered if graph.name not in self._values]
        for components, members in groupby(missing, key=lambda graph: dict(graph.used_components(self._source.config))):
            parts = {name: self._source.load(name, torch.float32) for name in components.values()}
            device = _device(parts)
            parts = {name: part.to(device) for name, part in parts.items()}
            for graph in members:
                self._values[graph.name] = self._run(graph, parts, device)
            del parts
            gc.collect()
            if device == "cuda":
                torch.cuda.empty_cache()  # for the engines
        return {graph.name: self._values[graph.name] for graph in graphs}

    def _arguments(self, graph: Graph) -> dict[str, Array | Mapping[str, Array]]:
        values = graph.parity_inputs(ParityCase(self._source, self._sizes, self.outputs(graph.upstream)))
        return {name: values[name] for name in graph.inputs(self._sizes)}

    def _run(self, graph: Graph, parts: Mapping[str, nn.Module], device: str) -> dict[str, Array]:
        module = graph.module(parts, self._source.config)
        arguments = {name: _tensors(value, device) for name, value in self._arguments(graph).items()}
        with torch.no_grad(), _full_precision():
            result = module(**arguments)
        values = result if isinstance(result, tuple) else (result,)
        names = flat(graph.outputs(self._sizes))
        return {name: value.cpu().numpy() for name, value in zip(names, values, strict=True)}


def _tensors(value: Array | Mapping[str, Array], device: str) -> Tensor | list[Any]:
    if isinstance(value, Mapping):
        return [torch.from_numpy(each).to(device) for each in value.values()]
    return torch.from_numpy(value).to(device)


def _device(parts: Mapping[str, nn.Module]) -> str:
    """Return `cuda` if there is a GPU with room for the weights twice, which is room for the activations too."""
    if not torch.cuda.is_available():
        return "cpu"
    needed = sum(tensor.nbytes for part in parts.values() for tensor in part.parameters())
    return "cuda" if torch.cuda.mem_get_info()[0] > 2 * needed else "cpu"


@contextmanager
def _full_precision() -> Iterator[None]:
    """Compute fp32 in fp32 on a GPU, whatever the program has chosen."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
