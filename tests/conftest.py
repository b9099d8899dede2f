from __future__ import annotations

import os
from pathlib import Path

if not Path("/dev/nvidiactl").exists():
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports triton: kernels run on CPU tensors

import numpy as np
import pytest
import skimage.data
import torch

from infid_export.export.build import BuildReport, build
from infid_export.export.options import BuildOptions
from infid_export.model.sources import RandomSource, open_source
from infid_export.runtime.person import Person
from infid_export.runtime.pipeline import Pipeline

torch.set_num_threads(2)


@pytest.fixture(scope="session")
def astronaut() -> np.ndarray:
    return skimage.data.astronaut()


@pytest.fixture(scope="session")
def source() -> RandomSource:
    found = open_source("demo")
    assert isinstance(found, RandomSource)
    return found


@pytest.fixture(scope="session")
def demo_build(tmp_path_factory: pytest.TempPathFactory) -> BuildReport:
    """The demo folder in fp16, on ONNX Runtime, with every parity check including the 30-step picture."""
    folder = tmp_path_factory.mktemp("demo") / "engines"
    return build(BuildOptions(output=folder, precision="fp16", backends=("onnxruntime",)))


@pytest.fixture(scope="session")
def demo_folder(demo_build: BuildReport) -> Path:
    return demo_build.folder


@pytest.fixture(scope="session")
def pipe(demo_folder: Path) -> Pipeline:
    return Pipeline.load(demo_folder)


@pytest.fixture(scope="session")
def person(pipe: Pipeline, astronaut: np.ndarray) -> Person:
    return pipe.enroll(astronaut)
