from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from cli_process import Cli, write_parity
from safetensors.numpy import save_file

from infid_engines.manifest import Manifest
from infid_export.cli import main
from infid_export.cli.build import options_of
from infid_export.export.build_options import BuildOptions
from infid_export.export.builder import BuildReport
from infid_export.export.parity import stored_parity


def options(*words: str) -> BuildOptions:
    return options_of(main.make_parser("build").parse_args(["build", *words]))


def test_no_flag_is_the_default() -> None:
    assert options() == BuildOptions()


def test_every_option_has_a_flag() -> None:
    words = shlex.split(
        "--model sdxl --identity i.safetensors --image-encoder laion --recognizer r.onnx --detector "
        "insightface --face-models pack --model-seed 7 --self-attention mutual --adain standard "
        "--cross-adain output --cross-merge orthogonal --uncond-identity off -o out --fp16 --height 768 --width 512 "
        "--batch 2 --people 3 --height-range 64 96 128 --width-range 64 128 192 --batch-range 1 2 4 "
        "--graph vae_decoder --graph denoise_step --backend tensorrt_rtx --backend onnxruntime --target sm_89 "
        "sm_120 --target sm_86 --refit --strip --optimization-level 2 --parity-size 256 --parity-image on "
        "--kernels triton --tuning t.json --zero-tokens 8 --allow-other-encoders --no-guidance --quantize-templates "
        "--streams two --lora style.safetensors --lora detail.safetensors:0.8 --preset lightning-4 --vae vae "
        "--unet u.safetensors --prediction v --zero-snr"
    )
    found = options(*words)
    assert found == BuildOptions(
        output=Path("out"), model="sdxl", identity=Path("i.safetensors"), image_encoder="laion",
        recognizer=Path("r.onnx"), detector="insightface", face_models=Path("pack"), precision="fp16", height=768,
        width=512, batch=2, people=3, height_range=(64, 96, 128), width_range=(64, 128, 192), batch_range=(1, 2, 4),
        backends=("tensorrt_rtx", "onnxruntime"), targets=("sm_89", "sm_120", "sm_86"),
        graphs=("vae_decoder", "denoise_step"), self_attention="mutual", adain="standard", cross_adain="output",
        cross_merge="orthogonal", uncond_identity="off", zero_tokens=8, parity_size=256, parity_image="on", seed=7,
        refit=True, strip=True, optimization_level=2, kernels="triton", tuning=Path("t.json"),
        allow_other_encoders=True, guidance=False, quantize_templates=True, streams="two",
        lora=("style.safetensors", "detail.safetensors:0.8"), preset="lightning-4", vae=Path("vae"),
        unet=Path("u.safetensors"), prediction="v", zero_snr=True,
    )  # fmt: skip
    unchanged = [field.name for field in fields(BuildOptions) if getattr(found, field.name) == field.default]
    assert unchanged == []


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch, small_folder: Path) -> Callable[[], BuildReport]:
    """Replace the build by one that reports the contents of the small folder."""
    import infid_export.export.builder as module

    def build(options: BuildOptions, reporter: object) -> BuildReport:
        manifest, parity = Manifest.load(small_folder), stored_parity(small_folder)
        made = {"onnx/vae_decoder.onnx": "changed precision: fp32 -> fp16"}
        return BuildReport(small_folder, manifest, parity, made, ("onnx/vae.safetensors",), ("chosen",), 1.5)

    monkeypatch.setattr(module, "build", build)
    return lambda: build(BuildOptions(), None)


@pytest.mark.usefixtures("built")
def test_a_build_ends_with_its_proof(cli: Cli, small_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(small_folder.parent)
    code, out, err = cli("build", "--fp16")
    assert (code, err) == (0, "")
    lines = [line.split() for line in out.splitlines()]
    assert ["PASSED", "vae_decoder.image", "float32", "1.0e-3", "1.0e-1", "1.0e-4", "1.0e-2", "1.0e-7"] in lines
    assert "PASSED 30-step image: PSNR 68.7 dB (at least 40)" in out
    assert ["engines/engines/tensorrt_rtx-sm_89/vae_decoder.engine", "6", "B", "3", "s", "1.00", "GB"] in lines
    assert ["onnx/vae_decoder.onnx", "changed", "precision:", "fp32", "->", "fp16"] in lines
    assert ["onnx/vae.safetensors"] in lines
    assert out.rstrip().endswith("engines: 1 built, 1 reused, 1.5 s")


@pytest.mark.usefixtures("built")
def test_a_build_as_json(cli: Cli, small_folder: Path) -> None:
    code, out, _ = cli("build", "--json", "--quiet")
    found = json.loads(out)
    assert code == 0
    assert set(found) == {"folder", "seconds", "made", "kept", "notes", "parity", "engines", "files"}
    assert found["folder"] == str(small_folder)
    assert found["parity"]["passed"] is True
    assert [engine["backend"] for engine in found["engines"]] == ["onnxruntime", "tensorrt_rtx"]


def test_verify_says_what_would_pass(cli: Cli, small_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import infid_export.export.builder as module

    write_parity(small_folder, rms_error=0.5)
    monkeypatch.setattr(module, "verify", lambda folder, reporter: stored_parity(folder))
    code, out, _ = cli("verify", small_folder)
    assert code == 1
    assert "FAILED vae_decoder.image would pass with max 1.0e-03, rms 5.0e-01" in out
    assert f"FAILED {small_folder}" in out
    code, out, _ = cli("verify", small_folder, "--json")
    assert (code, json.loads(out)["passed"]) == (1, False)


def test_verify_of_a_good_folder(cli: Cli, small_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import infid_export.export.builder as module

    monkeypatch.setattr(module, "verify", lambda folder, reporter: stored_parity(folder))
    assert cli("verify", small_folder)[0] == 0


def test_dry_run_shows_the_real_plan_and_writes_nothing(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from infid_export.faces.detection import find_centerface

    find_centerface()  # the plan checks that the face detector exists
    monkeypatch.chdir(tmp_path)
    code, out, err = cli("build", "--fp16", "--dry-run", "--backend", "onnxruntime", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert {"onnx/unet.safetensors", "onnx/denoise_step.onnx"} <= {row["name"] for row in found["rows"]}
    assert found["bytes"] == sum(row["bytes"] for row in found["rows"])
    assert found["seconds"] == sum(row["seconds"] for row in found["rows"]) > 10
    *artifacts, parity = found["rows"]
    assert all(row["state"] == "new" for row in artifacts)
    assert (parity["name"], parity["state"]) == ("parity.json", "5 graphs to compare")
    assert found["template_bytes_per_step"] is None
    assert list(tmp_path.iterdir()) == []
    code, out, _ = cli("build", "--fp16", "--dry-run", "--backend", "onnxruntime")
    assert code == 0
    assert "; time on two CPU cores: about 0:" in out and "nothing was built" in out


def test_dry_run_says_what_a_lora_changes(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    layer = "unet.mid_block.attentions.0.proj_in"
    save_file(
        {f"{layer}.lora_A.weight": np.ones((4, 128)), f"{layer}.lora_B.weight": np.ones((128, 4))}, "a.safetensors"
    )
    words = ("build", "--dry-run", "--graph", "vae_decoder", "--backend", "onnxruntime", "--lora")
    code, out, err = cli(*words, "a.safetensors:0.5", "--json")
    assert code == 0, err
    (note,) = (note for note in json.loads(out)["notes"] if note.startswith("LoRA"))
    assert note.startswith("LoRA a.safetensors: 1 layer of the UNet, strength 0.5")
    code, _, err = cli(*words, "a.safetensors:strong")
    assert (code, "must be a finite number other than 0, not 'strong'" in err) == (1, True)


def test_the_engines_of_one_backend_are_one_table(cli: Cli, small_folder: Path) -> None:
    manifest = Manifest.load(small_folder)
    second = replace(manifest.engines[1], target="sm_120")
    replace(manifest, engines=(*manifest.engines, second)).write(small_folder)
    _, out, _ = cli("inspect", small_folder)
    titles = [line for line in out.splitlines() if line.startswith("Engines: ")]
    assert titles == ["Engines: onnxruntime cpu", "Engines: tensorrt_rtx sm_89", "Engines: tensorrt_rtx sm_120"]
