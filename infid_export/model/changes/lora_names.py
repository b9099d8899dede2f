"""The names of tensors in LoRA files, and the layers that they stand for.

Trainers name a layer by its path in diffusers' UNet or in the original one, with dots or with underscores, and the two
matrices `lora_down` and `lora_up`, `lora.down` and `lora.up`, or `lora_A` and `lora_B`. So a name is reduced to its
component, its path with underscores, and its role; tables from these paths to layers are made from the networks
themselves. Imports are light.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from typing import Literal, NamedTuple

Role = Literal["down", "up", "alpha"]

_ROLES: Mapping[str, Role] = {"lora_down": "down", "down": "down", "lora_A": "down", "lora_up": "up", "up": "up",
                              "lora_B": "up"}  # fmt: skip
# `.lora_down.weight`, `.lora.down.weight`, `.processor.to_q_lora.down.weight`, `.lora_linear_layer.down.weight`,
# `.lora_A.weight`, `.lora_A.default.weight`, `.alpha`
_MATRIX = re.compile(
    r"(?P<layer>.+?)(?:\.(?P<role>lora_down|lora_up|lora_A|lora_B)(?:\.\w+)?"
    r"|(?:_lora|\.lora|\.lora_linear_layer)\.(?P<old>down|up))\.weight"
)
_ALPHA = re.compile(r"(?P<layer>.+?)(?:_lora|\.lora|\.lora_linear_layer)?\.alpha")
# Beginnings of names, longest first. A path without one belongs to the UNet.
_COMPONENTS = {
    "base_model.model.": "",
    "model.diffusion_model.": "unet",
    "diffusion_model.": "unet",
    "lora_unet_": "unet",
    "unet.": "unet",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
    "lora_te_": "text_encoder",
    "text_encoder_2.": "text_encoder_2",
    "text_encoder.": "text_encoder",
}
# What other methods call their tensors; the first that matches names the file.
_OTHERS = (
    (re.compile(r"hada_"), "LoHa"),
    (re.compile(r"lokr_"), "LoKr"),
    (re.compile(r"dora_scale|lora_magnitude_vector"), "DoRA"),
    (re.compile(r"boft_"), "BOFT"),
    (re.compile(r"oft_"), "OFT"),
    (re.compile(r"\.[ab][12]\.weight$"), "GLoRA"),
    (re.compile(r"\.on_input$|ia3_"), "IA³"),
    (re.compile(r"lora_mid"), "factorized convolution kernels (lora_mid)"),
    (re.compile(r"\.(w|b)_norm$|norm\w*\.(diff|diff_b|lora_)"), "norm weights"),
    (re.compile(r"\.(diff|diff_b|set_weight)$"), "full differences (diff)"),
    (re.compile(r"lora_(B|up)\b.*\.bias$"), "biases"),
    (re.compile(r"lora_embedding_|bundle_emb"), "learned words"),
)
# Layers of other base models.
_BASES = (
    (re.compile(r"double_blocks|single_blocks|single_transformer_blocks"), "Flux"),
    (re.compile(r"joint_blocks|add_k_proj|text_encoder_3|lora_te3_"), "Stable Diffusion 3"),
    (re.compile(r"^(lora_)?transformer[._]"), "a transformer, such as Stable Diffusion 3 or Flux"),
)
_WIDTHS = {768: "Stable Diffusion 1", 1024: "Stable Diffusion 2", 1280: "SDXL's refiner", 2048: "SDXL"}
# Older files of diffusers name the projections of a text encoder like those of the UNet.
_TEXT_PROJECTIONS = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}
# The original UNet's names inside a residual block.
_RESNET = {"conv1": "in_layers_2", "time_emb_proj": "emb_layers_1", "conv2": "out_layers_3",
           "conv_shortcut": "skip_connection"}  # fmt: skip
_OUTSIDE = {
    "conv_in": "input_blocks_0_0",
    "time_embedding_linear_1": "time_embed_0",
    "time_embedding_linear_2": "time_embed_2",
    "add_embedding_linear_1": "label_emb_0_0",
    "add_embedding_linear_2": "label_emb_0_2",
    "conv_out": "out_2",
}
_BLOCK = re.compile(r"(?P<side>down|up)_blocks_(?P<block>\d+)_(?P<kind>[a-z]+)_(?P<index>\d+)_(?P<rest>.+)")
_MIDDLE = re.compile(r"mid_block_(?P<kind>[a-z]+)_(?P<index>\d+)_(?P<rest>.+)")


class TensorName(NamedTuple):
    """What a tensor of a LoRA is.

    Args:
        component: `unet`, `text_encoder` or `text_encoder_2`.
        layer: path of the layer with underscores, as in the file.
        role: which of the layer's tensors it is.
    """

    component: str
    layer: str
    role: Role


def parse_name(name: str) -> TensorName | None:
    """Return what a tensor's name says, or None if it is not a LoRA's."""
    matrix, alpha = _MATRIX.fullmatch(name), _ALPHA.fullmatch(name)
    found = matrix or alpha
    if found is None:
        return None
    role: Role = _ROLES[matrix["role"] or matrix["old"]] if matrix else "alpha"
    component, path = "unet", found["layer"]
    for start, kind in _COMPONENTS.items():
        if path.startswith(start):
            component, path = kind or component, path.removeprefix(start)
            if kind:
                break
    layer = path.replace(".processor.", ".").replace(".", "_")
    return TensorName(component, layer.removeprefix("text_model_") if component != "unet" else layer, role)


def other_method(names: Collection[str]) -> tuple[str, str] | None:
    """Return what a file contains that is not a plain LoRA, and a tensor of it; None for plain ones."""
    found = ((kind, name) for pattern, kind in _OTHERS for name in names if pattern.search(name))
    return next(found, None)


def other_base(shapes: Mapping[str, tuple[int, ...]], width: int) -> str | None:
    """Return the base model that a LoRA was trained for, if it is recognized as another one.

    Args:
        shapes: shapes of its tensors by name.
        width: the UNet's `cross_attention_dim`.
    """
    for name, shape in shapes.items():
        parsed = parse_name(name)
        if parsed and parsed.role == "down" and parsed.layer.endswith(("attn2_to_k", "attn2_to_v")) and len(shape) > 1:
            if shape[1] != width:
                other = _WIDTHS.get(shape[1], "another model")
                return f"{other} (text embeddings of width {shape[1]}, not {width})"
            return None
    return next((base for pattern, base in _BASES for name in shapes if pattern.search(name)), None)


def layer_paths(component: str, layers: Collection[str]) -> dict[str, str]:
    """Return the path of each layer by all names that LoRAs have for it.

    Args:
        component: `unet`, `text_encoder` or `text_encoder_2`.
        layers: paths of the component's linear layers and convolutions.
    """
    with_attention = {path.partition(".attentions.")[0] for path in layers if ".attentions." in path}
    first = _first_numbers(layers)
    found: dict[str, str] = {}
    for path in layers:
        plain = path.replace(".", "_")
        if component == "unet":
            names = [plain, *_original_names(plain, first, with_attention)]
        else:
            plain = plain.removeprefix("text_model_")
            names = [plain, *(plain.removesuffix(new) + old for new, old in _TEXT_PROJECTIONS.items()
                              if plain.endswith(new))]  # fmt: skip
        # older files of diffusers have `to_out_lora` for the layer `to_out.0`
        names += [name.removesuffix("_0") for name in names if name.endswith("to_out_0")]
        found |= dict.fromkeys(names, path)
    return found


def _first_numbers(layers: Collection[str]) -> dict[str, int]:
    """Return the number of each block's first residual block in the original UNet, by the block's path.

    There the residual blocks are numbered through: those of the way down from 1, each downsampler between them too.
    """
    counts: dict[str, int] = defaultdict(int)
    for path in layers:
        if match := re.match(r"((?:down|up)_blocks\.\d+)\.resnets\.(\d+)\.", path):
            counts[match[1]] = max(counts[match[1]], int(match[2]) + 1)
    numbers, following = {}, {"down_blocks": 1, "up_blocks": 0}
    for path, count in sorted(counts.items()):
        side = path.partition(".")[0]
        numbers[path] = following[side]
        following[side] += count + (side == "down_blocks")
    return numbers


def _original_names(name: str, first: Mapping[str, int], with_attention: Collection[str]) -> Iterator[str]:
    """Yield the name of a layer in the original UNet.

    Args:
        name: the layer's name in diffusers' UNet, with underscores.
        first: the result of `_first_numbers`.
        with_attention: paths of the blocks with attention.
    """
    if name in _OUTSIDE:
        yield _OUTSIDE[name]
    if match := _MIDDLE.fullmatch(name):
        place = {"resnets": 2 * int(match["index"]), "attentions": 1}[match["kind"]]
        yield f"middle_block_{place}_{_RESNET.get(match['rest'], match['rest'])}"
    if match := _BLOCK.fullmatch(name):
        block, kind, index = f"{match['side']}_blocks.{match['block']}", match["kind"], int(match["index"])
        rest = _RESNET.get(match["rest"], match["rest"])
        if kind == "downsamplers":
            yield f"input_blocks_{_after(block, first) - 1}_0_op"
        elif kind == "upsamplers":
            yield f"output_blocks_{_after(block, first) - 1}_{1 + (block in with_attention)}_conv"
        else:
            side = {"down": "input", "up": "output"}[match["side"]]
            yield f"{side}_blocks_{first[block] + index}_{int(kind == 'attentions')}_{rest}"


def _after(block: str, first: Mapping[str, int]) -> int:
    """Return the first number of the block after one with a sampler."""
    side, _, number = block.partition(".")
    return first[f"{side}.{int(number) + 1}"]
