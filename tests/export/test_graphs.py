"""A graph is one object: it is exported as declared, and a new graph needs nothing else."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from small_face_models import quick_faces
from torch import Tensor, nn

from infid_engines.manifest import Manifest
from infid_export.cli.build import options_of
from infid_export.cli.main import make_parser
from infid_export.export import builder as module
from infid_export.export.build_estimate import estimate
from infid_export.export.build_options import BuildOptions
from infid_export.export.builder import BuildReport, build, verify
from infid_export.export.graphs import GRAPHS, chosen_graphs, forms_of, graphs_for
from infid_export.export.graphs.graph import Dependence, Graph, GraphForm, Kernels, flat
from infid_export.export.graphs.sizes import Sizes, Tensors, TensorShape
from infid_export.export.graphs.text_encoders import TEXT_ENCODER
from infid_export.export.parity_case import Array, ParityCase
from infid_export.export.plan import make_plan
from infid_export.model.config import IdentityConfig


class EndsModule(nn.Module):
    """Normalizes prompt embeddings once more, and returns their mean and each one's first and last token."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.norm = next(name for name, _ in encoder.named_modules() if name.endswith("final_layer_norm"))

    def forward(self, hidden_states: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        normal = self.encoder.get_submodule(self.norm)(hidden_states)
        return weight * normal.mean(1), normal[:, 0], normal[:, -1]


class Ends(Graph):
    """A third-party graph: it takes another graph's output, and has a list among its outputs."""

    name = "prompt_ends"
    components: Mapping[str, str] = {"encoder.": "text_encoder"}
    depends_on: frozenset[Dependence] = frozenset({"batch"})
    by_default = False
    upstream: tuple[Graph, ...] = (TEXT_ENCODER,)

    def module(self, parts: Mapping[str, nn.Module], config: IdentityConfig, ops: str = "torch") -> nn.Module:
        return EndsModule(parts["text_encoder"])

    def inputs(self, sizes: Sizes) -> Tensors:
        shape = flat(TEXT_ENCODER.outputs(sizes))["hidden_states"]
        return {"hidden_states": shape, "weight": TensorShape((1,), "network")}

    def outputs(self, sizes: Sizes) -> Tensors:
        row = TensorShape((sizes.rows, sizes.architecture.text_encoder["hidden_size"]), "network")
        return {"mean": row, "ends": {"first": row, "last": row}}

    def parity_inputs(self, case: ParityCase) -> dict[str, Array]:
        return {"hidden_states": case.outputs[TEXT_ENCODER.name]["hidden_states"], "weight": case.filled(0.75)[:1]}


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Graph:
    graph = Ends()
    monkeypatch.setitem(GRAPHS, graph.name, graph)
    return graph


def build_toy(folder: Path, **changes: object) -> BuildReport:
    wanted = {"graphs": ("prompt_ends",), "backends": ("onnxruntime",), **quick_faces(folder.parent)}
    return build(BuildOptions(output=folder, **{**wanted, **changes}))


def test_a_graph_of_somebody_else_is_built_compared_and_kept(toy: Graph, tmp_path: Path) -> None:
    report = build_toy(tmp_path / "engines")
    assert [(row.output, row.passed) for row in report.parity.rows] == [("mean", True), ("ends", True)]
    record = Manifest.load(report.folder).graphs["prompt_ends"]
    assert record.weights == ("onnx/text_encoder.safetensors",)
    assert [spec.name for spec in record.outputs] == ["mean", "ends.first", "ends.last"]
    assert not build_toy(tmp_path / "engines").made
    assert verify(report.folder).passed
    assert build_toy(tmp_path / "engines", batch=2).made == {"onnx/prompt_ends.onnx": "changed batch: 1 -> 2"}


def test_a_wrong_graph_of_somebody_else_fails_parity(
    toy: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(BuildOptions(tmp_path / "engines", graphs=("prompt_ends",), **quick_faces(tmp_path)))

    class Wrong(EndsModule):
        def forward(self, hidden_states: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
            mean, first, last = super().forward(hidden_states, weight)
            return mean, last, first

    right, exporting = toy.module, []

    def exported(parts: Mapping[str, nn.Module], *rest: object) -> nn.Module:
        exporting.append(next(parts["text_encoder"].parameters()).is_meta)
        return Wrong(parts["text_encoder"]) if exporting[-1] else right(parts, *rest)

    monkeypatch.setattr(toy, "module", exported)
    monkeypatch.setattr(module, "make_plan", lambda options: plan)
    with pytest.raises(Exception, match=r"1 output\(s\) differ from the reference, worst prompt_ends\.ends"):
        build(plan.options)
    assert exporting == [True, False]


def test_a_graph_of_somebody_else_is_in_the_command_and_its_dry_run(toy: Graph, tmp_path: Path) -> None:
    words = ["build", "-o", str(tmp_path / "engines"), "--graph", "prompt_ends", "--backend", "onnxruntime"]
    options = options_of(make_parser("build").parse_args(words))
    assert options.graphs == ("prompt_ends",)
    rows = {row.name: row.shapes for row in estimate(options)[1]}
    assert rows["onnx/prompt_ends.onnx"] == "hidden_states 2×77×64"


def test_the_default_graphs_and_others_are_asked_for_together() -> None:
    usual = [graph.name for graph in chosen_graphs((), "two")]
    assert usual == [name for name, graph in graphs_for("two").items() if graph.by_default]
    assert [graph.name for graph in chosen_graphs(("default",), "two")] == usual
    other = next(name for name, graph in GRAPHS.items() if not graph.by_default)
    assert {graph.name for graph in chosen_graphs((other, "default"), "two")} == {other, *usual}
    assert [graph.name for graph in chosen_graphs((other,), "two")] == [other]


def test_what_a_graph_declares_is_what_is_exported(demo_folder: Path) -> None:
    plan = make_plan(
        BuildOptions(demo_folder, precision="fp16", graphs=tuple(graphs_for("two")), backends=("onnxruntime",))
    )
    manifest, sizes = Manifest.load(demo_folder), plan.writers.exporter.sizes()
    for form in plan.graphs:
        record = manifest.graphs[form.name]
        for declared, stored in (
            (form.graph.inputs(sizes), record.inputs),
            (form.graph.outputs(sizes), record.outputs),
        ):
            shapes = {name: each.extents for name, each in flat(declared).items()}
            assert shapes == {spec.name: spec.shape for spec in stored}
            types = {"network": {"float16"}, "float32": {"float32"}, "int32": {"int32"}}
            fp32 = "vae" in form.graph.components.values()  # whatever its probe found: its inputs and outputs are fp32
            for spec in stored:
                assert spec.dtype in ({"float32"} if fp32 else types[flat(declared)[spec.name].dtype]), spec.name


def test_a_form_has_a_name_and_a_file_of_its_own() -> None:
    for kernels in ("native", "triton"):
        forms = forms_of(GRAPHS.values(), kernels)
        assert len({form.name for form in forms}) == len({form.file for form in forms}) == len(forms)
    with_kernels = [form for form in forms if form.kernels == "triton"]
    assert [form.graph for form in with_kernels] == [each for each in GRAPHS.values() if "triton" in each.kernels]
    kernels: tuple[Kernels, ...] = ("native", "triton")
    first = next(iter(GRAPHS.values()))
    assert len({GraphForm(first, each) for each in kernels}) == 2


def test_graphs_are_named_only_in_their_own_files() -> None:
    """Code elsewhere that branches on a graph's name would have to be found by anyone who adds a graph."""
    package = Path(module.__file__).parent
    found = [
        f"{path.name}: {node.value}"
        for path in package.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and node.value in GRAPHS
    ]
    assert found == []


def test_meta_arguments_have_the_declared_shapes_and_types() -> None:
    plan = make_plan(BuildOptions(graphs=tuple(graphs_for("two")), backends=("onnxruntime",)))
    sizes = plan.writers.exporter.sizes()
    for graph in GRAPHS.values():
        for argument in graph.arguments(sizes, torch.float16).values():
            assert all(each.is_meta for each in (argument if isinstance(argument, list) else [argument]))
