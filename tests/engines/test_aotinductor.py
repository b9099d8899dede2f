"""AOTInductor packages: compiled without weights, and run on the folder's own weights files."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from infid_engines import aotinductor_backend, aotinductor_runner, gpu, processor
from infid_engines.aotinductor_runner import AOTInductorEngine, PackageFacts, open_package, shared_weights
from infid_engines.device import CPU, Device
from infid_engines.errors import BackendUnavailableError, EngineFolderError, InputError
from infid_engines.manifest import EngineRecord, Manifest, TensorSpec
from infid_engines.registry import get_backend
from infid_export.cli.main import run
from infid_export.runtime.engine_set import EngineSet, choose_backend

BACKEND = get_backend("aotinductor")
GRAPHS = ("text_encoder_2", "vae_decoder")  # one with buffers, and one with convolutions


@pytest.fixture(scope="module")
def built(packages_folder: Path) -> Path:
    """A folder with packages of two graphs; to be copied before it is changed."""
    return packages_folder


@pytest.fixture
def folder(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "engines"))


def engines(folder: Path, manifest: Manifest | None = None) -> EngineSet:
    target, device = BACKEND.choose_target("auto", [processor.cpu_target()])
    return EngineSet(folder, manifest or Manifest.load(folder), BACKEND.name, target, device)


def packages(manifest: Manifest) -> dict[str, EngineRecord]:
    return {engine.graph: engine for engine in manifest.engines if engine.backend == BACKEND.name}


def inputs(graph: str) -> dict[str, np.ndarray[Any, Any]]:
    if graph == "vae_decoder":
        return {"latents": np.random.default_rng(1).standard_normal((1, 4, 32, 32), np.float32)}
    return {"input_ids": np.arange(2 * 77, dtype=np.int32).reshape(2, 77)}


@pytest.mark.parametrize("graph", GRAPHS)
def test_a_package_computes_what_onnxruntime_does(built: Path, graph: str) -> None:
    other = EngineSet(built, Manifest.load(built), "onnxruntime", None, CPU)[graph].run(inputs(graph))
    found = engines(built)[graph].run(inputs(graph))
    assert list(found) == list(other)
    for name, expected in other.items():
        np.testing.assert_allclose(found[name], expected, rtol=2e-5, atol=2e-5)


def test_the_packages_are_compared_with_the_reference(built: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rows = json.loads((built / "parity.json").read_text())["rows"]
    assert {row["graph"] for row in rows if row["backend"] == BACKEND.name} == set(GRAPHS)
    assert run(["verify", str(built), "--quiet"]) == 0
    out = capfd.readouterr().out
    assert "vae_decoder (aotinductor).image" in out
    assert out.count("FAILED") == 0


def test_a_comparison_that_fails_is_reported(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The manifest is made to say that a package of other values is right."""
    manifest = Manifest.load(folder)
    weights = folder / "onnx/vae.safetensors"
    data = bytearray(weights.read_bytes())
    size = 8 + int.from_bytes(data[:8], "little")
    data[size:] = (np.frombuffer(bytes(data[size:]), np.float32) * np.float32(1.5)).tobytes()
    weights.write_bytes(data)

    record = replace(manifest.files["onnx/vae.safetensors"], sha256=hashlib.sha256(data).hexdigest())
    replace(manifest, files={**manifest.files, "onnx/vae.safetensors": record}).write(folder)
    assert run(["verify", str(folder), "--quiet"]) == 1
    assert "vae_decoder (aotinductor).image" in capfd.readouterr().out


def test_weights_are_not_in_the_package(built: Path) -> None:
    manifest = Manifest.load(built)
    for graph, engine in packages(manifest).items():
        names = zipfile.ZipFile(built / engine.file).namelist()
        assert not [name for name in names if name.endswith((".bin", ".blob", ".safetensors"))]
        assert engine.file == f"engines/aotinductor-{processor.cpu_target()}/{graph}.pt2"
    large = manifest.files["onnx/text_encoder_2.safetensors"].size
    assert packages(manifest)["text_encoder_2"].size < large


def test_a_package_depends_on_pytorch_but_not_on_weights(
    folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {engine.graph: engine.key_fields for engine in packages(Manifest.load(folder)).values()}
    assert all(fields["weights"] == {} for fields in keys.values())
    monkeypatch.setattr(aotinductor_backend, "version", lambda name: "9.9")
    assert run(["build", "--backend", "aotinductor", "-o", str(folder), "--graph", "vae_decoder", "--dry-run",
                "--json"]) == 0  # fmt: skip
    rows = {row["name"]: row["state"] for row in json.loads(capfd.readouterr().out)["rows"]}
    package = f"engines/aotinductor-{processor.cpu_target()}/vae_decoder.pt2"
    assert rows["onnx/vae_decoder.onnx"] == "cached"
    assert rows[package] != "cached"


def test_an_unchanged_rebuild_compiles_and_compares_nothing(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = [word for graph in GRAPHS for word in ("--graph", graph)]
    assert run(["build", "--backend", "aotinductor", "-o", str(folder), *words, "--json", "--quiet"]) == 0
    document = json.loads(capfd.readouterr().out)
    assert document["made"] == {}
    assert {row["backend"] for row in document["parity"]["rows"]} == {"onnxruntime", "aotinductor"}


def test_a_damaged_package_or_weights_file_is_not_loaded(folder: Path) -> None:
    manifest = Manifest.load(folder)
    for name in (packages(manifest)["vae_decoder"].file, "onnx/vae.safetensors"):
        before = (folder / name).read_bytes()
        (folder / name).write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
        with pytest.raises(EngineFolderError, match=Path(name).name):
            engines(folder, manifest)["vae_decoder"]
        (folder / name).write_bytes(before)


def test_what_is_no_package_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "x.pt2"
    path.write_bytes(b"no zip")
    with pytest.raises(EngineFolderError, match="PyTorch cannot load"):
        open_package(path, (), (), CPU)


def test_a_package_without_its_weights_is_not_opened(folder: Path) -> None:
    """Running it would crash the process."""
    engine = packages(Manifest.load(folder))["vae_decoder"]
    other = folder / "onnx/text_encoder_2.safetensors"
    shutil.copyfile(other, folder / "onnx/vae.safetensors")
    record = Manifest.load(folder).graph("vae_decoder")
    with pytest.raises(EngineFolderError, match="does not fit its weights"):
        open_package(folder / engine.file, record.inputs, record.outputs, CPU)


def test_a_package_whose_names_differ_is_not_opened(built: Path) -> None:
    engine, record = packages(Manifest.load(built))["vae_decoder"], Manifest.load(built).graph("vae_decoder")
    renamed = (replace(record.inputs[0], name="noise"),)
    with pytest.raises(EngineFolderError, match="only one of them has 'latents'"):
        open_package(built / engine.file, renamed, record.outputs, CPU)


def test_packages_share_a_weights_file(built: Path) -> None:
    path = built / "onnx/vae.safetensors"
    first, second = engines(built), engines(built)
    before = shared_weights(path, CPU)
    first["vae_decoder"], second["vae_decoder"]
    assert shared_weights(path, CPU) is before
    assert shared_weights(built / "onnx/../onnx/vae.safetensors", CPU) is before
    first.close()
    second["vae_decoder"].run(inputs("vae_decoder"))  # still mapped
    second.close()
    key = [key for key in aotinductor_runner._shared if key[0] == path.resolve()]
    assert len(key) == 1
    del before
    assert [key for key in aotinductor_runner._shared if key[0] == path.resolve()] == []


def test_a_package_runs_without_a_compiler(built: Path, tmp_path: Path) -> None:
    """Production machines have none; PyTorch's own loader starts it a dozen times."""
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from infid_engines import processor\n"
        "from infid_engines.device import CPU\n"
        "from infid_engines.manifest import Manifest\n"
        "from infid_export.runtime.engine_set import EngineSet\n"
        "folder = Path(sys.argv[1])\n"
        "manifest, target = Manifest.load(folder), processor.cpu_target()\n"
        "engine = EngineSet(folder, manifest, 'aotinductor', target, CPU)['vae_decoder']\n"
        "import numpy as np\n"
        "print(engine.run({'latents': np.zeros((1, 4, 32, 32), np.float32)})['image'].shape)\n"
    )
    environment = {**os.environ, "PATH": str(tmp_path), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    ended = subprocess.run(
        [sys.executable, "-c", code, str(built)], env=environment, capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.startswith("(1, 3, ")
    assert not (tmp_path / "cache").exists()


def test_uploaded_weights_are_freed_with_the_last_package(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU stands for a GPU: weights are copied to it."""
    monkeypatch.setattr(aotinductor_runner, "torch_device", lambda device: torch.device("cpu"))
    path = built / "onnx/vae.safetensors"
    name = next(iter(safe_open(path, "pt").keys()))
    stored = aotinductor_runner.StoredWeight("", name, transposed=False)
    shared = shared_weights(path, Device("cuda"))
    tensor = shared.tensor(stored, channels_last=True)
    assert tensor is shared.tensor(stored, channels_last=True)
    kept_by_pytorch = tensor.view_as(tensor)
    assert tensor.untyped_storage().nbytes() > 0
    del shared
    assert kept_by_pytorch.untyped_storage().nbytes() == 0


class Elsewhere:
    """Makes this processor another one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path, flags: str) -> None:
        (folder / "cpuinfo").write_text(f"processor : 0\nflags\t\t: fpu {flags}\n")
        monkeypatch.setattr(processor, "_CPUINFO", folder / "cpuinfo")
        processor.instruction_sets.cache_clear()


@pytest.fixture(autouse=True)
def own_processor() -> Iterator[None]:
    yield
    processor.instruction_sets.cache_clear()


@pytest.mark.parametrize(
    ("flags", "sets", "target"),
    [
        ("sse4_2", (), "cpu-x86_64"),
        ("avx2 fma f16c", ("avx2",), "cpu-avx2"),
        ("avx2 fma f16c avx512f avx512dq avx512bw avx512vl", ("avx2", "avx512"), "cpu-avx512"),
        ("avx2 fma f16c avx512f avx512dq avx512bw avx512vl avx512_vnni", ("avx2", "avx512", "avx512_vnni"),
         "cpu-avx512_vnni"),
        ("avx2 avx512f", (), "cpu-x86_64"),
    ],
)  # fmt: skip
def test_a_processor_is_named_by_its_widest_instructions(
    flags: str, sets: tuple[str, ...], target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processor.platform, "machine", lambda: "x86_64")
    Elsewhere(monkeypatch, tmp_path, flags)
    assert (processor.instruction_sets(), processor.cpu_target()) == (sets, target)
    assert processor.missing_sets([*sets, "amx_tile"]) == ["amx_tile"]


def test_a_package_for_other_instructions_is_refused(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = Manifest.load(built)
    targets = sorted({engine.target for engine in packages(manifest).values()})
    Elsewhere(monkeypatch, tmp_path, "avx2 fma f16c")
    with pytest.raises(BackendUnavailableError, match=f"are for {targets[0]}, but this machine has cpu-avx2"):
        BACKEND.choose_target("auto", targets)
    engine, record = packages(manifest)["vae_decoder"], manifest.graph("vae_decoder")
    with pytest.raises(BackendUnavailableError, match="compiled for a processor with avx512"):
        open_package(built / engine.file, record.inputs, record.outputs, CPU)
    assert choose_backend(manifest)[0] == "onnxruntime"


def test_targets_are_the_gpu_that_is_present_and_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = processor.cpu_target()
    assert (BACKEND.present_target(), BACKEND.default_targets()) == (cpu, (cpu,))
    assert BACKEND.choose_target("cpu", [cpu, "sm_90"]) == (cpu, CPU)
    with pytest.raises(InputError, match="cannot run on 'cuda' here"):
        BACKEND.choose_target("cuda", [cpu])
    with pytest.raises(InputError, match="builds only for the device that it runs on"):
        BACKEND.check_target("sm_90")
    ranks = [BACKEND.rank]
    monkeypatch.setattr(aotinductor_backend, "has_gpu", lambda: True)
    monkeypatch.setattr(aotinductor_backend, "present_architecture", lambda index=0: "sm_90")
    assert BACKEND.choose_target("auto", [cpu, "sm_90"]) == ("sm_90", Device("cuda"))
    assert BACKEND.choose_target("cuda", [cpu, "sm_90"]) == ("sm_90", Device("cuda"))
    assert BACKEND.choose_target("cpu", [cpu, "sm_90"]) == (cpu, CPU)
    assert BACKEND.choose_target("auto", [cpu]) == (cpu, CPU)
    BACKEND.check_target("sm_90")
    ranks.append(BACKEND.rank)
    assert ranks[1] < get_backend("onnxruntime").rank < ranks[0]


def test_a_gpu_is_chosen_by_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = processor.cpu_target()
    monkeypatch.setattr(gpu, "architectures", lambda: ("sm_90", "sm_89"))
    for device, expected in (
        ("auto", ("sm_90", Device("cuda"))),
        ("cuda:0", ("sm_90", Device("cuda"))),
        ("cuda:1", ("sm_89", Device("cuda", 1))),
        ("cpu", (cpu, CPU)),
        (cpu, (cpu, CPU)),
        ("sm_90", ("sm_90", Device("cuda"))),
    ):
        assert BACKEND.choose_target(device, [cpu, "sm_90", "sm_89"]) == expected
    with pytest.raises(BackendUnavailableError, match="are for sm_90, but this machine has sm_89"):
        BACKEND.choose_target("cuda:1", ["sm_90"])
    with pytest.raises(InputError, match="cannot run on 'sm_75' here"):
        BACKEND.choose_target("sm_75", ["sm_90"])


def test_a_package_is_loaded_and_run_on_its_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The CPU stands for the GPU; which one PyTorch was asked for is noted."""
    asked: list[Any] = []
    entered: list[int] = []
    facts = PackageFacts(("x",), ("y",), {}, {"one": ("float32", 1.0)}, False)

    class Package:
        def __init__(self, *arguments: Any) -> None:
            asked.append((arguments[-1], list(entered)))

        def get_metadata(self) -> dict[str, str]:
            return {aotinductor_runner.FACTS: facts.to_json()}

        def get_constant_fqns(self) -> list[str]:
            return ["one"]

        def load_constants(self, *arguments: Any) -> None:
            asked.append(list(entered))

        def run(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
            asked.append(list(entered))
            return [tensors[0] + 1]

    @contextmanager
    def entering(index: int) -> Iterator[None]:
        entered.append(index)
        yield
        entered.pop()

    assert aotinductor_runner.torch_device(Device("cuda", 1)) == torch.device("cuda", 1)
    assert aotinductor_runner.torch_device(Device("cuda")) == torch.device("cuda", 0)
    assert aotinductor_runner.torch_device(CPU) == torch.device("cpu")
    monkeypatch.setattr(torch._C._aoti, "AOTIModelPackageLoader", Package)
    monkeypatch.setattr(torch.cuda, "device", entering)
    monkeypatch.setattr(aotinductor_runner, "torch_device", lambda device: torch.device("cpu"))
    specs = (TensorSpec("x", "float32", (2,)),), (TensorSpec("y", "float32", (2,)),)
    for place, (number, inside) in {CPU: (-1, []), Device("cuda"): (0, [0]), Device("cuda", 1): (1, [1])}.items():
        engine = BACKEND.load(tmp_path, *specs, place)
        np.testing.assert_array_equal(engine.run({"x": np.ones(2, np.float32)})["y"], [2, 2])
        assert asked == [(number, inside), inside, inside]
        asked.clear()


def test_gpus_do_not_share_weights(built: Path) -> None:
    path = built / "onnx/vae.safetensors"
    first, second, again = (shared_weights(path, Device("cuda", index)) for index in (0, 1, 0))
    assert first is not second
    assert first is again


def test_it_is_built_on_request_only(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["build", "-o", str(tmp_path / "engines"), "--graph", "text_encoder", "--dry-run"]) == 0
    assert "aotinductor" not in "".join(capfd.readouterr())


def test_a_range_of_sizes_is_rejected(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["--backend", "aotinductor", "--batch-range", "1", "1", "2"]
    assert run(["build", "-o", str(tmp_path / "engines"), "--graph", "text_encoder", *words]) == 1
    assert "--batch-range was given, but engines of aotinductor have one size." in capfd.readouterr().err


def test_fp16_on_a_processor_is_rejected(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["--backend", "aotinductor", "--fp16", "--graph", "text_encoder"]
    assert run(["build", "-o", str(tmp_path / "engines"), *words]) == 1
    assert "computes fp16 in fp16 on a CPU, which is not exact enough for parity." in capfd.readouterr().err


def test_without_pytorch_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise aotinductor_backend.PackageNotFoundError(name)

    monkeypatch.setattr(aotinductor_backend, "version", missing)
    with pytest.raises(BackendUnavailableError, match=r"PyTorch is not installed.*") as caught:
        BACKEND.versions()
    assert caught.value.fix == 'pip install "infid-export[aotinductor]"'


def doubling() -> AOTInductorEngine:
    """An engine that returns x · 2 + y as `next`, and x as `seen`."""

    def double(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        y, x = tensors
        return [x * 2 + y, x]

    package = SimpleNamespace(run=double)
    specs = {name: TensorSpec(name, "float32", (2,)) for name in ("x", "y", "next", "seen")}
    facts = PackageFacts(("y", "x"), ("next", "seen"), {}, {}, False)
    return AOTInductorEngine(package, facts, (specs["x"], specs["y"]), (specs["next"], specs["seen"]), CPU, held=None)


def test_a_loop_carries_its_outputs() -> None:
    engine, start = doubling(), np.array([1, 2], np.float32)
    ys = [np.full(2, value, np.float32) for value in (10, 20, 30)]
    loop = engine.loop({}, {"x": "next"}, {"x": start}, ({"y": y} for y in ys))
    np.testing.assert_array_equal(loop.read("next"), start)
    expected = start
    for y in ys:
        loop.step()
        np.testing.assert_array_equal(loop.read("seen"), expected)
        expected = expected * 2 + y
        np.testing.assert_array_equal(loop.read("next"), expected)
    with pytest.raises(RuntimeError, match="no further step"):
        loop.step()
    np.testing.assert_array_equal(start, [1, 2])
    assert engine.busy_seconds > 0


def test_a_loop_takes_memory_that_is_read_only() -> None:
    y = np.ones(2, np.float32)
    y.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loop = doubling().loop({"y": y}, {"x": "next"}, {"x": np.zeros(2, np.float32)}, [{}])
        loop.step()
    np.testing.assert_array_equal(loop.read("next"), [1, 1])


def test_wrong_inputs_are_named() -> None:
    with pytest.raises(InputError, match=r"lacks input y"):
        doubling().run({"x": np.zeros(2, np.float32)})
    with pytest.raises(InputError, match=r"Input y must be float32 \[2\]"):
        doubling().loop({"y": np.zeros(3, np.float32)}, {"x": "next"}, {"x": np.zeros(2, np.float32)}, [])


def test_facts_survive_being_stored() -> None:
    facts = PackageFacts(
        ["a"], ["b"], {"unet.w": aotinductor_runner.StoredWeight("../../onnx/unet.safetensors", "w", True)},
        {"ids": ("int64", [[0, 1]])}, False,
    )  # fmt: skip
    read = PackageFacts.from_json(facts.to_json())
    assert read.weights == facts.weights
    assert (list(read.inputs), read.channels_last, tuple(read.constants["ids"])) == (["a"], False, ("int64", [[0, 1]]))


def test_too_little_gpu_memory_is_a_sentence() -> None:
    engine = doubling()
    with (
        pytest.raises(BackendUnavailableError, match=r"not enough GPU memory \(CUDA out of memory"),
        engine.in_library(),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB.\nmore")
    with pytest.raises(EngineFolderError, match="PyTorch cannot run the package"), engine.in_library():
        raise RuntimeError("a kernel failed")


@pytest.mark.slow
def test_the_whole_demo_makes_the_same_picture(tmp_path: Path) -> None:
    """Every graph as a package, joint and from a template; compiling takes a few minutes."""
    from infid_export.bench.stand_in import stand_in
    from infid_export.runtime.pipeline import Pipeline

    folder = tmp_path / "engines"
    words = ["--graph", "default", "--graph", "text_step", "--graph", "identity_step"]
    assert run(["build", "--backend", "aotinductor", "-o", str(folder), *words, "--quiet"]) == 0
    pictures = {}
    for backend in ("aotinductor", "onnxruntime"):
        with Pipeline.load(folder, backend=backend) as pipe:
            person = stand_in(pipe)
            template = pipe.template("a watercolor of a person", seed=3)
            made = [pipe.generate("a watercolor of a person", person, seed=3), pipe.generate(template, person)]
            pictures[backend] = [np.asarray(each[0], np.int16) for each in made]
    for ours, theirs in zip(*pictures.values(), strict=True):
        assert np.abs(ours - theirs).max() <= 1
