from __future__ import annotations

import fcntl
import gc
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

# several workers share the cores; child processes of tests inherit it
os.environ.setdefault("OMP_NUM_THREADS", "1" if "PYTEST_XDIST_WORKER" in os.environ else "2")
os.environ.pop("COLUMNS", None)  # workers set it, and the output of commands would be wrapped to it
if not Path("/dev/nvidiactl").exists():
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports triton: kernels run on CPU tensors

import numpy as np
import pytest
import skimage.data
from PIL import Image
from shared_folder import shared

from infid_engines.manifest import Manifest
from infid_export.export.build_options import BuildOptions
from infid_export.export.builder import BuildReport, build
from infid_export.export.graphs import graphs_for
from infid_export.model.sources import RandomSource
from infid_export.runtime.person import Person
from infid_export.runtime.pipeline import Pipeline
from infid_training.world import people, scenes
from infid_training.world.drawing import render


@pytest.fixture(scope="module", autouse=True)
def _uncollected_modules() -> None:
    """Exclude everything imported so far from garbage collection.

    PyTorch's exporter collects after each of its passes; with a million objects from modules that takes a quarter of an
    export's time. The higher threshold saves four more percent of it.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@pytest.fixture(scope="session")
def astronaut() -> np.ndarray:
    return skimage.data.astronaut()


@pytest.fixture(scope="session")
def source() -> RandomSource:
    """Random weights of the demo model's architecture."""
    return RandomSource("demo")


@pytest.fixture(scope="session")
def demo_build(tmp_path_factory: pytest.TempPathFactory) -> BuildReport:
    """The demo folder in fp16 with every graph of two streams, on ONNX Runtime, with all of parity and an image."""
    folder = shared(tmp_path_factory, "demo") / "engines"  # a build locks it
    return build(
        BuildOptions(output=folder, precision="fp16", graphs=tuple(graphs_for("two")), backends=("onnxruntime",))
    )


@pytest.fixture(scope="session")
def demo_folder(demo_build: BuildReport) -> Path:
    return demo_build.folder


@pytest.fixture(scope="session")
def packages_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with AOTInductor packages of two graphs, one with buffers and one with convolutions.

    Tests must not change it.
    """
    folder = shared(tmp_path_factory, "packages") / "engines"  # a build locks it
    build(BuildOptions(output=folder, graphs=("text_encoder_2", "vae_decoder"), backends=("aotinductor",)))
    return folder


@pytest.fixture(scope="session")
def quick_folder(demo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo folder with one step as its default, for tests that only check that something runs."""
    folder = shutil.copytree(demo_folder, tmp_path_factory.mktemp("quick") / "engines")
    manifest = Manifest.load(folder)
    replace(manifest, defaults={**manifest.defaults, "steps": 1}).write(folder)
    return folder


@pytest.fixture(scope="session")
def compile_kernels_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """Folder and process of the command, run without Triton's interpreter to compile SDXL's kernels for Hopper."""
    place = shared(tmp_path_factory, "kernels")
    folder, printed = place / "bundle", place / "printed.json"
    command = [sys.executable, "-m", "infid_export", "compile-kernels", "--target", "sm_90", "-o", str(folder)]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    paths = [str(Path(entry or ".").resolve()) for entry in sys.path]
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    with (place / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not printed.exists():
            run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
            printed.write_text(json.dumps([run.stdout, run.stderr]))
    return folder, subprocess.CompletedProcess(command, 0, *json.loads(printed.read_text()))


@pytest.fixture(scope="session")
def kernels_bundle(compile_kernels_run: tuple[Path, subprocess.CompletedProcess[str]]) -> Path:
    return compile_kernels_run[0]


@pytest.fixture(scope="session")
def pipe(demo_folder: Path) -> Pipeline:
    return Pipeline.load(demo_folder)


@pytest.fixture(scope="session")
def portrait() -> Image.Image:
    """A photo of a drawn person whom the demo model was not trained on."""
    return render(people.person(people.FIRST_HELD_OUT), scenes.portrait(people.FIRST_HELD_OUT), 128)


@pytest.fixture(scope="session")
def person(pipe: Pipeline, portrait: Image.Image) -> Person:
    return pipe.enroll(portrait)
