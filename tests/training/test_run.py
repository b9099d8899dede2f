from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models import modeling_utils
from small_run import small_identity, small_unet
from small_shards import write_shards

from infid_engines.errors import InputError
from infid_export.cli.main import run as command
from infid_training import run as module
from infid_training.base_model import open_base
from infid_training.encode import PhotoEncoders
from infid_training.run import RunRequest, train_on_shards
from infid_training.run_checkpoint import STATE
from infid_training.run_options import TrainOptions
from infid_training.stepper import Stepper

pytestmark = pytest.mark.usefixtures("one_thread")
OPTIONS = TrainOptions(steps=2, batch_size=1, checkpoint_every=1, log_every=1, validate_every=0)
FLAGS = ("--batch-size", "1", "--checkpoint-every", "1", "--log-every", "1", "--validate-every", "0")
OUT_OF_MEMORY = "CUDA out of memory. Tried to allocate 2.00 MiB. GPU 0 has a total capacity of 9 GiB."


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    crop = open_base("demo").architecture.image_encoder["image_size"]
    return write_shards(tmp_path_factory.mktemp("prepared") / "shards", crop)


@pytest.fixture(scope="module")
def finished(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> RunRequest:
    """A run of two steps."""
    request = RunRequest(shards, tmp_path_factory.mktemp("finished") / "run", OPTIONS)
    train_on_shards(request)
    return request


def never(*_: object) -> None:
    raise AssertionError("photos are cached")


def another_unets(folder: Path) -> Path:
    small_identity(small_unet()).save(folder / "start.safetensors")
    return folder / "start.safetensors"


def within(folder: Path) -> Path:
    (folder / "run").mkdir()
    return another_unets(folder / "run")


def a_file(folder: Path) -> None:
    (folder / "run").touch()


def other_files(folder: Path) -> None:
    (folder / "run").mkdir()
    (folder / "run/log.jsonl").touch()


@pytest.mark.parametrize(
    ("before", "changes", "problem"),
    [
        (None, {"precision": "fp16"}, "fp16 training needs a GPU"),
        (None, {"optimizer": "adamw8bit"}, "adamw8bit needs a GPU"),
        (None, {"sample_steps": 3}, "Sample images are only drawn with --sample-every"),
        (a_file, {}, "cannot be written to"),
        (other_files, {}, "holds files, but no run"),
        (another_unets, {}, "identity weights trained for this base model"),
        (within, {}, "write into the same folder"),
    ],
    ids=["fp16", "adamw8bit", "samples", "a-file", "other-files", "another-unets", "within"],
)
def test_a_run_that_cannot_begin_is_rejected_before_caching(
    shards: Path,
    tmp_path: Path,
    before: Callable[[Path], Path | None] | None,
    changes: dict[str, Any],
    problem: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if torch.accelerator.is_available() and "needs a GPU" in problem:
        pytest.skip("lacks a machine without a GPU")
    initial = before(tmp_path) if before else None
    own = {name: value for name, value in changes.items() if name in TrainOptions.__dataclass_fields__}
    rest = {name: value for name, value in changes.items() if name not in own}
    request = RunRequest(shards, tmp_path / "run", replace(OPTIONS, **own), initial=str(initial or "fresh"), **rest)
    monkeypatch.setattr(module, "fill_cache", never)
    with pytest.raises(InputError, match=problem):
        train_on_shards(request)


@pytest.mark.parametrize(
    ("options", "resume", "problem"),
    [
        ({"steps": 3}, False, "holds a run of 2 steps"),
        ({"seed": 5}, True, "seed: 0 -> 5"),
        ({"steps": 1}, True, "has already made 2 steps"),
    ],
    ids=["no-resume", "seed", "steps"],
)
def test_a_run_that_cannot_go_on_is_rejected_before_caching(
    finished: RunRequest, options: dict[str, Any], resume: bool, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "fill_cache", never)
    with pytest.raises(InputError, match=problem):
        train_on_shards(replace(finished, options=replace(OPTIONS, **options), resume=resume))


def test_a_model_is_known_by_its_weights_and_not_by_its_path(
    finished: RunRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "open_base", lambda model, *rest: open_base(model.removeprefix("./"), *rest))
    assert train_on_shards(replace(finished, model="./demo")).resumed_from == 2


def test_a_finished_run_says_that_nothing_was_left(finished: RunRequest, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["train", str(finished.shards), "-o", str(finished.folder), *FLAGS, "--train-steps", "2"]
    assert command(words) == 0
    out = capfd.readouterr().out
    assert re.search(r"identity.safetensors: 2 steps, already finished, loss \d\.\d{4}$", out.strip())
    assert command([*words, "--json", "--quiet"]) == 0
    assert json.loads(capfd.readouterr().out)["loss"] == pytest.approx(float(out.split()[-1]), abs=1e-4)


def advised(error: str) -> list[str]:
    """Return the flags that an error's fix names."""
    return shlex.split(" ".join(re.findall(r"`(.*?)`", error)))


def test_what_is_advised_after_a_loss_that_is_not_finite_works(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    original, bad = Stepper.loss_of, [1]

    def loss_of(run: Stepper, *given: Any) -> torch.Tensor:
        made = len(list(Path("my run/checkpoints").glob("step-*")))
        diverged = made + 1 in bad and run._options.learning_rate == 1e-3
        return original(run, *given) * (torch.nan if diverged else 1)

    monkeypatch.setattr(Stepper, "loss_of", loss_of)
    words = ["train", str(shards), "-o", "my run", *FLAGS, "--train-steps", "3", "--learning-rate", "1e-3"]
    assert command(words) == 1
    error = capfd.readouterr().err
    assert "The loss (nan) of step 1 is not finite. Its pairs were: p" in error
    assert advised(error) == ["--learning-rate", "0.0005"]
    bad[:] = [3]
    assert command(words) == 1
    error = capfd.readouterr().err
    assert "The loss (nan) of step 3 is not finite. Its pairs were: p" in error
    assert command([*words, *advised(error)]) == 0
    assert "another-folder/identity.safetensors: 3 steps" in capfd.readouterr().out
    state = json.loads((tmp_path / "another-folder/checkpoints/step-00000003" / STATE).read_text())
    weights = "my run/checkpoints/step-00000002/identity.safetensors"
    assert state["settings"]["model"].endswith(module._start(weights))
    assert command([*words, "--learning-rate", "0.0005"]) == 1  # the run itself keeps its settings
    assert "learning_rate: 0.001 -> 0.0005" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("kind", "name", "advice"),
    [(PhotoEncoders, "encode", "--photo-size"), (Stepper, "loss_of", "--batch-size")],
    ids=["caching", "training"],
)
def test_full_memory_is_no_fault_of_ours(
    tmp_path: Path, kind: type, name: str, advice: str, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError(OUT_OF_MEMORY)

    shards = write_shards(tmp_path / "shards", open_base("demo").architecture.image_encoder["image_size"])
    monkeypatch.setattr(kind, name, full)
    assert command(["train", str(shards), "-o", str(tmp_path / "run"), *FLAGS]) == 1
    error = capfd.readouterr().err
    assert "error: CUDA out of memory. Tried to allocate 2.00 MiB.\n" in error
    assert advice in error


def test_an_interrupted_caching_promises_no_checkpoint(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "fill_cache", interrupt)
    assert command(["train", str(shards), "-o", str(tmp_path / "run")]) == 130
    assert "the last checkpoint, if there is one yet" in capfd.readouterr().err


def test_no_library_warns(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This covers the networks used for caching, training and sampling."""
    told: list[str] = []
    monkeypatch.setattr(modeling_utils.logger, "warning", told.append)
    options = replace(OPTIONS, steps=1, sample_every=1)
    train_on_shards(RunRequest(shards, tmp_path / "run", options, cache=tmp_path / "cache", sample_steps=1))
    assert told == []


@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_text_needs_captions_before_anything_is_cached(
    tmp_path: Path, dry: tuple[str, ...], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "fill_cache", never)
    crop = open_base("demo").architecture.image_encoder["image_size"]
    silent = write_shards(tmp_path / "silent", crop, captions=(None, " "))
    words = ["train", str(silent), "-o", str(tmp_path / "run"), "--train-steps", "2", *FLAGS, "--with-text", *dry]
    assert command(words) == 1
    assert "None of the 6 training photos has a caption" in capfd.readouterr().err
    assert not (tmp_path / "run").exists()


def test_photos_without_a_caption_and_long_captions_are_counted(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "fill_cache", stop)
    crop = open_base("demo").architecture.image_encoder["image_size"]
    half = write_shards(tmp_path / "half", crop, captions=("wow" + "!" * 80 + " a photo", None))
    words = ["train", str(half), "-o", str(tmp_path / "run"), "--train-steps", "1", *FLAGS, "--with-text"]
    assert command(words) == 1
    told = capfd.readouterr().err
    assert "note: 3 of 6 training photos have no caption; their text is empty" in told
    assert "note: 3 captions are longer than a text encoder reads, such as p0/0.jpg's; their ends are cut off" in told


def stop(*_: object) -> None:
    raise InputError("Stopped.", fix="Go on.")


def test_training_without_text_asks_for_no_captions(tmp_path: Path) -> None:
    crop = open_base("demo").architecture.image_encoder["image_size"]
    silent = write_shards(tmp_path / "silent", crop, captions=(None, None))
    assert train_on_shards(RunRequest(silent, tmp_path / "run", replace(OPTIONS, steps=1))).steps == 1
