"""The step in diffusers' own pipeline: `StableDiffusionXLPipeline` with its own attention processors and guidance.

It runs whole generations from given embeddings to latents, so the time includes what diffusers does around the UNet.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch

from benchmarks.model.network import Held, Network, alone
from benchmarks.suite.bench import Bench, Item, Result
from infid_kernels.measure import Timing

_IMAGES = 3  # samples per timing; each is all steps of an image


class Pipeline:
    """diffusers' pipeline with a network's UNet, from embeddings to latents.

    Args:
        network: its UNet's attention processors are replaced by diffusers' own.
    """

    def __init__(self, network: Network) -> None:
        from diffusers import DDIMScheduler, StableDiffusionXLPipeline
        from diffusers.models.attention_processor import AttnProcessor2_0

        from infid_export.sampling.noise_schedule import SDXL_SCHEDULER

        self.steps = network.bench.workload.steps
        dtype = network.dtype("torch")
        unet = network.unet(dtype)
        unet.set_attn_processor(AttnProcessor2_0())
        self.pipe: Any = StableDiffusionXLPipeline(
            vae=None, text_encoder=None, text_encoder_2=None, tokenizer=None, tokenizer_2=None, unet=unet,
            scheduler=DDIMScheduler(**SDXL_SCHEDULER), add_watermarker=False,
        )  # fmt: skip
        self.pipe.set_progress_bar_config(disable=True)
        given = network.arguments("text_step", dtype)
        embeds, pooled = given["prompt_embeds"], given["pooled_prompt_embeds"]
        size = (network.bench.workload.size,) * 2
        height, width = (side * self.pipe.vae_scale_factor for side in given["text_latents"].shape[2:])
        self._inputs = {
            "latents": given["text_latents"].to(dtype), "height": height, "width": width,
            "original_size": size, "target_size": size,
            "negative_prompt_embeds": embeds[:1], "prompt_embeds": embeds[1:],
            "negative_pooled_prompt_embeds": pooled[:1], "pooled_prompt_embeds": pooled[1:],
            "num_inference_steps": self.steps, "guidance_scale": 5.0, "output_type": "latent",
        }  # fmt: skip

    def __call__(self) -> torch.Tensor:
        """Return an image's final latents."""
        latents: torch.Tensor = self.pipe(**self._inputs).images
        return latents

    def timed(self, bench: Bench) -> Result:
        """Return the time per step, averaged over an image, and whether the latents are finite."""
        timing = bench.time_long(self, _IMAGES)
        a_step = {name: getattr(timing, name) / self.steps for name in ("median", "low", "high")}
        return {**asdict(replace(timing, **a_step)), "steps": self.steps, "finite": bool(self().isfinite().all())}


@alone
def eager(held: Held, bench: Bench) -> Result:
    """Time the pipeline as it is."""
    network = held.network(bench, small=True)
    result = Pipeline(network).timed(bench)
    return result | network.rated(_timing(result), "text_step")


def _timing(result: Result) -> Timing:
    return Timing(**{name: result[name] for name in ("median", "low", "high", "samples", "captured")})


def items(held: Held) -> list[Item]:
    """Return the item that times diffusers' own pipeline in this process; `compiled.py` times it compiled."""
    return [Item("diffusers pipeline step eager", 15, partial(eager, held))]
