"""The graphs of an engine folder, one file each. Imports are light."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from infid_engines.errors import InputError
from infid_export.export.graphs.denoise_step import DENOISE_STEP
from infid_export.export.graphs.graph import Graph, GraphForm, Kernels
from infid_export.export.graphs.identity_encoder import IDENTITY_ENCODER
from infid_export.export.graphs.identity_step import IDENTITY_STEP
from infid_export.export.graphs.single_step import SINGLE_STEP
from infid_export.export.graphs.text_encoders import TEXT_ENCODER, TEXT_ENCODER_2
from infid_export.export.graphs.text_step import TEXT_STEP
from infid_export.export.graphs.vae_decoder import VAE_DECODER

if TYPE_CHECKING:
    from infid_export.model.config import StreamCount

__all__ = ["DEFAULT", "GRAPHS", "Graph", "GraphForm", "chosen_graphs", "forms_of", "graphs_for"]

# By name, in the order in which they are exported and compared.
GRAPHS: dict[str, Graph] = {
    graph.name: graph
    for graph in (
        TEXT_ENCODER,
        TEXT_ENCODER_2,
        IDENTITY_ENCODER,
        DENOISE_STEP,
        TEXT_STEP,
        IDENTITY_STEP,
        SINGLE_STEP,
        VAE_DECODER,
    )
}
DEFAULT = "default"  # stands for the graphs that are built when none is named


def graphs_for(streams: StreamCount) -> dict[str, Graph]:
    """Return the graphs that can be built from a model with so many streams, by name."""
    return {name: graph for name, graph in GRAPHS.items() if streams in graph.streams}


def chosen_graphs(names: Iterable[str], streams: StreamCount) -> tuple[Graph, ...]:
    """Return graphs in the registry's order. `default` and an empty list stand for the graphs built by default.

    Args:
        names: of graphs.
        streams: of the model.

    Raises:
        InputError: a graph cannot be built from such a model.
    """
    named, possible = set(names) or {DEFAULT}, graphs_for(streams)
    for name in sorted(named - {DEFAULT, *possible}):
        raise InputError(
            f"The graph {name} is built with --streams {GRAPHS[name].streams[0]}, but this model has {streams}.",
            fix=f"Leave it out, or add --streams {GRAPHS[name].streams[0]}.",
        )
    return tuple(graph for name, graph in possible.items() if name in named or (graph.by_default and DEFAULT in named))


def forms_of(graphs: Iterable[Graph], kernels: Kernels) -> tuple[GraphForm, ...]:
    """Return the forms of graphs in a folder with these kernels: every native form, then those with the kernels."""
    graphs = tuple(graphs)
    kinds: tuple[Kernels, ...] = ("native",) if kernels == "native" else ("native", kernels)
    return tuple(GraphForm(graph, kind) for kind in kinds for graph in graphs if kind in graph.kernels)
