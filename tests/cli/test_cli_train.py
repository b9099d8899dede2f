from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch
from cli_process import Cli
from PIL import Image, ImageEnhance
from small_face_models import write_recognizer

from infid_export.cli import train as command
from infid_export.faces.detection import find_centerface
from infid_export.model.identity import IdentityModules
from infid_export.model.processors import identity_blocks
from infid_export.model.sources import RandomSource
from infid_training.run_options import TrainOptions
from infid_training.world.drawing import render
from infid_training.world.people import person
from infid_training.world.scenes import portrait


@pytest.fixture
def people(tmp_path: Path, astronaut: np.ndarray) -> Path:
    """The only available face, as two people under two lightings each, and a file that is not a photo."""
    folder = tmp_path / "people"
    face = Image.fromarray(astronaut[:300, 100:400])
    for name, strength in (("anna", 1.0), ("bert", 0.8)):
        (folder / name).mkdir(parents=True)
        for number, light in enumerate((1.0, 0.9)):
            ImageEnhance.Brightness(face).enhance(strength * light).save(folder / name / f"{number}.png")
    (folder / "anna/broken.jpg").write_bytes(b"no photo")
    return folder


def test_from_a_folder_of_people_to_an_identity_file(
    cli: Cli, people: Path, tmp_path: Path, source: RandomSource
) -> None:
    find_centerface()
    recognizer = write_recognizer(tmp_path / "recognizer.onnx")
    crop = source.architecture.image_encoder["image_size"]
    shards, run = tmp_path / "shards", tmp_path / "run"
    words = ["prepare", people, "-o", shards, "--recognizer", recognizer, "--photo-size", 64, "--crop-size", crop]
    code, out, err = cli(*words, "--validation", 0)
    assert code == 0, err
    assert "anna/broken.jpg" in out
    assert "not an image" in out
    assert "4 photos, 1 dropped" in out
    code, out, err = cli(*words, "--json")
    assert code == 1
    assert json.loads(out)["error"]["problem"].endswith("already exists.")
    options = ["--train-steps", 2, "--batch-size", 1, "--log-every", 1, "--learning-rate", 1e-3]
    code, out, err = cli("train", shards, "-o", run, *options)
    assert code == 0, err
    assert "starting from step 0" in err
    assert "nobody is held out" in err
    assert "step 2 of 2, loss" in err
    assert "identity.safetensors: 2 steps, loss" in out
    modules = IdentityModules.load(run / "identity.safetensors", identity_blocks(source.empty("unet")), torch.float32)
    assert modules.encoders is not None
    assert modules.encoders.recognizer == hashlib.sha256(recognizer.read_bytes()).hexdigest()
    assert (modules.encoders.recognizer_name, modules.encoders.detector) == ("recognizer.onnx", "centerface")
    identity = ["--identity", run / "identity.safetensors", "--backend", "onnxruntime", "--dry-run"]
    code, _, err = cli("build", "-o", tmp_path / "engines", *identity)
    assert code == 1
    assert "were trained with the recognizer recognizer.onnx" in err
    assert "not the demo model's recognizer" in err
    code, _, err = cli("build", "-o", tmp_path / "engines", *identity, "--allow-other-encoders")
    assert code == 0
    assert "not the demo model's recognizer" in err
    code, out, _ = cli("train", shards, "-o", run, *options, "--json", "--quiet", "--train-steps", 3)
    assert code == 0
    assert {"steps": 3, "resumed_from": 2, "validation_loss": None}.items() <= json.loads(out).items()
    code, _, err = cli("train", shards, "-o", run, *options, "--train-seed", 3)
    assert code == 1
    assert "seed: 0 -> 3" in err
    code, _, err = cli("train", shards, "-o", run, *options, "--no-resume")
    assert code == 1
    assert "holds a run of 3 steps" in err


def test_drawn_people_become_an_engine_folder_that_draws_them(cli: Cli, demo_folder: Path, tmp_path: Path) -> None:
    """The workflow that needs only the demo model; graphs that no training changes are already built."""
    people, shards, run = tmp_path / "people", tmp_path / "shards", tmp_path / "run"
    for who, name in enumerate(("anna", "bert", "cleo")):
        (people / name).mkdir(parents=True)
        for photo in range(3):
            render(person(who), portrait(10 * who + photo)).save(people / name / f"{photo}.png")
    words = ["prepare", people, "-o", shards, "--detector", "drawn", "--photo-size", 128, "--validation", 0.5]
    code, out, err = cli(*words, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert (found["people"], found["photos"], found["dropped"]) == (
        {"train": 1, "validation": 2}, {"train": 3, "validation": 6}, {}
    )  # fmt: skip
    code, out, err = cli("train", shards, "-o", run, "--model", "demo", "--train-steps", 2, "--learning-rate", 1e-3)
    assert code == 0, err
    assert "validation loss" in out
    engines = shutil.copytree(demo_folder, tmp_path / "engines")
    words = ["--fp16", "--model", "demo", "--identity", run / "identity.safetensors", "--backend", "onnxruntime"]
    code, out, err = cli("build", *words, "-o", engines)
    assert code == 0, err
    assert "PASSED   identity_encoder.identity_tokens" in out
    assert "PASSED 30-step image" in out
    assert "FAILED" not in out
    assert "onnx/identity.safetensors" in out.partition("Built, and why")[2].partition("Reused")[0]
    picture = tmp_path / "picture.png"
    words = ["--photo", people / "anna/0.png", "--engines", engines, "--steps", 1, "-o", picture]
    code, _, err = cli("generate", "a photo of a person wearing a red suit, at the beach", *words)
    assert code == 0, err
    assert Image.open(picture).size == (128, 128)


def test_a_dry_run_says_whether_it_fits(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["train", "--dry-run", "--model", "random-sdxl", "--precision", "bf16", "--gpus", 16]
    code, out, _ = cli(*words)
    assert code == 0
    assert "383.3 M trained of 2950.7 M parameters" in out
    assert "1000000 steps (64000000 photos seen), assuming 125 TFLOP/s per GPU" in out
    assert "fits in 80.00 GB" in out
    code, out, err = cli(*words, "--gpu-memory", 24)
    assert code == 1
    assert "FAILED" in out
    assert "--gradient-checkpointing" in err
    code, out, _ = cli(*words, "--json", "--quiet", "--tflops", 250)
    found = json.loads(out)
    assert found["peak_bytes"] == sum(found["memory"].values())
    assert found["assumed_tflops"] == 250
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("train",), "SHARDS is missing"),
        (("train", "nowhere"), "holds no shards"),
        (("train", "nowhere", "--gpus", "4"), "--gpus is for --dry-run only"),
        (("train", "x", "--train-steps", "0"), "steps must be at least 1"),
        (("train", "x", "--precision", "fp8"), "invalid choice"),
        (("prepare", "nowhere", "--recognizer", "x.onnx"), "There is no model at x.onnx"),
        (("prepare", "nowhere"), "--recognizer"),
        (("prepare", "x", "--recognizer", "x", "--photo-size", "100"), "multiple of 8"),
        (("prepare", "x", "--recognizer", "x", "--detector", "insightface"), "your InsightFace model folder"),
        (("prepare", "x", "--recognizer", "x", "--face-models", "y"), "--face-models has no effect"),
    ],
)
def test_wrong_usage(cli: Cli, words: tuple[str, ...], problem: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = cli(*words)
    assert (code, out) == (1, "")
    assert problem in err
    assert list(tmp_path.iterdir()) == []


def test_the_arguments_are_the_options(cli: Cli) -> None:
    """Defaults and choices are written twice, because help must not import the options."""
    import argparse

    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    given = vars(parser.parse_args([]))
    defaults = vars(TrainOptions())
    assert {name for name in defaults if name not in given} == {"single_photo"}
    assert {name: given[name] for name in defaults if name in given} == {
        name: value for name, value in defaults.items() if name in given
    }
    assert get_args(get_type_hints(TrainOptions)["lr_schedule"]) == command._SCHEDULES
