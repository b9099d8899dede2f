"""Building with LoRAs: only what they change is built again, and the folder can be verified from elsewhere."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_face_models import quick_faces

from infid_engines.errors import InputError
from infid_export.export import builder
from infid_export.export.artifact import weights_file
from infid_export.export.build_estimate import estimate
from infid_export.export.build_options import BuildOptions
from infid_export.export.builder import build, verify
from infid_export.export.plan import make_plan
from infid_export.export.stored_options import read_options, stored_options
from infid_export.model.shipped import ShippedSource

WEIGHT = "encoder.layers.0.mlp.fc1.weight"
CHANGED = {weights_file("text_encoder")}


def write_lora(path: Path, alpha: float = 8.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Write a LoRA for one layer of the demo model's first text encoder."""
    weight = dict(ShippedSource().weights("text_encoder", torch.float32))[WEIGHT]
    down, up = torch.randn(4, weight.shape[1]) / 8, torch.randn(weight.shape[0], 4) / 8
    name = "lora_te1_text_model_encoder_layers_0_mlp_fc1"
    tensors = {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(alpha)}
    save_file(tensors, path)
    return down, up


@pytest.fixture
def options(tmp_path: Path) -> BuildOptions:
    return BuildOptions(
        output=tmp_path / "engines", graphs=("text_encoder", "text_encoder_2"), backends=("onnxruntime",), height=64,
        width=64, **quick_faces(tmp_path),
    )  # fmt: skip


def test_a_lora_changes_only_the_weights_of_its_components(options, tmp_path, monkeypatch):
    before = build(options)
    down, up = write_lora(tmp_path / "style.safetensors")
    monkeypatch.chdir(tmp_path)
    styled = replace(options, lora=("style.safetensors:0.5",))
    report = build(styled)
    assert report.made.keys() == CHANGED
    assert "weights: " in report.made[weights_file("text_encoder")]
    note = "LoRA style.safetensors: 1 layer of the text encoders, strength 0.5; the text stream changes too"
    assert note in report.notes
    assert note in report.manifest.notes
    assert report.parity.passed
    assert report.manifest.options["lora"] == [f"{tmp_path}/style.safetensors:0.5"]
    weight = dict(ShippedSource().weights("text_encoder", torch.float32))[WEIGHT]
    stored = load_file(report.folder / weights_file("text_encoder"))[WEIGHT].T
    assert torch.allclose(stored, weight + 0.5 * 8 / 4 * up @ down, atol=1e-6)

    monkeypatch.chdir("/")
    assert verify(report.folder).passed
    monkeypatch.chdir(tmp_path)
    assert build(styled).made == {}
    assert build(replace(styled, lora=("style.safetensors:0.6",))).made.keys() == CHANGED
    write_lora(tmp_path / "style.safetensors")
    assert build(styled).made.keys() == CHANGED
    back = build(options)
    assert back.made.keys() == CHANGED
    hashes = [{name: file.sha256 for name, file in each.manifest.files.items()} for each in (before, back)]
    assert hashes[0] == hashes[1]


def test_an_unchanged_build_reads_no_weights_of_a_lora(options, tmp_path, monkeypatch):
    write_lora(tmp_path / "style.safetensors")
    styled = replace(options, lora=(str(tmp_path / "style.safetensors"),))
    build(styled)
    monkeypatch.setattr(builder, "check_updates", lambda source: pytest.fail("the LoRA was read"))
    assert build(styled).made == {}


def test_a_build_after_a_lora_has_moved_records_its_new_place(options, tmp_path):
    write_lora(tmp_path / "style.safetensors")
    build(replace(options, lora=(str(tmp_path / "style.safetensors"),)))
    moved = (tmp_path / "style.safetensors").rename(tmp_path / "moved.safetensors")
    with pytest.raises(InputError, match=r"style\.safetensors"):
        verify(options.output)
    report = build(replace(options, lora=(str(moved),)))
    assert report.made == {}
    assert report.manifest.options["lora"] == [f"{moved}:1.0"]
    assert verify(options.output).passed


def test_a_lora_that_does_not_fit_stops_before_anything_is_built(options, tmp_path, monkeypatch):
    monkeypatch.setattr(builder, "_Builder", lambda *arguments: pytest.fail("something was built"))
    name = "lora_te1_text_model_encoder_layers_9_mlp_fc1"
    path = tmp_path / "style.safetensors"
    save_file({f"{name}.lora_down.weight": torch.ones(4, 64), f"{name}.lora_up.weight": torch.ones(256, 4)}, path)
    wrong = replace(options, lora=(str(path),))
    for function in (build, estimate):
        with pytest.raises(InputError, match="changes layers that the text_encoder of demo lacks"):
            function(wrong)
    assert not options.output.exists()


def test_keys_contain_the_code_that_merges_only_where_it_is_used(options, tmp_path):
    write_lora(tmp_path / "style.safetensors")
    plain, styled = make_plan(options), make_plan(replace(options, lora=(str(tmp_path / "style.safetensors"),)))

    def codes(plan: Any) -> dict[str, str]:
        return {name: artifact.key_fields["code"] for name, artifact in plan.weights.items()}

    different = {name for name, code in codes(plain).items() if codes(styled)[name] != code}
    assert different == {"text_encoder"}
    assert [plain.parity_key(form) == styled.parity_key(form) for form in plain.graphs] == [False, True]


def test_options_with_loras_survive_being_stored(options, tmp_path):
    names = [tmp_path / "a.safetensors", tmp_path / "b:0.25"]
    for path in names:
        write_lora(path)
    stored = stored_options(replace(options, lora=(f"{names[0]}:-0.8", str(names[1]))))
    assert read_options(stored).lora == (f"{names[0]}:-0.8", f"{names[1]}:1.0")
    assert stored_options(read_options(stored)) == stored


def test_a_folder_from_before_loras_has_none(options):
    stored = stored_options(options)
    del stored["lora"]
    assert read_options(stored).lora == ()
