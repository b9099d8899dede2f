"""Recognizes from its first bytes or its tensors what a file is, and rejects by name what is not an SDXL checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from infid_engines.errors import InputError
from infid_export.model.checkpoint_files import describe_tensors
from infid_export.model.original_layout import PREFIXES
from infid_export.model.tensor_file import TensorFile

_SDXL = "Give an SDXL checkpoint: the base model, or a fine-tune of it."
_UNET, _VAE = PREFIXES["unet"], PREFIXES["vae"]
_BASE = "the base checkpoint with --model"


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
        (_UNET, "input_blocks.", "down_blocks."),
    ),
    _Kind("only a VAE", f"Give it with --vae, and {_BASE}.", (_VAE, "encoder.down", "decoder.up")),
    _Kind(
        "only a text encoder", _SDXL,
        ("conditioner.", "text_model.", "transformer.resblocks.", "encoder.layers.", "embeddings.token_embedding."),
    ),
)  # fmt: skip


def require_checkpoint(file: TensorFile) -> None:
    """Check that a file has the UNet, VAE and both text encoders of SDXL, by names and shapes.

    Raises:
        InputError: it is something else; the message names it.
    """
    names = list(file.shapes)
    if not all(_any(names, (prefix,)) for prefix in PREFIXES.values()):
        _reject(file.path, names, _OTHERS)
        _reject_part(file.path, names)
    _reject(file.path, names, _CHANGED)
    _require_inputs(file)


def require_unet(file: TensorFile) -> None:
    """Check that a file has a UNet that reads 4 latent channels and SDXL's text, by names and shapes.

    Raises:
        InputError: its UNet is another model's.
    """
    _reject(file.path, list(file.shapes), _OTHERS)
    _require_inputs(file)


def _require_inputs(file: TensorFile) -> None:
    inputs = _axis(file, ("input_blocks.0.0.weight", "conv_in.weight"))
    kinds = {9: "an inpainting model", 8: "an instruct-pix2pix model"}
    if inputs not in (None, 4):
        raise InputError(
            f"{file.path} is {kinds.get(inputs or 0, 'another model')}: its UNet reads {inputs} channels, not 4.",
            fix=_SDXL,
        )
    if not _any(list(file.shapes), tuple(f"{start}{part}" for start in (_UNET, "") for part in _ADDED)):
        raise InputError(
            f"{file.path} is not an SDXL checkpoint: its UNet does not read the image size (label_emb).", fix=_SDXL
        )


_ADDED = ("label_emb.", "add_embedding.")


def _axis(file: TensorFile, names: Sequence[str]) -> int | None:
    """Return the input channels of the UNet's first convolution, or None if it has none by these names."""
    for name in names:
        for start in (_UNET, ""):
            if len(shape := file.shapes.get(f"{start}{name}", ())) == 4:
                return shape[1]
    return None


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
            fix="Use a file with UNet, VAE and both text encoders.",
        )
    kind = describe_tensors(names)
    if kind.startswith(("a LoRA", "an IP-Adapter", "an identity", "an OpenCLIP", "a CLIP")):
        raise InputError(f"{path} is {kind}, not a checkpoint.", fix=_WHERE.get(kind, _SDXL))
    _reject(path, names, _PARTS)
    some = ", ".join(sorted(names)[:3])
    raise InputError(f"{path} is not a checkpoint: it has tensors such as {some}.", fix=_SDXL)


_WHERE = {
    "a LoRA": f"Give {_BASE}, and this file with --lora.",
    "an identity file from infid-export": f"Give {_BASE}, and this file with --identity.",
    "an OpenCLIP checkpoint": f"Give {_BASE}, and this file with --image-encoder.",
}


def _reject(path: Path, names: Sequence[str], kinds: Sequence[_Kind]) -> None:
    for kind in kinds:
        if _any(names, kind.starts):
            raise InputError(f"{path} is {kind.what}.", fix=kind.fix)


def _any(names: Sequence[str], starts: tuple[str, ...]) -> bool:
    return any(name.startswith(starts) for name in names)


def _are(names: Sequence[str]) -> str:
    return "are" if len(names) > 1 else "is"
