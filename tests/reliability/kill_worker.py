"""Kills a build, a training run or the making of a template at random moments, and checks what it leaves behind.

It is a separate process, since it forks: `kill_worker.py build|training|template COUNT FOLDER` prints a JSON document.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import torch
from forked import run_forked
from fuzz_folders import small_folder
from small_face_models import write_recognizer
from small_run import losses, small_run, small_unet

from infid_engines.errors import EngineFolderError, InfidError
from infid_engines.manifest import Manifest, verify_file
from infid_export.export.build_options import BuildOptions
from infid_export.export.builder import build
from infid_export.model.identity import IdentityModules
from infid_export.model.processors import identity_blocks
from infid_export.runtime.pipeline import Pipeline
from infid_export.runtime.template import Template


class _Subject:
    """The work that is killed.

    Args:
        folder: the empty folder of the work.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def start(self, random: Random) -> None:
        """Bring the folder into the state in which a run starts."""

    def work(self) -> None:
        """Run to the end."""

    def check(self) -> None:
        """Reject damaged results."""

    def finished(self) -> None:
        """Reject anything but the complete result."""


class _Build(_Subject):
    """A build from scratch, or into the folder of an earlier build."""

    batch = 1

    def start(self, random: Random) -> None:
        for path in self.folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        write_recognizer(self.folder / "recognizer.onnx")
        self.batch = 1
        self.again = random.random() < 0.5
        if self.again:
            self.work()
            self.batch = 2

    def work(self) -> None:
        build(
            BuildOptions(
                output=self.folder / "engines",
                graphs=("text_encoder",),
                backends=("onnxruntime",),
                batch=self.batch,
                recognizer=self.folder / "recognizer.onnx",
                detector="centerface",
                allow_other_encoders=True,
                parity_image="off",
            )
        )

    def check(self) -> None:
        if not (self.folder / "engines").exists():
            if self.again:
                raise RuntimeError("the old folder is gone")
            return
        self._verified()

    def finished(self) -> None:
        if self._verified().batch != self.batch:
            raise RuntimeError("another build")
        staging = self.folder / ".engines.building"
        if staging.exists():
            raise RuntimeError("the staging folder is still there")

    def _verified(self) -> Manifest:
        manifest = Manifest.load(self.folder / "engines")
        for name, record in manifest.files.items():
            verify_file(self.folder / "engines", name, record)
        Pipeline.load(self.folder / "engines", backend="onnxruntime").close()
        return manifest


class _Training(_Subject):
    """A training run of many short steps, with a checkpoint after each."""

    steps = 40

    def start(self, random: Random) -> None:
        whole = self.folder / "whole"
        if not whole.exists():
            self._train(whole)
        shutil.rmtree(self.folder / "run", ignore_errors=True)

    def work(self) -> None:
        self._train(self.folder / "run")

    def _train(self, folder: Path) -> None:
        torch.set_num_threads(1)
        small_run(folder, steps=self.steps, checkpoint_every=1, validate_every=5, ema_decay=0.5)

    def check(self) -> None:
        blocks = identity_blocks(small_unet())
        run = self.folder / "run"
        for path in [*run.glob("checkpoints/step-*/identity.safetensors"), *run.glob("identity.safetensors")]:
            IdentityModules.load(path, blocks)

    def finished(self) -> None:
        if losses(self.folder / "run") != losses(self.folder / "whole"):
            raise RuntimeError("other losses than without a kill")
        names = ["identity.safetensors", f"checkpoints/step-{self.steps:08d}/optimizer.safetensors"]
        for name in names:
            if (self.folder / "run" / name).read_bytes() != (self.folder / "whole" / name).read_bytes():
                raise RuntimeError(f"another {name} than without a kill")
        if list((self.folder / "run").rglob(".*.partial")):
            raise RuntimeError("a partial file is still there")


class _Template(_Subject):
    """A template of many steps that is made in its file, in place of an earlier one or of none."""

    steps = 120

    def start(self, random: Random) -> None:
        engines = self.folder / "engines"
        if not engines.exists():
            small_folder(self.folder)
            self._make("whole", 1)
        for path in self.folder.glob("*made.safetensors*"):
            path.unlink()
        self.again = random.random() < 0.5
        if self.again:
            self._make("made", 2)

    def work(self) -> None:
        self._make("made", 1)

    def _make(self, name: str, seed: int) -> None:
        with Pipeline.load(self.folder / "engines", backend="onnxruntime") as pipe:
            pipe.template("one", seed=seed, steps=self.steps, path=self.folder / f"{name}.safetensors")

    def check(self) -> None:
        path = self.folder / "made.safetensors"
        if self.again or path.exists():
            Template.load(path)

    def finished(self) -> None:
        made, whole = (self.folder / f"{name}.safetensors" for name in ("made", "whole"))
        if made.read_bytes() != whole.read_bytes():
            raise RuntimeError("another template than without a kill")
        if list(self.folder.glob(".*.partial")):
            raise RuntimeError("a partial file is still there")


def main(kind: str, count: int, folder: Path) -> dict[str, Any]:
    """Kill `count` times; a run that ends before its kill is repeated with another moment."""
    subject: _Subject = {"build": _Build, "training": _Training, "template": _Template}[kind](folder)
    random = Random(kind)
    subject.start(random)
    subject.work()  # once here, so that every child has all imports
    subject.start(random)
    usual = run_forked(subject.work).seconds
    kills = finished = too_late = 0
    faults: list[str] = []
    while kills < count and too_late < 3 * count:
        subject.start(random)
        moment = random.uniform(0, usual)
        ended = run_forked(subject.work, moment)
        if not ended.killed:
            too_late += 1
            continue
        kills += 1
        found = _fault(subject.check) or (run_forked(subject.work).code and "the next run failed") or ""
        found = found or _fault(subject.finished)
        finished += not found
        if found:
            faults.append(f"killed after {moment:.3f} s: {found}")
    return {"kind": kind, "kills": kills, "finished": finished, "faults": faults, "seconds_of_a_run": usual}


def _fault(check: Callable[[], None]) -> str:
    try:
        check()
    except (InfidError, EngineFolderError, RuntimeError, ValueError, OSError):
        return traceback.format_exc()
    return ""


if __name__ == "__main__":
    os.environ.setdefault("TRITON_INTERPRET", "1")
    document = main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
    sys.stdout.write(json.dumps(document) + "\n")
