"""Templates with features of 8 bits, on the demo model in fp16."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infid_engines.errors import EngineFolderError, InputError
from infid_export.export.build_estimate import estimate, template_bytes
from infid_export.export.build_options import BuildOptions
from infid_export.export.builder import BuildReport, build
from infid_export.export.graphs import graphs_for
from infid_export.runtime.person import Person
from infid_export.runtime.pipeline import Pipeline
from infid_export.runtime.template import Template, keep_features, quantized

Array = np.ndarray[Any, Any]
GRAPH = "identity_step"


@pytest.fixture(scope="module")
def report(demo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> BuildReport:
    folder = shutil.copytree(demo_folder, tmp_path_factory.mktemp("quantized") / "engines")
    graphs = tuple(graphs_for("two"))
    options = {"precision": "fp16", "graphs": graphs, "backends": ("onnxruntime",), "parity_image": "off"}
    return build(BuildOptions(folder, quantize_templates=True, **options))


@pytest.fixture(scope="module")
def quantizing(report: BuildReport) -> Pipeline:
    return Pipeline.load(report.folder)


def test_one_graph_changes_and_passes(report: BuildReport) -> None:
    assert list(report.made) == [f"onnx/{GRAPH}.onnx"]
    assert "quantize_templates: false -> true" in report.made[f"onnx/{GRAPH}.onnx"]
    assert {row.graph for row in report.parity.rows} == set(graphs_for("two"))
    assert report.parity.passed
    types = {spec.name.split(".")[0]: spec.dtype for spec in report.manifest.graphs[GRAPH].inputs}
    assert (types["text_features"], types["text_scales"]) == ("int8", "float32")


def test_the_image_is_the_same_to_the_eye_at_half_the_size(
    pipe: Pipeline, quantizing: Pipeline, person: Person, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"seed": 3, "steps": 8}
    exact, small = (each.template("a knight", **settings) for each in (pipe, quantizing))
    assert exact.snr is None
    assert small.snr is not None
    assert small.snr > 44
    assert small.nbytes < 0.55 * exact.nbytes
    images = [each.generate(made, person, output_type="np") for each, made in ((pipe, exact), (quantizing, small))]
    error = float(np.square(images[0] - images[1]).mean())
    assert 60 < -10 * np.log10(error) < 90  # dB
    small.save(tmp_path / "small.safetensors")
    stored = Template.load(tmp_path / "small.safetensors")
    assert stored.snr == small.snr
    np.testing.assert_array_equal(quantizing.generate(stored, person, output_type="np"), images[1])


def test_a_dry_run_knows_the_size(report: BuildReport, quantizing: Pipeline) -> None:
    options = BuildOptions(
        report.folder, precision="fp16", quantize_templates=True, graphs=(GRAPH,), backends=("onnxruntime",)
    )
    plan, _ = estimate(options)
    template = quantizing.template("a", seed=0, steps=2)
    assert 2 * template_bytes(plan) == sum(each.nbytes for name, each in template.tensors.items() if "_blocks" in name)


def test_templates_of_other_engines_are_one_sentence(pipe: Pipeline, quantizing: Pipeline) -> None:
    templates = [each.template("a knight", seed=3, steps=1) for each in (pipe, quantizing)]
    for own, other, (found, taken) in (
        (pipe, templates[1], ("int8", "float16")),
        (quantizing, templates[0], ("float16", "int8")),
    ):
        with pytest.raises(InputError, match=rf"text_features\.\S+ is {found} \[.*but these engines take {taken} \["):
            own.preview(other)


def test_a_folder_without_templates_has_nothing_to_quantize(tmp_path: Path) -> None:
    options = BuildOptions(tmp_path / "engines", quantize_templates=True, backends=("onnxruntime",))
    with pytest.raises(InputError, match="--quantize-templates would have no effect: no graph for templates"):
        build(options)


def test_quantization_rounds_each_channel_to_255_levels() -> None:
    values = np.random.default_rng(0).standard_normal((2, 50, 6)).astype(np.float16)
    values *= np.array([1, 10, 0.01, 300, 1, 0], np.float16)
    values[1, :, 4] = 0
    steps, scales = quantized(values)
    assert (steps.dtype, steps.shape, scales.dtype, scales.shape) == (np.int8, values.shape, np.float32, (2, 1, 6))
    assert np.all(np.abs(steps) <= 127)
    assert np.all(np.abs(steps).max(axis=1) == np.where(scales[:, 0] > 0, 127, 0))
    assert np.all(np.abs(steps * scales - values.astype(np.float32)) <= 0.5001 * scales)


def test_features_that_are_not_finite_are_rejected() -> None:
    tensors = {
        "text_features.a": np.zeros((1, 1, 4, 2), np.int8),
        "text_scales.a": np.zeros((1, 1, 1, 2), np.float32),
        "snr": np.zeros(1, np.float32),
    }
    values = np.ones((1, 4, 2), np.float16)
    keep_features(tensors, 0, {"text_features.a": values})
    assert tensors["snr"][0] == np.inf or tensors["snr"][0] > 100  # a constant is exact
    values[0, 1, 1] = np.nan
    with pytest.raises(EngineFolderError, match="text features with 1 non-finite values"):
        keep_features(tensors, 0, {"text_features.a": values})
