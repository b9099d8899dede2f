from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from diffusers.models import modeling_utils
from small_shards import write_shards

from infid_export.cli.main import run as command
from infid_training import run as module
from infid_training.base_model import open_base
from infid_training.options import TrainOptions
from infid_training.run import RunRequest, train_on_shards

pytestmark = pytest.mark.usefixtures("one_thread")
OPTIONS = TrainOptions(steps=2, batch_size=1, checkpoint_every=1, log_every=1, validate_every=0)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    crop = open_base("demo").architecture.image_encoder["image_size"]
    return write_shards(tmp_path_factory.mktemp("prepared") / "shards", crop)


def test_an_interrupted_caching_promises_no_checkpoint(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "fill_cache", interrupt)
    assert command(["train", str(shards), "-o", str(tmp_path / "run")]) == 130
    assert "the last checkpoint, if there is one yet" in capfd.readouterr().err


def test_no_library_warns(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of networks that are cached with, trained with and sampled with."""
    told: list[str] = []
    monkeypatch.setattr(modeling_utils.logger, "warning", told.append)
    options = replace(OPTIONS, steps=1, sample_every=1)
    train_on_shards(RunRequest(shards, tmp_path / "run", options, cache=tmp_path / "cache", sample_steps=1))
    assert told == []
