"""From noise to an image, as a server runs it: one graph replay per step, then the VAE decoder.

Each replay makes the DDIM step and updates the latents in place. Before it, the next row of the coefficient table is
copied in on the device and, from a template, the text features of that step. Steps with guidance are the product's
modules; the product has none without guidance yet, so `ConditionalStep` predicts on the conditional rows only (R = B).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from benchmarks.model.network import Held, Network, alone
from benchmarks.suite.bench import Bench, Item, Result, Workload
from infid_kernels.measure import relative_rms

if TYPE_CHECKING:
    from infid_export.model.config import IdentityConfig

VAE_DTYPES: Mapping[str, torch.dtype] = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
_IMAGES = 3  # samples per timing
_GRAPHS = {"joint": "denoise_step", "template": "identity_step", "text": "text_step"}

# Inputs with a row per condition, unconditional rows first.
_ROWS = ("prompt_embeds", "pooled_prompt_embeds", "time_ids", "identity_keys", "identity_values", "text_features")


class ConditionalStep(nn.Module):
    """A step without guidance: only the conditional rows, B instead of 2B per stream.

    Args:
        unet: diffusers' UNet2DConditionModel; the two-stream processors are installed in it.
        config: the method variant.
        ops: implementation of the attention, see `install_processors`.
    """

    def __init__(self, unet: Any, config: IdentityConfig, ops: str) -> None:
        from infid_export.model.processors import identity_blocks, install_processors, text_feature_paths

        super().__init__()
        install_processors(unet, config, ops)
        self.unet = unet
        self.paths = text_feature_paths(identity_blocks(unet))

    def forward(
        self,
        timestep: Tensor,
        ddim_coefficients: Tensor,
        prompt_embeds: Tensor,
        pooled_prompt_embeds: Tensor,
        time_ids: Tensor,
        text_latents: Tensor | None = None,
        identity_latents: Tensor | None = None,
        text_features: Sequence[Tensor] = (),
        identity_keys: Tensor | None = None,
        identity_values: Tensor | None = None,
        style_strength: Tensor | None = None,
        identity_strength: Tensor | None = None,
    ) -> list[Tensor]:
        """Take one step; arguments as in `DenoiseStep` with R = B. A stream without latents is left out.

        Returns:
            The next latents of each stream; if only the text stream runs, its text features as well.
        """
        from infid_export.model.processors import Streams

        streams = Streams(
            text_latents is not None, identity_keys, identity_values, style_strength, identity_strength,
            dict(zip(self.paths, text_features, strict=False)),
        )  # fmt: skip
        latents = [each for each in (text_latents, identity_latents) if each is not None]
        added = {
            "text_embeds": pooled_prompt_embeds.float().repeat(len(latents), 1),
            "time_ids": time_ids.repeat(len(latents), 1),
        }
        noise = self.unet(
            torch.cat(latents).to(self.unet.dtype), timestep, prompt_embeds, added_cond_kwargs=added,
            cross_attention_kwargs={"streams": streams}, return_dict=False,
        )[0].float()  # fmt: skip
        following = [
            ddim_coefficients[0] * before + ddim_coefficients[1] * estimate
            for before, estimate in zip(latents, noise.chunk(len(latents)), strict=True)
        ]
        if identity_latents is not None:
            return following
        return [*following, *(streams.text_features[path] for path in self.paths)]


@dataclass
class Loop:
    """A step together with its input buffers, into which it writes the next latents.

    Args:
        call: takes a step from the input buffers.
        inputs: the input buffers by name.
    """

    call: Callable[[], Sequence[Tensor]]
    inputs: dict[str, Any]

    @property
    def latents(self) -> list[Tensor]:
        """Latents of each stream; the last ones become the image."""
        return [each for name, each in self.inputs.items() if name.endswith("_latents")]

    def advance(self) -> list[Tensor]:
        """Take a step, overwrite the latents with the next ones, and return the step's other outputs."""
        outputs = self.call()
        for place, following in zip(self.latents, outputs, strict=False):
            place.copy_(following)
        return list(outputs[len(self.latents) :])

    def at(self, row: Tensor, features: Sequence[Tensor]) -> None:
        """Copy in a row of the coefficient table, and the text features of that step."""
        self.inputs["timestep"].copy_(row[:1])
        self.inputs["ddim_coefficients"].copy_(row[1:])
        if features:
            torch._foreach_copy_(self.inputs["text_features"], list(features))


def loop(network: Network, kind: str, guidance: bool) -> Loop:
    """Return a loop over a step.

    Args:
        network: its UNet gets this step's attention processors.
        kind: `joint`, `template` (identity stream only) or `text` (text stream only).
        guidance: whether there are unconditional rows.
    """
    dtype, graph = network.dtype(network.best_ops), _GRAPHS[kind]
    inputs = network.arguments(graph, dtype)
    for name in ("text_latents", "identity_latents"):
        if name in inputs:  # both streams start from the same noise
            inputs[name] = network.arguments("denoise_step", dtype)["identity_latents"]
    if guidance:
        step = network.step(graph, network.best_ops)
        return Loop(lambda: _tuple(step(**inputs)), inputs)
    samples = inputs.pop("guidance").shape[0]
    inputs = {name: _conditional(each, samples) if name in _ROWS else each for name, each in inputs.items()}
    conditional = ConditionalStep(network.unet(dtype), network.config, network.best_ops)
    return Loop(lambda: conditional(**inputs), inputs)


def _tuple(outputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (outputs,) if isinstance(outputs, Tensor) else outputs


def _conditional(value: Any, samples: int) -> Any:
    """Return a copy of the conditional rows."""
    if isinstance(value, list):
        return [_conditional(each, samples) for each in value]
    return value[samples:].clone()


def template(network: Network, table: Tensor, guidance: bool) -> list[list[Tensor]]:
    """Return the text features of every step, from the text stream's own latents."""
    text = loop(network, "text", guidance)
    found = []
    for row in table:
        text.at(row, ())
        found.append([each.clone() for each in text.advance()])
    return found


@alone
def image(held: Held, bench: Bench, steps: int, guidance: bool, kind: str) -> Result:
    """Time an image of B = 1: all steps, then the VAE in a dtype in which it is finite.

    The final latents from a template are compared with those of the joint steps, if that item ran before.
    """
    from infid_export.scheduler import SDXL_SCHEDULER, ddim_table

    network = held.network(bench, small=True)
    table = torch.from_numpy(ddim_table(SDXL_SCHEDULER, steps)).to(bench.device)
    features = template(network, table, guidance) if kind == "template" else [[]] * steps
    running = loop(network, kind, guidance)
    noise = running.latents[-1].clone()
    replay, _ = bench.graphed(running.advance)
    dtype = decoder_dtype(network, bench.results)
    decoder = _decoder(network, VAE_DTYPES[dtype])
    decode, picture = bench.graphed(lambda: decoder(running.latents[-1]))

    def whole() -> None:
        for place in running.latents:
            place.copy_(noise)
        for row, saved in zip(table, features, strict=True):
            running.at(row, saved)
            replay()
        decode()

    result = asdict(bench.time_long(whole, _IMAGES))
    picture = picture if bench.on_gpu else decode()
    latents, size = running.latents[-1].clone(), sum(each.nbytes for saved in features for each in saved)
    held.latents[f"{steps} {kind}"] = latents
    joint = held.latents.get(f"{steps} joint")
    compared = {} if kind == "joint" or joint is None else {
        "relative_rms_to_joint": relative_rms(latents, joint.double())
    }  # fmt: skip
    return {
        **result, "steps": steps, "guidance": guidance, "ops": network.best_ops, "network": network.name,
        "rows": len(running.latents) * (2 if guidance else 1), "vae": dtype, "template_bytes": size,
        "made_by": "the step of the product" if guidance else "the benchmark's step of the conditional rows (R = B)",
        "finite": bool(latents.isfinite().all() and picture.isfinite().all()), **compared,
    }  # fmt: skip


def decoder_dtype(network: Network, results: Mapping[str, Result]) -> str:
    """Return the fastest dtype in which the VAE is finite.

    SDXL's trained VAE overflows in fp16, which its configuration says and random weights do not show. For the other
    dtypes, this run's measurements decide.
    """
    fit = [name for name in VAE_DTYPES if not (name == "fp16" and network.architecture.vae["force_upcast"])]
    return next((name for name in fit if results.get(f"vae_decoder {name} graph", {}).get("finite", True)), "fp32")


def _decoder(network: Network, dtype: torch.dtype) -> nn.Module:
    from infid_export.export.graphs.vae_decoder import VAE_DECODER

    return VAE_DECODER.module({"vae": network.component("vae", dtype)}, network.config)


@alone
def vae_decoder(held: Held, bench: Bench, dtype: str) -> Result:
    """Time the VAE decoder, and check whether its output is finite."""
    network = held.network(bench)
    module = _decoder(network, VAE_DTYPES[dtype])
    latents = network.arguments("text_step", network.dtype("torch"))["text_latents"]
    replay, picture = bench.graphed(lambda: module(latents))
    timing = bench.time_long(replay)
    return {**asdict(timing), "finite": bool(picture.isfinite().all()), "network": network.name}


def items(held: Held, workload: Workload, op: str) -> list[Item]:
    """Return the items that measure images.

    Args:
        held: the networks that the items share.
        workload: gives the numbers of steps.
        op: the operation whose checks must have passed.
    """
    found = [Item(f"vae_decoder {name} graph", 4, partial(vae_decoder, held, dtype=name)) for name in VAE_DTYPES]
    for steps, guidance, seconds in ((workload.steps, True, 12), (workload.few_steps, False, 5)):
        found += [
            Item(f"image {steps} {kind}", seconds, partial(image, held, steps=steps, guidance=guidance, kind=kind), op)
            for kind in ("joint", "template")
        ]
    return found
