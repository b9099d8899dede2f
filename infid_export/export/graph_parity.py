"""Compares exported graphs with the PyTorch reference, in ONNX Runtime on the CPU."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from infid_engines.atomic_files import temporary_beside
from infid_engines.manifest import Manifest
from infid_engines.progress import Stage
from infid_engines.registry import PARITY_BACKEND, get_backend
from infid_export.export.graphs.graph import GraphForm, list_names
from infid_export.export.inspection import read_graph
from infid_export.export.parity import ParityRow, compare
from infid_export.export.plan import Plan
from infid_export.export.plugin_nodes import write_runnable
from infid_export.export.reference import Reference
from infid_export.export.vae_range import precision_of


def compare_graphs(
    plan: Plan, folder: Path, manifest: Manifest, forms: Sequence[GraphForm], stage: Stage
) -> Iterator[ParityRow]:
    """Run graphs and compare them with the reference, grouped by their components.

    Args:
        plan: plan of the folder.
        folder: folder with graphs and weights.
        manifest: manifest with their records.
        forms: the forms to compare.
        stage: receives the progress.

    Yields:
        One row per output, or per list of outputs.
    """
    size = plan.parity_size
    sizes = plan.writers.exporter.sizes((plan.options.batch, *size))
    reference = Reference(plan.source, sizes)
    groups: dict[tuple[str, ...], list[GraphForm]] = {}
    for form in forms:
        groups.setdefault(tuple(form.graph.components.values()), []).append(form)
    done = 0
    for members in groups.values():
        expected = reference.outputs(dict.fromkeys(form.graph for form in members))
        for form in members:
            stage.update(done / len(forms), form.name)
            yield from compare(
                form.name,
                expected[form.graph.name],
                _run(plan, folder, manifest, form, reference.inputs(form.graph)),
                precision=precision_of(form.graph.components.values(), manifest.precision, folder),
                key=plan.parity_key(form),
                size=size,
                groups=list_names(form.graph.outputs(sizes)),
            )
            done += 1


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
        engine = get_backend(PARITY_BACKEND).load(path, specs, outputs, "cpu")
        types = {spec.name: spec.dtype for spec in specs}
        found = engine.run({name: array.astype(types[name]) for name, array in inputs.items()})
        engine.close()
    return found
