"""Memory and time of a run before it is started, from the model's shapes alone: no weights are allocated.

What stays in memory between the forward and the backward pass follows from the UNet being frozen: a linear layer keeps
nothing, since only its input's gradient is needed, and layers before the first cross-attention keep nothing at all.
What remains are the inputs of convolutions, normalizations and activations, and queries, keys, values and outputs of
attention. `tests/training/test_estimate.py` compares the sum with what autograd really keeps. The memory is that of the
steps. It leaves out the VAE and the encoders, which fill the cache before the steps and draw sample images in between.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from diffusers.models.activations import GEGLU
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from infid_export.model.identity import IdentityModules
from infid_export.model.processors import identity_blocks, install_processors
from infid_export.model.sources import ModelSource
from infid_training.loss import identity_loss
from infid_training.run_options import TrainOptions

_FP32, _FP16 = 4, 2
_NETWORK = {"fp32": 4, "bf16": 2, "fp16": 2}
_OPTIMIZER = {"adamw": 8, "adamw8bit": 2}  # bytes per trained parameter: two moments
# CUDA's context, cuBLAS's and cuDNN's workspaces: an assumption, no GPU has been measured.
_CONTEXT = 2_000_000_000
# Memory reserved beyond what is used, because of fragmentation, as a fraction of it: also an assumption.
_FRAGMENTATION = 0.1
# Forward and backward: the gradients of the activations take as many operations again, frozen weights none; with
# checkpointing the forward pass runs twice.
_PASSES, _PASSES_CHECKPOINTED = 2, 3
_TOKENS, _TIME_IDS = 77, 6  # of a prompt, and of SDXL's size conditioning


@dataclass(frozen=True)
class RunEstimate:
    """What a run needs; bytes are per GPU.

    Args:
        parameters: number of trained parameters.
        frozen_parameters: number of parameters of the UNet.
        memory: bytes by purpose.
        flops_per_photo: operations of one forward pass.
        flops_per_step: operations per GPU, forward and backward.
        seconds: time of the whole run at the assumed speed.
        checkpoint_bytes: size of one checkpoint on disk.
        cache_bytes_per_photo: size of the frozen networks' outputs on disk.
    """

    parameters: int
    frozen_parameters: int
    memory: dict[str, int]
    flops_per_photo: float
    flops_per_step: float
    seconds: float
    checkpoint_bytes: int
    cache_bytes_per_photo: int

    @property
    def peak_bytes(self) -> int:
        """Sum of the memory."""
        return sum(self.memory.values())


def estimate(source: ModelSource, options: TrainOptions, size: int, processes: int, tflops: float) -> RunEstimate:
    """Estimate a run.

    Args:
        source: the model; only its configuration is read.
        options: the run's options.
        size: size of the photos in pixels.
        processes: number of GPUs.
        tflops: 10¹² operations per second that a GPU reaches in such work: the caller's assumption.
    """
    unet: Any = source.empty("unet")
    identity: Any = source.empty("identity")
    latents = source.architecture.latents(size, size)
    kept, kept_checkpointed, flops = _measure(unet, identity, options, latents)
    trained = sum(parameter.numel() for parameter in identity.parameters())
    frozen = sum(parameter.numel() for parameter in unet.parameters())
    activations = options.batch_size * (kept_checkpointed if options.gradient_checkpointing else kept)
    memory = {
        "frozen UNet": frozen * _NETWORK[options.precision],
        "trained weights": trained * _FP32,
        "gradients": trained * _FP32 * (2 if processes > 1 else 1),  # and the buckets in which they are averaged
        "optimizer": trained * _OPTIMIZER[options.optimizer],
        "moving average": trained * _FP32 if options.ema_decay else 0,
        # IdentityModules.project concatenates the weights of all blocks, in the network's dtype
        "stacked projections": trained * _NETWORK[options.precision],
        "activations": activations,
    }
    memory["fragmentation (assumed)"] = round(_FRAGMENTATION * sum(memory.values()))
    memory["CUDA context (assumed)"] = _CONTEXT
    passes = _PASSES_CHECKPOINTED if options.gradient_checkpointing else _PASSES
    per_step = flops * passes * options.batch_size * options.accumulation
    return RunEstimate(
        parameters=trained,
        frozen_parameters=frozen,
        memory=memory,
        flops_per_photo=flops,
        flops_per_step=per_step,
        seconds=options.steps * per_step / (tflops * 1e12),
        checkpoint_bytes=trained * (_FP32 * (2 if options.ema_decay else 1) + _OPTIMIZER[options.optimizer]),
        cache_bytes_per_photo=_cached_bytes(unet, identity, latents),
    )


def _cached_bytes(unet: Any, identity: IdentityModules, latents: tuple[int, int, int]) -> int:
    """Return the bytes of what `PhotoEncoders` returns for a photo."""
    config = identity.config
    texts = _TOKENS * unet.config.cross_attention_dim + _pooled_width(unet) if config.trained_with_text else 0
    exact = prod(latents) + config.face_width + _TIME_IDS
    return exact * _FP32 + (config.clip_tokens * config.clip_width + texts) * _FP16


def _measure(
    unet: Any, identity: IdentityModules, options: TrainOptions, latents: tuple[int, int, int]
) -> tuple[int, int, float]:
    """Return the bytes kept per photo, plainly and with checkpointing, and the operations of a forward pass."""
    install_processors(unet, identity.config)
    with _watch(unet, _NETWORK[options.precision]) as kept, FlopCounterMode(display=False) as counter, torch.no_grad():
        _forward(unet, identity, latents)
    return kept.plain, kept.checkpointed, float(counter.get_total_flops())


def _pooled_width(unet: Any) -> int:
    return int(unet.config.projection_class_embeddings_input_dim - _TIME_IDS * unet.config.addition_time_embed_dim)


def _forward(unet: Any, identity: IdentityModules, latents: tuple[int, int, int]) -> None:
    """Run the loss on tensors without values."""
    config, shape = identity.config, (1, *latents)
    texts: list[Tensor] = []
    if config.trained_with_text:
        texts = [torch.empty(1, _TOKENS, unet.config.cross_attention_dim, device="meta"),
                 torch.empty(1, _pooled_width(unet), device="meta")]  # fmt: skip
    identity_loss(
        unet.to("meta"), identity, torch.empty(shape, device="meta"), torch.empty(shape, device="meta"),
        torch.empty(1, device="meta"), torch.empty(1, config.clip_tokens, config.clip_width, device="meta"),
        torch.empty(1, config.face_width, device="meta"), torch.empty(1, _TIME_IDS, device="meta"), *texts,
    )  # fmt: skip


@dataclass
class _Kept:
    """Bytes that autograd keeps per photo; `checkpointed` if resnets and transformer blocks are recomputed."""

    plain: int = 0
    inputs: int = 0
    largest_unit: int = 0
    outside: int = 0

    @property
    def checkpointed(self) -> int:
        return self.inputs + self.outside + self.largest_unit


@contextmanager
def _watch(unet: nn.Module, width: int) -> Iterator[_Kept]:
    """Count kept bytes while the block runs the UNet.

    Args:
        unet: the UNet.
        width: bytes per value in the network. Normalizations keep theirs in fp32 at any precision.
    """
    kept = _Kept()
    begun = False
    units: list[tuple[nn.Module, int]] = []  # the current checkpointed unit, and what was kept before it
    first = unet.get_submodule(next(iter(identity_blocks(unet))))

    def before(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        nonlocal begun
        begun = begun or module is first
        if begun and isinstance(module, ResnetBlock2D | BasicTransformerBlock):
            units.append((module, kept.plain))
            kept.inputs += inputs[0].numel() * width

    def after(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if not begun:
            return
        size = _kept_by(module, inputs, width)
        kept.plain += size
        if not units:
            kept.outside += size
        elif units[-1][0] is module:
            kept.largest_unit = max(kept.largest_unit, kept.plain - units.pop()[1])

    with ExitStack() as stack:
        for module in unet.modules():
            for handle in (module.register_forward_pre_hook(before), module.register_forward_hook(after)):
                stack.callback(handle.remove)
        yield kept


def _kept_by(module: nn.Module, inputs: tuple[Any, ...], width: int) -> int:
    """Return the bytes one layer keeps."""
    if isinstance(module, nn.GroupNorm | nn.LayerNorm | nn.SiLU):
        return int(inputs[0].numel()) * _FP32
    if isinstance(module, nn.Conv2d):  # torch keeps a convolution's input even if its weights are frozen
        # in fp32 a resnet's shortcut, its only 1 × 1 convolution, keeps the same tensor as its normalization
        shared = width == _FP32 and module.kernel_size == (1, 1)
        return 0 if shared else int(inputs[0].numel()) * width
    if isinstance(module, GEGLU):  # both halves and the activated one
        tokens = inputs[0].numel() // inputs[0].shape[-1]
        return 3 * int(tokens) * (int(module.proj.out_features) // 2) * width
    if isinstance(module, Attention):
        queries = int(inputs[0].numel() // inputs[0].shape[-1]) * int(module.to_q.out_features)
        # query and output; self-attention also keeps keys and values of that length, cross-attention only few
        return (2 if module.is_cross_attention else 4) * queries * width
    return 0
