"""A checkpoint in one file of SDXL's original layout: read exactly as diffusers reads it, and built."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import create_diffusers_clip_model_from_ldm, load_single_file_checkpoint
from single_files import NETWORKS, SMALL, original_tensors, small_source, write_configurations, write_file
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from infid_export.export.build_estimate import estimate
from infid_export.export.build_options import BuildOptions
from infid_export.export.builder import build, verify
from infid_export.export.graphs import GRAPHS
from infid_export.model.single_file import SingleFileSource
from infid_export.model.sources import open_source

TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_file(tmp_path_factory.mktemp("single") / "small.safetensors", original_tensors(small_source()))


@pytest.fixture(scope="module")
def configurations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_configurations(tmp_path_factory.mktemp("configurations") / "base")


def opened(parts: dict[str, Path], file: Path, **changed: object) -> SingleFileSource:
    source = open_source(str(file), identity=parts["identity"], image_encoder=str(parts["encoder"]), **changed)
    assert isinstance(source, SingleFileSource)
    return source


def by_diffusers(file: Path, configurations: Path, network: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    if network in ("unet", "vae"):
        kind = UNet2DConditionModel if network == "unet" else AutoencoderKL
        module = kind.from_single_file(
            str(file), config=str(configurations), subfolder=network, torch_dtype=dtype, local_files_only=True
        )
    else:
        module = create_diffusers_clip_model_from_ldm(
            CLIPTextModel if network == "text_encoder" else CLIPTextModelWithProjection,
            load_single_file_checkpoint(str(file)),
            subfolder=network,
            config=str(configurations),
            torch_dtype=dtype,
            local_files_only=True,
        )
    return dict(module.named_parameters())


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("network", NETWORKS)
def test_every_weight_is_the_one_that_diffusers_reads(parts, configurations, tmp_path, network, kind):
    file = write_file(tmp_path / "small.safetensors", original_tensors(small_source(), dtype=TYPES[kind]))
    source = opened(parts, file)
    expected = by_diffusers(file, configurations, network, torch.float32)
    streamed = dict(source.weights(network, torch.float32))
    loaded = dict(source.load(network, torch.float32).named_parameters())
    assert streamed.keys() == loaded.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(streamed[name], value), name
        assert torch.equal(loaded[name], value), name


def test_configurations_follow_from_shapes(parts, file):
    found = opened(parts, file).architecture
    for network in NETWORKS:
        assert found.component(network) == SMALL.component(network)


def test_it_builds_with_parity_and_is_verified_again(parts, file, tmp_path, demo_folder):
    recognizer = shutil.copyfile(demo_folder / "faces/recognizer.onnx", tmp_path / "recognizer.onnx")
    options = BuildOptions(
        output=tmp_path / "engines",
        model=str(file),
        identity=parts["identity"],
        image_encoder=str(parts["encoder"]),
        recognizer=recognizer,
        prediction="v",
        zero_snr=True,
        backends=("onnxruntime",),
        graphs=tuple(GRAPHS),
        height=64,
        width=64,
    )
    plan, rows = estimate(options)
    assert not (tmp_path / "engines").exists() and rows
    report = build(options)
    assert report.parity.passed
    assert {row.graph for row in report.parity.rows} == set(GRAPHS)
    scheduler, defaults = report.manifest.scheduler, report.manifest.defaults
    assert (scheduler["prediction_type"], scheduler["rescale_betas_zero_snr"]) == ("v_prediction", True)
    assert defaults["spacing"] == "trailing"
    assert any(note.startswith("prediction v: as --prediction says") for note in report.notes)
    assert plan.notes == report.notes[: len(plan.notes)]
    assert build(options).made == {}
    assert verify(tmp_path / "engines").passed
