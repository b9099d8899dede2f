"""The fields of a checkpoint's configurations, in three groups.

- `needed`: fields for which our own code (latents, time ids, noise schedule, two-stream attention, decoding) assumes
  SDXL's value. An absent field has the library's default, not SDXL's.
- `applied`: fields that diffusers and transformers apply when they build the network, or that our own code reads.
- `unused`: fields that have no effect on a result, or that only configure the sampler.

A field in no group is unknown, and may change the image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from infid_export.sampling import PREDICTIONS
from infid_export.sampling.noise_schedule import SDXL_SCHEDULER


@dataclass(frozen=True)
class Needed:
    """The values that a field may have.

    Args:
        allowed: the allowed values.
        absent: the library's default if the field is absent.
        why: end of the error's first sentence: the meaning of another value.
        each: whether a list of allowed values is allowed too.
    """

    allowed: tuple[Any, ...]
    absent: Any = None
    why: str = ""
    each: bool = False

    def accepts(self, value: Any) -> bool:
        """Return whether the configuration may have a value."""
        values = value if self.each and isinstance(value, list | tuple) and value else [value]
        return all(any(_same(each, wanted) for wanted in self.allowed) for each in values)


@dataclass(frozen=True)
class Fields:
    """The fields of one configuration, in the groups that the module describes."""

    needed: Mapping[str, Needed]
    applied: frozenset[str]
    unused: frozenset[str]


def _same(value: Any, wanted: Any) -> bool:
    """Return whether two JSON values are equal; True is not 1, and 1 is 1.0."""
    return bool(isinstance(value, bool) == isinstance(wanted, bool) and value == wanted)


_NONE, _FALSE = Needed((None,)), Needed((False, None), False)

UNET = Fields(
    needed={
        "in_channels": Needed((4,), 4, "an inpainting or pix2pix model has more"),
        "out_channels": Needed((4,), 4, "a model with learned variance has more"),
        "addition_embed_type": Needed(("text_time",), None, "which is how SDXL gets the image size"),
        "time_cond_proj_dim": Needed((None,), None, "an LCM gets its guidance there"),
        "class_embed_type": _NONE,
        "num_class_embeds": _NONE,
        "encoder_hid_dim": _NONE,
        "encoder_hid_dim_type": _NONE,
        "num_attention_heads": _NONE,
        "attention_type": Needed(("default",), "default"),
        "cross_attention_norm": _NONE,
        "only_cross_attention": Needed((False, None), False, each=True),
        "mid_block_only_cross_attention": Needed((False, None)),
        "dual_cross_attention": _FALSE,
        "time_embedding_type": Needed(("positional",), "positional"),
        "mid_block_type": Needed(
            ("UNetMidBlock2DCrossAttn", "UNetMidBlock2D", None), "UNetMidBlock2DCrossAttn"
        ),
        "down_block_types": Needed(("DownBlock2D", "CrossAttnDownBlock2D"), "DownBlock2D", each=True),
        "up_block_types": Needed(("UpBlock2D", "CrossAttnUpBlock2D"), "UpBlock2D", each=True),
    },
    applied=frozenset({
        "sample_size", "center_input_sample", "flip_sin_to_cos", "freq_shift", "block_out_channels", "layers_per_block",
        "downsample_padding", "mid_block_scale_factor", "act_fn", "norm_num_groups", "norm_eps", "cross_attention_dim",
        "transformer_layers_per_block", "reverse_transformer_layers_per_block", "attention_head_dim",
        "use_linear_projection", "addition_time_embed_dim", "resnet_time_scale_shift", "resnet_skip_time_act",
        "resnet_out_scale_factor", "time_embedding_dim", "time_embedding_act_fn", "timestep_post_act",
        "conv_in_kernel", "conv_out_kernel", "projection_class_embeddings_input_dim",
    }),
    unused=frozenset({
        "dropout",  # the UNet is never trained here
        "upcast_attention",  # diffusers' own attention ignores it too (AttnProcessor2_0)
        "class_embeddings_concat",  # there are no class embeddings
        "addition_embed_type_num_heads",  # for other embedding types
    }),
)  # fmt: skip

VAE = Fields(
    needed={
        "in_channels": Needed((3,), 3),
        "out_channels": Needed((3,), 3),
        "latent_channels": Needed((4,), 4, "another model's latents have more"),
        "shift_factor": Needed((None, 0), None, "its latents are centered elsewhere"),
        "latents_mean": Needed((None,), None, "its latents have their own statistics"),
        "latents_std": Needed((None,), None, "its latents have their own statistics"),
    },
    applied=frozenset({
        "down_block_types", "up_block_types", "block_out_channels", "layers_per_block", "act_fn", "norm_num_groups",
        "scaling_factor", "use_quant_conv", "use_post_quant_conv", "mid_block_add_attention",
        "force_upcast",  # by the PyTorch pipeline; in an engine, the VAE's measured range decides its precision
    }),
    unused=frozenset({"sample_size"}),  # for tiling, which is not used
)  # fmt: skip

TEXT_ENCODER = Fields(
    needed={
        "model_type": Needed(("clip_text_model",)),
        "max_position_embeddings": Needed((77,), 77),
        "pruned_heads": Needed(({}, None), None, "transformers no longer prunes them"),
        "is_decoder": _FALSE,
        "is_encoder_decoder": _FALSE,
        "add_cross_attention": _FALSE,
        "return_dict": Needed((True,), True),
        "use_return_dict": Needed((True,), True),
        "use_bfloat16": _FALSE,
        "torchscript": _FALSE,
    },
    applied=frozenset({
        "vocab_size", "hidden_size", "intermediate_size", "projection_dim", "num_hidden_layers", "num_attention_heads",
        "hidden_act", "layer_norm_eps", "eos_token_id",
    }),
    unused=frozenset({
        # the saved class and dtype: weights are checked by name, and loaded in the requested dtype
        "architectures", "dtype", "torch_dtype", "transformers_version", "tokenizer_class",
        # for training, other tasks and text generation
        "attention_dropout", "dropout", "initializer_factor", "initializer_range", "gradient_checkpointing",
        "bos_token_id", "pad_token_id", "sep_token_id", "decoder_start_token_id", "id2label", "label2id", "num_labels",
        "problem_type", "finetuning_task", "task_specific_params", "prefix", "tie_word_embeddings",
        "tie_encoder_decoder", "cross_attention_hidden_size", "chunk_size_feed_forward", "tf_legacy_loss", "use_cache",
        "output_hidden_states", "output_attentions", "output_scores", "return_dict_in_generate", "bad_words_ids",
        "begin_suppress_tokens", "suppress_tokens", "diversity_penalty", "do_sample", "early_stopping",
        "encoder_no_repeat_ngram_size", "exponential_decay_length_penalty", "forced_bos_token_id",
        "forced_eos_token_id", "length_penalty", "max_length", "min_length", "no_repeat_ngram_size",
        "num_beam_groups", "num_beams", "num_return_sequences", "remove_invalid_values", "repetition_penalty",
        "temperature", "top_k", "top_p", "typical_p",
    }),
)  # fmt: skip

MODEL_INDEX = Fields(
    needed={"requires_aesthetics_score": Needed((False, None), False, "the refiner has a score among its time ids")},
    applied=frozenset({"force_zeros_for_empty_prompt"}),
    unused=frozenset({"add_watermarker", "feature_extractor", "image_encoder"}),  # SDXL neither draws nor reads them
)
PIPELINES = (
    "StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline", "StableDiffusionXLInpaintPipeline",
    "InfiniteIDPipeline",
)  # fmt: skip
CLASSES: Mapping[str, tuple[str, ...]] = {
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
    "text_encoder": ("CLIPTextModel", "CLIPTextModelWithProjection"),
    "text_encoder_2": ("CLIPTextModelWithProjection",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend"),
    "tokenizer_2": ("CLIPTokenizer", "CLIPTokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend"),
}

# Schedulers of diffusers that sample a model trained with the noise schedule of their betas, each with its defaults
# where they differ from those below. Those of flow matching and of EDM belong to other models.
_CLIPS = {"clip_sample": True}
_STABLE_DIFFUSION = {"beta_start": 0.00085, "beta_end": 0.012}
_DISTILLED = {**_STABLE_DIFFUSION, "beta_schedule": "scaled_linear"}
SCHEDULERS: Mapping[str, Mapping[str, Any]] = {
    "DDIMScheduler": _CLIPS,
    "DDIMParallelScheduler": _CLIPS,
    "DDPMScheduler": _CLIPS,
    "DDPMParallelScheduler": _CLIPS,
    "DEISMultistepScheduler": {},
    "DPMSolverMultistepScheduler": {},
    "DPMSolverSDEScheduler": _STABLE_DIFFUSION,
    "DPMSolverSinglestepScheduler": {},
    "EulerAncestralDiscreteScheduler": {},
    "EulerDiscreteScheduler": {},
    "HeunDiscreteScheduler": _STABLE_DIFFUSION,
    "KDPM2AncestralDiscreteScheduler": _STABLE_DIFFUSION,
    "KDPM2DiscreteScheduler": _STABLE_DIFFUSION,
    "LCMScheduler": _DISTILLED,
    "LMSDiscreteScheduler": {},
    "PNDMScheduler": {},
    "SASolverScheduler": {},
    "TCDScheduler": _DISTILLED,
    "UniPCMultistepScheduler": {},
}
_TRAINED = "the model was trained with another noise schedule"
SCHEDULE = Fields(
    needed={
        "num_train_timesteps": Needed((SDXL_SCHEDULER["num_train_timesteps"],), 1000, _TRAINED),
        "beta_start": Needed((SDXL_SCHEDULER["beta_start"],), 0.0001, _TRAINED),
        "beta_end": Needed((SDXL_SCHEDULER["beta_end"],), 0.02, _TRAINED),
        "beta_schedule": Needed((SDXL_SCHEDULER["beta_schedule"],), "linear", _TRAINED),
        "trained_betas": Needed((None,), None, _TRAINED),
        "prediction_type": Needed(PREDICTIONS, "epsilon", "the model predicts something else"),
        "predict_epsilon": Needed((True,), True, "the model does not predict the noise"),
        "variance_type": Needed(
            (None, "fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log"), None,
            "the model also predicts its variance",
        ),
        "timestep_type": Needed(("discrete",), "discrete", "the model gets its noise level in another form"),
        "use_flow_sigmas": Needed((False,), False, "which is flow matching"),
        "use_dynamic_shifting": Needed((False,), False, "which is flow matching"),
        "shift_terminal": _NONE,
        "sigma_min": _NONE,
        "sigma_max": _NONE,
        "clip_sample": Needed((False,), False, "SDXL's latents exceed the range that it clips to"),
        "thresholding": Needed((False,), False, "which does not work with latents"),
    },
    applied=frozenset({
        "timestep_spacing", "rescale_betas_zero_snr", "steps_offset", "set_alpha_to_one", "use_karras_sigmas",
        "original_inference_steps", "distilled_timesteps",
    }),
    unused=frozenset({
        # settings of samplers: `read_scheduler` says which are not applied
        "skip_prk_steps", "interpolation_type", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas",
        "solver_order", "algorithm_type", "solver_type", "lower_order_final", "euler_at_final",
        "final_sigmas_type", "lambda_min_clipped", "predict_x0", "disable_corrector", "solver_p",
        "noise_sampler_seed", "predictor_order", "corrector_order", "tau_func", "timestep_scaling",
        # options of features that are off above
        "clip_sample_range", "sample_max_value", "dynamic_thresholding_ratio", "flow_shift", "time_shift_type",
    }),
)  # fmt: skip
