"""The commands that write files, each as small as possible, with the results of an earlier call."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from adapter_layouts import DEMO, adapter, write_adapter
from bundle_parts import compiled
from evaluation_parts import TINY_CLIP, dotted, write_tiny_clip
from fuzz_folders import inside, person, small_folder
from PIL import Image
from small_face_models import write_dot_detector, write_recognizer
from small_run import small_run, small_unet

from infid_engines.kernel_bundle import KernelBundle
from infid_engines.manifest import Manifest, verify_file
from infid_export.cli import tune as tune_command
from infid_export.cli.main import run
from infid_export.evaluation.evaluation import Evaluation
from infid_export.export import bundle_compilation, face_models, graph_parity
from infid_export.export.graph_export import GraphExporter
from infid_export.export.graphs import GraphForm
from infid_export.export.parity import ParityRow
from infid_export.export.plan import Plan
from infid_export.faces.detection import CenterFaceDetector
from infid_export.importing.target import open_target
from infid_export.model.identity import IdentityModules
from infid_export.model.processors import identity_blocks
from infid_export.runtime.person import Person
from infid_export.runtime.template import Template
from infid_kernels import autotune, tuning
from infid_training import run as training_run
from infid_training.shards import ShardIndex, check_shard


@dataclass(frozen=True)
class Command:
    """A command that writes.

    Args:
        prepare: writes the command's input into an empty folder.
        words: the command line, run in that folder.
        whole: rejects damaged results; called if there are any.
        results: files that the command makes.
        stubs: replacements for hours of work.
        again: whether the command runs once before, so that its results already exist; `prepare` does not allow it.
    """

    prepare: Callable[[Path], None]
    words: str
    whole: Callable[[Path], None]
    results: tuple[str, ...]
    stubs: Callable[[], Any] = ExitStack
    again: bool = True


def _engines(folder: Path) -> None:
    small_folder(folder)
    person().save(folder / "who.safetensors")
    dotted(40).save(folder / "photo.png")


def _picture(folder: Path) -> None:
    for name in ("out-0.png", "out-1.png"):
        if (folder / name).exists():
            with Image.open(folder / name) as image:
                image.load()


def _whole_template(folder: Path) -> None:
    _picture(folder)
    _read("new.safetensors", Template.load, folder)


def _people(folder: Path) -> None:
    write_recognizer(folder / "recognizer.onnx")
    write_dot_detector(folder / "detector.onnx")
    random = np.random.default_rng(0)
    for name in ("ann", "bob", "cid"):
        (folder / "people" / name).mkdir(parents=True)
        for number in range(2):
            pixels = random.integers(0, 200, (96, 96, 3)).astype(np.uint8)
            pixels[40:44, 40:44] = 255
            Image.fromarray(pixels).save(folder / "people" / name / f"{number}.png")


def _whole_shards(folder: Path) -> None:
    if (folder / "shards").exists():
        for shard in ShardIndex.load(folder / "shards").shards:
            check_shard(folder / "shards", shard)


@contextmanager
def _dot_detector() -> Iterator[None]:
    def opened(_: str) -> tuple[CenterFaceDetector, str]:
        return CenterFaceDetector(Path("detector.onnx")), "dots"

    with patch.object(face_models, "open_detector", opened):
        yield


@contextmanager
def _small_training() -> Iterator[None]:
    def trained(request: Any, reporter: Any = None) -> Any:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return small_run(request.folder, steps=request.options.steps, checkpoint_every=1, validate_every=0)
        finally:
            torch.set_num_threads(threads)

    with patch.object(training_run, "train_on_shards", trained):
        yield


def _earlier_run(folder: Path) -> None:
    with _small_training():
        training_run.train_on_shards(
            training_run.RunRequest(Path("shards"), folder / "run", replace(training_run.TrainOptions(), steps=2))
        )


def _whole_run(folder: Path) -> None:
    blocks = identity_blocks(small_unet())
    for path in [
        *(folder / "run").glob("checkpoints/step-*/identity.safetensors"),
        folder / "run/identity.safetensors",
    ]:
        IdentityModules.load(path, blocks)


@contextmanager
def _fake_kernels() -> Iterator[None]:
    kernels = [compiled(), compiled("mean_shift", even_n=None)]
    resources = [replace(each, launch={**each.launch, "registers": 9, "stack_bytes": 0}) for each in kernels]
    with (
        patch.object(bundle_compilation, "_compiled", lambda *_: iter(resources)),
        patch.object(bundle_compilation, "_require_compiler", lambda: None),
    ):
        yield


@contextmanager
def _fake_gpu() -> Iterator[None]:
    def fake(level: Any, device: Any, timer: Any, candidates: Any, progress: Any) -> Any:
        timing = autotune.Timing(0.4, 0.4, 0.4, 50)
        trials = [autotune.Trial(candidate, 1e-4, timing) for candidate in candidates]
        return autotune.Tuned(level, trials, autotune.select(level, trials, "sm_90", "a GPU"))

    with (
        patch.object(tune_command, "_gpu", lambda: torch.device("cuda")),
        patch.object(tuning, "architecture_of", lambda device: "sm_90"),
        patch.object(autotune, "tune", fake),
    ):
        yield


def _judges(folder: Path) -> None:
    _engines(folder)
    write_dot_detector(folder / "detector.onnx")
    write_recognizer(folder / "facenet.onnx")
    write_tiny_clip(folder)
    (folder / "people").mkdir()
    dotted(40).save(folder / "people" / "ann.png")
    (folder / "prompts.txt").write_text("a knight\n")


def _whole_scores(folder: Path) -> None:
    if (folder / "scores/scores.json").exists():
        Evaluation.load(folder / "scores/scores.json")
    for path in (folder / "scores").rglob("*.png"):
        with Image.open(path) as image:
            image.load()


def _whole_engines(folder: Path) -> None:
    if (folder / "built").exists():
        for name, file in Manifest.load(folder / "built").files.items():
            verify_file(folder / "built", name, file)


def _recognizer(folder: Path) -> None:
    write_recognizer(folder / "recognizer.onnx")


def _adapter(folder: Path) -> None:
    write_adapter(folder / "adapter.safetensors", adapter("faceid", DEMO))


def _whole_identity(folder: Path) -> None:
    if (folder / "identity.safetensors").exists():
        IdentityModules.load(folder / "identity.safetensors", open_target("demo")[0].blocks)


def _read(path: str, load: Callable[[Path], object], folder: Path) -> None:
    if (folder / path).exists():
        load(folder / path)


@functools.cache
def _exported() -> dict[str, bytes]:
    """Return a cache key for graphs, from everything they are made from."""
    return {}


@contextmanager
def _remembered_exports() -> Iterator[None]:
    """Let torch's exporter and the comparison run once per graph; later calls write the remembered result."""
    write_graph, compare = GraphExporter.write, graph_parity.compare_graphs
    graphs, compared = _exported(), _compared()

    def written(self: GraphExporter, form: GraphForm, precision: str, path: Path, *size: Any) -> None:
        key = f"{form.name} {self.options.batch}"
        if key not in graphs:
            write_graph(self, form, precision, path, *size)
            graphs[key] = path.read_bytes()
        path.write_bytes(graphs[key])

    def rows(
        plan: Plan, folder: Path, manifest: Manifest, forms: Sequence[GraphForm], stage: Any
    ) -> Iterator[ParityRow]:
        key = f"{[form.name for form in forms]} {plan.options.batch}"
        if key not in compared:
            compared[key] = list(compare(plan, folder, manifest, forms, stage))
        return iter(compared[key])

    with patch.object(GraphExporter, "write", written), patch.object(graph_parity, "compare_graphs", rows):
        yield


@functools.cache
def _compared() -> dict[str, list[ParityRow]]:
    """Return a cache key for comparisons, from what was compared."""
    return {}


def _earlier_build(folder: Path) -> None:
    _recognizer(folder)
    with inside(folder), _remembered_exports():
        assert run(_BUILD.split()) == 0


_EVALUATION = (
    f"evaluate engines --clip {TINY_CLIP} clip.safetensors --facenet facenet.onnx --face-detector detector.onnx "
    "--references people --prompts prompts.txt --steps 1 -o scores"
)
_BUILD = (
    "build -o built --graph text_encoder --backend onnxruntime --recognizer recognizer.onnx --allow-other-encoders "
    "--detector centerface --parity-image off"
)
COMMANDS: Mapping[str, Command] = {
    "generate": Command(
        prepare=_engines,
        words="generate one two --person who.safetensors -o out.png --steps 1 --engines engines",
        whole=_picture,
        results=("out-0.png", "out-1.png"),
    ),
    "enroll": Command(
        prepare=_engines,
        words="enroll photo.png -o new.safetensors --engines engines",
        whole=partial(_read, "new.safetensors", Person.load),
        results=("new.safetensors",),
    ),
    "template": Command(
        prepare=_engines,
        words="template make one --engines engines -o new.safetensors --preview out-0.png --steps 2",
        whole=_whole_template,
        results=("new.safetensors", "out-0.png"),
    ),
    "prepare": Command(
        prepare=_people,
        words="prepare people -o shards --recognizer recognizer.onnx --photo-size 64 --crop-size 32 --validation 0",
        whole=_whole_shards,
        results=("shards",),
        stubs=_dot_detector,
        again=False,
    ),
    "import": Command(
        prepare=_adapter,
        words="import adapter.safetensors -o identity.safetensors --model demo",
        whole=_whole_identity,
        results=("identity.safetensors",),
    ),
    "train": Command(
        prepare=_earlier_run,
        words="train shards -o run --train-steps 4",
        whole=_whole_run,
        results=("run",),
        stubs=_small_training,
        again=False,
    ),
    "compile-kernels": Command(
        prepare=lambda folder: None,
        words="compile-kernels --target sm_80 -o kernels",
        whole=partial(_read, "kernels", KernelBundle.load),
        results=("kernels",),
        stubs=_fake_kernels,
    ),
    "tune": Command(
        prepare=lambda folder: None,
        words="tune -o tuning.json --quick",
        whole=partial(_read, "tuning.json", tuning.read),
        results=("tuning.json",),
        stubs=_fake_gpu,
    ),
    "evaluate": Command(prepare=_judges, words=_EVALUATION, whole=_whole_scores, results=("scores",)),
    "build": Command(
        prepare=_recognizer,
        words=_BUILD,
        whole=_whole_engines,
        results=("built", ".built.lock"),  # the lock says only who holds it
        stubs=_remembered_exports,
        again=False,
    ),
    "rebuild": Command(  # of a folder that is there, with another batch
        prepare=_earlier_build,
        words=f"{_BUILD} --batch 2",
        whole=_whole_engines,
        results=("built", ".built.lock"),  # the lock says only who holds it
        stubs=_remembered_exports,
        again=False,
    ),
}
