"""Training-free ways to make an image cheaper, around the reference's step. None of them is part of the product.

Each one wraps the step of `InfiniteIDPipeline`, and decides for every step what is computed and what is reused.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor

from infid_export.model.step import IdentityInputs, PromptInputs, SamplerInputs, StreamInputs

States = list[StreamInputs]


class StepSaver:
    """A step that is taken in full.

    Args:
        step: the reference's step.
        steps: steps per image; the index starts again with every image.
    """

    def __init__(self, step: Any, steps: int) -> None:
        self.step, self.steps, self.index = step, steps, 0

    def kind(self, index: int) -> str:
        """Return what a step computes; steps of one kind cost the same, whatever the saver."""
        return "full"

    def advance(
        self, streams: Sequence[StreamInputs], sampler: SamplerInputs, prompt: PromptInputs, identity: IdentityInputs
    ) -> States:
        """Take the next step, as the reference's step does."""
        found = self._take(self.kind(self.index), streams, sampler, prompt, identity)
        self.index = (self.index + 1) % self.steps
        return found

    def _take(
        self, kind: str, streams: Sequence[StreamInputs], sampler: SamplerInputs, prompt: PromptInputs,
        identity: IdentityInputs,
    ) -> States:  # fmt: skip
        found: States = self.step.advance(streams, sampler, prompt, identity)
        return found


class GuidanceInterval(StepSaver):
    """Guidance in some steps only (Kynkäänniemi et al., arXiv 2404.07724); the others have no unconditional rows.

    Args:
        step: see `StepSaver`.
        steps: likewise.
        first: first step with guidance, from 0.
        last: last one.
    """

    def __init__(self, step: Any, steps: int, first: int, last: int) -> None:
        super().__init__(step, steps)
        self.first, self.last = first, last

    def kind(self, index: int) -> str:
        """Return whether a step has guidance."""
        return "full" if self.first <= index <= self.last else "conditional"

    def _take(self, kind: str, streams: Any, sampler: Any, prompt: Any, identity: Any) -> States:
        if kind != "full":
            sampler, prompt, identity = conditional(sampler, prompt, identity)
        return super()._take(kind, streams, sampler, prompt, identity)


class Gate(StepSaver):
    """From a step on, cross-attention's outputs are reused, and there is no guidance (T-GATE, arXiv 2404.02747).

    What is reused is the mean of the unconditional and the conditional rows of the step before.

    Args:
        step: see `StepSaver`; its cross-attention processors are wrapped.
        steps: likewise.
        gate: first step that reuses.
    """

    def __init__(self, step: Any, steps: int, gate: int) -> None:
        super().__init__(step, steps)
        self.gate, self.now, self.samples = gate, "", 0
        processors = step.unet.attn_processors
        step.unet.set_attn_processor(
            {
                name: _Gated(each, self) if name.endswith("attn2.processor") else each
                for name, each in processors.items()
            }
        )

    def kind(self, index: int) -> str:
        """Return whether a step keeps, reuses, or neither."""
        return "full" if index < self.gate - 1 else "kept" if index == self.gate - 1 else "reused"

    def _take(self, kind: str, streams: Any, sampler: Any, prompt: Any, identity: Any) -> States:
        self.now, self.samples = kind, streams[0].latents.shape[0]
        if kind == "reused":
            sampler, prompt, identity = conditional(sampler, prompt, identity)
        return super()._take(kind, streams, sampler, prompt, identity)


class _Gated:
    """A cross-attention processor that keeps or reuses its output, as its gate says."""

    def __init__(self, processor: Any, gate: Gate) -> None:
        self._processor, self._gate = processor, gate
        self._kept: Tensor | None = None

    def __call__(  # diffusers passes what the signature names
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Any = None, attention_mask: Any = None,
        streams: Any = None,
    ) -> Tensor:  # fmt: skip
        if self._gate.now == "reused":
            assert self._kept is not None
            return self._kept
        found: Tensor = self._processor(attn, hidden_states, encoder_hidden_states, attention_mask, streams)
        if self._gate.now == "kept":
            rows = found.unflatten(0, (-1, 2, self._gate.samples))  # streams, without and with condition, samples
            self._kept = rows.mean(1).flatten(0, 1)
        return found


class DeepCache(StepSaver):
    """In most steps only the UNet's outermost blocks run, on what the last full step left.

    That is DeepCache, arXiv 2312.00858.

    Args:
        step: see `StepSaver`; the inner blocks of its UNet are wrapped.
        steps: likewise.
        every: every how many steps all of it runs.
    """

    def __init__(self, step: Any, steps: int, every: int) -> None:
        super().__init__(step, steps)
        self.every, self.now = every, ""
        unet = step.unet
        for block in (*unet.down_blocks[1:], unet.mid_block, *unet.up_blocks[:-1]):
            block.forward = self._reusing(block.forward)

    def _reusing(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        kept: list[Any] = [None]

        def call(*given: Any, **named: Any) -> Any:
            if self.now != "outer":
                kept[0] = forward(*given, **named)
            return kept[0]

        return call

    def kind(self, index: int) -> str:
        """Return whether all of the UNet runs."""
        return "full" if index % self.every == 0 else "outer"

    def _take(self, kind: str, streams: Any, sampler: Any, prompt: Any, identity: Any) -> States:
        self.now = kind
        return super()._take(kind, streams, sampler, prompt, identity)


def conditional(
    sampler: SamplerInputs, prompt: PromptInputs, identity: IdentityInputs
) -> tuple[SamplerInputs, PromptInputs, IdentityInputs]:
    """Return a step's inputs without guidance: the conditional half of the rows."""
    assert sampler.guidance is not None
    samples = sampler.guidance.shape[0]
    return (
        sampler._replace(guidance=None),
        PromptInputs(*(tensor[samples:] for tensor in prompt)),
        identity._replace(keys=identity.keys[samples:], values=identity.values[samples:]),
    )


def teraflop(
    saver: StepSaver, inputs: Callable[[], tuple[Any, Any, Any, Any]], counted: MutableMapping[str, int]
) -> float:
    """Return the floating-point operations of an image's steps, in 1e12, counted by PyTorch on meta tensors.

    Args:
        saver: around a step on the meta device.
        inputs: returns the arguments of `advance`.
        counted: operations of a step by kind, to which new kinds are added; of any saver, for the same model.
    """
    from torch.utils.flop_counter import FlopCounterMode

    for index in range(saver.steps):
        kind = saver.kind(index)
        if kind not in counted:
            if index:  # what it reuses
                saver.index = index - 1
                with torch.no_grad():
                    saver.advance(*inputs())
            saver.index = index
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                saver.advance(*inputs())
            counted[kind] = int(counter.get_total_flops())
    return sum(counted[saver.kind(index)] for index in range(saver.steps)) / 1e12
