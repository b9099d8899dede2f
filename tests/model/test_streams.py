from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionXLPipeline
from diffusers_schedulers import STOCHASTIC, scheduler_of

from infid_engines.errors import InputError
from infid_export.export.parity_case import parity_face
from infid_export.model.architectures import DEMO
from infid_export.model.processors import Streams, identity_blocks, install_processors
from infid_export.model.reference_pipeline import InfiniteIDPipeline
from infid_export.model.sources import RandomSource
from infid_export.model.step import DenoiseStep, IdentityStep, SamplerInputs, StreamInputs, TextStep
from infid_export.sampling.noise_schedule import SDXL_SCHEDULER


@pytest.fixture(scope="module")
def reference(source: RandomSource) -> InfiniteIDPipeline:
    pipe = InfiniteIDPipeline.from_source(source)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def identity(reference: InfiniteIDPipeline) -> tuple[torch.Tensor, torch.Tensor]:
    return reference.encode_identity(parity_face(224, 512))


def noise(seed: int = 1) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((1, 4, 32, 32), dtype=np.float32))


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("negative", [None, "", "blurry"])
def test_text_stream_equals_diffusers_own_pipeline(reference, identity, source, negative):
    plain = StableDiffusionXLPipeline(
        vae=reference.vae,
        text_encoder=reference.text_encoder,
        text_encoder_2=reference.text_encoder_2,
        tokenizer=reference.tokenizer,
        tokenizer_2=reference.tokenizer_2,
        unet=source.load("unet", torch.float32),
        scheduler=DDIMScheduler(**SDXL_SCHEDULER),
        add_watermarker=False,
    )
    plain.set_progress_bar_config(disable=True)
    settings = {"negative_prompt": negative, "num_inference_steps": 6, "latents": noise(), "output_type": "latent"}
    expected = plain("a portrait in the rain", guidance_scale=5.0, **settings).images
    found = reference("a portrait in the rain", identity, **settings)
    assert relative(found.text_latents, expected) <= 1e-5
    assert relative(found.images, expected) > 1e-2


STATE = [f"{stream}_{part}" for stream in ("text", "identity") for part in ("latents", "denoised", "noise")]


@pytest.mark.parametrize(
    ("sampler", "spacing", "steps"),
    [
        ("ddim", "leading", 4), ("euler", "leading", 30), ("euler", "karras", 4), ("dpmpp_2m", "leading", 30),
        ("dpmpp_2m", "karras", 4), ("euler_a", "leading", 4), ("lcm", None, 4), ("tcd", None, 4),
    ],
)  # fmt: skip
def test_both_streams_take_the_steps_of_diffusers_own_scheduler(
    reference, identity, monkeypatch, sampler, spacing, steps
):
    """Each with a scheduler of its own, on the guided prediction of the same step."""
    generator, scheduler = np.random.default_rng(2), scheduler_of(sampler, spacing)
    fresh = [torch.from_numpy(generator.standard_normal((1, 4, 16, 16), dtype=np.float32)) for _ in range(steps + 1)]
    given = {}
    advance = reference._step.advance

    def watched(streams, row, prompt, person):
        given.update(prompt=prompt, person=person, guidance=row.guidance)
        return advance(streams, row, prompt, person)

    monkeypatch.setattr(reference._step, "advance", watched)
    found = reference(
        "a knight", identity, height=64, width=64, num_inference_steps=steps, sampler=sampler, spacing=spacing,
        generator=np.random.default_rng(2), output_type="latent",
    )  # fmt: skip
    scheduler.set_timesteps(steps)
    schedulers = [scheduler, copy.deepcopy(scheduler)]
    latents = [fresh[0] * scheduler.init_noise_sigma] * 2
    zeros = torch.zeros_like(fresh[0])
    prediction = torch.tensor([1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0])  # a step to e itself
    for index, timestep in enumerate(scheduler.timesteps):
        for module in STOCHASTIC:
            monkeypatch.setattr(module, "randn_tensor", lambda *_, drawn=fresh[index + 1], **__: drawn)
        scaled = [each.scale_model_input(x, timestep) for each, x in zip(schedulers, latents, strict=True)]
        with torch.no_grad():
            predicted = advance(
                [StreamInputs(x, zeros, zeros) for x in scaled],
                SamplerInputs(timestep[None].float(), prediction, given["guidance"]),
                given["prompt"],
                given["person"],
            )
        latents = [
            own.step(stream.latents, timestep, x).prev_sample
            for own, stream, x in zip(schedulers, predicted, latents, strict=True)
        ]
    assert relative(found.text_latents, latents[0]) <= 1e-5
    assert relative(found.images, latents[1]) <= 1e-5


def test_each_prompt_draws_from_its_own_generator(reference, identity):
    def drawn(prompts, seeds):
        return reference(
            prompts, identity, height=64, width=64, num_inference_steps=2, sampler="lcm", output_type="latent",
            generator=[np.random.default_rng(seed) for seed in seeds],
        ).images  # fmt: skip

    both = drawn(["a cat", "a dog"], [1, 2])
    for index, prompt in enumerate(("a cat", "a dog")):
        assert relative(both[index : index + 1], drawn([prompt], [index + 1])) < 1e-5


def step_inputs(source: RandomSource, batch: int = 1, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    rows, channels = 2 * batch, sum(identity_blocks(source.empty("unet")).values())
    return {
        **{name: draw(batch, 4, 16, 16) for name in STATE},
        "timestep": torch.tensor([500.0]),
        "coefficients": torch.tensor([0.9, 1.02, -0.05, 0.1, 0.2, 0.3, -0.4]),
        "guidance": torch.full((batch,), 5.0),
        "prompt_embeds": draw(rows, 77, 128),
        "pooled_prompt_embeds": draw(rows, 64),
        "time_ids": torch.full((rows, 6), 128.0),
        "identity_keys": draw(rows, 54, channels),
        "identity_values": draw(rows, 54, channels),
        "style_strength": torch.ones(batch),
        "identity_strength": torch.ones(batch),
    }


def run(source: RandomSource, inputs: dict[str, torch.Tensor], **choices: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the next latents of both streams."""
    config = replace(source.config, **choices)
    with torch.no_grad():
        return DenoiseStep(source.load("unet", torch.float32), config)(**inputs)[::2]


def test_no_identity_and_no_mixed_attention_is_the_text_stream(source):
    inputs = step_inputs(source)
    inputs |= {name: inputs[name.replace("identity", "text")] for name in STATE}
    inputs["identity_strength"] = torch.zeros(1)
    text, identity = run(source, inputs, self_attention="plain")
    assert relative(identity, text) < 1e-6


@pytest.mark.parametrize(
    "choice",
    [
        {"self_attention": "plain"},
        {"self_attention": "mutual"},
        {"adain": "standard"},
        {"adain": "off"},
        {"cross_adain": "output"},
        {"cross_adain": "off"},
        {"cross_merge": "orthogonal"},
        {"cross_merge": "orthogonal_v2"},
        {"uncond_identity": "off"},
    ],
    ids=str,
)
def test_every_choice_changes_the_identity_stream_and_leaves_the_text_stream(source, choice):
    inputs = step_inputs(source)
    text, identity = run(source, inputs)
    other_text, other_identity = run(source, inputs, **choice)
    assert relative(other_text, text) < 1e-6
    assert relative(other_identity, identity) > 1e-5


def test_mutual_attention_reads_the_text_rows_alone(source):
    unet = source.load("unet", torch.float32)
    install_processors(unet, replace(source.config, self_attention="mutual"))
    attention = unet.mid_block.attentions[0].transformer_blocks[0].attn1
    hidden = torch.randn(4, 16, attention.to_q.in_features)
    nobody = torch.zeros(2, 1, 1)
    streams = Streams(True, nobody, nobody, torch.ones(2), torch.ones(2))
    with torch.no_grad():
        found = attention(hidden, streams=streams)[2:]
        parts = attention.to_q(hidden[2:]), attention.to_k(hidden[:2]), attention.to_v(hidden[:2])
        q, k, v = (part.unflatten(-1, (attention.heads, -1)).transpose(1, 2) for part in parts)
        read = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        expected = attention.to_out[0](read.transpose(1, 2).flatten(2))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("merge", ["orthogonal", "orthogonal_v2"])
def test_what_is_parallel_to_the_text_is_taken_out_of_the_person(source, merge):
    """The reference is written from PuLID's formulas, on `[rows, N, C]`, its heads apart only for the attention."""
    unet = source.load("unet", torch.float32)
    config = replace(source.config, adain="off", cross_adain="off", cross_merge=merge)
    install_processors(unet, config)
    path, attention = [each for each in unet.named_modules() if each[0].endswith(".attn2")][-1]
    blocks = identity_blocks(unet)
    start = sum(list(blocks.values())[: list(blocks).index(path)])
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 16, attention.to_q.in_features, generator=generator)
    prompt = torch.randn(2, 77, attention.to_k.in_features, generator=generator)
    keys, values = torch.randn(2, 2, 9, sum(blocks.values()), generator=generator)
    strength = torch.tensor([0.7, 0.7])
    streams = Streams(False, keys, values, torch.ones(2), strength)

    def heads(x):
        return x.unflatten(-1, (attention.heads, -1)).transpose(1, 2)

    with torch.no_grad():
        found = attention(hidden, encoder_hidden_states=prompt, streams=streams)
        q, k, v = heads(attention.to_q(hidden)), heads(attention.to_k(prompt)), heads(attention.to_v(prompt))
        mine = slice(start, start + blocks[path])
        k_id, v_id = heads(keys[..., mine]), heads(values[..., mine])
        text, person = (
            torch.nn.functional.scaled_dot_product_attention(q, *pair).transpose(1, 2).flatten(2)
            for pair in ((k, v), (k_id, v_id))
        )
        parallel = (text * person).sum(1, keepdim=True) / (text * text).sum(1, keepdim=True) * text
        mass = (q @ k_id.mT).softmax(-1).mean(1)[..., :5].sum(-1, keepdim=True)
        kept = parallel * (mass - 1) if merge == "orthogonal_v2" else -parallel
        expected = attention.to_out[0](text + 0.7 * (person + kept))
    assert relative(found, expected) < 1e-6
    assert relative(found, attention.to_out[0](text + 0.7 * person)) > 1e-3


def test_style_strength_zero_is_adain_off(source):
    inputs = step_inputs(source)
    inputs["style_strength"] = torch.zeros(1)
    assert relative(run(source, inputs)[1], run(source, inputs, adain="off")[1]) < 1e-6


def test_samples_of_a_batch_do_not_mix(source):
    both = step_inputs(source, batch=2)
    both["guidance"] = torch.tensor([5.0, 2.0])
    both["style_strength"] = torch.tensor([1.0, 0.3])
    both["identity_strength"] = torch.tensor([0.5, 1.5])
    together = run(source, both)
    for sample in range(2):
        rows = [sample, 2 + sample]
        alone = {
            name: tensor
            if name in ("timestep", "coefficients")
            else tensor[rows]
            if tensor.shape[0] == 4
            else tensor[sample : sample + 1]
            for name, tensor in both.items()
        }
        for found, expected in zip(run(source, alone), together, strict=True):
            assert relative(found, expected[sample : sample + 1]) < 1e-5


@pytest.mark.parametrize("guidance", [True, False])
def test_cut_steps_equal_the_joint_step(source, guidance):
    inputs = step_inputs(source) if guidance else unguided(step_inputs(source))
    unet = source.load("unet", torch.float32)
    person = {"identity_keys", "identity_values", "style_strength", "identity_strength"}
    common = {name for name in inputs if name not in STATE} - person
    with torch.no_grad():
        joint = DenoiseStep(unet, source.config)(**inputs)
        text = {name: inputs[name] for name in [*STATE[:3], *common]}
        next_text, denoised_text, *features = TextStep(unet, source.config)(**text)
        identity = {name: inputs[name] for name in [*STATE[3:], *common, *person]}
        cut = IdentityStep(unet, source.config)(**identity, text_features=features)
    for found, expected in zip((next_text, denoised_text, *cut), joint, strict=True):
        assert relative(found, expected) < 1e-5


def unguided(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Leave the unconditional rows out."""
    rows = len(inputs["time_ids"]) // 2
    halved = ("prompt_embeds", "pooled_prompt_embeds", "time_ids", "identity_keys", "identity_values")
    kept = {name: each for name, each in inputs.items() if name != "guidance"}
    return {name: each[rows:] if name in halved else each for name, each in kept.items()}


def test_a_step_without_guidance_is_the_guided_one_at_guidance_1(source):
    inputs = step_inputs(source, batch=2)
    expected = run(source, {**inputs, "guidance": torch.ones(2)})
    for found, guided in zip(run(source, unguided(inputs)), expected, strict=True):
        assert relative(found, guided) < 1e-5


def test_people_share_one_template(source):
    """Their steps are those that each takes alone."""
    inputs = step_inputs(source, batch=3)
    prompt = {name: inputs[name][::3] for name in ("prompt_embeds", "pooled_prompt_embeds", "time_ids")}
    inputs |= prompt
    generator = torch.Generator().manual_seed(1)
    unet = source.load("unet", torch.float32)
    sampler = {name: inputs[name] for name in ("timestep", "coefficients")}
    with torch.no_grad():
        state = {name: inputs[name][:1] for name in STATE[:3]}
        _, _, *features = TextStep(unet, source.config)(**state, **sampler, **prompt, guidance=inputs["guidance"][:1])
        features = [each + 0.1 * torch.randn(each.shape, generator=generator) for each in features]
        step = IdentityStep(unet, source.config)
        people = {name: each for name, each in inputs.items() if name not in STATE[:3]}
        together = step(**people, text_features=features)
        for person in range(3):
            mine = {name: people[name][[person, 3 + person]] for name in ("identity_keys", "identity_values")}
            mine |= {
                name: people[name][person : person + 1]
                for name in (*STATE[3:], "style_strength", "identity_strength", "guidance")
            }
            alone = step(**{**people, **mine}, text_features=features)
            for found, expected in zip(alone, together, strict=True):
                assert relative(found, expected[person : person + 1]) < 1e-5


def test_pipeline_callback_and_generator(reference, identity):
    seen = []

    def callback(pipe, index, timestep, values):
        seen.append((index, int(timestep)))
        return values

    settings = {"num_inference_steps": 3, "output_type": "latent"}
    one = reference("x", identity, generator=np.random.default_rng(3), callback_on_step_end=callback, **settings)
    two = reference("x", identity, latents=noise(3), **settings)
    assert [index for index, _ in seen] == [0, 1, 2]
    torch.testing.assert_close(one.images, two.images)


def test_the_triton_kernels_give_the_same_step(source, monkeypatch):
    """The UNet has three transformer blocks only, since the interpreter is slow."""
    unet = {"block_out_channels": [32, 64], "attention_head_dim": [1, 1], "transformer_layers_per_block": [1, 1],
            "layers_per_block": 1, "down_block_types": ["DownBlock2D", "DownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"]}  # fmt: skip
    monkeypatch.setattr(source, "architecture", replace(DEMO, unet=DEMO.unet | unet))
    networks = ("prompt_embeds", "pooled_prompt_embeds", "identity_keys", "identity_values")
    half = {name: x.half() if name in networks else x for name, x in step_inputs(source).items()}
    half |= {name: half[name][..., :8, :8] for name in STATE}
    with torch.no_grad():
        plain, fused = (
            DenoiseStep(source.load("unet", torch.float16), source.config, ops)(**half) for ops in ("torch", "triton")
        )
    assert relative(fused[0], plain[0]) == 0  # the text stream does not use them
    # both round their attention to fp16 once per layer, in different places
    assert 0 < relative(fused[2], plain[2]) < 1e-3


def test_triton_is_rejected_for_what_it_does_not_compute(source):
    others = {"self_attention": "mutual", "adain": "standard", "cross_adain": "output", "cross_merge": "orthogonal"}
    for choice in ({name: value} for name, value in others.items()):
        with pytest.raises(InputError, match="Triton kernels support only the method itself"):
            DenoiseStep(source.load("unet", torch.float16), replace(source.config, **choice), "triton")
    with pytest.raises(InputError, match="no attention operations named 'cuda'"):
        DenoiseStep(source.load("unet", torch.float16), source.config, "cuda")
