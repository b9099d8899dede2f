"""AOTInductor packages in C++, with PyTorch's library of this Python environment: the same outputs and sentences."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cpp_library import Probe, built
from safetensors.torch import save_file
from shared_folder import shared
from torch import Tensor, nn

from infid_engines import aotinductor_backend, gpu, processor
from infid_engines.aotinductor_runner import FACTS, PackageFacts, StoredWeight, open_package
from infid_engines.device import CPU
from infid_engines.errors import InfidError
from infid_engines.manifest import Manifest, TensorSpec, stored_engines
from infid_engines.registry import get_backend
from infid_export.export.packages import CONFIGURATION

SHAPE = (2, 32)
INPUTS = (TensorSpec("x", "float32", SHAPE), TensorSpec("y", "float32", SHAPE))
OUTPUTS = (TensorSpec("next_x", "float32", SHAPE), TensorSpec("seen", "float32", SHAPE))
WEIGHTS = "../../onnx/small.safetensors"


class Small(nn.Module):
    """A graph with a transposed weight, a plain one, and a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(32, 32)
        self.register_buffer("scale", torch.tensor([[1.5], [2.0]]))

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return torch.tanh(self.linear(x)) + y * self.scale, y + x


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package of `Small`, compiled for the transposed view of its weight."""
    folder = tmp_path_factory.mktemp("small")
    path = folder / "engines/here/small.pt2"
    for each in (path.parent, folder / "onnx"):
        each.mkdir(parents=True)
    module = Small().eval()
    stored = module.linear.weight.detach().t().contiguous()
    save_file({"weight": stored, "bias": module.linear.bias.detach()}, folder / "onnx/small.safetensors")
    module.linear.weight.data = stored.t()
    weights = {
        "linear.weight": StoredWeight(WEIGHTS, "weight", transposed=True),
        "linear.bias": StoredWeight(WEIGHTS, "bias", transposed=False),
    }
    facts = PackageFacts(["x", "y"], ["next_x", "seen"], weights, {"scale": ("float32", [[1.5], [2.0]])}, False)
    with torch.no_grad():
        program = torch.export.export(module, (torch.zeros(SHAPE), torch.zeros(SHAPE)), strict=False)
        torch._inductor.aoti_compile_and_package(
            program,
            package_path=str(path),
            inductor_configs={**CONFIGURATION, "aot_inductor.metadata": {FACTS: facts.to_json()}},
        )
    return path


@pytest.fixture(scope="module")
def torch_probe(tmp_path_factory: pytest.TempPathFactory) -> Probe:
    """Calls parts of a library that was built with AOTInductor, not under sanitizers, which PyTorch's does not pass."""
    folder = Path(torch.__file__).parent
    options = (f"-DINFID_TORCH={folder}", "-DCMAKE_BUILD_TYPE=Debug")
    program = built(shared(tmp_path_factory, "cpp_torch"), *options, target="infid_probe") / "tests/infid_probe"

    def run(name: str, *arguments: object, input: str | None = None) -> subprocess.CompletedProcess[str]:
        command = [str(program), name, *map(str, arguments)]
        return subprocess.run(command, input=input, capture_output=True, text=True, check=False)

    return run


def run_both(
    probe: Probe, path: Path, folder: Path, arrays: Mapping[str, np.ndarray[Any, Any]],
    outputs: tuple[TensorSpec, ...] = OUTPUTS, inputs: tuple[TensorSpec, ...] = INPUTS,
) -> tuple[subprocess.CompletedProcess[str], Callable[[], Any]]:  # fmt: skip
    """Run a package in C++ on files of the folder, and return a call that loads it in Python."""
    for name, array in arrays.items():
        (folder / name).write_bytes(array.tobytes())
    documents = (
        json.dumps([{"name": spec.name, "dtype": spec.dtype, "shape": spec.shape} for spec in specs])
        for specs in (inputs, outputs)
    )
    return probe("run_engine", "aotinductor", path, *documents, folder), lambda: open_package(
        path, inputs, outputs, CPU
    )


def inputs() -> dict[str, np.ndarray[Any, Any]]:
    random = np.random.default_rng(1)
    return {name: random.standard_normal(SHAPE, np.float32) for name in ("x", "y")}


def test_a_package_computes_the_same_bits(package: Path, tmp_path: Path, torch_probe: Probe) -> None:
    arrays = inputs()
    finished, load = run_both(torch_probe, package, tmp_path, arrays)
    assert (finished.returncode, finished.stderr) == (0, "")
    engine = load()
    expected = engine.run(arrays)
    loop = engine.loop({}, {"x": "next_x"}, {"x": arrays["x"]}, [{"y": arrays["y"]}] * 3)
    for _ in range(3):
        loop.step()
    expected["looped_x"] = loop.read("next_x")
    for name, array in expected.items():
        assert (tmp_path / name).read_bytes() == array.tobytes(), name
    assert not np.array_equal(expected["looped_x"], expected["next_x"])


def test_the_decoder_computes_the_same_bits(packages_folder: Path, tmp_path: Path, torch_probe: Probe) -> None:
    manifest = Manifest.load(packages_folder)
    graph = manifest.graphs["vae_decoder"]
    path = packages_folder / stored_engines(manifest, "aotinductor")["vae_decoder"].file
    (latents,) = graph.inputs
    arrays = {"latents": np.random.default_rng(1).standard_normal(latents.shape, np.float32)}
    finished, load = run_both(torch_probe, path, tmp_path, arrays, graph.outputs, graph.inputs)
    assert (finished.returncode, finished.stderr) == (0, "")
    assert (tmp_path / "image").read_bytes() == load().run(arrays)["image"].tobytes()


def damaged(case: str, package: Path, folder: Path) -> tuple[Path, tuple[TensorSpec, ...]]:
    """A package that cannot be used, and the manifest's outputs."""
    path = folder / "engines/here/small.pt2"
    path.parent.mkdir(parents=True)
    (folder / "onnx").mkdir()
    path.write_bytes(b"no zip" if case == "no package" else package.read_bytes())
    names = {"weight": torch.zeros(32, 32), "bias": torch.zeros(32)}
    if case == "no weight":
        del names["weight"]
    save_file(names, folder / "onnx/small.safetensors")
    return path, (OUTPUTS[0], TensorSpec("it's", "float32", SHAPE)) if case == "other names" else OUTPUTS


@pytest.mark.parametrize("case", ["no package", "no weight", "other names"])
def test_what_does_not_fit_is_one_sentence(case: str, package: Path, tmp_path: Path, torch_probe: Probe) -> None:
    path, outputs = damaged(case, package, tmp_path)
    finished, load = run_both(torch_probe, path, tmp_path, inputs(), outputs)
    with pytest.raises(InfidError) as caught:
        load()
    assert finished.returncode == 1
    assert finished.stderr.splitlines() == [caught.value.problem, caught.value.fix]


def test_a_package_without_a_weights_file_is_not_run(package: Path, tmp_path: Path, torch_probe: Probe) -> None:
    """Running it would crash the process."""
    path, _ = damaged("", package, tmp_path)
    (tmp_path / "onnx/small.safetensors").unlink()
    finished, _ = run_both(torch_probe, path, tmp_path, inputs())
    assert finished.returncode == 1
    assert "small.pt2 does not fit its weights (" in finished.stderr


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "sm_90", "cpu-other", "own"])
@pytest.mark.parametrize("targets", [(), ("sm_90",), ("own", "sm_90")], ids=str)
def test_the_target_is_chosen(
    device: str, targets: tuple[str, ...], torch_probe: Probe, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = processor.cpu_target()
    device, targets = device.replace("own", own), tuple(each.replace("own", own) for each in targets)
    monkeypatch.setattr(gpu, "architectures", lambda: ())
    monkeypatch.setattr(aotinductor_backend, "present_architecture", lambda index: None)
    try:
        expected = ["{} {}".format(*get_backend("aotinductor").choose_target(device, targets))]
    except InfidError as error:
        expected = [error.problem, error.fix]
    monkeypatch.setenv("LD_LIBRARY_PATH", os.devnull)
    finished = torch_probe("choose", "aotinductor", device, *targets)
    assert (finished.stdout + finished.stderr).splitlines() == expected


def test_the_library_is_named(torch_probe: Probe) -> None:
    version = torch.__version__.partition("+")[0]
    assert torch_probe("library", "aotinductor").stdout.startswith(f"PyTorch {version} in ")
