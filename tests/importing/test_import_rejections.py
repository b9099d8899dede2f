"""Files that cannot be imported: one sentence says what each is, and nothing is left behind."""

from __future__ import annotations

import errno
import os
import sys
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_layouts import DEMO, Tree, adapter, flat, write_adapter
from safetensors.torch import save_file
from torch import Tensor

from infid_engines.errors import DiskFullError, InputError
from infid_export.importing import pickled_file
from infid_export.importing.adapter import import_adapter
from infid_export.importing.weights_file import TensorFacts, open_weights


class Runs:
    """Code in a pickle: it would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


class Swells:
    """A pickle of a few bytes that asks for 2 GB."""

    def __reduce__(self) -> tuple[Any, ...]:
        return bytearray, (1 << 31,)


def rejected(path: Path, **options: Any) -> str:
    """Return the problem, after checking that only the input is left."""
    before = {each.name for each in path.parent.iterdir()}
    with pytest.raises(InputError) as caught:
        import_adapter(path, path.with_name("identity.safetensors"), **{"model": "demo", **options})
    assert {each.name for each in path.parent.iterdir()} == before
    assert caught.value.problem.startswith(str(path))
    assert caught.value.problem.endswith(".") and caught.value.fix.endswith((".", "safetensors"))
    return caught.value.problem


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_pickle_is_named_and_never_runs(legacy: bool, tmp_path: Path) -> None:
    proof = tmp_path / "it-ran"
    torch.save({"image_proj": Runs(proof)}, tmp_path / "evil.bin", _use_new_zipfile_serialization=not legacy)
    problem = rejected(tmp_path / "evil.bin")
    assert not proof.exists()
    assert "contains code that runs when it is loaded (posix.system); nothing of it was run" in problem


def test_the_payload_would_run_if_it_were_loaded_without_care(tmp_path: Path) -> None:
    torch.save({"image_proj": Runs(tmp_path / "it-ran")}, tmp_path / "evil.bin")
    torch.load(tmp_path / "evil.bin", weights_only=False)
    assert (tmp_path / "it-ran").exists()


def test_nothing_is_imported_from_the_folder_of_the_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('imported from the current folder')")
    (tmp_path / "torch.py").write_text("raise SystemExit('imported from the current folder')")
    monkeypatch.chdir(tmp_path)
    path = write_adapter(tmp_path / "adapter.bin", adapter("ip-adapter", DEMO))
    import_adapter(path, tmp_path / "identity.safetensors", model="demo")
    assert str(tmp_path) not in sys.path


def test_a_pickle_that_asks_for_much_memory_gets_none(tmp_path: Path) -> None:
    torch.save({"image_proj": Swells()}, tmp_path / "big.bin")
    assert "needs more memory to be read than a file of its size should (MemoryError" in rejected(tmp_path / "big.bin")


def test_tensors_larger_than_the_file_are_rejected(tmp_path: Path) -> None:
    torch.save({"image_proj": {"latents": torch.zeros(1).expand(1 << 40)}}, tmp_path / "wide.bin")
    assert "tensors that are larger than the file" in rejected(tmp_path / "wide.bin")


def _cut(path: Path, legacy: bool) -> None:
    write_adapter(path, adapter("ip-adapter", DEMO), legacy)
    path.write_bytes(path.read_bytes()[:-5000])


def _archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("readme.txt", "no weights")


PICKLES: Mapping[str, tuple[Callable[[Path], object], str]] = {
    "cut": (lambda path: _cut(path, False), "is truncated or damaged"),
    "cut-old": (lambda path: _cut(path, True), "is truncated or damaged"),
    "text": (lambda path: path.write_text("Access denied. " * 9), "is truncated or damaged, or was not written by"),
    "zip": (_archive, "or was not written by torch.save"),
    "list": (lambda path: torch.save([1, 2], path), "contains a list instead of named tensors"),
    "nested": (lambda path: torch.save({"a": [torch.zeros(2)]}, path), "contains a list named a"),
}


@pytest.mark.parametrize("name", PICKLES)
def test_a_broken_pickle_is_one_sentence(name: str, tmp_path: Path) -> None:
    write, expected = PICKLES[name]
    write(tmp_path / f"{name}.bin")
    assert expected in rejected(tmp_path / f"{name}.bin")


_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n"
FILES: Mapping[str, tuple[bytes, str]] = {
    "empty.bin": (b"", "is empty"),
    "pointer.safetensors": (_POINTER, "a git-lfs pointer"),
    "pointer.bin": (_POINTER, "a git-lfs pointer"),
    "page.bin": (b"\n<!DOCTYPE html><html><head><title>ip-adapter", "it is a web page"),
    "text.safetensors": (b"Access denied", "is not an intact safetensors file"),
    "cut.safetensors": (b"\x40\x00\x00\x00\x00\x00\x00\x00{\"a\":", "is not an intact safetensors file"),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_what_is_no_weights_file_is_one_sentence(name: str, tmp_path: Path) -> None:
    content, expected = FILES[name]
    (tmp_path / name).write_bytes(content)
    assert expected in rejected(tmp_path / name)


@pytest.mark.parametrize("first", [0x3C, 0x50, 0x80])  # as of a web page, an archive and a pickle
def test_the_length_of_a_header_is_not_taken_for_another_format(first: int, tmp_path: Path) -> None:
    path = tmp_path / "adapter.bin"
    header = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    header += b" " * ((first - len(header)) % 256)
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    assert path.read_bytes()[0] == first
    with open_weights(path, tmp_path / "out.safetensors") as file:
        assert dict(file.tensors) == {"a": TensorFacts("float32", (1,))}


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    assert "does not exist" in rejected(tmp_path / "nowhere.bin")
    (tmp_path / "folder").mkdir()
    assert "is a folder" in rejected(tmp_path / "folder")


def _names(*names: str) -> dict[str, Tensor]:
    return {name: torch.zeros(2, 2) for name in names}


KINDS: Mapping[str, tuple[dict[str, Tensor], str]] = {
    "pulid": (_names("id_adapter.latents", "id_adapter_attn_layers.1.id_to_k.weight"),
              "is PuLID: its encoder reads the hidden states of EVA02-CLIP-L-336"),
    "pulid-v1": (_names("id_adapter.body.0.weight", "id_adapter_attn_layers.1.id_to_k.weight"), "is PuLID"),
    "pulid-flux": (_names("pulid_ca.0.to_q.weight", "pulid_encoder.latents"), "is PuLID for Flux"),
    "photomaker": (_names("id_encoder.fuse_module.mlp1.fc1.weight", "lora_weights.unet.x.lora_A.weight"),
                   "is PhotoMaker, which is another mechanism: it changes the prompt's embeddings"),
    "consistentid": (_names("image_proj_model.proj.0.weight", "adapter_modules.1.to_k_ip.weight", "FacialEncoder.x"),
                     "is ConsistentID, which is another mechanism"),
    "training": (_names("unet.x", "image_proj_model.proj.weight", "adapter_modules.1.to_k_ip.weight"),
                 "is a training checkpoint of IP-Adapter"),
    "flux": (_names("double_blocks.0.processor.ip_adapter_double_stream_k_proj.weight", "ip_adapter_proj_model.x"),
             "is an adapter for Flux"),
    "controlnet": (_names("controlnet_cond_embedding.conv_in.weight", "down_blocks.0.x"), "is a ControlNet"),
    "lora": (_names("lora_unet_down_blocks_1.lora_down.weight"), "is a LoRA alone"),
    "faceid-lora": (_names("unet.down_blocks.1.attn1.to_q_lora.down.weight"), "is a LoRA alone"),
    "checkpoint": (_names("model.diffusion_model.input_blocks.0.0.weight"), "is a single-file checkpoint"),
    "clip": (_names("vision_model.embeddings.class_embedding"), "is a CLIP image encoder in transformers' format"),
    "half": (_names("image_proj.proj.weight"), "is only a part of an adapter: it has no tensors named ip_adapter.…"),
    "unknown": (_names("a.b", "c"), "is no adapter that infid-export knows"),
}  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_another_kind_of_file_is_called_by_its_name(name: str, tmp_path: Path) -> None:
    tensors, expected = KINDS[name]
    save_file(tensors, tmp_path / f"{name}.safetensors")
    assert expected in rejected(tmp_path / f"{name}.safetensors")


def test_a_pickled_kind_is_rejected_before_it_is_converted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickled_file.PickledFile, "converted", lambda self: pytest.fail("it was converted"))
    tree = {"id_encoder": _names("fuse_module.mlp1.fc1.weight"), "lora_weights": _names("unet.x.lora_A.weight")}
    torch.save(tree, tmp_path / "photomaker-v1.bin")
    assert "is PhotoMaker" in rejected(tmp_path / "photomaker-v1.bin")


def test_an_identity_file_is_not_imported_again(tmp_path: Path) -> None:
    path = write_adapter(tmp_path / "adapter.safetensors", adapter("ip-adapter", DEMO))
    import_adapter(path, tmp_path / "mine.safetensors", model="demo")
    assert "is already an identity file" in rejected(tmp_path / "mine.safetensors")


def _tree(family: str = "ip-adapter", **sizes: Any) -> Tree:
    return adapter(family, replace(DEMO, **sizes))


def _without(tree: Tree, half: str, name: str) -> Tree:
    del tree[half][name]
    return tree


def _with(tree: Tree, half: str, name: str, value: Tensor) -> Tree:
    tree[half][name] = value
    return tree


SD15 = (64,) * 16
WRONG: Mapping[str, tuple[Callable[[], Tree], str]] = {
    "sd15": (
        lambda: _tree(dim=768, blocks=SD15),
        "is for Stable Diffusion 1.5: it has image keys for 16 layers of width 768",
    ),
    "sd2": (lambda: _tree(dim=1024, blocks=SD15), "is for Stable Diffusion 2"),
    "no-keys": (lambda: {**_tree(), "ip_adapter": _names("0.x")}, "has no image keys (tensors such as ip_adapter.1."),
    "perceiver": (
        lambda: _with(_tree("faceid-plusv2"), "image_proj", "perceiver_resampler.proj_in.weight", torch.zeros(64, 128)),
        "has an image_proj of impossible sizes: mapper_hidden must be cross_attention_dim",
    ),
    "wide": (
        lambda: {**_tree(), "image_proj": {"proj.weight": torch.zeros(70000, 64), "norm.weight": torch.zeros(70000)}},
        "has an image_proj of impossible sizes: cross_attention_dim must be",
    ),
    "depth": (lambda: _tree(blocks=DEMO.blocks[:-1]), "is for another base model: it has image keys for 10 layers"),
    "full-face": (lambda: _with(_tree(), "image_proj", "proj.3.weight", torch.zeros(2)), "is IP-Adapter Full-Face"),
    "portrait": (
        lambda: {**_tree("faceid"), "ip_adapter": _tree()["ip_adapter"]}, "has no LoRA, so it is not FaceID's",
    ),
    "layout": (lambda: {**_tree(), "image_proj": _names("strange.weight")}, "has an image_proj of no known layout"),
    "norm": (lambda: _without(_tree(), "image_proj", "norm.weight"), "lacks the tensor image_proj.norm.weight"),
    "key": (lambda: _without(_tree(), "ip_adapter", "3.to_v_ip.weight"), "lacks tensors: ip_adapter.3.to_v_ip.weight"),
    "lora-half": (
        lambda: _without(_tree("faceid"), "ip_adapter", "4.to_k_lora.up.weight"),
        "lacks tensors: ip_adapter.4.to_k_lora.up.weight",
    ),
    "extra": (
        lambda: _with(_tree(), "ip_adapter", "0.strange", torch.zeros(2)),
        "has unexpected tensors: ip_adapter.0.strange",
    ),
    "shape": (
        lambda: _with(_tree(), "ip_adapter", "1.to_v_ip.weight", torch.zeros(65, 128)),
        "ip_adapter.1.to_v_ip.weight has shape [65, 128], but [64, 128] is needed",
    ),
    "tokens": (lambda: _with(_tree(), "image_proj", "proj.weight", torch.zeros(500, 64)), "no whole number of tokens"),
    "rank": (lambda: _with(_tree(), "image_proj", "proj.weight", torch.zeros(512)), "not 2 positive dimensions"),
    "heads": (lambda: _tree("ip-adapter-plus", hidden=100), "no whole number of heads of 64"),
    "infinite": (
        lambda: _with(_tree(), "image_proj", "norm.bias", torch.full((128,), torch.inf)), "contains non-finite values",
    ),
    "dtype": (
        lambda: _with(_tree(), "image_proj", "norm.bias", torch.zeros(128, dtype=torch.float64)), "is of float64",
    ),
    "integers": (
        lambda: _with(_tree(), "image_proj", "norm.bias", torch.zeros(128, dtype=torch.int64)), "is of I64",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_tensors_are_one_sentence(name: str, tmp_path: Path) -> None:
    tree, expected = WRONG[name]
    assert expected in rejected(write_adapter(tmp_path / f"{name}.safetensors", tree()))


def test_sdxls_adapter_does_not_fit_the_demo_model_and_says_why(tmp_path: Path) -> None:
    path = write_adapter(tmp_path / "adapter.safetensors", _tree(dim=2048, blocks=(2,) * 70))
    assert "is for SDXL: it has image keys for 70 layers of width 2048, but demo has 11 of width 128" in rejected(path)


@pytest.mark.parametrize("format", ["bin", "safetensors"])
def test_a_full_disk_is_one_sentence(format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_adapter(tmp_path / f"adapter.{format}", adapter("ip-adapter", DEMO))

    def full(*arguments: object, **settings: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("infid_export.model.identity.save_file", full)
    with pytest.raises(DiskFullError, match=r"The disk with .*identity\.safetensors is full"):
        import_adapter(path, tmp_path / "identity.safetensors", model="demo")
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_a_full_disk_in_the_child_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_adapter(tmp_path / "adapter.bin", adapter("ip-adapter", DEMO))
    full = "import safetensors.torch as s\ndef full(*_):\n raise OSError(28, 'full')\ns.save_file = full\n"
    monkeypatch.setattr(pickled_file, "_PROGRAM", f"{full}{pickled_file._PROGRAM}")
    with pytest.raises(DiskFullError, match=r"The disk with .* is full"):
        import_adapter(path, tmp_path / "identity.safetensors", model="demo")
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_a_killed_child_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_adapter(tmp_path / "adapter.bin", adapter("ip-adapter", DEMO))
    monkeypatch.setattr(pickled_file, "_PROGRAM", "import os; os.kill(os.getpid(), 9)")
    with pytest.raises(InputError, match=r"was killed \(SIGKILL\); the system probably ran out of memory"):
        import_adapter(path, tmp_path / "identity.safetensors", model="demo")


def test_a_child_that_crashes_has_read_a_damaged_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_adapter(tmp_path / "adapter.bin", adapter("ip-adapter", DEMO))
    monkeypatch.setattr(pickled_file, "_PROGRAM", "import os; os.kill(os.getpid(), 11)")
    assert rejected(path).endswith("is damaged: the process that reads it crashed (SIGSEGV).")


def test_a_child_killed_before_it_writes_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_adapter(tmp_path / "adapter.bin", adapter("ip-adapter", DEMO))
    converted = pickled_file.PickledFile.converted

    def killed(self: pickled_file.PickledFile) -> Path:
        self._process.kill()
        self._process.wait()
        return converted(self)

    monkeypatch.setattr(pickled_file.PickledFile, "converted", killed)
    with pytest.raises(InputError, match=r"was killed \(SIGKILL\); the system probably ran out of memory"):
        import_adapter(path, tmp_path / "identity.safetensors", model="demo")
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_the_adapter_is_not_replaced_by_its_identity_file(tmp_path: Path) -> None:
    path = write_adapter(tmp_path / "adapter.safetensors", adapter("ip-adapter", DEMO))
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"is the adapter's own file, which would be replaced"):
        import_adapter(path, tmp_path / "." / path.name, model="demo")
    assert path.read_bytes() == before


@pytest.mark.parametrize("family", ["faceid", "instantid"])
def test_an_image_encoder_for_weights_that_read_no_image_is_rejected(family: str, tmp_path: Path) -> None:
    path = write_adapter(tmp_path / "adapter.safetensors", adapter(family, DEMO))
    with pytest.raises(InputError, match=r"--image-encoder-name would have no effect: .* reads no image"):
        import_adapter(path, tmp_path / "identity.safetensors", model="demo", image_encoder="ViT-L-14")


def test_an_error_after_the_conversion_leaves_no_temporary_file(tmp_path: Path) -> None:
    tree = _with(_tree(), "ip_adapter", "1.to_k_ip.weight", torch.full((64, 128), torch.nan))
    assert "contains non-finite values" in rejected(write_adapter(tmp_path / "adapter.bin", tree))


def test_names_in_dictionaries_and_dotted_names_are_the_same(tmp_path: Path) -> None:
    torch.save(flat(_tree()), tmp_path / "flat.bin")
    import_adapter(tmp_path / "flat.bin", tmp_path / "identity.safetensors", model="demo")
