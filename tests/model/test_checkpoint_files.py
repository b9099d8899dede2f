"""Where a checkpoint is, which of its files are used, and what else may have been passed instead."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from infid_engines.errors import InputError
from infid_export.model.checkpoints.files import (
    checkpoint_folder,
    image_encoder_file,
    read_json,
    tensor_names,
    weight_files,
)


def tensors(path: Path, *names: str) -> Path:
    save_file({name: np.zeros(2, np.float32) for name in names or ("a",)}, path)
    return path


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def called(*_: object, **__: object) -> None:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr("huggingface_hub.snapshot_download", called)


@pytest.mark.parametrize("content", ["[]", "null", "3", '"x"', "{", "", "[" * 100_000, '{"a": NaN}', b"\xff\xfe\x00"])
def test_json_that_is_no_object_is_named(tmp_path, content):
    path = tmp_path / "config.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=r"config\.json cannot be (read|used)"):
        read_json(path)


def test_json_that_is_a_folder_or_missing_is_named(tmp_path):
    (tmp_path / "a.json").mkdir()
    for name in ("a.json", "b.json"):
        with pytest.raises(InputError, match=rf"{name} cannot be read"):
            read_json(tmp_path / name)


def test_infinities_are_allowed_where_schedulers_have_them(tmp_path):
    path = tmp_path / "scheduler_config.json"
    path.write_text('{"lambda_min_clipped": -Infinity}')
    assert read_json(path, constants=True)["lambda_min_clipped"] == float("-inf")


def test_a_file_is_no_folder(tmp_path, no_hub):
    path = tensors(tmp_path / "model.safetensors", "x")
    with pytest.raises(InputError, match=r"is a file, not a checkpoint folder\. Give the path of a checkpoint folder"):
        checkpoint_folder(str(path))


def test_a_folder_that_is_no_checkpoint_says_what_it_holds(tmp_path, no_hub):
    with pytest.raises(InputError, match="it is empty"):
        checkpoint_folder(str(tmp_path))
    tensors(tmp_path / "sdxl.safetensors", "model.diffusion_model.x")
    with pytest.raises(
        InputError, match=r"it contains sdxl\.safetensors.*Give the file inside it: .*/sdxl\.safetensors"
    ):
        checkpoint_folder(str(tmp_path))
    (tmp_path / "snapshots/abc").mkdir(parents=True)
    (tmp_path / "snapshots/abc/model_index.json").write_text("{}")
    with pytest.raises(InputError, match=r"Give the checkpoint inside it: .*snapshots/abc"):
        checkpoint_folder(str(tmp_path))


@pytest.mark.parametrize(
    "name", ["/no/such", "./sdxl", "../sdxl", "~/sdxl", "a/b/c", "sdxl.safetensors", "models/sdxl", "", "a\\b", "a b"]
)
def test_a_path_to_nothing_is_no_hub_id(tmp_path, no_hub, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    with pytest.raises(InputError, match=r"There is no checkpoint at|is not a checkpoint"):
        checkpoint_folder(name)


def test_a_hub_id_is_asked_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = []
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **_: asked.append(name) or str(tmp_path))
    assert checkpoint_folder("stabilityai/stable-diffusion-xl-base-1.0") == tmp_path
    assert asked == ["stabilityai/stable-diffusion-xl-base-1.0"]


PLAIN = "diffusion_pytorch_model.safetensors"
FP16 = "diffusion_pytorch_model.fp16.safetensors"
BF16 = "diffusion_pytorch_model.bf16.safetensors"
NON_EMA = "diffusion_pytorch_model.non_ema.safetensors"
EMA = "diffusion_pytorch_model.ema.safetensors"


@pytest.mark.parametrize(
    ("files", "wanted", "chosen"),
    [
        ([PLAIN, FP16, NON_EMA], None, (None, [PLAIN])),
        ([PLAIN, FP16, NON_EMA], "fp16", ("fp16", [FP16])),
        ([PLAIN], "fp16", (None, [PLAIN])),
        ([FP16, BF16], None, ("fp16", [FP16])),
        ([BF16], None, ("bf16", [BF16])),
        ([NON_EMA], None, ("non_ema", [NON_EMA])),
        ([FP16, NON_EMA], None, ("fp16", [FP16])),
        (["model.fp16.safetensors"], None, ("fp16", ["model.fp16.safetensors"])),
    ],
)
def test_the_weights_that_are_meant_are_chosen(tmp_path, files, wanted, chosen):
    for name in files:
        tensors(tmp_path / name)
    found = weight_files(tmp_path, wanted)
    assert (found.variant, [file.name for file in found.files]) == chosen


SHARDS = {
    None: ("diffusion_pytorch_model-0000{}-of-00002.safetensors", "diffusion_pytorch_model.safetensors.index.json"),
    "fp16": (
        "diffusion_pytorch_model-0000{}-of-00002.fp16.safetensors",
        "diffusion_pytorch_model.safetensors.index.fp16.json",
    ),
    "fp16 as older versions wrote it": (
        "diffusion_pytorch_model.fp16-0000{}-of-00002.safetensors",
        "diffusion_pytorch_model.safetensors.index.fp16.json",
    ),
}


@pytest.fixture
def sharded(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    shard, index = SHARDS[request.param]
    for number in (1, 2):
        tensors(tmp_path / shard.format(number))
    (tmp_path / index).write_text(json.dumps({"weight_map": {"a": shard.format(1), "b": shard.format(2)}}))
    return tmp_path


@pytest.mark.parametrize("sharded", SHARDS, indirect=True)
def test_shards_are_chosen_whole_or_the_missing_ones_named(sharded):
    found = weight_files(sharded)
    assert len(found.files) == 2 and found.index is not None and found.all[0] == found.index
    second = found.files[1]
    second.unlink()
    with pytest.raises(InputError, match=f"lacks the shards {second.name}"):
        weight_files(sharded)
    shutil.copyfile(found.files[0], second)
    for content in ("{}", "[]", '{"weight_map": {"a": 1}}'):
        found.index.write_text(content)
        with pytest.raises(InputError, match="index"):
            weight_files(sharded)
    found.index.unlink()
    with pytest.raises(InputError, match="lacks their index"):
        weight_files(sharded)


@pytest.mark.parametrize("sharded", [None], indirect=True)
def test_weights_that_are_there_twice_are_named(sharded):
    tensors(sharded / PLAIN)
    with pytest.raises(InputError, match="twice, as one file and as shards"):
        weight_files(sharded)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "it is empty"),
        (["diffusion_pytorch_model.bin"], r"it contains diffusion_pytorch_model\.bin"),
        (["diffusion_pytorch_model (1).safetensors"], r"it contains diffusion_pytorch_model \(1\)"),
        (["pytorch_lora_weights.safetensors"], "it contains pytorch_lora_weights"),
        ([NON_EMA, EMA], "variants ema, non_ema"),
        ([PLAIN, "adapter_config.json"], "has an adapter next to its weights"),
    ],
)
def test_weights_that_cannot_be_chosen_are_named(tmp_path, files, message):
    for name in files:
        tensors(tmp_path / name)
    with pytest.raises(InputError, match=message):
        weight_files(tmp_path)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def foreign(path: Path) -> None:
    path.write_bytes(b"PK\x03\x04" * 100)


def huge_header(path: Path) -> None:
    path.write_bytes((1 << 62).to_bytes(8, "little") + b"{}")


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def link_to_nothing(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.with_name("gone"))


@pytest.mark.parametrize("damage", [empty, cut, foreign, huge_header, folder, link_to_nothing])
def test_damaged_weights_are_named_before_anything_is_loaded(tmp_path, damage):
    path = tensors(tmp_path / PLAIN)
    damage(path)
    with pytest.raises(InputError, match=r"cannot be loaded"):
        weight_files(tmp_path)
    with pytest.raises(InputError, match=r"cannot be loaded"):
        tensor_names(path)


def test_an_image_encoder_that_is_no_file_is_named(tmp_path):
    assert image_encoder_file("laion2b_s32b_b79k") is None
    for name in ("/no/file", "open_clip.safetensors", "./encoder", "laion/CLIP-ViT-H-14"):
        with pytest.raises(InputError, match="There is no image encoder at"):
            image_encoder_file(name)
    with pytest.raises(InputError, match="is a folder without an image encoder: it is empty"):
        image_encoder_file(str(tmp_path))
    for name in ("model.safetensors", "open_clip_model.safetensors"):  # the second goes before the first
        (tmp_path / name).touch()
        assert image_encoder_file(str(tmp_path)) == tmp_path / name
