"""The files of a checkpoint in diffusers' format: finds its folder and chooses among its files.

Errors name what was found instead (a single-file checkpoint, an adapter, another library's format). Imports are light.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from infid_engines.errors import InputError

# The files to download of a checkpoint on the hub.
HUB_FILES = ("*.json", "*.txt", "*/*.safetensors")
OPENCLIP = (
    "Give OpenCLIP's own file, such as open_clip_model.safetensors from laion/CLIP-ViT-H-14-laion2B-s32B-b79K, the "
    "image_encoder folder that comes with IP-Adapter, or one of OpenCLIP's tags."
)
_DIFFUSERS_FORMAT = "the path of a checkpoint folder in diffusers' format"
_CHECKPOINT = "the path of a safetensors file with an SDXL checkpoint, or of a folder in diffusers' format"
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
# The files of an image encoder in a folder; the first one is taken.
_IMAGE_ENCODERS = ("open_clip_model.safetensors", "model.safetensors", "open_clip_pytorch_model.bin")
_WEIGHT_ENDINGS = (".safetensors", ".ckpt", ".bin", ".pt", ".pth")
# `model.safetensors`, `model.fp16.safetensors`, `model-00001-of-00002.fp16.safetensors`, and the older
# `model.fp16-00001-of-00002.safetensors`
_WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_model|model)(?:\.(?P<first>\w+))?(?:-\d{5}-of-\d{5})?(?:\.(?P<last>\w+))?\.safetensors"
)
# Preferred variants of a folder without plain weights, in order. Others (`non_ema`) are used only if there is just one.
_VARIANTS = ("fp32", "fp16", "bf16")


@dataclass(frozen=True)
class WeightFiles:
    """The weights of one component.

    Args:
        variant: diffusers' name of the variant; None for the plain weights.
        files: one file, or all shards.
        index: index of the shards; None for a single file.
    """

    variant: str | None
    files: tuple[Path, ...]
    index: Path | None = None

    @property
    def all(self) -> tuple[Path, ...]:
        """Every file that the weights depend on."""
        return self.files if self.index is None else (self.index, *self.files)


def read_json(path: Path, constants: bool = False) -> dict[str, Any]:
    """Read a JSON object.

    Args:
        path: the file.
        constants: whether NaN and infinities are allowed.

    Raises:
        InputError: the file is missing or broken, or is not a JSON object.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"), parse_constant=float if constants else _no_constant)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read ({error}).", fix="Use a checkpoint in diffusers' format.") from error
    if not isinstance(values, dict):
        kind = "null" if values is None else f"a {type(values).__name__}"
        raise InputError(
            f"{path} cannot be used: it contains {kind}, not a JSON object.", fix="Copy or download it again."
        )
    return values


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not allowed")


def checkpoint_folder(model: str) -> Path:
    """Return a checkpoint's folder: a local one, or a hub id's, from huggingface_hub or its cache.

    The hub is used only if the name is not a path.

    Raises:
        InputError: neither exists, or the path contains something else.
    """
    found = local_folder(model)
    if found is not None:
        return found
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, allow_patterns=list(HUB_FILES)))
    except Exception as error:  # the hub's errors have no common public base
        raise unreachable(model, error) from error


def unreachable(model: str, error: Exception) -> InputError:
    """Return the error for a name that is neither a path nor available from the hub."""
    return InputError(
        f"{model} is not a built-in model, a folder, or a hub id that can be reached ({type(error).__name__}).",
        fix=f"Use `demo`, `random-sdxl`, `random-medium`, or {_CHECKPOINT}.",
    )


def local_folder(model: str) -> Path | None:
    """Return the checkpoint folder at a path, or None if the name can only be a hub id.

    Raises:
        InputError: the path contains something else, or does not exist.
    """
    path = Path(model)
    if path.is_file():
        raise InputError(f"{model} is a file, not a checkpoint folder.", fix=f"Give {_DIFFUSERS_FORMAT}.")
    if path.is_dir():
        if not (path / "model_index.json").is_file():
            raise InputError(f"{model} is not a checkpoint in diffusers' format: {_contents(path)}.", fix=_inside(path))
        return path
    if is_path(model):
        raise InputError(f"There is no checkpoint at {model}.", fix=f"Give {_CHECKPOINT}, or a hub id.")
    return None


def is_path(name: str) -> bool:
    """Return whether a missing name is meant as a path: it is not a hub id, or starts with an existing folder."""
    if not _HUB_ID.fullmatch(name) or name.startswith(".") or name.endswith(_WEIGHT_ENDINGS):
        return True
    return "/" in name and Path(Path(name).parts[0]).is_dir()


def image_encoder_file(checkpoint: str) -> Path | None:
    """Return the file of an image encoder, or None if the name can only be an open_clip tag.

    Raises:
        InputError: the path does not exist, or is a folder without such a file.
    """
    path = Path(checkpoint)
    if path.is_dir():
        for name in _IMAGE_ENCODERS:
            if (path / name).is_file():
                return path / name
        raise InputError(f"{path} is a folder without an image encoder: {_contents(path)}.", fix=OPENCLIP)
    if path.is_file():
        return path
    if "/" in checkpoint or is_path(checkpoint):
        raise InputError(f"There is no image encoder at {checkpoint}.", fix=OPENCLIP)
    return None


def tensor_names(path: Path) -> list[str]:
    """Return the names in a safetensors file's header.

    Raises:
        InputError: the file is missing, empty, truncated, or not safetensors.
    """
    if path.is_dir():
        raise InputError(f"{path} cannot be loaded: it is a folder.", fix="Put the safetensors file in its place.")
    try:
        with safe_open(path, framework="numpy") as file:
            return list(file.keys())
    except (SafetensorError, OSError) as error:
        raise foreign_file(path) or InputError(
            f"{path} cannot be loaded: it is not an intact safetensors file ({error}).",
            fix="Copy or download it again.",
        ) from error


PICKLED = (b"PK", b"\x80")  # first bytes of what torch.save writes: an archive, or formerly a pickle
# What a file is by its first bytes, and what to do, if it is not a safetensors file.
_FOREIGN: tuple[tuple[bytes | tuple[bytes, ...], str, str], ...] = (
    (b"version https://git-lfs", "it is a git-lfs pointer, the text that git keeps in place of a large file",
     "Fetch the file itself, with `git lfs pull` or by downloading it."),
    (PICKLED, "it is pickled weights, PyTorch's own format, which can contain code",
     "Download the safetensors file, or convert it with a program that you trust."),
    (b"GGUF", "it is a GGUF file with quantized weights", "Download the safetensors file in fp16, bf16 or fp32."),
    (b"<", "it is a web page", "Download the file itself; the site may ask you to sign in first."),
)  # fmt: skip


def foreign_file(path: Path) -> InputError | None:
    """Return the error for a file that is something else than safetensors; None if its first bytes do not show it."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        first = file.read(32)
    if not first:
        return InputError(f"{path} cannot be loaded: it is empty.", fix="Copy or download it again.")
    if first[8:9] == b"{":
        return None  # safetensors; the length of its header, which comes first, can begin with any byte
    for start, what, fix in _FOREIGN:
        if first.lstrip().startswith(start):
            return InputError(f"{path} cannot be loaded: {what}.", fix=fix)
    return None


def weight_files(folder: Path, wanted: str | None = None) -> WeightFiles:
    """Choose the weights in a component's folder.

    The order is: the requested variant, the plain weights, fp32, fp16, bf16, the only other variant.

    Args:
        folder: folder of the component.
        wanted: the requested variant.

    Raises:
        InputError: there are no weights, the choice is ambiguous, a shard is missing, or a file is damaged.
    """
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}.", fix="Use a checkpoint in diffusers' format.")
    if (folder / "adapter_config.json").exists():
        raise InputError(
            f"{folder} has an adapter next to its weights (adapter_config.json), which would be ignored.",
            fix="Merge it into the weights and save them (PEFT's `merge_and_unload`), or remove it.",
        )
    found = _by_variant(folder)
    if not found:
        raise InputError(
            f"{folder} has no weights that diffusers reads (.safetensors): {_contents(folder)}.",
            fix="Download or convert the checkpoint in safetensors format.",
        )
    order = [variant for variant in (wanted, None, *_VARIANTS) if variant in found] or list(found)
    if order[0] not in (wanted, None, *_VARIANTS) and len(found) > 1:
        raise InputError(
            f"{folder} has the variants {', '.join(map(str, found))} and no plain weights.",
            fix="Keep only one of them.",
        )
    chosen = _whole(folder, order[0], found[order[0]])
    for file in chosen.files:
        tensor_names(file)
    return chosen


def _by_variant(folder: Path) -> dict[str | None, list[Path]]:
    found: dict[str | None, list[Path]] = {}
    for file in sorted(folder.iterdir()):
        match = _WEIGHTS.fullmatch(file.name)
        if match:
            found.setdefault(match["first"] or match["last"], []).append(file)
    return found


def _whole(folder: Path, variant: str | None, files: Sequence[Path]) -> WeightFiles:
    """Check that there is one file, or an index and all its shards."""
    names = "diffusion_pytorch_model" if files[0].name.startswith("diffusion") else "model"
    index = folder / f"{names}.safetensors.index.{f'{variant}.' if variant else ''}json"
    shards = [file for file in files if re.search(r"-\d{5}-of-\d{5}", file.name)]
    if not shards:
        return WeightFiles(variant, tuple(files))
    if len(shards) < len(files):
        raise InputError(
            f"{folder} has its weights twice, as one file and as shards: {', '.join(file.name for file in files)}.",
            fix="Keep only one of them.",
        )
    places = read_json(index).get("weight_map") if index.is_file() else None
    if not isinstance(places, dict) or not all(isinstance(place, str) for place in places.values()):
        raise InputError(
            f"{folder} has its weights in shards, but lacks their index ({index.name}).",
            fix="Copy or download it as well.",
        )
    missing = sorted(set(places.values()) - {file.name for file in shards})
    if missing:
        raise InputError(f"{folder} lacks the shards {', '.join(missing)}.", fix="Copy or download them as well.")
    return WeightFiles(variant, tuple(folder / name for name in sorted(set(places.values()))), index)


def describe_tensors(names: Sequence[str]) -> str:
    """Return what a file with these tensor names is, or an empty string if it is unknown."""
    for start, kind in (
        (
            "model.diffusion_model.",
            "a single-file checkpoint (the format of the original code and of most web interfaces)",
        ),
        ("conditioner.", "a single-file checkpoint (the format of the original code and of most web interfaces)"),
        ("vision_model.", "a CLIP image encoder in transformers' format"),
        ("lora_", "a LoRA"),
        ("clip_mapper.", "an identity file from infid-export"),
        ("mapper.", "an identity file from infid-export"),
        ("image_proj", "an IP-Adapter"),
        ("ip_adapter", "an IP-Adapter"),
        ("visual.", "an OpenCLIP checkpoint"),
        ("down_blocks.", "only a UNet"),
        ("decoder.", "only a VAE"),
        ("text_model.", "only a text encoder"),
    ):
        if any(name.startswith(start) for name in names):
            return kind
    return "a LoRA" if any(".lora_" in name or ".lora." in name for name in names) else ""


def _inside(folder: Path) -> str:
    """Return what to do with a folder that is not a checkpoint itself."""
    nested = sorted(path.parent for path in folder.glob("*/model_index.json"))
    nested += sorted(path.parent for path in folder.glob("snapshots/*/model_index.json"))
    if nested:
        return f"Give the checkpoint inside it: {nested[0]}."
    single = sorted(file for file in folder.glob("*.safetensors") if file.is_file())
    return (
        f"Give the file inside it: {single[0]}."
        if single
        else f"Give {_DIFFUSERS_FORMAT}: one with model_index.json and unet/."
    )


def _contents(folder: Path) -> str:
    names = sorted(entry.name + ("/" if entry.is_dir() else "") for entry in folder.iterdir())
    if not names:
        return "it is empty"
    return f"it contains {', '.join(names[:8])}{' …' if len(names) > 8 else ''}"
