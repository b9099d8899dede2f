"""One stream: plain SDXL whose cross-attention also attends to the person, equal to diffusers' IP-Adapter."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from adapter_layouts import Tree
from diffusers import StableDiffusionXLPipeline
from small_ip_adapter import adapter_weights, image_features, keys_and_values, relative, with_adapter
from torch import Tensor

from infid_engines.errors import InputError
from infid_export.model.config import IdentityConfig
from infid_export.model.opening import open_source
from infid_export.model.reference_pipeline import InfiniteIDPipeline
from infid_export.model.sources import RandomSource
from infid_export.model.step import SingleStep

PROMPT, STRENGTH, GUIDANCE = "a portrait in the rain", 0.7, 5.0


@pytest.fixture(scope="module")
def reference(source: RandomSource) -> InfiniteIDPipeline:
    pipe = InfiniteIDPipeline.from_source(source)
    pipe.set_progress_bar_config(disable=True)
    pipe.use_identity(streams="one")
    return pipe


@pytest.fixture(scope="module")
def weights(reference: InfiniteIDPipeline) -> Tree:
    return adapter_weights(reference.unet)


@pytest.fixture(scope="module")
def identity(weights: Tree) -> tuple[Tensor, Tensor]:
    return keys_and_values(weights)


@pytest.fixture(scope="module")
def adapted(source: RandomSource, reference: InfiniteIDPipeline, weights: Tree) -> StableDiffusionXLPipeline:
    return with_adapter(reference, source.load("unet", torch.float32), weights, STRENGTH)


def noise() -> Tensor:
    return torch.from_numpy(np.random.default_rng(1).standard_normal((1, 4, 16, 16), dtype=np.float32))


SETTINGS: dict[str, Any] = {"height": 64, "width": 64, "output_type": "latent"}


@pytest.mark.parametrize("steps", [1, 10])
@pytest.mark.parametrize("guidance", [GUIDANCE, 1.0])
def test_one_stream_equals_diffusers_with_an_ip_adapter(reference, adapted, identity, steps, guidance):
    settings = {**SETTINGS, "guidance_scale": guidance, "num_inference_steps": steps, "latents": noise()}
    expected = adapted(PROMPT, ip_adapter_image_embeds=[image_features(guidance > 1)], **settings).images
    found = reference(PROMPT, identity, identity_strength=STRENGTH, **settings)
    assert relative(found.images, expected) <= 1e-5
    assert found.text_latents is None
    other = reference(PROMPT, identity, identity_strength=0.0, **settings).images
    assert relative(other, expected) > 1e-3  # the person counts


def test_one_stream_is_half_the_rows_of_two(reference, source, identity, monkeypatch):
    rows = []
    for pipe in (reference, InfiniteIDPipeline.from_source(source)):
        pipe.set_progress_bar_config(disable=True)
        hook = pipe.unet.register_forward_pre_hook(lambda _, given: rows.append(len(given[0])))
        pipe(PROMPT, identity, num_inference_steps=1, **SETTINGS)
        hook.remove()
    assert rows == [2, 4]


def test_without_a_person_it_is_plain_sdxl(reference, adapted, identity, source):
    plain = StableDiffusionXLPipeline(
        **{name: getattr(adapted, name) for name in ("vae", "text_encoder", "text_encoder_2")},
        **{name: getattr(adapted, name) for name in ("tokenizer", "tokenizer_2", "scheduler")},
        unet=source.load("unet", torch.float32),
        add_watermarker=False,
    )
    plain.set_progress_bar_config(disable=True)
    settings = {**SETTINGS, "num_inference_steps": 3, "guidance_scale": GUIDANCE, "latents": noise()}
    found = reference(PROMPT, identity, identity_strength=0.0, **settings).images
    assert relative(found, plain(PROMPT, **settings).images) <= 1e-5


def test_the_uncond_rows_can_have_no_person(reference, identity):
    settings = {**SETTINGS, "num_inference_steps": 1, "latents": noise()}
    usual = reference(PROMPT, identity, **settings).images
    reference.use_identity(uncond_identity="off")
    without = reference(PROMPT, identity, **settings).images
    nobody = tuple(torch.cat([torch.zeros_like(each[:1]), each[1:]]) for each in identity)
    reference.use_identity(uncond_identity="zeros")
    assert relative(reference(PROMPT, nobody, **settings).images, without) <= 1e-6  # values of zero add nothing
    assert relative(usual, without) > 1e-4


def test_a_stochastic_sampler_draws_as_often_as_with_two_streams(reference, identity):
    def latents(**settings: Any) -> Tensor:
        generator = np.random.default_rng(5)
        images = reference(
            PROMPT, identity, **SETTINGS, num_inference_steps=3, sampler="euler_a", generator=generator, **settings
        ).images
        return torch.cat([images, torch.from_numpy(generator.standard_normal(images.shape, dtype=np.float32))])

    one = latents()
    reference.use_identity(streams="two")
    with_text = latents()
    reference.use_identity(streams="one")
    assert torch.equal(one[1:], with_text[1:])
    assert not torch.equal(one[:1], with_text[:1])


def test_text_latents_are_rejected(reference, identity):
    with pytest.raises(InputError, match=r"text_latents have no effect: there is no text stream\."):
        reference(PROMPT, identity, text_latents=noise(), **SETTINGS)


def test_the_step_is_what_the_pipeline_runs(reference):
    assert type(reference._step) is SingleStep


TWO = {"self_attention": "mixed", "adain": "mean", "cross_adain": "kv"}
ONE = {"self_attention": "plain", "adain": "off", "cross_adain": "off"}


def attention(config: IdentityConfig) -> dict[str, str]:
    return {name: getattr(config, name) for name in TWO}


def test_another_number_of_streams_brings_its_attention_along():
    config = IdentityConfig()
    one = config.with_choices(streams="one")
    assert (one.streams, attention(one)) == ("one", ONE)
    assert one.with_choices(streams="two") == config
    assert attention(one.with_choices(streams="two", adain="standard")) == {**TWO, "adain": "standard"}
    assert one.with_choices(streams="one") == one


def test_the_stored_number_of_streams_keeps_the_stored_attention():
    plain = IdentityConfig(self_attention="plain")
    assert plain.with_choices(streams="two") == plain


@pytest.mark.parametrize("choice", ONE)
def test_one_stream_has_nothing_to_attend_to_elsewhere(choice):
    with pytest.raises(InputError, match=rf"With one stream, {choice} must be {ONE[choice]}, not {TWO[choice]}"):
        IdentityConfig().with_choices(**{"streams": "one", choice: TWO[choice]})
    with pytest.raises(InputError, match="there are no text rows") as caught:
        IdentityConfig(**{**ONE, "streams": "one", choice: TWO[choice]})
    assert caught.value.fix == f"Leave out {choice}, or choose two streams."


def test_a_note_says_that_weights_are_untrained_for_it():
    assert open_source("demo").notes == ()
    (note,) = open_source("demo", choices={"streams": "one"}).notes
    assert "made for two, and not trained for one" in note
