"""Every field of a checkpoint's configurations is applied, or rejected by name."""

from __future__ import annotations

import copy
import inspect
import json
from typing import Any

import diffusers
import pytest
import transformers

from infid_engines.errors import InputError
from infid_export.model.architectures import DEMO, SDXL
from infid_export.model.checkpoints import fields as checkpoint_fields
from infid_export.model.checkpoints import kind as checkpoint_kind
from infid_export.model.checkpoints.fields import SCHEDULE, SCHEDULERS, TEXT_ENCODER, UNET, VAE
from infid_export.sampling.noise_schedule import SDXL_SCHEDULER

# As in stabilityai/stable-diffusion-xl-base-1.0: with fields of schedulers other than its own.
SCHEDULER = {
    "_class_name": "EulerDiscreteScheduler", "_diffusers_version": "0.19.0.dev0", "beta_end": 0.012,
    "beta_schedule": "scaled_linear", "beta_start": 0.00085, "clip_sample": False, "interpolation_type": "linear",
    "num_train_timesteps": 1000, "prediction_type": "epsilon", "sample_max_value": 1.0, "set_alpha_to_one": False,
    "skip_prk_steps": True, "steps_offset": 1, "timestep_spacing": "leading", "trained_betas": None,
    "use_karras_sigmas": False,
}  # fmt: skip
INDEX = {
    "_class_name": "StableDiffusionXLPipeline", "_diffusers_version": "0.19.0.dev0",
    "force_zeros_for_empty_prompt": True, "add_watermarker": None, "scheduler": ["diffusers", "EulerDiscreteScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"], "tokenizer": ["transformers", "CLIPTokenizer"],
    "tokenizer_2": ["transformers", "CLIPTokenizer"], "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"], "image_encoder": [None, None], "feature_extractor": [None, None],
}  # fmt: skip
TEXT = {**SDXL.text_encoder, "model_type": "clip_text_model", "architectures": ["CLIPTextModel"], "dropout": 0.0}
GOOD: dict[str, dict[str, Any]] = {
    "model_index": INDEX,
    "scheduler": SCHEDULER,
    "unet": {**SDXL.unet, "_class_name": "UNet2DConditionModel", "upcast_attention": None, "dropout": 0.0},
    "vae": {**SDXL.vae, "_class_name": "AutoencoderKL", "act_fn": "silu"},
    "text_encoder": TEXT,
}


def check(part: str, config: Any) -> None:
    getattr(checkpoint_kind, f"check_{part}")(config, f"{part}.json")


@pytest.mark.parametrize("part", GOOD)
def test_sdxls_own_configurations_are_accepted(part):
    check(part, json.loads(json.dumps(GOOD[part])))


WRITTEN = {
    "unet": ("unet", lambda: diffusers.UNet2DConditionModel.from_config(DEMO.unet).config),
    "vae": ("vae", lambda: diffusers.AutoencoderKL.from_config(DEMO.vae).config),
    "text": (
        "text_encoder",
        lambda: json.loads(transformers.CLIPTextConfig(**DEMO.text_encoder).to_json_string(False)),
    ),
    "text diff": (
        "text_encoder",
        lambda: json.loads(transformers.CLIPTextConfig(**DEMO.text_encoder).to_json_string()),
    ),
    "unipc": ("scheduler", lambda: diffusers.UniPCMultistepScheduler.from_config(SCHEDULER).config),
    "dpm": ("scheduler", lambda: diffusers.DPMSolverMultistepScheduler.from_config(SCHEDULER).config),
    "turbo": (
        "scheduler",
        lambda: diffusers.EulerAncestralDiscreteScheduler.from_config(SCHEDULER, timestep_spacing="trailing").config,
    ),
}


@pytest.mark.parametrize("written", WRITTEN)
def test_what_the_libraries_write_is_accepted(written):
    part, make = WRITTEN[written]
    config = dict(make())
    names = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL", "scheduler": config.get("_class_name")}
    check(part, {**config, "_class_name": names.get(part)})


OTHER = [
    ("scheduler", "_class_name", "FlowMatchEulerDiscreteScheduler"),
    ("scheduler", "_class_name", "EDMDPMSolverMultistepScheduler"),
    ("scheduler", "_class_name", "MyScheduler"),
    ("scheduler", "_class_name", None),
    ("scheduler", "_class_name", ["EulerDiscreteScheduler"]),
    ("scheduler", "prediction_type", "flow_prediction"),
    ("scheduler", "beta_end", 0.02),
    ("scheduler", "beta_start", "0.00085"),
    ("scheduler", "beta_schedule", "linear"),
    ("scheduler", "num_train_timesteps", 500),
    ("scheduler", "trained_betas", [0.1, 0.2]),
    ("scheduler", "timestep_type", "continuous"),
    ("scheduler", "variance_type", "learned_range"),
    ("scheduler", "use_flow_sigmas", True),
    ("scheduler", "clip_sample", True),
    ("scheduler", "thresholding", True),
    ("scheduler", "sigma_max", 80.0),
    ("scheduler", "shift", 3.0),
    ("unet", "_class_name", "FluxTransformer2DModel"),
    ("unet", "addition_embed_type", None),
    ("unet", "addition_embed_type", "text"),
    ("unet", "in_channels", 9),
    ("unet", "in_channels", [4]),
    ("unet", "in_channels", True),
    ("unet", "out_channels", 8),
    ("unet", "time_cond_proj_dim", 256),
    ("unet", "class_embed_type", "timestep"),
    ("unet", "num_class_embeds", 10),
    ("unet", "encoder_hid_dim_type", "text_proj"),
    ("unet", "encoder_hid_dim", 768),
    ("unet", "num_attention_heads", [5, 10, 20]),
    ("unet", "dual_cross_attention", True),
    ("unet", "only_cross_attention", [False, True, False]),
    ("unet", "attention_type", "gated"),
    ("unet", "cross_attention_norm", "layer_norm"),
    ("unet", "time_embedding_type", "fourier"),
    ("unet", "mid_block_type", "UNetMidBlock2DSimpleCrossAttn"),
    ("unet", "down_block_types", ["DownBlock2D", "AttnDownBlock2D", "CrossAttnDownBlock2D"]),
    ("unet", "sample_size", None),
    ("unet", "sample_size", "128"),
    ("unet", "sample_size", [128, 96]),
    ("unet", "block_out_channels", None),
    ("unet", "block_out_channels", []),
    ("unet", "cross_attention_dim", [2048, 2048, 2048]),
    ("unet", "transformer_layers_per_block", [1, 2, 10**9]),
    ("unet", "quantization_config", {"load_in_4bit": True}),
    ("unet", "sample_sizes", 128),
    ("vae", "_class_name", "AutoencoderTiny"),
    ("vae", "latents_mean", [-1.6, 1.1, 3.3, -0.2]),
    ("vae", "latents_std", [8.4, 5.9, 5.3, 5.2]),
    ("vae", "shift_factor", 0.0609),
    ("vae", "latent_channels", 16),
    ("vae", "scaling_factor", None),
    ("vae", "scaling_factor", 0),
    ("vae", "scaling_factor", float("nan")),
    ("vae", "patch_size", [2, 2]),
    ("text_encoder", "model_type", "t5"),
    ("text_encoder", "max_position_embeddings", 248),
    ("text_encoder", "pruned_heads", {"0": [1]}),
    ("text_encoder", "return_dict", False),
    ("text_encoder", "num_hidden_layers", 10**9),
    ("text_encoder", "hidden_size", None),
    ("text_encoder", "quantization_config", {"load_in_4bit": True}),
    ("text_encoder", "text_config", {}),
    ("model_index", "_class_name", "StableDiffusionPipeline"),
    ("model_index", "_class_name", "StableDiffusionXLControlNetPipeline"),
    ("model_index", "requires_aesthetics_score", True),
    ("model_index", "scheduler", ["diffusers", "FlowMatchEulerDiscreteScheduler"]),
    ("model_index", "text_encoder", [None, None]),
    ("model_index", "text_encoder_2", ["transformers", "CLIPTextModel"]),
    ("model_index", "tokenizer", ["transformers", "T5Tokenizer"]),
    ("model_index", "unet", None),
    ("model_index", "vae", "AutoencoderKL"),
    ("model_index", "controlnet", ["diffusers", "ControlNetModel"]),
    ("model_index", "force_zeros_for_empty_prompt", "yes"),
]


@pytest.mark.parametrize(("part", "field", "value"), OTHER, ids=lambda value: str(value)[:30])
def test_a_field_of_another_kind_of_model_is_rejected_by_name(part, field, value):
    config = {**copy.deepcopy(GOOD[part]), field: value}
    with pytest.raises(InputError) as caught:
        check(part, config)
    name = str(value) if field == "_class_name" and isinstance(value, str) else field.removeprefix("_class_")
    assert part in caught.value.problem
    assert name in caught.value.problem
    assert caught.value.fix


ABSENT = [
    ("scheduler", "beta_schedule"), ("scheduler", "beta_start"), ("scheduler", "beta_end"), ("unet", "_class_name"),
    ("unet", "addition_embed_type"), ("unet", "sample_size"), ("unet", "in_channels"), ("unet", "cross_attention_dim"),
    ("vae", "_class_name"), ("vae", "block_out_channels"), ("text_encoder", "model_type"),
    ("text_encoder", "vocab_size"), ("model_index", "unet"),
]  # fmt: skip


@pytest.mark.parametrize(("part", "field"), ABSENT)
def test_an_absent_field_does_not_count_as_sdxls(part, field):
    config = {name: value for name, value in GOOD[part].items() if name != field}
    with pytest.raises(InputError, match=field.removeprefix("_class_")):
        check(part, config)


def test_an_absent_field_has_the_default_of_the_schedulers_class():
    config = {name: value for name, value in SCHEDULER.items() if name != "clip_sample"}
    check("scheduler", config)
    with pytest.raises(InputError, match="clip_sample = True"):
        check("scheduler", {**config, "_class_name": "DDIMScheduler"})


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_defaults_of_each_scheduler_are_diffusers_own(name):
    parameters = inspect.signature(getattr(diffusers, name).__init__).parameters
    if "kwargs" in parameters:
        pytest.skip(f"diffusers' {name} needs a package that is not installed")
    own = {key: parameter.default for key, parameter in parameters.items() if key != "self"}
    known = {*SCHEDULE.needed, *SCHEDULE.applied, *SCHEDULE.unused}
    assert set(own) <= known
    for field, needed in SCHEDULE.needed.items():
        if field in own and field != "variance_type":  # any of the fixed fields will do
            assert SCHEDULERS[name].get(field, needed.absent) == own[field], field


@pytest.mark.parametrize(
    ("fields", "kind"),
    [(UNET, diffusers.UNet2DConditionModel), (VAE, diffusers.AutoencoderKL)],
    ids=["unet", "vae"],
)
def test_every_field_of_diffusers_is_in_one_group(fields, kind):
    parameters = inspect.signature(kind.__init__).parameters
    names = [*fields.needed, *fields.applied, *fields.unused]
    assert sorted(names) == sorted(set(parameters) - {"self"})
    for name, needed in fields.needed.items():
        default = parameters[name].default
        if name not in ("down_block_types", "up_block_types"):
            assert needed.absent == default, name


def test_the_text_encoders_groups_do_not_overlap():
    names = [*TEXT_ENCODER.needed, *TEXT_ENCODER.applied, *TEXT_ENCODER.unused]
    assert len(names) == len(set(names))
    assert set(SDXL.text_encoder) <= set(names)


def test_sdxls_schedule_is_what_is_needed():
    for field, needed in checkpoint_fields.SCHEDULE.needed.items():
        assert needed.accepts(SDXL_SCHEDULER.get(field, needed.absent)) or field.startswith("beta"), field
        if field in SDXL_SCHEDULER:
            assert needed.accepts(SDXL_SCHEDULER[field])


@pytest.mark.parametrize(
    ("unet", "field"),
    [
        ({"cross_attention_dim": 1280}, "cross_attention_dim"),
        ({"projection_class_embeddings_input_dim": 2560}, "projection_class_embeddings_input_dim"),
    ],
)
def test_parts_of_different_models_are_rejected(unet, field):
    checkpoint_kind.check_widths(SDXL.unet, SDXL.text_encoder, SDXL.text_encoder_2, "x")
    with pytest.raises(InputError, match=field):
        checkpoint_kind.check_widths({**SDXL.unet, **unet}, SDXL.text_encoder, SDXL.text_encoder_2, "x")
