"""Compares graphs in ONNX Runtime, and engines that run where they are built, with the PyTorch reference."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from infid_engines.atomic_files import temporary_beside
from infid_engines.device import CPU
from infid_engines.manifest import EngineRecord, Manifest
from infid_engines.progress import Stage
from infid_engines.registry import PARITY_BACKEND, get_backend
from infid_export.export.graphs import GRAPHS
from infid_export.export.graphs.graph import GraphForm, list_names
from infid_export.export.inspection import read_graph
from infid_export.export.parity import ParityRow, compare
from infid_export.export.plan import Plan
from infid_export.export.plugin_nodes import write_runnable
from infid_export.export.reference import Reference
from infid_export.export.vae_range import precision_of
from infid_export.runtime.engine_set import EngineSet


@dataclass(frozen=True)
class _Case:
    """One engine to compare: its graph, key and backend, and how to run it on the reference's inputs."""

    form: GraphForm
    key: str
    backend: str
    run: Callable[[dict[str, Any]], dict[str, Any]]


def compare_graphs(
    plan: Plan, folder: Path, manifest: Manifest, forms: Sequence[GraphForm], stage: Stage
) -> Iterator[ParityRow]:
    """Run graphs in ONNX Runtime and compare them with the reference, grouped by their components.

    Args:
        plan: plan of the folder.
        folder: folder with graphs and weights.
        manifest: its records.
        forms: the forms to compare.
        stage: receives the progress.

    Yields:
        One row per output, or per list of outputs.
    """
    cases = [
        _Case(form, plan.parity_key(form), PARITY_BACKEND, partial(_run, plan, folder, manifest, form))
        for form in forms
    ]
    yield from _compare(plan, folder, manifest, plan.parity_size, cases, stage)


def compare_engines(
    plan: Plan, folder: Path, manifest: Manifest, engines: Sequence[EngineRecord], stage: Stage
) -> Iterator[ParityRow]:
    """Run engines of backends that run where they build, and compare them with the reference, at the folder's size.

    Args:
        plan: plan of the folder.
        folder: folder with the engines.
        manifest: its records.
        engines: the engines to compare, see `folder_manifest.comparable`.
        stage: receives the progress.

    Yields:
        As `compare_graphs`.
    """
    cases = []
    for engine in engines:
        target, device = get_backend(engine.backend).choose_target(engine.target, (engine.target,))
        found = EngineSet(folder, manifest, engine.backend, target, device)
        key, run = plan.engine_parity_key(manifest, engine), partial(_run_engine, found, engine.graph)
        cases.append(_Case(GraphForm(GRAPHS[engine.graph]), key, engine.backend, run))
    yield from _compare(plan, folder, manifest, (manifest.height, manifest.width), cases, stage)


def _compare(
    plan: Plan, folder: Path, manifest: Manifest, size: tuple[int, int], cases: Sequence[_Case], stage: Stage
) -> Iterator[ParityRow]:
    sizes = plan.writers.exporter.sizes((plan.options.batch, *size))
    reference = Reference(plan.source, sizes)
    groups: dict[tuple[str, ...], list[_Case]] = {}
    for case in cases:
        groups.setdefault(tuple(case.form.graph.components.values()), []).append(case)
    done = 0
    for members in groups.values():
        expected = reference.outputs(dict.fromkeys(case.form.graph for case in members))
        for case in members:
            graph = case.form.graph
            stage.update(done / len(cases), case.form.name)
            yield from compare(
                case.form.name,
                expected[graph.name],
                case.run(reference.inputs(graph)),
                precision=precision_of(graph.components.values(), manifest.precision, folder),
                key=case.key,
                size=size,
                groups=list_names(graph.outputs(sizes)),
                backend=case.backend,
            )
            done += 1


def _run_engine(engines: EngineSet, graph: str, inputs: dict[str, Any]) -> dict[str, Any]:
    """Run one engine, and free it."""
    engine = engines[graph]
    types = {name: spec.dtype for name, spec in engine.inputs.items()}
    found = engine.run({name: array.astype(types[name]) for name, array in inputs.items()})
    engines.close()
    return found


def _run(plan: Plan, folder: Path, manifest: Manifest, form: GraphForm, inputs: dict[str, Any]) -> dict[str, Any]:
    """Run one graph in ONNX Runtime. For another size, or with plugin nodes, run a copy on the same weights."""
    record = manifest.graphs[form.name]
    specs, outputs, path = record.inputs, record.outputs, folder / record.file
    other_size = plan.parity_size != (manifest.height, manifest.width) and "size" in form.graph.depends_on
    with temporary_beside(folder) as scratch:
        twin = Path(scratch) / path.name
        if other_size or form.kernels != "native":
            for name in record.weights:
                os.link(folder / name, Path(scratch) / Path(name).name)
        if other_size:
            precision = precision_of(form.graph.components.values(), manifest.precision, folder)
            plan.writers.exporter.write(form, precision, twin, plan.parity_size)
            path, facts = twin, read_graph(twin)
            specs, outputs = facts.inputs, facts.outputs
        if form.kernels != "native":
            write_runnable(path, twin)
            path = twin
        engine = get_backend(PARITY_BACKEND).load(path, specs, outputs, CPU)
        types = {spec.name: spec.dtype for spec in specs}
        found = engine.run({name: array.astype(types[name]) for name, array in inputs.items()})
        engine.close()
    return found
