"""What the graphs of a denoising step share: the inputs of each stream, and their values in the comparison."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from infid_export.export.graphs.identity_encoder import IDENTITY_ENCODER
from infid_export.export.graphs.sizes import PROMPT_TOKENS, Sizes, TensorShape
from infid_export.export.graphs.text_encoders import TEXT_ENCODER, TEXT_ENCODER_2

if TYPE_CHECKING:
    from infid_export.export.parity_case import Array, ParityCase

UNET: Mapping[str, str] = {"unet.": "unet"}
Stream = Literal["text", "identity"]
_STEPS, _STEP = 30, 10  # step 10 of 30 is compared: neither noise nor image
# Away from 0 and 1, so that a graph that ignores an input cannot pass.
_GUIDANCE, _STYLE, _IDENTITY = 5.0, 0.75, 0.875
# c_in, c_x, c_e, c_d, c_n, k_x and k_e of the compared update. Nine tenths of a real step's output is its own input
# (c_x = 1.11 and c_e = -0.12 at step 10 of 30), which would hide network errors ten times as large. The terms of both
# results add up, since the difference of a good model's terms is small, which would magnify its rounding.
COEFFICIENTS = (0.875, 0.25, 1.0, 0.125, 0.0625, 0.5, 0.75)


def stream_inputs(stream: Stream, sizes: Sizes) -> dict[str, TensorShape]:
    """Return the state of a stream and its fresh noise."""
    return {f"{stream}_{name}": sizes.latents for name in ("latents", "denoised", "noise")}


def stream_outputs(stream: Stream, sizes: Sizes) -> dict[str, TensorShape]:
    """Return the next state of a stream."""
    return {f"next_{stream}_{name}": sizes.latents for name in ("latents", "denoised")}


def common_inputs(sizes: Sizes) -> dict[str, TensorShape]:
    """Return the inputs of every step besides its streams' and the guidance."""
    rows, architecture = sizes.rows, sizes.architecture
    return {
        "timestep": TensorShape((1,)),
        "coefficients": TensorShape((len(COEFFICIENTS),)),
        "prompt_embeds": TensorShape((rows, PROMPT_TOKENS, architecture.unet["cross_attention_dim"]), "network"),
        "pooled_prompt_embeds": TensorShape((rows, architecture.text_encoder_2["projection_dim"]), "network"),
        "time_ids": TensorShape((rows, 6)),
    }


def guidance_input(sizes: Sizes) -> dict[str, TensorShape]:
    """Return the guidance of each sample; nothing in a folder without guidance."""
    return {"guidance": TensorShape((sizes.batch,))} if sizes.guidance else {}


def identity_inputs(sizes: Sizes) -> dict[str, TensorShape]:
    """Return the inputs that describe the person, for a step with the identity stream."""
    stacked = TensorShape((sizes.rows, sizes.people * sizes.config.tokens, sum(sizes.blocks.values())), "network")
    return {
        "identity_keys": stacked,
        "identity_values": stacked,
        "style_strength": TensorShape((sizes.batch,)),
        "identity_strength": TensorShape((sizes.batch,)),
    }


def person_inputs(sizes: Sizes) -> dict[str, TensorShape]:
    """Return `identity_inputs` for a step without a text stream, which has no style strength."""
    return {name: shape for name, shape in identity_inputs(sizes).items() if name != "style_strength"}


def text_features(sizes: Sizes) -> dict[str, TensorShape]:
    """Return what `text_step` passes to `identity_step`: one tensor per transformer block, by its path."""
    from infid_export.model.processors import text_feature_paths

    return {
        path: TensorShape((sizes.rows, _tokens(path, sizes), channels), "network")
        for path, channels in zip(text_feature_paths(sizes.blocks), sizes.blocks.values(), strict=True)
    }


def template_inputs(sizes: Sizes) -> dict[str, Mapping[str, TensorShape]]:
    """Return the text features as `identity_step` takes them: of the network's type, or in 8 bits with scales."""
    features = text_features(sizes)
    if not sizes.quantize_templates:
        return {"text_features": features}
    scales = {path: TensorShape((rows, 1, channels)) for path, ((rows, _, channels), _) in features.items()}
    quantized = {path: each._replace(dtype="int8") for path, each in features.items()}
    return {"text_features": quantized, "text_scales": scales}


def template_values(case: ParityCase, step: Mapping[str, Array]) -> dict[str, Mapping[str, Array]]:
    """Return values for `template_inputs`, from the outputs of a text step."""
    from infid_export.runtime.template import quantized

    features = {path: step[f"text_features.{path}"] for path in text_features(case.sizes.single)}
    if not case.sizes.quantize_templates:
        return {"text_features": features}
    pairs = {path: quantized(each) for path, each in features.items()}
    return {
        "text_features": {path: values for path, (values, _) in pairs.items()},
        "text_scales": {path: scales for path, (_, scales) in pairs.items()},
    }


def first_sample(case: ParityCase) -> ParityCase:
    """Return the case of one sample with the first prompt."""
    texts = {
        name: {output: rows[:: case.sizes.batch] for output, rows in case.outputs[name].items()}
        for name in (TEXT_ENCODER.name, TEXT_ENCODER_2.name)
    }
    return replace(case, sizes=case.sizes.single, outputs={**case.outputs, **texts})


def stream_values(stream: Stream, case: ParityCase) -> dict[str, Array]:
    """Return values for `stream_inputs`: noise that differs between the streams and between the inputs of one."""
    first = {"text": 0, "identity": 1}[stream]
    return {
        f"{stream}_{name}": case.noise(first + 2 * index) for index, name in enumerate(("latents", "denoised", "noise"))
    }


def common_values(case: ParityCase) -> dict[str, Array]:
    """Return values for `common_inputs`: a step in the middle, on the embeddings of the fixed prompts."""
    import numpy as np

    from infid_export.sampling.noise_schedule import SDXL_SCHEDULER
    from infid_export.sampling.samplers import sampler_table

    first, second = case.outputs[TEXT_ENCODER.name], case.outputs[TEXT_ENCODER_2.name]
    height, width = case.sizes.height, case.sizes.width
    return {
        "timestep": sampler_table(SDXL_SCHEDULER, _STEPS).timesteps[_STEP : _STEP + 1],
        "coefficients": np.array(COEFFICIENTS, np.float32),
        "prompt_embeds": np.concatenate([first["hidden_states"], second["hidden_states"]], -1),
        "pooled_prompt_embeds": second["pooled"],
        "time_ids": np.tile(np.array([height, width, 0, 0, height, width], np.float32), (case.sizes.rows, 1)),
    }


def guidance_value(case: ParityCase) -> dict[str, Array]:
    """Return values for `guidance_input`."""
    return {"guidance": case.filled(_GUIDANCE)} if case.sizes.guidance else {}


def identity_values(case: ParityCase) -> dict[str, Array]:
    """Return values for `identity_inputs`: the fixed face in every slot."""
    import numpy as np

    person, sizes = case.outputs[IDENTITY_ENCODER.name], case.sizes
    stacked = {
        # row 0 is unconditional
        name: np.tile(np.repeat(person[name][-sizes.copies :], sizes.batch, axis=0), (1, sizes.people, 1))
        for name in ("identity_keys", "identity_values")
    }
    return {**stacked, "style_strength": case.filled(_STYLE), "identity_strength": case.filled(_IDENTITY)}


def _tokens(path: str, sizes: Sizes) -> int:
    """Return the number of image tokens in a transformer block, from its level in the UNet."""
    levels = len(sizes.architecture.unet["block_out_channels"])
    part, index, *_ = path.split(".")
    level = {"down_blocks": int(index) if index.isdigit() else 0, "mid_block": levels - 1}.get(part)
    if level is None:
        level = levels - 1 - int(index)
    _, height, width = sizes.architecture.latents(sizes.height, sizes.width)
    return (height >> level) * (width >> level)
