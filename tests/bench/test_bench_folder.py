"""The document of a measurement, on a hand-made folder and on the demo model."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_engines import write_folder

from infid_engines.errors import BackendUnavailableError, EngineFolderError, InputError
from infid_engines.manifest import Manifest
from infid_engines.progress import SilentReporter
from infid_export.bench import others
from infid_export.bench.first_image import first_image_seconds
from infid_export.bench.folder import BenchOptions, bench
from infid_export.bench.recording import recording_pipeline
from infid_export.bench.report import html
from infid_export.bench.stand_in import stand_in
from infid_export.runtime.pipeline import Pipeline

QUICK: dict[str, Any] = {"rounds": 2, "image_rounds": 1, "steps": 3}


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = write_folder(tmp_path_factory.mktemp("tiny") / "engines")
    calls: list[int] = []
    return bench(BenchOptions(folder, **QUICK), SilentReporter(), {"<other>": lambda: calls.append(1)})


def test_every_key_is_there_and_plain_json(document: dict[str, Any]) -> None:
    assert json.loads(json.dumps(document)) == document
    graphs = {"identity_encoder", "text_encoder", "text_encoder_2", "denoise_step", "text_step", "identity_step"}
    assert set(document["graphs"]) == graphs | {"vae_decoder"}
    for kind, names, samples in (
        ("graphs", graphs, 2),
        ("images", ("joint", "template"), 1),
        ("others", ("<other>",), 1),
    ):
        for name in names:
            times = document[kind][name]
            assert 0 <= times["p20_ms"] <= times["median_ms"] <= times["p80_ms"]
            assert times["samples"] == samples
    assert (document["kind"], document["backend"], document["device"], document["steps"]) == (
        "bench",
        "onnxruntime",
        "cpu",
        3,
    )
    assert document["folder"]["batch"] == 2
    assert document["machine"]["cores"] >= 1
    assert document["versions"]["onnxruntime"]
    assert document["host_ms_per_step"] > 0
    assert document["peak_bytes"] > 1 << 20
    assert document["device_bytes"] is None
    steps = document["scaling"]["steps"]["joint"]
    assert [value for value, _ in steps] == [1, 3]
    assert steps[-1][1] == round(document["images"]["joint"]["median_ms"] / 2, 3)  # a batch of two
    assert set(document["scaling"]) == {"steps"}
    assert document["graphs"]["vae_decoder"]["floor_ms"] is None  # the hand-made graphs have no products
    assert 0.1 < document["first_image_seconds"] < 100


def test_the_ratios_are_those_of_as_many_rows(document: dict[str, Any]) -> None:
    median = {name: each["median_ms"] for name, each in document["graphs"].items()}
    plain = 2 * median["text_step"]  # a batch of two
    ratios = document["ratios"]
    assert ratios["joint_over_plain"] == round(median["denoise_step"] / (2 * plain), 3)
    assert ratios["template_over_plain"] == round(median["identity_step"] / plain, 3)
    images = document["images"]
    whole = images["joint"]["median_ms"] / images["template"]["median_ms"]
    assert ratios["joint_image_over_template_image"] == pytest.approx(whole, rel=1e-2, abs=1e-3)


def test_a_folder_without_the_graphs_of_templates_has_no_price(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "engines")
    manifest = Manifest.load(folder)
    graphs = {name: each for name, each in manifest.graphs.items() if name not in ("text_step", "identity_step")}
    engines = tuple(each for each in manifest.engines if each.graph in graphs)
    replace(manifest, graphs=graphs, engines=engines).write(folder)
    found = bench(BenchOptions(folder, **{**QUICK, "steps": 1}), SilentReporter())
    assert set(found["images"]) == {"joint"}
    assert set(found["ratios"].values()) == {None}
    assert found["host_ms_per_step"] == 0  # one step has none before it
    assert "joint over plain" not in html(found)


def test_real_calls_are_repeated(quick_folder: Path) -> None:
    """What is timed gives what the recorded call gave."""
    pipe, engines = recording_pipeline(quick_folder)
    with pipe:
        person = stand_in(pipe)
        latents = pipe.generate("a knight", person, seed=1, output_type="latents")
        call = engines.call("denoise_step")
        call()
        found = engines["denoise_step"].run(engines.inputs["denoise_step"])["next_identity_latents"]
    np.testing.assert_array_equal(found, latents)


def test_the_report_needs_no_network_and_shows_everything(document: dict[str, Any]) -> None:
    page = html(document)
    assert "http" not in page
    assert "&lt;other&gt;" in page
    assert "<other>" not in page
    for text in (
        "joint",
        "template",
        "denoise_step",
        "tiny, fp32, 64 × 64",
        "joint over plain",
        "The price of 1,000 images",
    ):
        assert text in page
    assert page.count("<svg") == page.count("</svg>") == 4
    assert f'data-ms="{document["images"]["joint"]["median_ms"] / 2}"' in page


def test_the_report_shows_energy_and_gpu_memory_only_if_they_were_measured(document: dict[str, Any]) -> None:
    images = {name: {**each, "joules": None} for name, each in document["images"].items()}
    unmetered = html({**document, "images": images, "others": {}})
    assert " Wh<" not in unmetered
    assert "GPU memory" not in unmetered
    images["joint"]["joules"] = 7200.0  # for a batch of two
    page = html({**document, "images": images, "others": {}, "device_bytes": 5_250_000_000})
    assert '<td>joint</td><td class="number">1000.0 Wh</td>' in page
    assert "5.25 GB of GPU memory" in page


def test_the_report_shows_the_floor_and_every_property(document: dict[str, Any]) -> None:
    graphs = {
        **document["graphs"],
        "vae_decoder": {**document["graphs"]["vae_decoder"], "median_ms": 8.0, "floor_ms": 2.0},
    }
    scaling = {**document["scaling"], "batch": {"joint": [[1, 5.0], [2, 4.0]], "template": [[1, 3.0], [2, 2.5]]}}
    page = html({**document, "graphs": graphs, "scaling": scaling})
    unknown = {name: {**each, "floor_ms": None} for name, each in graphs.items()}
    assert "share of the floor" not in html({**document, "graphs": unknown})
    assert '<td>vae_decoder</td><td class="number">25%</td>' in page
    assert page.count("<svg") == 5
    for text in ("batch", "joint, 2: 4.0 ms", "template, 1: 3.0 ms"):
        assert text in page


def test_other_backends_of_the_folder_take_turns(quick_folder: Path) -> None:
    calls = others.open_others(["onnxruntime"], quick_folder, 1)
    assert set(calls) == {"onnxruntime, joint", "onnxruntime, template"}
    (image,) = calls["onnxruntime, joint"]()  # type: ignore[misc]
    assert image.size == (128, 128)


def test_folders_beside_it_are_measured(tmp_path: Path) -> None:
    folder, other = write_folder(tmp_path / "engines"), write_folder(tmp_path / "other")
    with pytest.raises(InputError, match="must differ from"):
        bench(BenchOptions(folder, **QUICK, beside=(other,)), SilentReporter())


BAD: dict[str, tuple[Callable[[Path], Any], type[Exception], str]] = {
    "no folder": (lambda folder: BenchOptions(folder / "none"), EngineFolderError, "none"),
    "steps": (lambda folder: BenchOptions(folder, steps=0), InputError, "steps"),
    "threads": (lambda folder: BenchOptions(folder, threads=0), InputError, "The number of threads must be at least 1"),
    "backend": (lambda folder: BenchOptions(folder, backend="tensorrt"), Exception, "tensorrt|TensorRT"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_options_are_one_sentence(tmp_path: Path, case: str) -> None:
    options, error, message = BAD[case]
    with pytest.raises(error, match=message) as caught:
        bench(options(write_folder(tmp_path / "engines")), SilentReporter())
    assert caught.value.fix  # type: ignore[attr-defined]


def test_software_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(others, "find_spec", lambda package: None if package == "diffusers" else object())
    with pytest.raises(BackendUnavailableError, match="diffusers cannot run") as caught:
        others.open_others(["diffusers"], tmp_path, None)
    assert "infid-export[export]" in caught.value.fix
    assert others.open_others([], tmp_path, None) == {}


@pytest.mark.parametrize("name", ["reference", "diffusers", "diffusers-ip-adapter"])
def test_other_software_makes_the_same_kind_of_image(demo_folder: Path, name: str) -> None:
    call = others.open_others([name], demo_folder, 1)[name]
    (image,) = call().images  # type: ignore[attr-defined]
    assert image.size == (128, 128)


def test_a_number_of_threads_is_for_cpus(demo_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from infid_engines.onnxruntime_backend import OnnxRuntimeBackend

    monkeypatch.setattr(OnnxRuntimeBackend, "takes_threads", False)
    with pytest.raises(InputError, match="onnxruntime does not take a number of threads"):
        Pipeline.load(demo_folder, threads=2)


def test_a_process_that_makes_no_image_is_a_fault(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"(?s)the first image failed:\n.*missing-folder"):
        first_image_seconds(tmp_path / "missing-folder", "auto", "cpu", None, 1)
