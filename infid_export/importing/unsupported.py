"""Files that are not an adapter of a supported kind: what each is, by the names of its tensors, and what to do."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

from infid_engines.errors import InputError
from infid_export.model.checkpoints.files import describe_tensors
from infid_export.model.config import CONFIG_KEY

PROJECTION, ATTENTION = "image_proj.", "ip_adapter."
_FACEID = "Use the weights of FaceID-PlusV2 or InstantID."


class _Kind(NamedTuple):
    """A kind of file: beginnings of names that all occur in it, what it is, and what to do."""

    starts: tuple[str, ...]
    what: str
    fix: str


_KINDS = (
    _Kind(
        ("pulid_",),
        "PuLID for Flux, which is another base model than SDXL",
        _FACEID,
    ),
    _Kind(
        ("id_adapter",),
        "PuLID: its encoder reads the hidden states of EVA02-CLIP-L-336 from a photo that a face-parsing network has "
        "cut out; infid-export has neither network",
        _FACEID,
    ),
    _Kind(
        ("id_encoder.",),
        "PhotoMaker, which is another mechanism: it changes the prompt's embeddings and has no image keys and values",
        "Of its parts, only `lora_weights` can be used: save these tensors as a LoRA of their own, and merge them with "
        f"`infid-export build --lora`. For a person's identity: {_FACEID[0].lower()}{_FACEID[1:]}",
    ),
    _Kind(
        ("FacialEncoder.",),
        "ConsistentID, which is another mechanism: it also changes the prompt's embeddings, with crops of the parts of "
        "a face that a parsing network finds",
        _FACEID,
    ),
    _Kind(
        ("image_proj_model.", "adapter_modules."),
        "a training checkpoint of IP-Adapter",
        "Keep only `image_proj_model` and `adapter_modules`, and rename them to `image_proj` and `ip_adapter`, as the "
        "end of IP-Adapter's training instructions shows.",
    ),
    _Kind(("double_blocks.",), "an adapter for Flux, which is another base model than SDXL", "Use one for SDXL."),
    _Kind(
        ("controlnet_",),
        "a ControlNet, such as InstantID's, and not the adapter",
        "Give the adapter beside it, such as InstantID's ip-adapter.bin.",
    ),
)


def reject_unsupported(path: Path, names: Collection[str], metadata: Mapping[str, str]) -> None:
    """Reject a file that has no image projection or no attention weights of an adapter.

    Args:
        path: the file, for the error.
        names: names of its tensors.
        metadata: of its header.

    Raises:
        InputError: it is something else; the message says what.
    """
    if CONFIG_KEY in metadata:
        raise InputError(
            f"{path} is already an identity file of infid-export.", fix=f"infid-export build --identity {path}"
        )
    halves = {start: any(name.startswith(start) for name in names) for start in (PROJECTION, ATTENTION)}
    if all(halves.values()):
        return
    for kind in _KINDS:
        if all(any(name.startswith(start) for name in names) for start in kind.starts):
            raise InputError(f"{path} is {kind.what}.", fix=kind.fix)
    if any(halves.values()):
        lacking = next(start for start, found in halves.items() if not found)
        raise InputError(
            f"{path} is only a part of an adapter: it has no tensors named {lacking}….",
            fix="Give the file with both image_proj and ip_adapter.",
        )
    raise _other(path, names)


def _other(path: Path, names: Collection[str]) -> InputError:
    kind = describe_tensors(list(names))
    if kind == "a LoRA" or any("lora" in name.lower() for name in names):
        return InputError(
            f"{path} is a LoRA alone, and no adapter.",
            fix="FaceID's own LoRA is also inside ip-adapter-faceid_sdxl.bin and ip-adapter-faceid-plusv2_sdxl.bin: "
            "give that file. Another LoRA goes to `infid-export build --lora`.",
        )
    if kind:
        where = "--image-encoder" if "encoder" in kind or "CLIP" in kind else "--model"
        return InputError(f"{path} is {kind}, and no adapter.", fix=f"See `infid-export build --help`, {where}.")
    shown = ", ".join(sorted(names)[:3]) or "none"
    return InputError(
        f"{path} is no adapter that infid-export knows: it has no image_proj and ip_adapter (its tensors: {shown}).",
        fix="Give the weights of IP-Adapter, Plus, Plus-Face, FaceID, FaceID-PlusV2 or InstantID for SDXL.",
    )
