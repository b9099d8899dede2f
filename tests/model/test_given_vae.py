"""A VAE or a UNet in place of the model's own, in every format that they are offered in."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from single_files import original_tensors, write_file
from torch import Tensor

from infid_engines.errors import InputError
from infid_export.export.build_options import BuildOptions
from infid_export.export.builder import build, verify
from infid_export.export.plan import make_plan
from infid_export.model.changes.given_networks import with_networks
from infid_export.model.changes.replaced_source import ReplacedSource
from infid_export.model.changes.updated_source import base_of, classes_of
from infid_export.model.checkpoints.original_layout import PREFIXES
from infid_export.model.checkpoints.prediction import GivenPrediction
from infid_export.model.checkpoints.stored_network import StoredNetwork
from infid_export.model.opening import open_source
from infid_export.model.sources import RandomSource

OTHER = RandomSource("demo", seed=1)  # its VAE and UNet replace those of the demo model
OLDER = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def plain(network: str) -> dict[str, Tensor]:
    """A network's weights as diffusers saves them, with the values of `original_tensors`."""
    shapes = {name: value.shape for name, value in OTHER.weights(network, torch.float32)}
    tensors = original_tensors(OTHER, network, dtype=torch.float32).values()  # in the same order
    return {name: value.reshape(shapes[name]) for name, value in zip(shapes, tensors, strict=True)}


def original(network: str) -> dict[str, Tensor]:
    return original_tensors(OTHER, network, dtype=torch.float32)


def original_alone(network: str) -> dict[str, Tensor]:
    return {name.removeprefix(PREFIXES[network]): value for name, value in original(network).items()}


def older(network: str) -> dict[str, Tensor]:
    found = {}
    for name, value in plain(network).items():
        for new, old in OLDER.items():
            name = name.replace(f"attentions.0.{new}.", f"attentions.0.{old}.")
        found[name] = value
    return found


def whole(_: str) -> dict[str, Tensor]:
    return original_tensors(OTHER, dtype=torch.float32)


FORMATS: dict[str, Callable[[str], dict[str, Tensor]]] = {
    "diffusers": plain, "original": original, "original alone": original_alone, "whole checkpoint": whole,
}  # fmt: skip


@pytest.mark.parametrize(
    ("network", "layout"), [*itertools.product(["vae", "unet"], FORMATS), ("vae", "older diffusers")]
)
def test_a_file_in_any_names_gives_its_weights(tmp_path, source, network, layout):
    path = write_file(tmp_path / "network.safetensors", {**FORMATS, "older diffusers": older}[layout](network))
    found = with_networks(source, **{network: path})
    weights, expected = dict(found.weights(network, torch.float32)), plain(network)
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], value) for name, value in expected.items())
    loaded = dict(found.load(network, torch.float32).named_parameters())
    assert all(torch.equal(loaded[name], value) for name, value in expected.items())
    assert found.fingerprint(network) != source.fingerprint(network)
    assert found.fingerprint("text_encoder") == source.fingerprint("text_encoder")
    (note,) = found.notes
    assert f"{network}: {path}, in place of the model's" in note
    assert ("a file has no scaling factor, so it is the model's, 0.13025" in note) == (network == "vae")


def vae_folder(folder: Path, weights: dict[str, Tensor] | None = None, **changed: object) -> Path:
    folder.mkdir(parents=True)
    config = {**OTHER.architecture.vae, "_class_name": "AutoencoderKL", **changed}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(weights or plain("vae"), folder / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("names", [plain, older])
def test_a_folder_gives_what_diffusers_reads(tmp_path, source, names):
    folder = vae_folder(tmp_path / "model/vae", names("vae"), force_upcast=False)
    expected = dict(AutoencoderKL.from_pretrained(folder).named_parameters())
    for path in (folder, folder.parent):
        found = with_networks(source, vae=path)
        weights = dict(found.weights("vae", torch.float32))
        assert weights.keys() == expected.keys()
        assert all(torch.equal(weights[name], value) for name, value in expected.items())
        assert found.architecture.vae["force_upcast"] is False
        assert found.architecture.unet == source.architecture.unet


def test_a_vae_of_another_model_is_named(tmp_path, source):
    weights = plain("vae")
    with pytest.raises(InputError, match=r"scaling_factor = 0\.18215, Stable Diffusion 1's and 2's; the UNet"):
        with_networks(source, vae=vae_folder(tmp_path / "sd1", scaling_factor=0.18215))
    with pytest.raises(InputError, match="has 4 levels"):
        with_networks(source, vae=vae_folder(tmp_path / "levels", block_out_channels=[16, 32, 64, 64]))
    with pytest.raises(InputError, match="latent_channels = 16"):
        with_networks(source, vae=vae_folder(tmp_path / "sd3", latent_channels=16))
    fewer = {name: value for name, value in weights.items() if name != "decoder.conv_in.bias"}
    with pytest.raises(InputError, match=r"weights of .*missing: decoder\.conv_in\.bias"):
        with_networks(source, vae=vae_folder(tmp_path / "fewer", fewer))
    many = {**weights, "decoder.conv_in.weight": torch.zeros(64, 16, 3, 3)}
    with pytest.raises(InputError, match="its latents have 16 channels"):
        with_networks(source, vae=write_file(tmp_path / "sd3.safetensors", many))
    bent = {**weights, "decoder.conv_out.weight": torch.zeros(3, 8, 3, 3)}
    with pytest.raises(InputError, match=r"of another shape: decoder\.conv_out\.weight"):
        with_networks(source, vae=write_file(tmp_path / "bent.safetensors", bent)).empty("vae")
    whole_sd1 = {**original("vae"), "cond_stage_model.transformer.x": torch.zeros(1)}
    with pytest.raises(InputError, match="is a Stable Diffusion 1 checkpoint"):
        with_networks(source, vae=write_file(tmp_path / "sd1.safetensors", whole_sd1))


def test_what_is_no_vae_or_unet_is_named(tmp_path, source):
    lora = write_file(tmp_path / "lora.safetensors", {"lora_unet_x.lora_down.weight": torch.zeros(1)})
    own = write_file(tmp_path / "identity.safetensors", {"mapper.x": torch.zeros(1), "down_blocks.x": torch.zeros(1)})
    (tmp_path / "empty").mkdir()
    (tmp_path / "vae.ckpt").write_bytes(b"PK\x03\x04")
    for given, message in (
        ({"vae": lora}, "is a LoRA, not a VAE"),
        ({"unet": lora}, "is a LoRA, not a UNet"),
        ({"vae": own}, "is an identity file from infid-export, not a VAE"),
        ({"unet": own}, "is an identity file from infid-export, not a UNet"),
        ({"vae": tmp_path / "none"}, "There is no VAE at"),
        ({"unet": tmp_path / "none"}, "There is no UNet at"),
        ({"vae": tmp_path / "empty"}, "has no VAE: there is no .*config.json"),
        ({"unet": tmp_path / "empty"}, "it is a folder"),
        ({"vae": tmp_path / "vae.ckpt"}, "pickled weights"),
    ):
        with pytest.raises(InputError, match=message):
            with_networks(source, **given)


def test_a_unet_that_predicts_v_needs_a_model_that_does(tmp_path, source, parts):
    path = write_file(tmp_path / "unet.safetensors", {**original("unet"), "v_pred": torch.zeros(0)})
    with pytest.raises(InputError, match=r"predicts v .* predicts epsilon") as caught:
        with_networks(source, unet=path)
    assert "--prediction v" in caught.value.fix
    write_file(path, original("unet"), **{"modelspec.prediction_type": "v"})
    with pytest.raises(InputError, match=r"the file's metadata has modelspec.prediction_type = v"):
        with_networks(source, unet=path)
    alone = {**original_alone("unet"), "v_pred": torch.zeros(0)}
    checkpoint = open_source(
        str(parts["base"]), identity=parts["identity"], image_encoder=str(parts["encoder"]),
        prediction=GivenPrediction("v"),
    )  # fmt: skip
    unsaid = with_networks(checkpoint, unet=write_file(path, original("unet")))
    assert unsaid.notes[-1].endswith("nothing in it says that it predicts v, as the model does")
    with pytest.raises(InputError, match="zero terminal SNR") as caught:
        with_networks(checkpoint, unet=write_file(path, {**alone, "ztsnr": torch.zeros(0)}))
    assert "--zero-snr" in caught.value.fix
    for tensors in (alone, {**original("unet"), "v_pred": torch.zeros(0)}):
        found = with_networks(checkpoint, unet=write_file(path, tensors))
        assert found.scheduler["prediction_type"] == "v_prediction"
        assert found.notes[-1] == f"unet: {path}, in place of the model's"
        assert len(dict(found.weights("unet", torch.float32))) == len(plain("unet"))


def test_code_and_checkpoint_are_seen_through_it(tmp_path, source):
    vae = write_file(tmp_path / "vae.safetensors", plain("vae"))
    unet = write_file(tmp_path / "unet.safetensors", plain("unet"))
    found = with_networks(source, vae, unet)
    assert base_of(found) is source
    assert classes_of(found, ("vae",)) == (ReplacedSource, StoredNetwork)
    assert classes_of(found, ("text_encoder",)) == (RandomSource,)
    assert classes_of(found, ("unet", "identity")) == (ReplacedSource, StoredNetwork, RandomSource)


def test_the_demo_model_is_built_with_another_vae(tmp_path):
    vae = write_file(tmp_path / "vae.safetensors", {name: value.half() for name, value in plain("vae").items()})
    options = BuildOptions(
        output=tmp_path / "engines", vae=vae, precision="fp16", backends=("onnxruntime",), graphs=("vae_decoder",)
    )
    report = build(options)
    assert report.parity.passed
    assert any(note.startswith(f"vae: {vae}") for note in report.notes)
    assert any(note.startswith("VAE decoder: fp") for note in report.notes)
    assert verify(options.output).passed
    assert report.manifest.options["vae"] == str(vae)
    state = load_file(vae)
    state["decoder.conv_out.bias"] += 1
    save_file(state, vae)
    changed = make_plan(options).weights["vae"].key
    assert changed != report.manifest.files["onnx/vae.safetensors"].key
