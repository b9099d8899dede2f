"""From noise to an image, as a server runs it: one graph replay per step, then the VAE decoder.

Each replay takes a DDIM step and carries the state over; before it, the next row of the sampler's table is copied in on
the device and, from a template, the text features of that step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.model.network import Held, Network, alone
from benchmarks.suite.bench import Bench, Item, Result, Workload
from infid_kernels.measure import relative_rms

VAE_DTYPES: Mapping[str, torch.dtype] = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
_IMAGES = 3  # samples per timing
_GRAPHS = {"joint": "denoise_step", "template": "identity_step", "text": "text_step"}


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

    @property
    def state(self) -> list[Tensor]:
        """Latents and data prediction of each stream, in the order in which a step returns the next ones."""
        return [each for name, each in self.inputs.items() if name.endswith(("_latents", "_denoised"))]

    def start(self, noise: Tensor) -> None:
        """Put noise in the place of the latents, and zeros in that of the data predictions."""
        for name, each in self.inputs.items():
            if name.endswith("_latents"):
                each.copy_(noise)
            elif name.endswith("_denoised"):
                each.zero_()

    def advance(self) -> list[Tensor]:
        """Take a step, put the next state in the place of the state, and return what else the step gave."""
        outputs = self.call()
        for place, following in zip(self.state, outputs, strict=False):
            place.copy_(following)
        return list(outputs[len(self.state) :])

    def at(self, row: Tensor, features: Sequence[Tensor]) -> None:
        """Copy in a row of the sampler's table, and the text features of that step."""
        self.inputs["timestep"].copy_(row[:1])
        self.inputs["coefficients"].copy_(row[1:])
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
    inputs = network.arguments(graph, dtype, guidance)
    noise = network.arguments("denoise_step", dtype, guidance)["identity_latents"]  # both streams start from it
    step = network.step(graph, network.best_ops)
    running = Loop(lambda: step(**inputs), inputs)
    running.start(noise)
    return running


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
    from infid_export.sampling.noise_schedule import SDXL_SCHEDULER
    from infid_export.sampling.samplers import sampler_table

    network = held.network(bench, small=True)
    table = torch.from_numpy(sampler_table(SDXL_SCHEDULER, steps).rows).to(bench.device)
    features = template(network, table, guidance) if kind == "template" else [[]] * steps
    running = loop(network, kind, guidance)
    noise = running.latents[-1].clone()
    replay, _ = bench.graphed(running.advance)
    dtype = decoder_dtype(network, bench.results)
    decoder = decoder_of(network, VAE_DTYPES[dtype])
    decode, picture = bench.graphed(lambda: decoder(running.latents[-1]))

    def whole() -> None:
        running.start(noise)
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
        "finite": bool(latents.isfinite().all() and picture.isfinite().all()), **compared,
    }  # fmt: skip


def decoder_dtype(network: Network, results: Mapping[str, Result]) -> str:
    """Return the fastest dtype in which the VAE is finite.

    SDXL's trained VAE overflows in fp16, which its configuration says and random weights do not show. For the other
    dtypes, this run's measurements decide.
    """
    fit = [name for name in VAE_DTYPES if not (name == "fp16" and network.architecture.vae["force_upcast"])]
    return next((name for name in fit if results.get(f"vae_decoder {name} graph", {}).get("finite", True)), "fp32")


def decoder_of(network: Network, dtype: torch.dtype) -> nn.Module:
    """Return the VAE decoder's module."""
    from infid_export.export.graphs.vae_decoder import VAE_DECODER

    return VAE_DECODER.module({"vae": network.component("vae", dtype)}, network.config)


@alone
def vae_decoder(held: Held, bench: Bench, dtype: str) -> Result:
    """Time the VAE decoder, and check whether its output is finite."""
    network = held.network(bench)
    module = decoder_of(network, VAE_DTYPES[dtype])
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
    found = [Item(f"vae_decoder {name} graph", 3, partial(vae_decoder, held, dtype=name)) for name in VAE_DTYPES]
    for steps, guidance, seconds in ((workload.steps, True, 13), (workload.few_steps, False, 4)):
        found += [
            Item(f"image {steps} {kind}", seconds, partial(image, held, steps=steps, guidance=guidance, kind=kind), op)
            for kind in ("joint", "template")
        ]
    return found
