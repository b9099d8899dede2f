from __future__ import annotations

import json
from pathlib import Path

import pytest
from adapter_layouts import DEMO, adapter, write_adapter
from cli_process import Cli
from PIL import Image

from infid_export.cli import import_
from infid_export.importing.families import FAMILIES
from infid_export.importing.licenses import LICENSES
from infid_export.model.config import read_config


@pytest.fixture
def instantid(tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "ip-adapter.bin", adapter("instantid", DEMO))


def test_it_prints_what_was_recognized_and_why_and_the_license(cli: Cli, instantid: Path, tmp_path: Path) -> None:
    code, out, err = cli("import", instantid, "-o", tmp_path / "identity.safetensors", "--model", "demo")
    assert code == 0, err
    assert f"{instantid}: InstantID (its resampler reads face embeddings of length 512)" in out
    assert f"license: {LICENSES['instantid']}" in out
    assert "build it with: recognizer of InsightFace's antelopev2" in out
    assert "note: InstantID's ControlNet is not imported: the pose" in err
    assert read_config(tmp_path / "identity.safetensors").family == "instantid"


def test_a_dry_run_as_json_writes_nothing(cli: Cli, instantid: Path, tmp_path: Path) -> None:
    target = tmp_path / "identity.safetensors"
    code, out, _ = cli("import", instantid, "-o", target, "--model", "demo", "--dry-run", "--json")
    found = json.loads(out)
    assert (code, found["family"], found["identity"], target.exists()) == (0, "instantid", None, False)
    assert found["config"]["mapper"] == "resampler"
    assert found["license"] == LICENSES["instantid"]
    assert found["bytes"]["LoRA"] == 0 < found["bytes"]["mapper"]


def test_a_rejected_file_is_one_message(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "pointer.bin").write_text("version https://git-lfs.github.com/spec/v1\n")
    code, out, err = cli("import", tmp_path / "pointer.bin", "-o", tmp_path / "identity.safetensors", "--quiet")
    assert (code, out) == (1, "")
    problem, fix = err.splitlines()
    assert "is a git-lfs pointer" in problem and "git lfs pull" in fix


def test_every_family_can_be_named_and_has_a_license() -> None:
    assert tuple(FAMILIES) == tuple(LICENSES)
    assert all(import_.EXAMPLES)


def test_the_license_goes_from_the_import_to_build_inspect_and_enroll(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, portrait: Image.Image
) -> None:
    monkeypatch.chdir(tmp_path)
    write_adapter(tmp_path / "adapter.safetensors", adapter("faceid-plusv2", DEMO))
    portrait.save("photo.png")
    line = f"license of the identity weights: {LICENSES['faceid-plusv2']}"
    assert cli("import", "adapter.safetensors", "--model", "demo")[0] == 0
    build = ("build", "--identity", "identity.safetensors", "--graph", "identity_encoder", "--backend", "onnxruntime")
    code, out, err = cli(*build, "--allow-other-encoders", "--json")
    assert code == 0, err
    notes = json.loads(out)["notes"]
    assert line in notes
    assert [note for note in notes if "were trained with" in note] == [
        "identity weights identity.safetensors: they were trained with the recognizer InsightFace's buffalo_l; whether "
        "the demo model's recognizer is the same is not checked",
        "identity weights identity.safetensors: they were trained with the image encoder ViT-H-14; whether the demo "
        "model's is the same is not checked",
    ]
    assert "LoRA of identity.safetensors: merged into 88 attention weights of the UNet at strength 1" in notes
    assert json.loads(Path("infid-engines/manifest.json").read_text())["model"]["license"] == LICENSES["faceid-plusv2"]
    code, out, err = cli("inspect")
    assert line in out, err
    code, _, err = cli("enroll", "photo.png")
    assert (code, line in err) == (0, True), err
