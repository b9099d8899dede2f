"""The graphs of an engine folder, one file each. Imports are light."""

from __future__ import annotations

from collections.abc import Iterable

from infid_export.export.graphs.denoise_step import DENOISE_STEP
from infid_export.export.graphs.graph import Graph, GraphForm, Kernels
from infid_export.export.graphs.identity_encoder import IDENTITY_ENCODER
from infid_export.export.graphs.identity_step import IDENTITY_STEP
from infid_export.export.graphs.text_encoders import TEXT_ENCODER, TEXT_ENCODER_2
from infid_export.export.graphs.text_step import TEXT_STEP
from infid_export.export.graphs.vae_decoder import VAE_DECODER

__all__ = ["DEFAULT", "GRAPHS", "Graph", "GraphForm", "chosen_graphs", "forms_of"]

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
        VAE_DECODER,
    )
}
DEFAULT = "default"  # stands for the graphs that are built when none is named


def chosen_graphs(names: Iterable[str]) -> tuple[Graph, ...]:
    """Return graphs in the registry's order. `default` and an empty list stand for the graphs built by default.

    Raises:
        KeyError: there is no graph with such a name.
    """
    named = set(names) or {DEFAULT}
    found = {GRAPHS[name] for name in named - {DEFAULT}}
    return tuple(graph for graph in GRAPHS.values() if graph in found or (graph.by_default and DEFAULT in named))


def forms_of(graphs: Iterable[Graph], kernels: Kernels) -> tuple[GraphForm, ...]:
    """Return the forms of graphs in a folder with these kernels: every native form, then those with the kernels."""
    graphs = tuple(graphs)
    kinds: tuple[Kernels, ...] = ("native",) if kernels == "native" else ("native", kernels)
    return tuple(GraphForm(graph, kind) for kind in kinds for graph in graphs if kind in graph.kernels)
