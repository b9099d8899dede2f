"""LoRA files that cannot be used are named in one sentence; what is used is described."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lora_files import LAYERS, kohya, matrices, original_names, peft, sdxl_like, write
from safetensors.torch import save_file
from torch import Tensor

from infid_engines.errors import InputError
from infid_export.model.changes.lora_file import Lora, lora_choice, with_loras
from infid_export.model.changes.updated_source import UpdatedSource, check_updates
from infid_export.model.sources import ModelSource

LAYER = "down_blocks.1.attentions.1.transformer_blocks.0.attn2.to_k"
KEY = "lora_unet_down_blocks_1_attentions_1_transformer_blocks_0_attn2_to_k"
Tensors = dict[str, Tensor]


@pytest.fixture(scope="module")
def base() -> ModelSource:
    return sdxl_like()


@pytest.fixture(scope="module")
def plain(base: ModelSource) -> Tensors:
    return kohya("unet", LAYER, matrices(base, "unet", [LAYER])[LAYER])


def only(**tensors: Tensor) -> Callable[[Tensors], Tensors]:
    return lambda plain: dict(tensors)


def plus(name: str, *shape: int) -> Callable[[Tensors], Tensors]:
    return lambda plain: {**plain, name: torch.zeros(shape)}


def changed(role: str, change: Callable[[Tensor], Tensor]) -> Callable[[Tensors], Tensors]:
    return lambda plain: {**plain, f"{KEY}.{role}": change(plain[f"{KEY}.{role}"])}


def without(role: str) -> Callable[[Tensors], Tensors]:
    return lambda plain: {name: value for name, value in plain.items() if name != f"{KEY}.{role}"}


def of_width(width: int) -> Callable[[Tensors], Tensors]:
    return changed("lora_down.weight", lambda down: torch.zeros(4, width))


METHODS = {
    "LoHa": f"{KEY}.hada_w1_a",
    "LoKr": f"{KEY}.lokr_w1",
    "DoRA": f"{KEY}.dora_scale",
    "OFT": f"{KEY}.oft_blocks",
    "BOFT": f"{KEY}.boft_blocks",
    "GLoRA": f"{KEY}.a1.weight",
    "IA³": f"{KEY}.on_input",
    "factorized convolution kernels": f"{KEY}.lora_mid.weight",
    "norm weights": "lora_unet_down_blocks_1_resnets_0_norm1.diff",
    "full differences": f"{KEY}.diff",
    "biases": "unet.down_blocks.1.attentions.0.proj_in.lora_B.bias",
    "learned words": "bundle_emb.word.clip_l",
}
BASES = {
    "Stable Diffusion 1 ": of_width(768),
    "Stable Diffusion 2 ": of_width(1024),
    "SDXL's refiner ": of_width(1280),
    "SDXL ": of_width(2048),
    "another model ": of_width(33),
    "Flux": only(**{"lora_unet_double_blocks_0_img_attn_proj.lora_down.weight": torch.zeros(4, 8)}),
    "Stable Diffusion 3": only(**{"transformer.transformer_blocks.0.attn.add_k_proj.lora_A.weight": torch.zeros(4, 8)}),
    "a transformer": only(**{"transformer.blocks.0.attn.to_k.lora_A.weight": torch.zeros(4, 8)}),
}
BROKEN = {
    "is a single-file checkpoint": only(**{"model.diffusion_model.out.2.weight": torch.zeros(4, 8)}),
    "is an IP-Adapter": only(**{"image_proj.norm.weight": torch.zeros(4)}),
    "has tensors that belong to no layer: emb_params": plus("emb_params", 2, 2),
    "changes layers that the unet of demo lacks: lora_unet_down_blocks_7": plus(
        "lora_unet_down_blocks_7_conv.lora_down.weight", 2, 2
    ),
    "lacks one of the two matrices of a layer: lora_unet_down": without("lora_up.weight"),
    "lacks one of the two matrices of a layer: lora_unet_conv_in": plus("lora_unet_conv_in.alpha"),
    "has the shape [3], not one value": changed("alpha", lambda value: torch.zeros(3)),
    "has an alpha for": changed("alpha", lambda value: torch.tensor(math.nan)),
    "is of type I8, not floating-point": changed("lora_up.weight", lambda value: value.to(torch.int8)),
    "has the shape [16], not that of a matrix": changed("lora_up.weight", lambda value: torch.zeros(16)),
    "do not fit its [32, 128]": changed("lora_up.weight", lambda value: torch.zeros(48, 4)),
    "that are not finite": changed("lora_up.weight", lambda value: value / 0),
    "has two names for one tensor": plus(f"unet.{LAYER}.lora_A.weight", 4, 128),
}


def rejected(base: ModelSource, path: Path, strength: str = "") -> str:
    with pytest.raises(InputError) as caught:
        check_updates(with_loras(base, [f"{path}{strength}"]))
    assert str(path) in caught.value.problem
    assert "\n" not in caught.value.problem + caught.value.fix
    return caught.value.problem


@pytest.mark.parametrize("method", METHODS)
def test_another_method_is_named(base, plain, tmp_path, method):
    path = write(tmp_path / "style.safetensors", plus(METHODS[method], 2, 2)(plain))
    assert f"has {method}" in rejected(base, path)


@pytest.mark.parametrize("trained_for", BASES)
def test_another_base_model_is_named(base, plain, tmp_path, trained_for):
    path = write(tmp_path / "style.safetensors", BASES[trained_for](plain))
    assert f"was trained for {trained_for}" in rejected(base, path)


@pytest.mark.parametrize("problem", BROKEN)
def test_a_file_that_cannot_be_merged_is_rejected(base, plain, tmp_path, problem):
    tensors = BROKEN[problem](plain)
    if "down_blocks_7" in problem:
        tensors["lora_unet_down_blocks_7_conv.lora_up.weight"] = torch.zeros(2, 2)
    assert problem in rejected(base, write(tmp_path / "style.safetensors", tensors))


def test_a_layer_with_two_names_is_rejected(base, plain, tmp_path):
    other = kohya("unet", original_names(base)[LAYER], matrices(base, "unet", [LAYER])[LAYER])
    path = write(tmp_path / "style.safetensors", {**plain, **other})
    assert f"has two names for the layer {LAYER}" in rejected(base, path)


def test_an_adapter_with_a_lora_is_named(base, tmp_path):
    tensors = {f"ip_adapter.0.to_q_lora.{half}.weight": torch.ones(2, 2) for half in ("down", "up")}
    tensors["image_proj.norm.weight"] = torch.ones(2)
    assert "is an IP-Adapter, not a LoRA" in rejected(base, write(tmp_path / "faceid.safetensors", tensors))


def test_files_of_another_format_are_rejected(base, plain, tmp_path):
    for name in ("style.bin", "style.pt", "style.ckpt"):
        torch.save(plain, tmp_path / name)
        assert "it is pickled weights" in rejected(base, tmp_path / name)
    path = write(tmp_path / "style.safetensors", plain)
    content = path.read_bytes()
    for wrong, problem in (
        (content[:-20], "is not an intact safetensors file"),
        ((2).to_bytes(8, "little") + b"{}", "has no tensors"),
        (content[:100], "is not an intact safetensors file"),
        (b"", "it is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "it is a git-lfs pointer"),
    ):
        path.write_bytes(wrong)
        assert problem in rejected(base, path)


@pytest.mark.parametrize("stated", ["0", "nan", "inf", "much", ""])
def test_a_strength_must_be_a_number(base, plain, tmp_path, stated):
    path = write(tmp_path / "style.safetensors", plain)
    assert f"must be a finite number other than 0, not '{stated}'" in rejected(base, path, f":{stated}")


def test_a_choice_is_a_file_and_perhaps_a_strength(plain, tmp_path, monkeypatch):
    path = write(tmp_path / "style.safetensors", plain)
    odd = write(tmp_path / "style:2", plain)
    assert lora_choice(str(path)) == (path, 1.0)
    assert lora_choice(f"{path}:0.8") == (path, 0.8)
    assert lora_choice(f"{path}:-1e-1") == (path, -0.1)
    assert lora_choice(str(odd)) == (odd, 1.0)
    assert lora_choice(f"{odd}:3") == (odd, 3.0)
    for text, missing in (
        ("a.safetensors:0.8", "a.safetensors"),
        ("C:\\loras\\a.safetensors", "C:\\loras\\a.safetensors"),
        (str(tmp_path), str(tmp_path)),
        ("", ""),
    ):
        with pytest.raises(InputError) as caught:
            lora_choice(text)
        assert caught.value.problem == f"There is no LoRA file {missing!r}."


def test_the_same_file_twice_is_rejected(base, plain, tmp_path):
    paths = [write(tmp_path / name, plain) for name in ("a.safetensors", "b.safetensors")]
    with pytest.raises(InputError) as caught:
        with_loras(base, [f"{paths[0]}:0.5", f"{paths[1]}:0.25"])
    assert caught.value.problem == f"The LoRAs {paths[0]} and {paths[1]} are the same."
    assert caught.value.fix == "Give it once, with the strength 0.75."


def test_a_note_describes_each_lora(base, plain, tmp_path):
    text = "encoder.layers.0.mlp.fc1"
    both = {**plain, **kohya("text_encoder_2", text, matrices(base, "text_encoder_2", [text])[text], None)}
    paths = [write(tmp_path / "a.safetensors", plain), write(tmp_path / "b.safetensors", both)]
    source = with_loras(base, [str(paths[0]), f"{paths[1]}:-0.5"])
    assert isinstance(source, UpdatedSource)
    assert source.notes == (
        "LoRA a.safetensors: 1 layer of the UNet, strength 1; the text stream changes too",
        "LoRA b.safetensors: 1 layer of the UNet, 1 layer of the text encoders, strength -0.5; it has no alpha, so "
        "alpha is the rank; the text stream changes too",
    )
    assert [each.components for each in source.updates] == [{"unet"}, {"unet", "text_encoder_2"}]
    assert with_loras(base, []) is base


def test_the_fingerprint_follows_everything_that_counts(base, plain, tmp_path):
    path = write(tmp_path / "adapter_model.safetensors", {
        f"base_model.model.{name}": value
        for name, value in peft("unet", LAYER, matrices(base, "unet", [LAYER])[LAYER]).items()
    })  # fmt: skip
    assert "alpha is the rank" in Lora(path, 1.0, base).note
    found = [Lora(path, strength, base).fingerprint for strength in (1.0, 0.5)]
    for alpha in (8, 16):
        settings = {"peft_type": "LORA", "r": 4, "lora_alpha": alpha}
        (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
        lora = Lora(path, 1.0, base)
        found.append(lora.fingerprint)
        assert lora.updates("unet")[f"{LAYER}.weight"][0].scale == alpha / 4
        assert "alpha is the rank" not in lora.note
    save_file(plain, tmp_path / "other.safetensors")
    found.append(Lora(tmp_path / "other.safetensors", 1.0, base).fingerprint)
    assert len(set(found)) == 5


def test_settings_that_are_no_json_object_are_rejected(base, plain, tmp_path):
    for text, problem in (("{", "cannot be read"), ("[]", "is not a JSON object")):
        path = write(tmp_path / "style.safetensors", plain, {"lora_adapter_metadata": text})
        assert problem in rejected(base, path)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"use_dora": True}, "use_dora = True"),
        ({"lora_bias": True}, "lora_bias = True"),
        ({"init_lora_weights": "pissa_niter_16"}, "init_lora_weights = 'pissa_niter_16'"),
        ({"lora_alpha": "8"}, "no usable lora_alpha"),
        ({"alpha_pattern": [1]}, "no usable lora_alpha"),
        ({"alpha_pattern": {"(": 1}}, "no usable lora_alpha"),
    ],
)
def test_settings_that_cannot_be_merged_are_rejected(base, tmp_path, settings, problem):
    stored = {f"unet.{name}": value for name, value in {"lora_alpha": 8, **settings}.items()}
    path = write(
        tmp_path / "style.safetensors", peft("unet", LAYER, matrices(base, "unet", [LAYER])[LAYER]),
        {"lora_adapter_metadata": json.dumps(stored)},
    )  # fmt: skip
    assert problem in rejected(base, path)


def test_layers_of_a_file_without_a_component_are_the_unets(base, tmp_path):
    pair = matrices(base, "unet", LAYERS["unet"])[LAYER]
    original = original_names(base)[LAYER]
    for start in ("", "unet.", "base_model.model.unet.", "diffusion_model.", "lora_unet_"):
        for name in (LAYER, original):
            for down, up in (("lora_A.weight", "lora_B.weight"), ("lora_A.default.weight", "lora_B.default.weight")):
                tensors = {f"{start}{name}.{down}": pair[0], f"{start}{name}.{up}": pair[1]}
                lora = Lora(write(tmp_path / "style.safetensors", tensors), 1.0, base)
                assert lora.updates("unet").keys() == {f"{LAYER}.weight"}
