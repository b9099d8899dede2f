from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_engines import records, write_folder

from infid_engines import gpu as machine
from infid_engines import registry
from infid_engines.device import CPU, Device
from infid_engines.errors import BackendUnavailableError, EngineFolderError, InfidError, InputError
from infid_engines.manifest import FileRecord, Manifest, sha256_file
from infid_engines.tensorrt_backend import TensorRTBackend, TensorRTRTXBackend
from infid_export.runtime.engine_set import EngineSet, choose_backend, choose_target
from infid_export.runtime.person import Person
from infid_export.runtime.pipeline import Pipeline


def fake(kind: type[TensorRTBackend]) -> TensorRTBackend:
    """Return a fake TensorRT library."""

    class Fake(kind):  # type: ignore[valid-type, misc]
        def versions(self) -> dict[str, str]:
            return {self.name: "1"}

        def check_device(self, index: int = 0) -> None:
            if self.present_target(index) is None:
                raise BackendUnavailableError("there is no GPU", fix="Buy one.")

    made: TensorRTBackend = Fake()
    return made


def with_engines(folder: Path, *engines: tuple[str, str]) -> Manifest:
    """The folder's manifest with engines of other backends, as (backend, target)."""
    manifest = Manifest.load(folder)
    more = [replace(manifest.engines[0], backend=backend, target=target) for backend, target in engines]
    return replace(manifest, engines=(*manifest.engines, *more))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make this a machine with GPUs of these architectures."""

    def install(*architectures: str | None) -> None:
        monkeypatch.setattr(machine, "architectures", lambda: tuple(each for each in architectures if each))
        for kind in (TensorRTBackend, TensorRTRTXBackend):
            monkeypatch.setitem(registry.BACKENDS, kind.name, fake(kind))

    return install


def test_auto_takes_tensorrt_where_it_runs(tiny_folder: Path, gpu: Callable[..., None]) -> None:
    gpu("sm_90")
    manifest = with_engines(tiny_folder, ("tensorrt", "sm_90"), ("tensorrt_rtx", "sm_89"))
    name, choice = choose_backend(manifest)
    assert name == "tensorrt"
    assert "this machine runs them" in choice


@pytest.mark.parametrize(
    ("engines", "architecture", "chosen", "reason"),
    [
        ([], "sm_90", "onnxruntime", "tensorrt not used: the folder has no engines for it"),
        ([("tensorrt", "sm_90")], None, "onnxruntime", "tensorrt not used: there is no GPU"),
        ([("tensorrt", "sm_80")], "sm_90", "onnxruntime", "engines are for sm_80, but this machine has sm_90"),
        ([("tensorrt", "sm_80"), ("tensorrt_rtx", "sm_89")], "sm_89", "tensorrt_rtx", "for sm_80, but this machine"),
        ([("tensorrt_rtx", "sm_89"), ("tensorrt_rtx", "sm_120")], "sm_120", "tensorrt_rtx", "this machine runs them"),
        ([("tensorrt_rtx", "sm_89")], "sm_90", "onnxruntime", "engines are for sm_89, but this machine has sm_90"),
    ],
    ids=["none", "no-gpu", "other-gpu", "second-best", "several-targets", "rtx-on-hopper"],
)
def test_auto_says_why_faster_backends_were_not_taken(
    tiny_folder: Path,
    gpu: Callable[..., None],
    engines: list[tuple[str, str]],
    architecture: str | None,
    chosen: str,
    reason: str,
) -> None:
    gpu(architecture)
    name, choice = choose_backend(with_engines(tiny_folder, *engines))
    assert name == chosen
    assert choice.startswith(chosen)
    assert reason in choice


def test_engines_without_weights_are_not_run(tiny_folder: Path, gpu: Callable[..., None]) -> None:
    gpu("sm_90")
    manifest = with_engines(tiny_folder, ("tensorrt", "sm_90"))
    stripped = tuple(
        replace(each, flags={"strip": True}) if each.backend == "tensorrt" else each for each in manifest.engines
    )
    manifest = replace(manifest, engines=stripped)
    name, choice = choose_backend(manifest)
    assert name == "onnxruntime"
    assert "holds no weights (--strip)" in choice
    with pytest.raises(EngineFolderError, match=r"holds no weights \(--strip\)"):
        EngineSet(tiny_folder, manifest, "tensorrt", "sm_90", Device("cuda"))[manifest.engines[0].graph]


def test_a_folder_with_nothing_that_runs_here_says_why(tiny_folder: Path, gpu: Callable[..., None]) -> None:
    gpu(None)
    manifest = with_engines(tiny_folder, ("tensorrt", "sm_90"))
    only = replace(manifest, engines=tuple(item for item in manifest.engines if item.backend == "tensorrt"))
    with pytest.raises(EngineFolderError, match="no engine that runs here: tensorrt not used: there is no GPU"):
        choose_backend(only)


def test_a_missing_onnxruntime_says_how_to_install_it(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # importing it fails
    for backend in ("auto", "onnxruntime"):
        with pytest.raises(BackendUnavailableError, match="ONNX Runtime cannot be imported") as caught:
            Pipeline.load(tiny_folder, backend)
        assert 'pip install "infid-export[cpu]"' in caught.value.fix
        assert 'pip install "infid-export[cuda]"' in caught.value.fix


@pytest.mark.parametrize(
    ("backend", "device", "expected"),
    [
        ("onnxruntime", "auto", (None, CPU)),
        ("onnxruntime", "cuda", (None, Device("cuda"))),
        ("onnxruntime", "cuda:1", (None, Device("cuda", 1))),
        ("tensorrt", "auto", ("sm_90", Device("cuda"))),
        ("tensorrt", "cuda:0", ("sm_90", Device("cuda"))),
        ("tensorrt", "cuda:1", ("sm_80", Device("cuda", 1))),
        ("tensorrt_rtx", "cuda:2", ("sm_89", Device("cuda", 2))),
        ("tensorrt_rtx", "sm_120", ("sm_120", Device("cuda"))),
    ],
)
def test_the_present_or_named_target_is_taken(
    tiny_folder: Path,
    gpu: Callable[..., None],
    backend: str,
    device: str,
    expected: tuple[str | None, Device],
) -> None:
    gpu("sm_90", "sm_80", "sm_89")
    engines = [("tensorrt", "sm_80"), ("tensorrt", "sm_90"), ("tensorrt_rtx", "sm_89"), ("tensorrt_rtx", "sm_120")]
    assert choose_target(with_engines(tiny_folder, *engines), backend, device) == expected


@pytest.mark.parametrize(
    ("backend", "device", "message"),
    [
        ("onnxruntime", "tpu", "There is no device 'tpu'"),
        ("onnxruntime", "sm_90", "onnxruntime has no device 'sm_90'"),
        ("tensorrt", "gpu", "There is no device 'gpu'"),
        ("tensorrt_rtx", "sm_75", "no tensorrt_rtx engines for 'sm_75', only for sm_120, sm_89"),
        ("tensorrt", "cpu", "no tensorrt engines for 'cpu'"),
    ],
)
def test_devices_that_do_not_fit_are_rejected(
    tiny_folder: Path, gpu: Callable[..., None], backend: str, device: str, message: str
) -> None:
    gpu("sm_90")
    engines = [("tensorrt", "sm_90"), ("tensorrt_rtx", "sm_89"), ("tensorrt_rtx", "sm_120")]
    with pytest.raises(InputError, match=message):
        choose_target(with_engines(tiny_folder, *engines), backend, device)


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"backend": "onnx"}, InputError, "no backend named 'onnx'"),
        ({"backend": "onnxruntime", "device": "tpu"}, InputError, "There is no device 'tpu'"),
        ({"backend": "tensorrt_rtx"}, InfidError, "tensorrt_rtx"),
    ],
    ids=["backend", "device", "no-engines"],
)
def test_load_rejects_what_it_cannot_run(tiny_folder: Path, arguments: dict, kind: type, message: str) -> None:
    with pytest.raises(kind, match=message):
        Pipeline.load(tiny_folder, **arguments)


def test_a_folder_of_something_else_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(EngineFolderError, match="is not an engine folder"):
        Pipeline.load(tmp_path)


@pytest.mark.parametrize(
    ("device", "chosen", "reason"),
    [
        ("auto", "tensorrt", "this machine runs them"),
        (
            "cuda:1",
            "tensorrt_rtx",
            "tensorrt not used: The folder's tensorrt engines are for sm_90, but cuda:1 is sm_89",
        ),
        ("cpu", "onnxruntime", "tensorrt not used: The folder has no tensorrt engines for 'cpu'"),
    ],
)
def test_auto_takes_what_runs_on_the_device(
    tiny_folder: Path, gpu: Callable[..., None], device: str, chosen: str, reason: str
) -> None:
    gpu("sm_90", "sm_89")
    name, choice = choose_backend(with_engines(tiny_folder, ("tensorrt", "sm_90"), ("tensorrt_rtx", "sm_89")), device)
    assert name == chosen
    assert reason in choice


@pytest.mark.parametrize("backend", ["auto", "onnxruntime", "tensorrt", "aotinductor"])
def test_a_gpu_that_is_not_there_is_counted(fresh_folder: Path, gpu: Callable[..., None], backend: str) -> None:
    gpu("sm_90", "sm_90")
    with_engines(fresh_folder, ("tensorrt", "sm_90"), ("aotinductor", "sm_90")).write(fresh_folder)
    with pytest.raises(BackendUnavailableError, match="There is no cuda:2: CUDA finds 2 GPUs") as caught:
        Pipeline.load(fresh_folder, backend, "cuda:2")
    assert "cuda:1 or lower" in caught.value.fix


def test_a_pipeline_says_which_gpu_it_runs_on(fresh_folder: Path, gpu: Callable[..., None]) -> None:
    gpu("sm_90", "sm_89")
    with_engines(fresh_folder, ("tensorrt", "sm_89")).write(fresh_folder)
    for backend, device, shown, on in (
        ("tensorrt", "cuda:1", "cuda:1", "(on cuda:1, sm_89)"),
        ("tensorrt", "sm_89", "cuda", "(on sm_89)"),
        ("onnxruntime", "cuda:1", "cuda:1", "(on cuda:1)"),
        ("onnxruntime", "cuda:0", "cuda", "(on cuda)"),
        ("onnxruntime", "auto", "cpu", "(on cpu)"),
    ):
        with Pipeline.load(fresh_folder, backend, device) as pipe:
            assert (pipe.device, pipe.choice.endswith(on)) == (shown, True)


def generate(folder: Path, person: Person) -> None:
    with Pipeline.load(folder) as pipe:
        pipe.generate("a", person, seed=1, steps=1)


@pytest.mark.parametrize(
    "name",
    [
        "onnx/text_encoder.onnx",
        "onnx/text_encoder_2.onnx",
        "onnx/denoise_step.onnx",
        "onnx/vae_decoder.onnx",
        "tokenizer/tokenizer.json",
        "tokenizer_2/tokenizer.json",
    ],
)
@pytest.mark.parametrize("damage", ["one-bit", "cut", "gone"])
def test_a_damaged_file_is_rejected_before_it_is_loaded(
    fresh_folder: Path, tiny_person: Person, name: str, damage: str
) -> None:
    path = fresh_folder / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(content if damage == "one-bit" else content[:-1])
    message = {"one-bit": "has changed: its sha256", "cut": "the manifest says", "gone": "is missing"}[damage]
    with pytest.raises(EngineFolderError, match=message) as caught:
        generate(fresh_folder, tiny_person)
    assert name in caught.value.problem


@pytest.mark.parametrize("name", ["faces/detector.onnx", "faces/recognizer.onnx", "onnx/identity_encoder.onnx"])
def test_enrollment_rejects_damaged_files(fresh_folder: Path, name: str) -> None:
    import numpy as np

    photo = np.zeros((64, 64, 3), np.uint8)
    photo[32:36, 32:36] = 255
    path = fresh_folder / name
    path.write_bytes(path.read_bytes() + b" ")
    with Pipeline.load(fresh_folder) as pipe, pytest.raises(EngineFolderError, match="the manifest says"):
        pipe.enroll(photo)


def test_external_weights_are_verified_too(fresh_folder: Path, tiny_person: Person) -> None:
    weights = fresh_folder / "onnx" / "unet.safetensors"
    weights.write_bytes(b"weights")
    values = records(fresh_folder)
    graphs = dict(values["graphs"])
    graphs["denoise_step"] = replace(graphs["denoise_step"], weights=("onnx/unet.safetensors",))
    files = {
        **values["files"],
        "onnx/unet.safetensors": FileRecord(sha256_file(weights), 7),
    }
    Manifest(**{**values, "graphs": graphs, "files": files}).write(fresh_folder)
    generate(fresh_folder, tiny_person)
    weights.write_bytes(b"waights")
    with pytest.raises(EngineFolderError, match=r"unet\.safetensors has changed"):
        generate(fresh_folder, tiny_person)


def test_files_and_graphs_the_manifest_lacks_are_named(tmp_path: Path, tiny_person: Person) -> None:
    folder = write_folder(tmp_path / "engines")
    values = records(folder)
    files = {name: record for name, record in values["files"].items() if name != "onnx/denoise_step.onnx"}
    Manifest(**{**values, "files": files}).write(folder)
    with pytest.raises(EngineFolderError, match=r"files lacks 'onnx/denoise_step\.onnx'"):
        generate(folder, tiny_person)
    engines = tuple(item for item in values["engines"] if item.graph != "vae_decoder")
    Manifest(**{**values, "engines": engines}).write(folder)
    with pytest.raises(EngineFolderError, match="has no onnxruntime engine of vae_decoder"):
        generate(folder, tiny_person)
    graphs = {name: record for name, record in values["graphs"].items() if name != "text_encoder"}
    Manifest(**{**values, "graphs": graphs}).write(folder)
    with pytest.raises(EngineFolderError, match="no graph 'text_encoder'"):
        generate(folder, tiny_person)
