from __future__ import annotations

from pathlib import Path

import pytest
import torch

from infid_export.cli import main
from infid_training.recipe.stages import Recipe


def test_it_prints_the_files_of_the_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = []
    monkeypatch.setattr(Recipe, "run", lambda self: seen.append(self) or [self.work / "vae.safetensors"])
    assert main.run(["train-demo", "-o", str(tmp_path / "new" / "folder"), "--quiet"]) == 0
    assert capsys.readouterr().out == f"{tmp_path}/new/folder/vae.safetensors\n"
    assert (seen[0].work, seen[0].device) == (tmp_path / "new" / "folder", "cpu")
    assert seen[0].work.is_dir() and seen[0].compiled
    more = ["--no-compile", "--base-steps", "9", "--ablation"]
    assert main.run(["train-demo", "-o", str(tmp_path), "--quiet", *more]) == 0
    assert not seen[1].compiled
    assert [(each.base_steps, each.ablation) for each in seen] == [(None, False), (9, True)]


def test_a_missing_compiler_is_said_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main.run(["train-demo", "-o", str(tmp_path / "work")]) == 1
    assert "no C++ compiler" in capsys.readouterr().err
    assert not (tmp_path / "work").exists()


def test_a_file_in_the_place_of_the_folder_is_rejected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main.run(["train-demo", "-o", str(tmp_path / "file")]) == 1
    assert "file is not a folder" in capsys.readouterr().err


def test_no_steps_at_all_are_rejected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["train-demo", "-o", str(tmp_path / "work"), "--base-steps", "0"]) == 1
    assert "--base-steps must be at least 1, not 0" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_rejected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["train-demo", "-o", str(tmp_path / "work"), "--gpu"]) == 1
    assert "torch finds no NVIDIA GPU" in capsys.readouterr().err
    assert not (tmp_path / "work").exists()
