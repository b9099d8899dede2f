"""Every family, in both file formats: what it is recognized as, and what is written."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from adapter_layouts import DEMO, FAMILIES, SDXL, Sizes, adapter, flat, write_adapter
from safetensors import safe_open

from infid_engines.errors import InputError
from infid_export.importing import target as targets
from infid_export.importing.adapter import Imported, import_adapter
from infid_export.importing.licenses import LICENSES
from infid_export.importing.target import Target, known_encoders, open_target
from infid_export.model.architectures import DEMO as DEMO_MODEL
from infid_export.model.config import IdentityConfig, read_config
from infid_export.model.identity import IdentityModules
from infid_export.model.identity_header import lora_tensors, stored_license

# IP-Adapter's own configuration of each family: mapper, what it reads of the image encoder, form of the face
# embedding, what the unconditional rows see, and identity tokens.
EXPECTED: dict[str, tuple[Any, ...]] = {
    "ip-adapter": ("linear", "pooled", 0, "normalized", "zeros", "whole", 4),
    "ip-adapter-plus": ("resampler", "penultimate", 0, "normalized", "zero_image", "whole", 6),
    "ip-adapter-plus-face": ("resampler", "penultimate", 0, "normalized", "zero_image", "portrait", 6),
    "faceid": ("mlp", "none", 512, "normalized", "zeros", "portrait", 4),
    "faceid-plusv2": ("mlp_perceiver", "penultimate", 512, "normalized", "zero_image", "aligned", 4),
    "instantid": ("resampler", "none", 512, "raw", "zeros", "portrait", 6),
}
NAMES = {"ip-adapter-plus": "ip-adapter-plus_sdxl_vit-h", "ip-adapter-plus-face": "ip-adapter-plus-face_sdxl_vit-h"}


def imported(path: Path, **options: Any) -> Imported:
    return import_adapter(path, path.with_name("identity.safetensors"), **{"model": "demo", **options})


@pytest.fixture(scope="module")
def demo() -> Target:
    return open_target("demo")[0]


@pytest.mark.parametrize("format", ["bin", "safetensors"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_tensor_gets_our_name_and_keeps_its_values(
    family: str, format: str, demo: Target, tmp_path: Path
) -> None:
    tree = adapter(family, DEMO, torch.float16)
    source = write_adapter(tmp_path / f"{NAMES.get(family, family)}.{format}", tree)
    found = imported(source)
    assert found.found.name == family
    config = read_config(tmp_path / "identity.safetensors")
    assert config == found.config
    face = config.face_width
    assert (config.mapper, config.clip_layer, face, config.face_embedding, config.uncond_identity, config.crop,
            config.tokens) == EXPECTED[family]  # fmt: skip
    assert (config.self_attention, config.adain, config.cross_adain, config.streams) == ("plain", "off", "off", "one")
    assert config.shortcut == (family == "faceid-plusv2")
    assert stored_license(tmp_path / "identity.safetensors") == LICENSES[family] == found.license
    with safe_open(tmp_path / "identity.safetensors", framework="pt") as file:
        written = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    expected = {f"mapper.{name}": value for name, value in tree["image_proj"].items()}
    for name, value in tree["ip_adapter"].items():
        expected[our_name(name, demo)] = value
    assert written.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) and value.dtype == torch.float16 for name, value in written.items())
    assert bool(lora_tensors(tmp_path / "identity.safetensors")) == family.startswith("faceid")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([source.name, "identity.safetensors"])
    IdentityModules.load(tmp_path / "identity.safetensors", demo.blocks)  # with its seal


def our_name(name: str, target: Target) -> str:
    """Return our name of `{index}.{layer}…`, written out from the layout's description."""
    index, part, rest = name.split(".", 2)
    path = list(target.blocks)[int(index) // 2]
    if part.endswith("_ip"):
        return f"{path}.{part[:-3]}_id.{rest}"
    attention = path if int(index) % 2 else path.replace("attn2", "attn1")
    layer = {"to_out_lora": "to_out.0"}.get(part, part.removesuffix("_lora"))
    return f"lora.{attention}.{layer}.{rest}"


def test_an_old_pickle_is_read_as_well(tmp_path: Path) -> None:
    tree = adapter("ip-adapter", DEMO)
    write_adapter(tmp_path / "old.bin", {**tree, "global_step": 3}, legacy=True)  # type: ignore[dict-item]
    imported(tmp_path / "old.bin")
    with safe_open(tmp_path / "identity.safetensors", framework="pt") as file:
        assert torch.equal(file.get_tensor("mapper.proj.weight"), tree["image_proj"]["proj.weight"])


def test_a_negation_that_torch_has_only_noted_is_kept(tmp_path: Path) -> None:
    tree = adapter("ip-adapter", DEMO)
    bias = tree["image_proj"]["proj.bias"]
    tree["image_proj"]["proj.bias"] = torch._neg_view(bias)
    imported(write_adapter(tmp_path / "negated.bin", tree))
    with safe_open(tmp_path / "identity.safetensors", framework="pt") as file:
        assert torch.equal(file.get_tensor("mapper.proj.bias"), -bias)


def test_the_index_counts_sdxls_attention_layers_as_ip_adapter_does() -> None:
    """The order was read from the processors of diffusers' full UNet: down, up, mid."""
    target = open_target("random-sdxl")[0]
    places = [("down_blocks.1", 2, 2, 640), ("down_blocks.2", 2, 10, 1280), ("up_blocks.0", 3, 10, 1280),
              ("up_blocks.1", 3, 2, 640), ("mid_block", 1, 10, 1280)]  # fmt: skip
    expected = {
        f"{place}.attentions.{attention}.transformer_blocks.{block}.attn2": channels
        for place, attentions, depth, channels in places
        for attention in range(attentions)
        for block in range(depth)
    }
    assert list(target.blocks.items()) == list(expected.items())
    assert tuple(target.blocks.values()) == SDXL.blocks
    assert target.attentions[8] == "down_blocks.2.attentions.0.transformer_blocks.0.attn1"
    assert target.attentions[139] == "mid_block.attentions.0.transformer_blocks.9.attn2"
    assert target.layers["mid_block.attentions.0.transformer_blocks.9.attn2.to_k"] == (1280, 2048)


@pytest.mark.parametrize(
    ("family", "size", "encoder", "tokens", "width"),
    [
        ("ip-adapter", SDXL, "ViT-bigG-14", 1, 1280),
        ("ip-adapter", replace(SDXL, pooled=1024), "ViT-H-14", 1, 1024),
        ("ip-adapter-plus", SDXL, "ViT-H-14", 257, 1280),
    ],
)
def test_the_image_encoder_is_chosen_by_its_width(
    family: str, size: Sizes, encoder: str, tokens: int, width: int, tmp_path: Path
) -> None:
    small = replace(size, blocks=DEMO.blocks, dim=DEMO.dim, hidden=DEMO.hidden)
    source = write_adapter(tmp_path / "adapter.safetensors", adapter(family, small))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(targets, "BUILT_IN", {"demo": replace(DEMO_MODEL, image_encoder=targets.SDXL.image_encoder)})
        config = imported(source, dry_run=True).config
    assert (config.image_encoder, config.clip_tokens, config.clip_width) == (encoder, tokens, width)


def test_the_sizes_of_big_g_are_open_clips() -> None:
    (ours,) = (config for name, config in known_encoders(None, None).items() if name == "ViT-bigG-14")
    theirs = open_clip.get_model_config("ViT-bigG-14")
    assert {**theirs["vision_cfg"], "embed_dim": theirs["embed_dim"]}.items() >= ours.items()


def test_another_image_encoder_can_be_named(tmp_path: Path) -> None:
    source = write_adapter(tmp_path / "adapter.safetensors", adapter("ip-adapter-plus", replace(DEMO, width=1024)))
    with pytest.raises(InputError, match=r"images of width 1024, which no known image encoder has \(128 of ViT-H-14"):
        imported(source)
    config = imported(source, image_encoder="ViT-L-14-336", dry_run=True).config
    assert (config.image_encoder, config.clip_tokens) == ("ViT-L-14-336", 577)


@pytest.mark.parametrize(("name", "asked", "expected"), [
    ("adapter", None, "ip-adapter-plus"), ("my-FACE", None, "ip-adapter-plus-face"),
    ("adapter", "ip-adapter-plus-face", "ip-adapter-plus-face"), ("plus-face", "ip-adapter-plus", "ip-adapter-plus"),
])  # fmt: skip
def test_plus_and_plus_face_are_told_apart_by_name_or_flag(
    name: str, asked: str | None, expected: str, tmp_path: Path
) -> None:
    source = write_adapter(tmp_path / f"{name}.safetensors", adapter("ip-adapter-plus", DEMO))
    found = imported(source, family=asked, dry_run=True).found
    assert found.name == expected
    assert found.reason == "--family" if asked else "face" in found.reason


def test_a_family_that_the_tensors_rule_out_is_rejected(tmp_path: Path) -> None:
    source = write_adapter(tmp_path / "adapter.safetensors", adapter("faceid", DEMO))
    with pytest.raises(InputError, match="is not InstantID: its image_proj is that of IP-Adapter FaceID"):
        imported(source, family="instantid")


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    source = write_adapter(tmp_path / "adapter.bin", adapter("faceid", DEMO))
    found = imported(source, dry_run=True)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter.bin"]
    assert sum(found.bytes.values()) == sum(value.nbytes for value in flat(adapter("faceid", DEMO)).values())


def test_the_result_replaces_an_older_one_only_when_it_is_whole(tmp_path: Path) -> None:
    good = write_adapter(tmp_path / "good.safetensors", adapter("ip-adapter", DEMO))
    imported(good)
    before = (tmp_path / "identity.safetensors").read_bytes()
    imported(good)
    assert (tmp_path / "identity.safetensors").read_bytes() == before, "the same file gives the same bytes"
    tree = adapter("ip-adapter", DEMO)
    tree["ip_adapter"]["1.to_k_ip.weight"][0, 0] = torch.nan
    with pytest.raises(InputError, match=r"ip_adapter\.1\.to_k_ip\.weight contains non-finite values"):
        imported(write_adapter(tmp_path / "bad.safetensors", tree))
    assert (tmp_path / "identity.safetensors").read_bytes() == before


def test_the_configuration_is_json_in_the_header(tmp_path: Path) -> None:
    imported(write_adapter(tmp_path / "adapter.safetensors", adapter("instantid", DEMO)))
    with safe_open(tmp_path / "identity.safetensors", framework="pt") as file:
        config = json.loads(file.metadata()["infid_config"])
    assert config["family"] == "instantid"
    assert IdentityConfig(**config).face_embedding == "raw"
