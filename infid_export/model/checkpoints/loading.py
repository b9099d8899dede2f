"""Loads a checkpoint's networks through their libraries. Every weight must be present, fit and be finite."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from infid_engines.errors import InfidError, InputError
from infid_export.model.checkpoints.files import (
    OPENCLIP,
    image_encoder_file,
    tensor_names,
    weight_files,
)
from infid_export.model.checkpoints.weight_names import WITHOUT_EFFECT, require_all
from infid_export.model.encoders import MEAN as _MEAN
from infid_export.model.encoders import STD as _STD
from infid_export.model.finite import not_finite, require_finite
from infid_export.model.vision_layout import (
    OPENCLIP_PREFIX,
    check_configuration,
    check_size,
    openclip_weights,
    require_image_encoder,
    size_of,
)

# Tensors of one component that no result depends on, beside `WITHOUT_EFFECT`: SDXL uses only the hidden states of the
# first text encoder.
_UNREAD = {"text_encoder": ("text_projection.weight",)}
# The ImageEncoder's preprocessing.
_PREPROCESSING = {"mean": _MEAN, "std": _STD, "quick_gelu": False}


def load_network(folder: Path, component: str, dtype: torch.dtype, variant: str | None = None) -> nn.Module:
    """Load a UNet, VAE or text encoder of a checkpoint folder.

    Args:
        folder: folder of the checkpoint.
        component: `unet`, `vae`, `text_encoder` or `text_encoder_2`.
        dtype: dtype of the loaded weights.
        variant: the preferred variant of the files, see `weight_files`.

    Returns:
        The module from its library.

    Raises:
        InputError: weights are missing, unexpected, damaged or not finite, or have another shape.
    """
    chosen = weight_files(folder / component, variant)
    kind = _library_class(component)
    with explained(f"The {component} weights of {folder}"), _without_bars(kind):
        module, report = kind.from_pretrained(
            folder,
            subfolder=component,
            variant=chosen.variant,
            torch_dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            ignore_mismatched_sizes=True,  # the report lists them by name
            output_loading_info=True,
        )
    unread = (*WITHOUT_EFFECT, *_UNREAD.get(component, ()))
    require_all(
        f"The {component} weights of {folder}",
        missing=report["missing_keys"],
        unexpected=[name for name in report["unexpected_keys"] if not name.endswith(unread)],
        mismatched=[each if isinstance(each, str) else each[0] for each in report["mismatched_keys"]],
    )
    if not_finite(module) is not None and dtype != torch.float32:
        require_finite(load_network(folder, component, torch.float32, variant), f"The {component} of {folder}", dtype)
    return require_finite(module, f"The {component} of {folder}", dtype)


def load_image_encoder(encoder: nn.Module, name: str, checkpoint: str) -> nn.Module:
    """Load the weights of a checkpoint, in OpenCLIP's or transformers' layout, into an image encoder.

    Args:
        encoder: an `ImageEncoder` on the meta device.
        name: open_clip's name of the architecture.
        checkpoint: a file or folder, or a tag that open_clip can download.

    Returns:
        The same module, with weights in the file's dtype.

    Raises:
        InputError: the checkpoint is missing or damaged, or has another format or architecture.
    """
    file = image_encoder_file(checkpoint) or _fetched(name, checkpoint)
    if file.suffix == ".safetensors":
        require_image_encoder(file, tensor_names(file))
    from open_clip.factory import load_state_dict

    with explained(f"The image_encoder weights of {file}"):
        stored: dict[str, Any] = load_state_dict(str(file))
        require_image_encoder(file, list(map(str, stored)))
    wanted = encoder.state_dict()
    weights = openclip_weights(stored)
    check_size(file, size_of(_shapes(weights)), name, size_of(_shapes(wanted)))
    if not any(key.startswith(OPENCLIP_PREFIX) for key in stored):
        visual: Any = encoder.visual
        heads = visual.transformer.resblocks[0].attn.num_heads
        check_configuration(file.parent, heads, whole=Path(checkpoint).is_dir())
    require_all(
        f"The image_encoder weights of {file}, as {name},",
        missing=wanted.keys() - weights.keys(),
        unexpected=weights.keys() - wanted.keys(),
        mismatched=[key for key in wanted.keys() & weights.keys() if wanted[key].shape != weights[key].shape],
    )
    encoder.load_state_dict(weights, assign=True)
    return encoder


def _library_class(component: str) -> Any:
    if component in ("unet", "vae"):
        import diffusers

        return diffusers.UNet2DConditionModel if component == "unet" else diffusers.AutoencoderKL
    import transformers

    return transformers.CLIPTextModel if component == "text_encoder" else transformers.CLIPTextModelWithProjection


def _fetched(name: str, tag: str) -> Path:
    """Download a checkpoint that open_clip knows by a tag.

    Raises:
        InputError: there is no such tag, it has another preprocessing, or it cannot be downloaded.
    """
    import open_clip
    from open_clip.pretrained import download_pretrained

    known = open_clip.get_pretrained_cfg(name, tag)
    if not known:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none"
        raise InputError(
            f"There is no file {tag}, and open_clip has no such checkpoint for {name} ({tags}).", fix=OPENCLIP
        )
    other = [f"{field} = {known[field]}" for field, value in _PREPROCESSING.items() if known.get(field, value) != value]
    if other:
        raise InputError(f"open_clip's {tag} was trained with {', '.join(other)}.", fix="Choose another checkpoint.")
    with explained(f"open_clip's checkpoint {tag}", fix="Give a file, or connect to the hub."):
        return Path(download_pretrained(known))


def _shapes(weights: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in weights.items()}


@contextmanager
def _without_bars(kind: Any) -> Iterator[None]:
    """Disable a library's own progress bars."""
    bars = import_module(f"{kind.__module__.partition('.')[0]}.utils.logging")
    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            bars.enable_progress_bar()


@contextmanager
def explained(what: str, fix: str = "Copy or download them again.") -> Iterator[None]:
    """Turn a library's exceptions, which have no common base, into one sentence; silence its warnings."""
    loggers = [logging.getLogger(name) for name in ("diffusers", "transformers")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    except (InfidError, ImportError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        full = "can't allocate memory" in str(error)  # torch has no class for this error on CPUs
        advice = "Free memory, or use a machine with more memory." if full else fix
        raise InputError(f"{what} cannot be loaded ({lines[0][:300]}).", fix=advice) from error
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
