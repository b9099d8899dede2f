"""The files of a checkpoint in diffusers' format: where the folder is, and which of its files are meant.

What is not what was asked for (a single-file checkpoint, an adapter, another library's format) is named. Imports
nothing heavy.
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

# What is read of a checkpoint on the hub.
HUB_FILES = ("*.json", "*.txt", "*/*.safetensors")
OPENCLIP = (
    "Give OpenCLIP's own file, such as open_clip_model.safetensors of laion/CLIP-ViT-H-14-laion2B-s32B-b79K, or one of "
    "its tags."
)
_DIFFUSERS_FORMAT = "the path of a checkpoint folder in diffusers' format"
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_WEIGHT_ENDINGS = (".safetensors", ".ckpt", ".bin", ".pt", ".pth")
# `model.safetensors`, `model.fp16.safetensors`, `model-00001-of-00002.fp16.safetensors`, and the older
# `model.fp16-00001-of-00002.safetensors`
_WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_model|model)(?:\.(?P<first>\w+))?(?:-\d{5}-of-\d{5})?(?:\.(?P<last>\w+))?\.safetensors"
)
# Of a folder without plain weights, the nearest to them first. Others (`non_ema`) are taken only if they are alone.
_VARIANTS = ("fp32", "fp16", "bf16")


@dataclass(frozen=True)
class WeightFiles:
    """The weights of one component.

    Args:
        variant: as diffusers names it; None for the plain ones.
        files: one, or all shards.
        index: of the shards; None where there is one file.
    """

    variant: str | None
    files: tuple[Path, ...]
    index: Path | None = None

    @property
    def all(self) -> tuple[Path, ...]:
        """Every file that decides the weights."""
        return self.files if self.index is None else (self.index, *self.files)


def read_json(path: Path, constants: bool = False) -> dict[str, Any]:
    """Read a JSON object.

    Args:
        path: the file.
        constants: whether NaN and infinities may stand in it.

    Raises:
        InputError: the file is missing, broken, or holds something else than an object.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"), parse_constant=float if constants else _no_constant)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read ({error}).", fix="Use a checkpoint in diffusers' format.") from error
    if not isinstance(values, dict):
        kind = "null" if values is None else f"a {type(values).__name__}"
        raise InputError(
            f"{path} cannot be used: it holds {kind}, not a JSON object.", fix="Copy or download it again."
        )
    return values


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no value")


def checkpoint_folder(model: str) -> Path:
    """Return a checkpoint's folder: the one named, or a hub id's, fetched through huggingface_hub or from its cache.

    The hub is asked only for what is no path.

    Raises:
        InputError: there is neither, or there is something else.
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
    """Return the error of a name that is no path, and that the hub did not give."""
    return InputError(
        f"{model} is neither a built-in model, nor a folder, nor a hub id that can be reached "
        f"({type(error).__name__}).",
        fix=f"Use `demo`, `random-sdxl`, or {_DIFFUSERS_FORMAT}.",
    )


def local_folder(model: str) -> Path | None:
    """Return the checkpoint folder of this path, or None for what can only be a hub id.

    Raises:
        InputError: the path holds something else, or nothing.
    """
    path = Path(model)
    if path.is_file():
        raise InputError(f"{model} is {_file_kind(path)}, not a checkpoint folder.", fix=_conversion(path))
    if path.is_dir():
        if not (path / "model_index.json").is_file():
            raise InputError(f"{model} is not a checkpoint in diffusers' format: {_contents(path)}.", fix=_inside(path))
        return path
    if is_path(model):
        raise InputError(f"There is no folder at {model}.", fix=f"Give {_DIFFUSERS_FORMAT}, or a hub id.")
    return None


def is_path(name: str) -> bool:
    """Return whether a name that no file has is meant as a path: it is no hub id, or starts in a folder that exists."""
    if not _HUB_ID.fullmatch(name) or name.startswith(".") or name.endswith(_WEIGHT_ENDINGS):
        return True
    return "/" in name and Path(Path(name).parts[0]).is_dir()


def image_encoder_file(checkpoint: str) -> Path | None:
    """Return the file of an image encoder, or None for what can only be one of open_clip's tags.

    Raises:
        InputError: the path is of a folder, or of nothing.
    """
    path = Path(checkpoint)
    if path.is_dir():
        whole = (path / "config.json").is_file() and not (path / "open_clip_config.json").is_file()
        what = "an image encoder in transformers' format" if whole else "a folder"
        raise InputError(f"{path} is {what}, not an OpenCLIP checkpoint file.", fix=OPENCLIP)
    if path.is_file():
        return path
    if "/" in checkpoint or is_path(checkpoint):
        raise InputError(f"There is no image encoder at {checkpoint}.", fix=OPENCLIP)
    return None


def tensor_names(path: Path) -> list[str]:
    """Return the names in a safetensors file's header.

    Raises:
        InputError: the file is missing, empty, cut off, or something else.
    """
    if path.is_dir():
        raise InputError(f"{path} cannot be loaded: it is a folder.", fix="Put the safetensors file in its place.")
    try:
        with safe_open(path, framework="numpy") as file:
            return list(file.keys())
    except (SafetensorError, OSError) as error:
        problem = "it is empty" if path.is_file() and not path.stat().st_size else str(error)
        raise InputError(
            f"{path} cannot be loaded: it is not a whole safetensors file ({problem}).",
            fix="Copy or download it again.",
        ) from error


def weight_files(folder: Path, wanted: str | None = None) -> WeightFiles:
    """Return the weights of a component's folder that are meant.

    These are the variant that was asked for, else the plain ones, else fp32, fp16 or bf16, else the only one there is.

    Args:
        folder: of the component.
        wanted: a variant.

    Raises:
        InputError: there are none, several with nothing to choose by, not all shards, or one is damaged.
    """
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}.", fix="Use a checkpoint in diffusers' format.")
    if (folder / "adapter_config.json").exists():
        raise InputError(
            f"{folder} has an adapter beside its weights (adapter_config.json), which would be left out.",
            fix="Merge it into the weights and save them (`merge_and_unload` of PEFT), or remove it.",
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
            fix="Keep the one that is meant.",
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
    """Check that there is one file, or an index and all the shards it names."""
    names = "diffusion_pytorch_model" if files[0].name.startswith("diffusion") else "model"
    index = folder / f"{names}.safetensors.index.{f'{variant}.' if variant else ''}json"
    shards = [file for file in files if re.search(r"-\d{5}-of-\d{5}", file.name)]
    if not shards:
        return WeightFiles(variant, tuple(files))
    if len(shards) < len(files):
        raise InputError(
            f"{folder} has its weights twice, whole and in shards: {', '.join(file.name for file in files)}.",
            fix="Keep those that are meant.",
        )
    places = read_json(index).get("weight_map") if index.is_file() else None
    if not isinstance(places, dict) or not all(isinstance(place, str) for place in places.values()):
        raise InputError(
            f"{folder} has its weights in shards, but no index of them ({index.name}).",
            fix="Copy or download it as well.",
        )
    missing = sorted(set(places.values()) - {file.name for file in shards})
    if missing:
        raise InputError(f"{folder} lacks the shards {', '.join(missing)}.", fix="Copy or download them as well.")
    return WeightFiles(variant, tuple(folder / name for name in sorted(set(places.values()))), index)


def describe_tensors(names: Sequence[str]) -> str:
    """Return what a file with tensors of these names is, or an empty text where that cannot be told."""
    for start, kind in (
        ("model.diffusion_model.", "a single-file checkpoint (as of the original code and of most web interfaces)"),
        ("conditioner.", "a single-file checkpoint (as of the original code and of most web interfaces)"),
        ("vision_model.", "a CLIP image encoder in transformers' format"),
        ("lora_", "a LoRA"),
        ("clip_mapper.", "an identity file of infid-export"),
        ("image_proj", "an IP-Adapter"),
        ("ip_adapter", "an IP-Adapter"),
        ("visual.", "an OpenCLIP checkpoint"),
        ("down_blocks.", "a UNet alone"),
        ("decoder.", "a VAE alone"),
        ("text_model.", "a text encoder alone"),
    ):
        if any(name.startswith(start) for name in names):
            return kind
    return "a LoRA" if any(".lora_" in name or ".lora." in name for name in names) else ""


def _file_kind(path: Path) -> str:
    if path.suffix == ".safetensors":
        return describe_tensors(tensor_names(path)) or "a safetensors file of something else"
    if path.suffix in _WEIGHT_ENDINGS:
        return "a single file of pickled weights"
    return "a file"


def _conversion(path: Path) -> str:
    if path.suffix not in _WEIGHT_ENDINGS:
        return f"Give {_DIFFUSERS_FORMAT}."
    return (
        "A single-file SDXL checkpoint is converted by diffusers: "
        f'`python -c "from diffusers import StableDiffusionXLPipeline as P; '
        f"P.from_single_file({str(path)!r}).save_pretrained('{path.stem}')\"`; then give that folder."
    )


def _inside(folder: Path) -> str:
    """Return what to do with a folder that is no checkpoint itself."""
    nested = sorted(path.parent for path in folder.glob("*/model_index.json"))
    nested += sorted(path.parent for path in folder.glob("snapshots/*/model_index.json"))
    if nested:
        return f"Give the checkpoint inside it: {nested[0]}."
    single = sorted(file for file in folder.glob("*.safetensors") if file.is_file())
    return _conversion(single[0]) if single else f"Give {_DIFFUSERS_FORMAT}: one with model_index.json and unet/."


def _contents(folder: Path) -> str:
    names = sorted(entry.name + ("/" if entry.is_dir() else "") for entry in folder.iterdir())
    if not names:
        return "it is empty"
    return f"it holds {', '.join(names[:8])}{' …' if len(names) > 8 else ''}"
