"""Recognizes from its first bytes or its tensors what a file is, and rejects by name what is not an SDXL checkpoint."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from infid_engines.errors import InputError
from infid_export.model.checkpoints.files import describe_tensors
from infid_export.model.checkpoints.original_layout import PREFIXES
from infid_export.model.checkpoints.tensor_file import TensorFile

_SDXL = "Give an SDXL checkpoint: the base model, or a fine-tune of it."
_UNET, _VAE = PREFIXES["unet"], PREFIXES["vae"]
_BASE = "the base checkpoint with --model"
# Starts of the names of a UNet and of a VAE, in both layouts, and of the part of SDXL's UNet that reads the image size.
_UNET_STARTS = (f"{_UNET}input_blocks.", "input_blocks.", "down_blocks.")
_VAE_STARTS = (_VAE, "encoder.down", "decoder.up")
_SIZE_STARTS = (f"{_UNET}label_emb.", "label_emb.", "add_embedding.")


@dataclass(frozen=True)
class _Kind:
    """A kind of file that is not an SDXL checkpoint.

    Args:
        what: what it is, as the end of a sentence that starts with its path and "is".
        fix: what to do.
        starts: a file is of this kind if a tensor's name starts with one of these.
    """

    what: str
    fix: str
    starts: tuple[str, ...]


# The first that fits names the file. The former are rejected even if the file has all of SDXL's networks.
_CHANGED = (
    _Kind(
        "an EDM checkpoint (its noise levels are continuous), which SDXL's noise schedule does not sample", _SDXL,
        ("edm_mean", "edm_std", "edm_vpred.", "edm_eps."),
    ),
    _Kind(
        "a ControlNet, which this package does not use", _SDXL,
        ("control_model.", "controlnet_", "input_hint_block.", "control_add_embedding."),
    ),
)  # fmt: skip
_OTHERS = (
    *_CHANGED,
    _Kind("a Stable Diffusion 3 checkpoint, not SDXL", _SDXL, (f"{_UNET}joint_blocks.", "joint_blocks.")),
    _Kind(
        "a Flux checkpoint, not SDXL", _SDXL,
        (f"{_UNET}double_blocks.", "double_blocks.", "single_transformer_blocks."),
    ),
    _Kind("a Stable Diffusion 1 checkpoint, not SDXL", _SDXL, ("cond_stage_model.transformer.",)),
    _Kind("a Stable Diffusion 2 checkpoint, not SDXL", _SDXL, ("cond_stage_model.model.",)),
    _Kind("SDXL's refiner, which cannot draw an image alone", _SDXL, ("conditioner.embedders.0.model.",)),
    _Kind("a textual inversion (learned words)", _SDXL, ("clip_g", "clip_l", "emb_params", "string_to_param")),
)  # fmt: skip
_PARTS = (
    _Kind(
        "only a UNet: the VAE and both text encoders are missing", f"Give {_BASE}, and this file with --unet.",
        _UNET_STARTS,
    ),
    _Kind("only a VAE", f"Give it with --vae, and {_BASE}.", _VAE_STARTS),
    _Kind(
        "only a text encoder", _SDXL,
        ("conditioner.", "text_model.", "transformer.resblocks.", "encoder.layers.", "embeddings.token_embedding."),
    ),
)  # fmt: skip

_GIVEN = {"unet": "--unet FILE", "vae": "--vae PATH"}  # the networks that can come from elsewhere
# What to give another kind of file with.
_WHERE = {
    "a LoRA": f"Give {_BASE}, and this file with --lora.",
    "an IP-Adapter": f"Give {_BASE}, and convert this file with `infid-export import`.",
    "an identity file from infid-export": f"Give {_BASE}, and this file with --identity.",
    "an OpenCLIP checkpoint": f"Give {_BASE}, and this file with --image-encoder.",
}


def checkpoint_file(model: str, without: Collection[str] = ()) -> Path | None:
    """Return the single-file checkpoint at a path, or None if there is no file.

    Args:
        model: the path.
        without: see `require_checkpoint`.

    Raises:
        InputError: the file is not safetensors, or is something else than an SDXL checkpoint.
    """
    path = Path(model)
    if not path.is_file():
        return None
    require_checkpoint(TensorFile.open(path), without)
    return path


def require_checkpoint(file: TensorFile, without: Collection[str] = ()) -> None:
    """Check that a file has the UNet, VAE and both text encoders of SDXL, by names and shapes.

    Args:
        file: the file.
        without: the networks that it may lack, since others replace them.

    Raises:
        InputError: it is something else; the message names it.
    """
    names = list(file.shapes)
    if any(not _any(names, (prefix,)) for name, prefix in PREFIXES.items() if name not in without):
        _reject(file.path, names, _OTHERS)
        _reject_part(file.path, names)
    _reject(file.path, names, _CHANGED)
    if _any(names, (_UNET,)):
        _require_inputs(file)


def require_unet(file: TensorFile) -> None:
    """Check that a file has a UNet that reads 4 latent channels and SDXL's text, by names and shapes.

    Raises:
        InputError: its UNet is another model's.
    """
    names = list(file.shapes)
    _reject(file.path, names, _OTHERS)
    if not _any(names, _UNET_STARTS) or describe_tensors(names) in _WHERE:
        raise InputError(f"{file.path} is {_described(names)}, not a UNet.", fix="Give a UNet for SDXL.")
    _require_inputs(file)


def require_vae(file: TensorFile) -> None:
    """Check that a file has a VAE whose latents have 4 channels, by names and shapes.

    Raises:
        InputError: it is something else, or another model's.
    """
    names = list(file.shapes)
    _reject(file.path, names, _OTHERS)
    if not _any(names, _VAE_STARTS):
        raise InputError(f"{file.path} is {_described(names)}, not a VAE.", fix="Give a VAE for SDXL.")
    channels = _input_channels(file, [f"{start}decoder.conv_in.weight" for start in (_VAE, "")])
    if channels not in (None, 4):
        raise InputError(
            f"{file.path} is another model's VAE: its latents have {channels} channels, and SDXL's have 4.",
            fix="Give a VAE for SDXL.",
        )


def _require_inputs(file: TensorFile) -> None:
    """Check what the UNet of a file reads.

    Raises:
        InputError: it is another model's.
    """
    names = [f"{start}{name}" for name in ("input_blocks.0.0.weight", "conv_in.weight") for start in (_UNET, "")]
    inputs = _input_channels(file, names)
    if inputs not in (None, 4):
        kind = {9: "an inpainting model", 8: "an instruct-pix2pix model"}.get(inputs or 0, "another model")
        raise InputError(f"{file.path} is {kind}: its UNet reads {inputs} channels, not 4.", fix=_SDXL)
    if not _any(list(file.shapes), _SIZE_STARTS):
        raise InputError(f"{file.path} is not for SDXL: its UNet does not read the image size.", fix=_SDXL)


def _input_channels(file: TensorFile, names: Sequence[str]) -> int | None:
    """Return the input channels of a convolution, or None if the file has none by these names."""
    found = [file.shapes[name] for name in names if len(file.shapes.get(name, ())) == 4]
    return found[0][1] if found else None


def _reject_part(path: Path, names: Sequence[str]) -> None:
    """Reject a file without some of the networks.

    Raises:
        InputError: always.
    """
    found = [name for name, prefix in PREFIXES.items() if _any(names, (prefix,))]
    missing = [name for name in PREFIXES if name not in found]
    if len(found) > 1:
        raise InputError(
            f"{path} is an incomplete checkpoint: its {' and '.join(missing)} {_are(missing)} missing.",
            fix=_completion(missing),
        )
    kind = describe_tensors(names)
    if kind.startswith(("a LoRA", "an IP-Adapter", "an identity", "an OpenCLIP", "a CLIP")):
        raise InputError(f"{path} is {kind}, not a checkpoint.", fix=_WHERE.get(kind, _SDXL))
    _reject(path, names, _PARTS)
    raise InputError(f"{path} is {_described(names)}, not a checkpoint.", fix=_SDXL)


def _completion(missing: Sequence[str]) -> str:
    """Return what to do about networks that a checkpoint lacks."""
    if set(missing) <= set(_GIVEN):
        return f"Add {' and '.join(_GIVEN[name] for name in missing)}, or use a file with all networks."
    return "Use a file with UNet, VAE and both text encoders."


def _described(names: Sequence[str]) -> str:
    return describe_tensors(names) or f"another kind of file (tensors such as {', '.join(sorted(names)[:3])})"


def _reject(path: Path, names: Sequence[str], kinds: Sequence[_Kind]) -> None:
    for kind in kinds:
        if _any(names, kind.starts):
            raise InputError(f"{path} is {kind.what}.", fix=kind.fix)


def _any(names: Sequence[str], starts: tuple[str, ...]) -> bool:
    return any(name.startswith(starts) for name in names)


def _are(names: Sequence[str]) -> str:
    return "are" if len(names) > 1 else "is"
