"""The two layouts in which a CLIP image encoder is published: OpenCLIP's, and transformers' CLIPVisionModel.

They are recognized by their tensors' names, and so is the architecture, from the header of a file alone.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from infid_engines.errors import InputError
from infid_export.model.checkpoints.files import OPENCLIP, describe_tensors, read_json

if TYPE_CHECKING:
    from torch import Tensor

OPENCLIP_PREFIX, TRANSFORMERS_PREFIX = "visual.", "vision_model."
_PROJECTION = "visual_projection.weight"
_KNOWN = {(12, 768): "ViT-B", (24, 1024): "ViT-L-14", (32, 1280): "ViT-H-14", (40, 1408): "ViT-g-14",
          (48, 1664): "ViT-bigG-14"}  # fmt: skip
_BLOCK = re.compile(r"(?:visual\.transformer\.resblocks|vision_model\.encoder\.layers)\.(\d+)\.")
_CLASS = ("visual.class_embedding", "vision_model.embeddings.class_embedding")
# transformers' names -> OpenCLIP's, outside and inside a block
_PARTS = {
    "embeddings.class_embedding": "class_embedding",
    "embeddings.patch_embedding.weight": "conv1.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "pre_layrnorm": "ln_pre",
    "post_layernorm": "ln_post",
}
_BLOCK_PARTS = {
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}


def require_image_encoder(file: Path, names: Collection[str]) -> None:
    """Check that a file's tensors have the names of an image encoder, in one of the two layouts.

    Raises:
        InputError: it is something else; the message names it.
    """
    if any(name.startswith((OPENCLIP_PREFIX, TRANSFORMERS_PREFIX)) for name in names):
        return
    kind = describe_tensors(list(names)) or f"something else (tensors such as {', '.join(sorted(names)[:3])})"
    raise InputError(
        f"{file} is {kind}, not an image encoder: it has no tensors visual.… or vision_model.….", fix=OPENCLIP
    )


def openclip_weights(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of an image encoder with OpenCLIP's names, from either layout; text encoders are left out.

    Names that belong to neither layout are kept, so that a strict loader reports them.
    """
    import torch

    found = {name: value for name, value in stored.items() if name.startswith(OPENCLIP_PREFIX)}
    joined: dict[str, dict[str, Tensor]] = {}
    for name, value in stored.items():
        if not name.startswith(TRANSFORMERS_PREFIX) or name.endswith("position_ids"):
            continue
        match = re.fullmatch(r"(.*)\.self_attn\.([qkv])_proj\.(weight|bias)", name)
        if match:
            block = _renamed(f"{match[1]}.").removesuffix(".")
            joined.setdefault(f"{block}.attn.in_proj_{match[3]}", {})[match[2]] = value
        else:
            found[_renamed(name)] = value
    for name, parts in joined.items():
        found[name] = torch.cat([parts[part] for part in "qkv" if part in parts])
    if _PROJECTION in stored:
        found["visual.proj"] = stored[_PROJECTION].T.contiguous()
    return found


def _renamed(name: str) -> str:
    inner = name.removeprefix(TRANSFORMERS_PREFIX)
    match = re.fullmatch(r"encoder\.layers\.(\d+)\.(.*)", inner)
    start, rest = (f"transformer.resblocks.{match[1]}.", match[2]) if match else ("", inner)
    for theirs, ours in (_BLOCK_PARTS if match else _PARTS).items():
        if rest == theirs or rest.startswith(f"{theirs}."):
            return f"{OPENCLIP_PREFIX}{start}{ours}{rest.removeprefix(theirs)}"
    return f"{OPENCLIP_PREFIX}{start}{rest}" if match and not rest else name


def size_of(shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int] | None:
    """Return layers and width of an image encoder from its tensors' shapes by name; None if it is cut or none."""
    width = next((shapes[key][-1] for key in _CLASS if shapes.get(key)), None)
    layers = len({match[1] for key in shapes if (match := _BLOCK.match(key))})
    return None if width is None else (layers, width)


def check_size(file: Path, found: tuple[int, int] | None, name: str, needed: tuple[int, int] | None) -> None:
    """Reject an image encoder of another architecture.

    Args:
        file: its file, for the message.
        found: its size, see `size_of`; None is not checked.
        name: name of the architecture that is needed.
        needed: its size.

    Raises:
        InputError: the sizes differ.
    """
    if found is None or needed is None or found == needed:
        return
    raise InputError(
        f"{file} is {_named(found)}, but the identity weights need {_named(needed, name)}.",
        fix=f"Give the {name} that they were trained with, or identity weights for this one.",
    )


def check_configuration(folder: Path, heads: int, whole: bool) -> None:
    """Reject an image encoder in transformers' format whose network computes something else with the same weights.

    Args:
        folder: has its `config.json`; without it, nothing is checked.
        heads: heads of the attention that are needed.
        whole: whether the folder was given, and not a file in it, which may have nothing to do with the others.

    Raises:
        InputError: it has another activation, or other heads.
    """
    if not (folder / "config.json").is_file():
        return
    config = read_json(folder / "config.json")
    if not whole and not str(config.get("model_type", "")).startswith("clip"):
        return
    vision = config.get("vision_config")
    values = vision if isinstance(vision, dict) else config
    # what is needed, and transformers' own values where a field is absent
    for field, needed, absent in (("hidden_act", "gelu", "quick_gelu"), ("num_attention_heads", heads, 12)):
        if values.get(field, absent) != needed:
            raise InputError(
                f"The image encoder {folder} has {field} = {values.get(field, absent)!r}, but the identity weights "
                f"need {needed!r}.",
                fix="Give the image encoder that they were trained with.",
            )


def _named(size: tuple[int, int], name: str = "") -> str:
    return f"{name or _KNOWN.get(size, 'an image encoder')} ({size[0]} layers of width {size[1]})"
