"""Training-free shortcuts: exact where they skip nothing, and what they skip where they do."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.quality.step_savers import DeepCache, Gate, GuidanceInterval, StepSaver, teraflop
from infid_export.export.parity_case import parity_face
from infid_export.model.reference_pipeline import InfiniteIDPipeline
from infid_export.model.sources import RandomSource

STEPS = 4
Saver = Callable[[Any, int], StepSaver]


def latents(
    source: RandomSource, saver: Saver | None, prompts: int = 1, steps: int = STEPS
) -> tuple[torch.Tensor, Any]:
    pipe: Any = InfiniteIDPipeline.from_source(source)
    pipe.set_progress_bar_config(disable=True)
    if saver is not None:
        pipe._step = saver(pipe._step, steps)
    face = parity_face(source.architecture.image_encoder["image_size"], source.config.face_width)
    found = pipe(
        ["a portrait", "at the beach"][:prompts], pipe.encode_identity(face), num_inference_steps=steps,
        generator=[np.random.default_rng(seed) for seed in range(prompts)], height=32, width=32, output_type="latent",
    )  # fmt: skip
    return found.images, pipe


@pytest.fixture(scope="module")
def full(source: RandomSource) -> torch.Tensor:
    return latents(source, None)[0]


EXACT: dict[str, Saver] = {
    "nothing": StepSaver,
    "guidance in all steps": partial(GuidanceInterval, first=0, last=STEPS - 1),
    "a gate after the last step": partial(Gate, gate=STEPS + 1),
    "all of the UNet in every step": partial(DeepCache, every=1),
}
SHORTCUTS: dict[str, Saver] = {
    "guidance in two steps": partial(GuidanceInterval, first=1, last=2),
    "a gate after two steps": partial(Gate, gate=2),
    "the UNet in every second step": partial(DeepCache, every=2),
}


@pytest.mark.parametrize("saver", EXACT.values(), ids=EXACT)
def test_a_saver_that_skips_nothing_changes_nothing(saver: Saver, source: RandomSource, full: torch.Tensor) -> None:
    assert torch.equal(latents(source, saver)[0], full)


@pytest.mark.parametrize("saver", SHORTCUTS.values(), ids=SHORTCUTS)
def test_a_shortcut_changes_the_picture(saver: Saver, source: RandomSource, full: torch.Tensor) -> None:
    found = latents(source, saver)[0]
    assert found.isfinite().all()
    assert not torch.equal(found, full)
    both = latents(source, saver, prompts=2)[0]
    assert torch.allclose(both[:1], found, atol=1e-4)  # the rows of two samples are not mixed up


def test_a_picture_starts_with_a_step_in_full(source: RandomSource, full: torch.Tensor) -> None:
    """The second picture of a pipeline is the first one's, if its inputs are."""
    first, pipe = latents(source, partial(DeepCache, every=2))
    face = parity_face(source.architecture.image_encoder["image_size"], source.config.face_width)
    again = pipe(
        ["a portrait"], pipe.encode_identity(face), num_inference_steps=STEPS, height=32, width=32,
        generator=[np.random.default_rng(0)], output_type="latent",
    ).images  # fmt: skip
    assert torch.equal(first, again)
    assert pipe._step.index == 0


def test_steps_without_guidance_are_conditional(source: RandomSource) -> None:
    """Without guidance in any step, the picture is that of a guidance of 1."""
    found, _ = latents(source, partial(GuidanceInterval, first=STEPS, last=STEPS))
    pipe: Any = InfiniteIDPipeline.from_source(source)
    pipe.set_progress_bar_config(disable=True)
    face = parity_face(source.architecture.image_encoder["image_size"], source.config.face_width)
    expected = pipe(
        "a portrait", pipe.encode_identity(face), num_inference_steps=STEPS, guidance_scale=1.0, height=32, width=32,
        generator=[np.random.default_rng(0)], output_type="latent",
    ).images  # fmt: skip
    assert torch.allclose(found, expected, atol=1e-4)


def test_a_kind_is_counted_once() -> None:
    """A step of 2 · 3 · 4 · 5 operations with guidance, and of half without."""

    class Product:
        def advance(self, streams: Any, sampler: Any, prompt: Any, identity: Any) -> Any:
            calls.append(sampler.guidance is None)
            rows = 3 if sampler.guidance is not None else 1.5
            torch.empty(int(2 * rows), 4, device="meta") @ torch.empty(4, 5, device="meta")
            return streams

    from infid_export.model.step import IdentityInputs, PromptInputs, SamplerInputs

    calls: list[bool] = []
    two = torch.empty(2, device="meta")

    def inputs() -> tuple[Any, Any, Any, Any]:
        guidance = torch.empty(1, device="meta")
        return [], SamplerInputs(two, two, guidance), PromptInputs(two, two, two), IdentityInputs(two, two, two, two)

    counted = {"full": 240}
    found = teraflop(GuidanceInterval(Product(), 10, 0, 5), inputs, counted)
    assert counted == {"full": 240, "conditional": 120}
    assert found == pytest.approx((6 * 240 + 4 * 120) / 1e12)
    assert calls == [False, True]
