"""The dry run: the real plan with shapes and sizes, without writing anything."""

from __future__ import annotations

from dataclasses import dataclass

from infid_engines.folder import FolderTransaction
from infid_engines.progress import SilentReporter
from infid_export.export.artifact import weights_file
from infid_export.export.build_options import BuildOptions
from infid_export.export.builder import COMPARED, expected_seconds, previous_parity, stale, weights_layouts
from infid_export.export.graph_export import TYPES
from infid_export.export.graphs.graph import Graph
from infid_export.export.graphs.sizes import Sizes, TensorShape
from infid_export.export.parity import PARITY
from infid_export.export.plan import Plan, make_plan
from infid_export.export.weights import WeightsLayout
from infid_export.model.changes.replaced_source import ReplacedSource
from infid_export.model.changes.updated_source import UpdatedSource, check_updates
from infid_export.model.checkpoints.single_file import SingleFileSource
from infid_export.model.sources import BUILT_IN, ModelSource

# Measured on the full-size denoise_step (5.13 GB of fp16 weights): engine 5.24 GB, TensorRT-RTX builder 16.9 GB.
_ENGINE_PER_WEIGHT, _BUILDER_PER_WEIGHT = 1.02, 3.3
_PROCESS, _BUILDER = 1_000_000_000, 250_000_000  # Python with torch and diffusers; the builder's library
_EXPORT = 400_000_000  # extra memory during an export
_GRAPH = 5_000_000  # an .onnx file without its weights


@dataclass(frozen=True)
class PlanRow:
    """One artifact of a dry run.

    Args:
        name: path in the folder.
        shapes: shapes of a graph's inputs.
        parameters: number of weights it contains or uses.
        bytes: expected size.
        peak_bytes: expected memory to build it.
        seconds: expected time to build it on two CPU cores; 0 if it is cached.
        state: `cached`, or why it would be built.
    """

    name: str
    shapes: str
    parameters: int
    bytes: int
    peak_bytes: int
    seconds: float
    state: str


def estimate(options: BuildOptions) -> tuple[Plan, list[PlanRow]]:
    """Plan a build without building anything.

    Raises:
        InputError: as `build` would.
    """
    plan = make_plan(options)
    check_updates(plan.source)
    sizes = plan.writers.exporter.sizes()
    transaction = FolderTransaction(plan.options.output, SilentReporter())
    transaction.peek()
    reasons = stale(plan, transaction)
    layouts = weights_layouts(plan)
    rows, artifacts = [], plan.artifacts()

    def add(name: str, shapes: str, parameters: int, size: int, peak: int) -> None:
        seconds = expected_seconds(plan, artifacts[name].seconds) if name in reasons else 0.0
        rows.append(PlanRow(name, shapes, parameters, size, peak, seconds, reasons.get(name, "cached")))

    for name, layout in layouts.items():
        add(weights_file(name), "", layout.parameters, layout.size, held_bytes(plan.source, name, layout) + _PROCESS)
    parts = {form: [layouts[part] for part in plan.parts(form.graph)] for form in plan.graphs}
    parameters = {form: sum(layout.parameters for layout in used) for form, used in parts.items()}
    weights = {form: sum(layout.size for layout in used) for form, used in parts.items()}
    for form in plan.graphs:
        add(form.file, _shapes(form.graph, sizes), parameters[form], _GRAPH, _PROCESS + _EXPORT)
    for name in plan.files:
        add(name, "", 0, _GRAPH, _PROCESS)
    for item in plan.engines:
        if not item.is_graph:
            weight = weights[item.form]
            size, peak = int(weight * _ENGINE_PER_WEIGHT), int(weight * _BUILDER_PER_WEIGHT) + _BUILDER
            add(item.artifact.path, "", 0, size, peak)
    compared = {row.graph for row in previous_parity(plan, transaction).rows}
    to_compare = [form for form in plan.graphs if form.name not in compared]
    # the fp32 reference of one graph, plus ONNX Runtime with the graph's weights
    peak = max((4 * parameters[form] + weights[form] for form in to_compare), default=0) + _PROCESS
    state = f"{len(to_compare)} graphs to compare" if to_compare else "cached"
    seconds = len(to_compare) * expected_seconds(plan, COMPARED)
    rows.append(PlanRow(PARITY, "", 0, _GRAPH, peak, seconds, state))
    return plan, rows


def held_bytes(source: ModelSource, component: str, layout: WeightsLayout) -> int:
    """Return the bytes of a component's weights that are in memory at once, while its file is written."""
    if isinstance(source, UpdatedSource):  # updates are added in fp32
        updated = any(component in each.components for each in source.updates)
        held = held_bytes(source.base, component, layout)
        return max(held, held * 4 * layout.parameters // layout.size) if updated else held
    if isinstance(source, ReplacedSource) and source.network.component != component:
        return held_bytes(source.base, component, layout)
    from_file = isinstance(source, SingleFileSource) and component not in ("image_encoder", "identity")
    streamed = source.name in BUILT_IN or isinstance(source, ReplacedSource) or from_file
    return 4 * max(tensor.length for tensor in layout.tensors.values()) if streamed else layout.size


def template_bytes(plan: Plan) -> int | None:
    """Return the bytes of a template's features, per step, or None if no graph of the plan takes them."""
    sizes, dtype = plan.writers.exporter.sizes(), TYPES[plan.options.precision]
    for form in plan.graphs:
        if "templates" in form.graph.depends_on:
            lists = (each for each in form.graph.arguments(sizes, dtype).values() if isinstance(each, list))
            return sum(tensor.nbytes for each in lists for tensor in each)
    return None


def _shapes(graph: Graph, sizes: Sizes) -> str:
    """Return the shapes of a graph's inputs, except per-sample scalars and lists of tensors."""
    return ", ".join(
        f"{name} {'×'.join(map(str, shape.extents))}"
        for name, shape in graph.inputs(sizes).items()
        if isinstance(shape, TensorShape) and len(shape.extents) > 1
    )
