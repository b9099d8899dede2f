"""Packages are compiled at the same time, each in a process of its own; here the compiler is a stand-in."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from infid_engines.errors import BuildError, DiskFullError
from infid_engines.folder import FolderTransaction
from infid_engines.progress import SilentReporter, SilentStage, Stage
from infid_export.export import builder, packages
from infid_export.export.artifact import SMALL, Artifact
from infid_export.export.build_options import BuildOptions
from infid_export.export.builder import _Builder, _compiled_at_once
from infid_export.export.plan import make_plan
from infid_export.export.stored_options import read_options, stored_options

NAMES = ("a", "b", "c")


def artifacts(write: Callable[[str], None]) -> list[Artifact]:
    def writing(name: str) -> Callable[[Path, Path, Stage], None]:
        def written(_: Path, path: Path, __: Stage) -> None:
            write(name)
            path.write_text(name)

        return written

    return [Artifact(f"engines/{name}.pt2", {"name": name}, writing(name), SMALL) for name in NAMES]


def compiling(folder: Path, made: list[Artifact], workers: int, children: Any = None) -> list[str]:
    """Compile, and return what is staged."""
    plan: Any = SimpleNamespace(writers=SimpleNamespace(children=children), notes=())
    with FolderTransaction(folder, SilentReporter()) as transaction:
        try:
            _Builder(plan, transaction, {}, SilentReporter())._compile(made, workers)
        finally:
            staged = [Path(each.path).stem for each in made if transaction.staged(each.path)]
            transaction.discard()
            (folder.parent / "staged").write_text(" ".join(staged))
    return staged


def test_they_are_compiled_at_the_same_time(tmp_path: Path) -> None:
    together = threading.Barrier(3, timeout=30)
    assert compiling(tmp_path / "f", artifacts(lambda name: together.wait() and None), 3) == list(NAMES)


def test_after_an_error_the_others_are_finished_and_kept(tmp_path: Path) -> None:
    failed = threading.Event()

    def write(name: str) -> None:
        if name == "a":
            failed.set()
            raise BuildError("a does not compile.", fix="x")
        assert failed.wait(30)

    with pytest.raises(BuildError, match="a does not compile"):
        compiling(tmp_path / "f", artifacts(write), 2)
    assert "b" in (tmp_path / "staged").read_text()


def test_an_interrupt_kills_the_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed = threading.Event()

    def write(name: str) -> None:
        assert killed.wait(30)
        raise BuildError("killed", fix="x")

    def interrupted(waiting: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(builder, "as_completed", interrupted)
    with pytest.raises(KeyboardInterrupt):
        compiling(tmp_path / "f", artifacts(write), 2, SimpleNamespace(kill=killed.set))


@pytest.mark.parametrize(
    ("cores", "memory", "gpu", "expected"),
    [
        (2, 100e9, None, 1),
        (16, 100e9, None, 7),
        (16, 13e9, None, 3),
        (16, 100e9, 100e9, 7),
        (16, 100e9, 8.5e9, 2),
        (16, 100e9, 1e9, 1),
    ],
)
def test_cores_and_memory_limit_how_many(
    cores: int, memory: float, gpu: float | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan: Any = make_plan(BuildOptions(backends=("onnxruntime",)))
    compiled: Any = SimpleNamespace(**{**vars(plan), "parts": plan.parts, "packages": range(7)})
    monkeypatch.setattr(builder.os, "cpu_count", lambda: cores)
    monkeypatch.setattr(builder, "available_memory", lambda: memory)
    monkeypatch.setattr(builder, "free_memory", lambda: gpu)
    assert _compiled_at_once(compiled) == expected


def test_options_survive_being_stored(tmp_path: Path) -> None:
    options = BuildOptions(
        output=tmp_path / "out", identity=tmp_path / "i.safetensors", height_range=(64, 96, 128), kernels="triton",
        graphs=("vae_decoder",), precision="fp16", tuning=tmp_path / "t.json", targets=("sm_90",), seed=3, batch=2,
    )  # fmt: skip
    assert read_options(stored_options(options)) == options


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (RuntimeError("g++ failed: cannot write x.o: No space left on device"), True),
        (RuntimeError("an operator is missing"), False),
    ],
)
def test_a_full_disk_while_compiling_is_one(
    error: Exception, full: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: Any, **__: Any) -> Any:
        raise RuntimeError("the compiler failed") from error

    options = make_plan(BuildOptions(backends=("onnxruntime",))).options
    monkeypatch.setattr(packages.torch.export, "export", failing)
    job = {"options": stored_options(options), "graph": "vae_decoder", "precision": "fp32", "device": "cpu",
           "path": str(tmp_path / "x.pt2")}  # fmt: skip
    with pytest.raises(DiskFullError if full else BuildError) as caught:
        packages.compile_package(job, SilentStage())
    assert isinstance(caught.value, DiskFullError) == full
    assert ("TORCHINDUCTOR_CACHE_DIR" in caught.value.fix) == full
    assert list(tmp_path.iterdir()) == []
