"""Exports the graphs of a model to ONNX, with the shapes of a build. Needs torch and diffusers."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers.models.attention_processor import Attention

from infid_engines.manifest import Dimension, TensorSpec
from infid_export.export.artifact import weights_file
from infid_export.export.build_options import BuildOptions
from infid_export.export.graphs.graph import Graph, GraphForm, flat
from infid_export.export.graphs.sizes import Sizes
from infid_export.export.inspection import read_graph
from infid_export.export.onnx_graph import export_onnx
from infid_export.export.weights import WeightsLayout
from infid_export.model.components import cast_module
from infid_export.model.processors import identity_blocks
from infid_export.model.sources import ModelSource

TYPES = {"fp16": torch.float16, "fp32": torch.float32}


class GraphExporter:
    """Exports the graphs of one model.

    Args:
        source: the model.
        options: options of the build, with height and width settled.
    """

    def __init__(self, source: ModelSource, options: BuildOptions) -> None:
        quiet_diffusers()
        self.source, self.options = source, options
        self.blocks = identity_blocks(source.empty("unet"))

    def sizes(self, extents: tuple[int, int, int] | None = None) -> Sizes:
        """Return the sizes of the build's graphs, or with the given batch, height and width."""
        batch, height, width = extents or self.options.extents()
        source, options = self.source, self.options
        return Sizes(
            source.architecture, source.config, self.blocks, batch, height, width, options.people, options.guidance,
            options.quantize_templates,
        )  # fmt: skip

    def write(self, form: GraphForm, precision: str, path: Path, size: tuple[int, int] | None = None) -> None:
        """Export a graph to ONNX. Its weights are references into the weights files next to it.

        Args:
            form: the graph and its kernels.
            precision: the network's precision, `fp16` or `fp32`.
            path: the .onnx file to write.
            size: height and width, for a graph of one size; None uses the build's size and ranges.
        """
        graph, dtype = form.graph, TYPES[precision]
        used = graph.used_components(self.source.config)
        sizes, dynamic = self._traced(graph, size)
        parts = {name: cast_module(self.source.empty(name), dtype) for name in used.values()}
        export_onnx(
            graph.module(parts, self.source.config, form.ops),
            graph.arguments(sizes, dtype),
            list(flat(graph.inputs(sizes))),
            list(flat(graph.outputs(sizes))),
            {
                prefix: (Path(weights_file(name)).name, WeightsLayout.of(parts[name], dtype))
                for prefix, name in used.items()
            },
            path,
            dynamic,
        )

    def _traced(self, graph: Graph, size: tuple[int, int] | None) -> tuple[Sizes, dict[str, Any] | None]:
        """Return the sizes for tracing a graph, and its dynamic dimensions."""
        smallest, largest = self.options.extents("smallest"), self.options.extents("largest")
        if size is not None:
            return self.sizes((self.options.batch, *size)), None
        if smallest == largest:
            return self.sizes(), None
        first, last = (graph.arguments(self.sizes(end), torch.float32) for end in (smallest, largest))
        dynamic = {name: _varying(first[name], last[name]) for name in first}
        batch, height, width = self.options.extents()
        # the tracer would specialize sizes of 1
        traced = batch if smallest[0] == largest[0] else max(2, batch)
        return self.sizes((traced, height, width)), dynamic

    def specs(self, form: GraphForm, folder: Path) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        """Return an exported graph's inputs and outputs, with [smallest, usual, largest] for dynamic dimensions."""
        facts = read_graph(folder / form.file)
        if all(isinstance(extent, int) for spec in facts.inputs for extent in spec.shape):
            return facts.inputs, facts.outputs
        ends = [self.sizes(self.options.extents(end)) for end in ("smallest", "usual", "largest")]
        shapes = [flat({**form.graph.inputs(sizes), **form.graph.outputs(sizes)}) for sizes in ends]

        def ranged(spec: TensorSpec) -> TensorSpec:
            return replace(spec, shape=_ranges([each[spec.name].extents for each in shapes]))

        return tuple(map(ranged, facts.inputs)), tuple(map(ranged, facts.outputs))

    def head_sizes(self) -> list[int]:
        """Return the channels per head of the UNet's attention layers."""
        unet: Any = self.source.empty("unet")
        attentions = [module for module in unet.modules() if isinstance(module, Attention)]
        return sorted({module.to_q.out_features // module.heads for module in attentions})


def quiet_diffusers() -> None:
    """Silence diffusers' messages on configurations."""
    logging.getLogger("diffusers").setLevel(logging.ERROR)


def _varying(first: Any, second: Any) -> Any:
    """Return the dimensions in which two examples of an argument differ."""
    if isinstance(first, list):
        return [_varying(a, b) for a, b in zip(first, second, strict=True)]
    return {index for index, (a, b) in enumerate(zip(first.shape, second.shape, strict=True)) if a != b}


def _ranges(shapes: Sequence[tuple[int, ...]]) -> tuple[Dimension, ...]:
    """Merge the smallest, usual and largest shape of a tensor."""
    return tuple(ends[0] if len(set(ends)) == 1 else list(ends) for ends in zip(*shapes, strict=True))
