"""Configurations of a model's components, and those of the built-in models. Imports are light."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from infid_export.model.config import IdentityConfig


@dataclass(frozen=True)
class Sampling:
    """The sampling settings.

    Args:
        steps: number of steps.
        guidance: classifier-free guidance scale.
        style_strength: s of AdaIN-mean.
        identity_strength: λ.
        sampler: one of `infid_export.sampling.SAMPLERS`.
        spacing: of the sampler's timesteps; None for few-step samplers.
    """

    steps: int = 30
    guidance: float = 5.0
    style_strength: float = 1.0
    identity_strength: float = 1.0
    sampler: str = "ddim"
    spacing: str | None = "leading"

    def arguments(self) -> dict[str, Any]:
        """Return the arguments for `InfiniteIDPipeline`, with diffusers' names."""
        return {
            "num_inference_steps": self.steps,
            "guidance_scale": self.guidance,
            "style_strength": self.style_strength,
            "identity_strength": self.identity_strength,
            "sampler": self.sampler,
            "spacing": self.spacing,
        }


@dataclass(frozen=True)
class Architecture:
    """Configurations of all components, as the libraries' own dictionaries.

    Args:
        unet: for diffusers' UNet2DConditionModel.
        vae: for diffusers' AutoencoderKL.
        text_encoder: for transformers' CLIPTextConfig.
        text_encoder_2: likewise, for CLIPTextModelWithProjection.
        image_encoder: for open_clip's CLIPVisionCfg, with `embed_dim`.
        sampling: the model's default settings.
    """

    unet: dict[str, Any]
    vae: dict[str, Any]
    text_encoder: dict[str, Any]
    text_encoder_2: dict[str, Any]
    image_encoder: dict[str, Any]
    sampling: Sampling = field(default_factory=Sampling)

    @property
    def size(self) -> int:
        """The model's default image height and width in pixels."""
        return int(self.unet["sample_size"]) * self.vae_scale_factor

    @property
    def vae_scale_factor(self) -> int:
        """Pixels per latent along each side; 8 in SDXL."""
        return int(2 ** (len(self.vae["block_out_channels"]) - 1))

    def latents(self, height: int, width: int) -> tuple[int, int, int]:
        """Return channels, height and width of the latents for an image of `height` by `width` pixels."""
        factor = self.vae_scale_factor
        return int(self.unet["in_channels"]), height // factor, width // factor

    def component(self, name: str) -> dict[str, Any]:
        """Return one component's configuration; identity modules depend on the UNet's."""
        configuration: dict[str, Any] = getattr(self, "unet" if name == "identity" else name)
        return configuration


def _clip_text(hidden: int, layers: int, heads: int, activation: str, projection: int) -> dict[str, Any]:
    return {
        "vocab_size": 49408,
        "hidden_size": hidden,
        "intermediate_size": 4 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "hidden_act": activation,
        "projection_dim": projection,
        "max_position_embeddings": 77,
        "bos_token_id": 49406,
        "eos_token_id": 49407,
    }


def _unet(
    channels: list[int],
    heads: list[int],
    depths: list[int],
    layers: int | list[int],
    context: int,
    pooled: int,
    sample_size: int,
) -> dict[str, Any]:
    return {
        "sample_size": sample_size,
        "in_channels": 4,
        "out_channels": 4,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "block_out_channels": channels,
        "layers_per_block": layers,
        "cross_attention_dim": context,
        "transformer_layers_per_block": depths,
        "attention_head_dim": heads,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 6 * 256 + pooled,
    }


def _vae(channels: list[int], layers: int, size: int) -> dict[str, Any]:
    return {
        "sample_size": size,
        "latent_channels": 4,
        "block_out_channels": channels,
        "layers_per_block": layers,
        "down_block_types": ["DownEncoderBlock2D"] * len(channels),
        "up_block_types": ["UpDecoderBlock2D"] * len(channels),
        "scaling_factor": 0.13025,
        "force_upcast": True,
    }


SDXL = Architecture(
    unet=_unet([320, 640, 1280], [5, 10, 20], [1, 2, 10], 2, 2048, 1280, 128),
    vae=_vae([128, 256, 512, 512], 2, 1024),
    text_encoder=_clip_text(768, 12, 12, "quick_gelu", 768),
    text_encoder_2=_clip_text(1280, 32, 20, "gelu", 1280),
    image_encoder={
        "embed_dim": 1024,
        "image_size": 224,
        "layers": 32,
        "width": 1280,
        "head_width": 80,
        "patch_size": 14,
    },
)

# Between the two, for measuring speed on CPUs: its steps are limited by computation, like SDXL's and unlike the demo's.
# The UNet has 177 M parameters.
MEDIUM = Architecture(
    unet=_unet([128, 256, 512], [2, 4, 8], [1, 2, 3], 2, 768, 512, 64),
    vae=_vae([64, 128, 256, 256], 1, 512),
    text_encoder=_clip_text(256, 6, 4, "quick_gelu", 256),
    text_encoder_2=_clip_text(512, 8, 8, "gelu", 512),
    image_encoder={
        "embed_dim": 512,
        "image_size": 224,
        "layers": 6,
        "width": 384,
        "head_width": 64,
        "patch_size": 32,
    },
)

# Small enough for training on two CPU cores, on the drawn people of `infid_training.world`. Groups of norms have
# several channels even in narrow layers: a norm over a single channel removes a flat image's color. The UNet has most
# residual blocks at the finest level, where an eye is two latents wide.
DEMO = Architecture(
    unet={**_unet([32, 64, 128], [1, 1, 2], [1, 1, 2], [3, 1, 1], 128, 64, 32), "norm_num_groups": 8},
    vae={**_vae([16, 32, 64], 1, 128), "norm_num_groups": 2},
    text_encoder=_clip_text(64, 2, 1, "quick_gelu", 64),
    text_encoder_2=_clip_text(64, 2, 1, "gelu", 64),
    image_encoder={
        "embed_dim": 64,
        "image_size": 224,
        "layers": 4,
        "width": 128,
        "head_width": 32,
        "patch_size": 32,
    },
    sampling=Sampling(guidance=3.0),  # at SDXL's 5, the styles of such a small UNet oversaturate
)


def identity_config(architecture: Architecture) -> IdentityConfig:
    """Return the identity sizes that fit an architecture."""
    image = architecture.image_encoder
    return IdentityConfig(
        clip_tokens=1 + (image["image_size"] // image["patch_size"]) ** 2,
        clip_width=image["width"],
        cross_attention_dim=architecture.unet["cross_attention_dim"],
    )
