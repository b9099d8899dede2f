"""`build --kernels triton`: the graphs with the fused kernels as nodes."""

from __future__ import annotations

import math
import shutil
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from small_face_models import quick_faces
from torch import Tensor

from infid_engines.device import Device
from infid_engines.errors import InputError
from infid_engines.manifest import Manifest
from infid_engines.progress import SilentReporter
from infid_engines.registry import get_backend
from infid_export.export.artifact import plugins_file
from infid_export.export.build_options import BuildOptions
from infid_export.export.builder import BuildReport, build
from infid_export.export.folder_manifest import options_of
from infid_export.export.graph_parity import compare_graphs
from infid_export.export.graphs.denoise_step import DENOISE_STEP
from infid_export.export.graphs.graph import GraphForm
from infid_export.export.graphs.identity_step import IDENTITY_STEP
from infid_export.export.parity import compare
from infid_export.export.plan import make_plan
from infid_export.export.plugin_nodes import DOMAIN, OPERATIONS, write_runnable
from infid_export.export.reference import Reference
from infid_kernels import merged_cross_attention, mixed_attention, tuning, variants
from infid_kernels.mean_shift import launch_mean_shift, launch_value_shift


def options(folder: Path, **changes: Any) -> BuildOptions:
    wanted = {
        "output": folder, "precision": "fp16", "kernels": "triton", "graphs": ("denoise_step", "identity_step"),
        "backends": ("onnxruntime",), "height": 64, "width": 96, **quick_faces(folder.parent),
    }  # fmt: skip
    return BuildOptions(**{**wanted, **changes})


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> BuildReport:
    return build(options(tmp_path_factory.mktemp("fused") / "engines", graphs=("denoise_step",)))


def graph(report: BuildReport, name: str) -> onnx.ModelProto:
    return onnx.load(str(report.folder / "onnx" / f"{name}.onnx"), load_external_data=False)


def test_both_forms_of_a_graph_pass_parity(report: BuildReport) -> None:
    rows = {(row.graph, row.output): row for row in report.parity.rows}
    plain, fused = (rows[name, "next_identity_latents"] for name in ("denoise_step", "denoise_step.triton"))
    assert plain.passed and fused.passed
    assert fused.rms_error < 1.5 * plain.rms_error
    assert any("not used in an engine" in note for note in report.notes)


def test_every_block_has_its_nodes_and_nothing_is_copied_for_them(report: BuildReport) -> None:
    model = graph(report, "denoise_step.triton")
    blocks = len(make_plan(options(report.folder)).writers.exporter.blocks)
    nodes = [node for node in model.graph.node if node.domain == DOMAIN]
    assert Counter(node.op_type for node in nodes) == dict.fromkeys(OPERATIONS, blocks)
    producers = {output: node for node in model.graph.node for output in node.output}
    for node in nodes:
        attributes = {each.name: helper.get_attribute_value(each) for each in node.attribute}
        assert attributes == {"plugin_namespace": b"infid", "aot": 1}
        wanted = OPERATIONS[node.op_type].op_schema
        assert (len(node.input), len(node.output)) == (len(wanted.inputs), len(wanted.outputs))
        read = {producers[each].op_type for each in node.input if each in producers}
        assert "Transpose" not in read, "the kernels read the projections in place"
    assert not model.functions  # TensorRT would run the function's body instead of the plugin


def test_a_node_with_its_inputs_swapped_fails_parity(report: BuildReport, tmp_path: Path) -> None:
    folder = tmp_path / "engines"
    shutil.copytree(report.folder, folder)
    path = folder / "onnx/denoise_step.triton.onnx"
    model = onnx.load(str(path), load_external_data=False)
    node = next(node for node in model.graph.node if node.op_type == "mixed_attention")
    node.input[1], node.input[3] = node.input[3], node.input[1]
    onnx.save(model, str(path))

    form, plan = GraphForm(DENOISE_STEP, "triton"), make_plan(options(folder, graphs=("denoise_step",)))
    with SilentReporter().stage("parity") as stage:
        rows = list(compare_graphs(plan, folder, Manifest.load(folder), [form], stage))
    before = {row.output: row.rms_error for row in report.parity.rows if row.graph == "denoise_step.triton"}
    found = {row.output: row.rms_error for row in rows}
    assert found["next_text_latents"] == before["next_text_latents"]  # the text stream has no such node
    assert found["next_identity_latents"] > 2 * before["next_identity_latents"]


def run_node(op: str, inputs: dict[str, Tensor], path: Path) -> list[np.ndarray]:
    """Run one plugin node's ONNX function."""
    schema = OPERATIONS[op].op_schema
    kinds = {torch.float16: TensorProto.FLOAT16, torch.float32: TensorProto.FLOAT}
    given = [helper.make_tensor_value_info(name, kinds[x.dtype], list(x.shape)) for name, x in inputs.items()]
    types = {"T": TensorProto.FLOAT16, "tensor(float)": TensorProto.FLOAT}
    outputs = [helper.make_tensor_value_info(each.name, types[each.type_str], None) for each in schema.outputs]
    node = helper.make_node(op, list(inputs), [each.name for each in schema.outputs], domain=DOMAIN)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(DOMAIN, 1)]
    made = helper.make_model(helper.make_graph([node], "g", given, outputs), opset_imports=opsets, ir_version=9)
    onnx.save(made, str(path))
    write_runnable(path, path)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {name: x.numpy() for name, x in inputs.items()})


def test_a_node_means_what_its_kernel_computes(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(3)

    def draw(length: int) -> Tensor:
        return (torch.randn(2, length, 3, 64, generator=generator) + 0.2 * length / 77).half()

    q, k_id, v_id, k_t, v_t = (draw(length) for length in (40, 63, 63, 77, 77))
    strength, factor = torch.tensor([1.0, 0.5]), torch.tensor([0.8, 1.2])
    heads = [x.transpose(1, 2) for x in (q, k_id, v_id, k_t, v_t)]
    segments = {"k_id": k_id, "v_id": v_id, "k_t": k_t, "v_t": v_t}

    shifts = run_node("mean_shift", {**segments, "strength": strength}, tmp_path / "shift.onnx")
    for found, kernel in zip(shifts, launch_mean_shift(*heads[1:], strength), strict=True):
        assert found.shape == kernel.shape  # the same number of parts
        np.testing.assert_allclose(found.sum(2), kernel.sum(2).numpy(), atol=1e-5)

    (shift,) = run_node("value_shift", {"v_id": v_id, "v_t": v_t, "strength": strength}, tmp_path / "value.onnx")
    expected_shift = launch_value_shift(heads[2], heads[4], strength)
    assert shift.shape == expected_shift.shape
    np.testing.assert_allclose(shift.sum(2), expected_shift.sum(2).numpy(), atol=1e-5)

    named = {"q": q, **segments, "shift_k": torch.from_numpy(shifts[0]), "shift_v": torch.from_numpy(shifts[1])}
    (mixed,) = run_node("mixed_attention", named, tmp_path / "mixed.onnx")
    (merged,) = run_node(
        "merged_cross_attention",
        {"q": q, "k_t": k_t, "v_t": v_t, "k_id": k_id, "v_id": v_id,
         "shift_v": torch.from_numpy(shift), "identity_strength": factor},
        tmp_path / "merged.onnx",
    )  # fmt: skip
    q, k_id, v_id, k_t, v_t = heads
    for found, kernel in (
        (mixed, mixed_attention(q, k_id, v_id, k_t, v_t, strength)),
        (merged, merged_cross_attention(q, k_t, v_t, k_id, v_id, strength, factor)),
    ):
        expected = kernel.transpose(1, 2).float().numpy()
        error = np.linalg.norm(found.astype(np.float32) - expected) / np.linalg.norm(expected)
        assert error < 1e-3
        assert not math.isnan(error)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"precision": "fp32"}, "The Triton kernels compute in fp16"),
        ({"adain": "standard"}, "support only the method itself"),
        ({"self_attention": "mutual"}, "support only the method itself"),
        ({"graphs": ("vae_decoder",)}, "applies to denoise_step and identity_step"),
    ],
)
def test_what_the_kernels_do_not_do_is_rejected_before_anything_is_made(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        build(options(tmp_path / "engines", **change))
    assert [path.name for path in tmp_path.iterdir()] == ["recognizer.onnx"]


@pytest.mark.gpu
@pytest.mark.tensorrt
def test_tensorrt_runs_the_plugins(tmp_path: Path) -> None:
    wanted = options(tmp_path / "engines", graphs=("identity_step",), backends=("tensorrt",))
    built = build(wanted)
    (engine,) = (each for each in built.manifest.engines if each.backend == "tensorrt")
    plan = make_plan(wanted)
    reference = Reference(plan.source, plan.writers.exporter.sizes())
    graph = built.manifest.graphs["identity_step"]
    loaded = get_backend("tensorrt").load(built.folder / engine.file, graph.inputs, graph.outputs, Device("cuda"))
    types = {spec.name: spec.dtype for spec in graph.inputs}
    found = loaded.run({name: x.astype(types[name]) for name, x in reference.inputs(IDENTITY_STEP).items()})
    expected = reference.outputs([IDENTITY_STEP])["identity_step"]
    for row in compare("identity_step", expected, found, precision="fp16", key="", size=(64, 96), groups={}):
        assert row.passed, row


def test_a_tensorrt_engine_is_built_from_the_fused_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from infid_engines import registry
    from infid_engines.tensorrt_backend import TensorRTBackend

    class Present(TensorRTBackend):
        """As much of TensorRT on a machine with a Hopper GPU as the plan needs."""

        def versions(self) -> dict[str, str]:
            return {"tensorrt": "10.14"}

        def default_targets(self) -> tuple[str, ...]:
            return ("sm_90",)

        def check_target(self, target: str) -> None:
            pass

    monkeypatch.setitem(registry.BACKENDS, "tensorrt", Present())
    plan = make_plan(replace(options(tmp_path), backends=("onnxruntime", "tensorrt")))
    built = {(item.backend, item.graph): item.form.name for item in plan.engines}
    assert built["tensorrt", "denoise_step"] == "denoise_step.triton"
    assert built["onnxruntime", "denoise_step"] == "denoise_step"
    assert plugins_file("sm_90") in plan.files
    native = make_plan(replace(options(tmp_path), backends=("onnxruntime", "tensorrt"), kernels="native"))
    assert {item.form.name for item in native.engines} == {"denoise_step", "identity_step"}
    assert not any(name.startswith("kernels/") for name in native.files)

    entry = tuning.Entry("mixed_attention", "sm_90", 64, 0, True, tuning.CANDIDATES[0], "measured")
    tuning.write(tmp_path / "tuning.json", [entry])
    tuned = make_plan(replace(plan.options, tuning=tmp_path / "tuning.json"))
    assert tuned.files[plugins_file("sm_90")] != plan.files[plugins_file("sm_90")]
    changed = {item.graph for before, item in zip(plan.engines, tuned.engines, strict=True) if before != item}
    assert changed == {"denoise_step", "identity_step"}  # with the plugins inside, and no others
    used = []
    call = ("mixed_attention", "sm_90", 64, 4096, True)
    monkeypatch.setattr(variants, "write_plugins", lambda *_: used.append(tuning.entry(*call)))
    for each in (tuned, plan):
        with SilentReporter().stage("plugins") as stage:
            each.files[plugins_file("sm_90")].write(tmp_path, tmp_path / "plugins.json", stage)
    assert used[0] == entry != used[1]
    stored = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(tuned.options).items()}
    (tmp_path / "faces").mkdir()
    quick_faces(tmp_path / "faces")
    assert make_plan(options_of(SimpleNamespace(options=stored), tmp_path)).files  # `verify` may lack the file
    for problem, given in (
        ("applies only to the Triton kernels", {"kernels": "native"}),
        ("kernels are compiled for nothing", {"backends": ("onnxruntime",)}),
        ("contains no kernel configurations", {"tuning": tmp_path / "none.json"}),
    ):
        with pytest.raises(InputError, match=problem):
            make_plan(replace(tuned.options, **given))
