from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.model import diffusers_pipeline, images, steps
from benchmarks.model.diffusers_pipeline import Pipeline
from benchmarks.model.network import Held, Network
from benchmarks.suite.bench import DEMO, SDXL, Bench, Result
from infid_export.sampling.noise_schedule import SDXL_SCHEDULER
from infid_export.sampling.samplers import sampler_table
from infid_kernels import OPS, AttentionOps, ops
from infid_kernels.measure import Timing, relative_rms


@pytest.fixture
def bench() -> Bench:
    return Bench(torch.device("cpu"), DEMO, False, lambda: 100.0, 1)


@pytest.fixture
def held() -> Held:
    return Held()


def replaced(monkeypatch: pytest.MonkeyPatch, **operations: Callable[..., Tensor]) -> None:
    """Replace the kernels by the given operations; the others are PyTorch's, which need no interpreter."""
    base = OPS["torch"]
    chosen = {name: operations.get(name, getattr(base, name)) for name in ("mixed_attention", "merged_cross_attention")}
    monkeypatch.setitem(ops.OPS, "triton", AttentionOps(**chosen))


mixed, merged = OPS["torch"].mixed_attention, OPS["torch"].merged_cross_attention


def last_query_missing(*arguments: Any) -> Tensor:
    result = mixed(*arguments).clone()
    result[:, :, -1] = 0
    return result


def values_not_shifted(q: Tensor, k_id: Tensor, v_id: Tensor, k_t: Tensor, v_t: Tensor, style: Tensor) -> Tensor:
    shift = style.view(-1, 1, 1, 1) * (v_t.mean(2, True) - v_id.mean(2, True))
    return mixed(q, k_id, (v_id - shift).to(v_id.dtype), k_t, v_t, style)


def a_token_missing(q: Tensor, k_t: Tensor, v_t: Tensor, k_id: Tensor, v_id: Tensor, *strengths: Tensor) -> Tensor:
    return merged(q, k_t, v_t, k_id[:, :, :-1], v_id[:, :, :-1], *strengths)


FAULTS: dict[str, dict[str, Callable[..., Tensor]]] = {
    "values not shifted": {"mixed_attention": values_not_shifted},
    "last query missing": {"mixed_attention": last_query_missing},
    "identity strength taken for 1": {"merged_cross_attention": lambda *a: merged(*a[:6], torch.ones_like(a[6]))},
    "a token of the person missing": {"merged_cross_attention": a_token_missing},
    "not a number": {"merged_cross_attention": lambda *a: merged(*a) * float("nan")},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_an_operation_fails_the_comparison(
    bench: Bench, held: Held, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    replaced(monkeypatch, **FAULTS[fault])
    result = steps.parity(held, bench)
    assert not result["passed"]
    assert not result["relative_rms"]["identity"]["passed"]
    assert result["relative_rms"]["text"]["passed"]


def test_tf32_is_kept_out_of_the_reference_alone() -> None:
    before = torch.backends.cudnn.allow_tf32
    with steps.whole_fp32():
        assert not torch.backends.cudnn.allow_tf32
    assert torch.backends.cudnn.allow_tf32 == before


@pytest.mark.parametrize("captured", [False, True])
@pytest.mark.parametrize("graph", ["denoise_step", "identity_step", "text_step"])
def test_a_step_is_timed_and_rated(bench: Bench, held: Held, graph: str, captured: bool) -> None:
    bench.ceilings = {"flops_per_second": 1e12}
    result = steps.step(held, bench, graph=graph, ops="torch", captured=captured)
    assert result["teraflops"] == pytest.approx(result["teraflop"] / result["median"] * 1e3)
    assert result["of_matrix_ceiling"] == pytest.approx(result["teraflops"])
    if captured:
        assert result["relative_rms_to_eager"] < 1e-5


def test_a_replay_that_gives_something_else_shows(bench: Bench, held: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Bench, "graphed", lambda self, call: (call, tuple(each + 1 for each in call())))
    result = steps.step(held, bench, graph="denoise_step", ops="torch", captured=True)
    assert result["relative_rms_to_eager"] > 0.1


def test_the_work_of_full_size_steps() -> None:
    network = Network(Bench(torch.device("cpu"), SDXL, False, lambda: 100.0, 1))
    plain = network.flops("text_step")
    assert plain / 2 == pytest.approx(6.76e12, rel=1e-3)
    # for two identity rows: twice the keys in self-attention, and 261 tokens in cross-attention
    levels = ((10, 4096, 640), (60, 1024, 1280))
    more = 2 * sum(layers * 4 * tokens * channels * (tokens + 261) for layers, tokens, channels in levels)
    # the prompt's keys and values are projected once for both streams
    prompt = 2 * sum(layers * 2 * 2 * 77 * 2048 * channels for layers, _, channels in levels)
    assert network.flops("denoise_step") == 2 * plain + more - prompt
    # the keys and values of the text features are projected again
    projected = 2 * sum(layers * 2 * 2 * tokens * channels**2 for layers, tokens, channels in levels)
    assert network.flops("identity_step") == plain + more + projected


def test_the_price_of_an_identity_comes_from_the_medians_of_this_run(bench: Bench, held: Held) -> None:
    bench.results = {
        "identity_step triton graph": {"median": 30.0}, "denoise_step triton graph": {"median": 50.0},
        "text_step torch graph": {"median": 25.0, "low": 1.0}, "denoise_step torch graph": {"error": "lost"},
    }  # fmt: skip
    result = steps.price(held, bench)
    assert result["ratios"] == {"from a template": 1.2, "joint": 2.0}
    assert result["missing"] == ["denoise_step torch graph"]


def test_the_price_needs_a_plain_step(bench: Bench, held: Held) -> None:
    bench.results = {"identity_step triton graph": {"median": 30.0}}
    assert "text_step torch graph" in steps.price(held, bench)["unavailable"]


def image(held: Held, bench: Bench, kind: str, guidance: bool) -> Result:
    return images.image(held, bench, steps=2, guidance=guidance, kind=kind)


@pytest.mark.parametrize("guidance", [True, False])
def test_an_image_from_a_template_is_the_joint_one(bench: Bench, held: Held, guidance: bool) -> None:
    joint, found = (image(held, bench, kind, guidance) for kind in ("joint", "template"))
    assert found["relative_rms_to_joint"] < 1e-4
    assert joint["finite"] and found["finite"]
    assert (joint["rows"], found["rows"]) == ((4, 2) if guidance else (2, 1))
    assert found["template_bytes"] > 0 == joint["template_bytes"]


def test_a_template_of_other_steps_gives_another_image(
    bench: Bench, held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    image(held, bench, "joint", True)
    made = images.template
    monkeypatch.setattr(images, "template", lambda *arguments: made(*arguments)[::-1])
    assert image(held, bench, "template", True)["relative_rms_to_joint"] > 1e-3


def test_an_image_that_is_not_finite_says_so(bench: Bench, held: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "decoder_of", lambda network, dtype: lambda latents: latents * float("inf"))
    assert not image(held, bench, "joint", True)["finite"]


@pytest.mark.parametrize(
    ("overflows", "results", "expected"),
    [
        (False, {}, "fp16"),
        (True, {}, "bf16"),
        (False, {"vae_decoder fp16 graph": {"finite": False}}, "bf16"),
        (True, {"vae_decoder bf16 graph": {"finite": False}}, "fp32"),
    ],
)
def test_the_decoder_runs_in_the_fastest_type_that_is_finite(
    bench: Bench, overflows: bool, results: dict[str, Result], expected: str
) -> None:
    network = Network(bench)
    network.architecture.vae["force_upcast"], before = overflows, network.architecture.vae["force_upcast"]
    try:
        assert images.decoder_dtype(network, results) == expected
    finally:
        network.architecture.vae["force_upcast"] = before


@pytest.mark.parametrize("dtype", images.VAE_DTYPES)
def test_the_decoder_is_timed_in_every_type(bench: Bench, held: Held, dtype: str) -> None:
    result = images.vae_decoder(held, bench, dtype=dtype)
    assert result["finite"] and result["median"] > 0


def test_diffusers_own_pipeline_takes_the_same_steps(bench: Bench, held: Held) -> None:
    network = held.network(bench, small=True)
    found = Pipeline(network)()
    with torch.no_grad():
        text = images.loop(network, "text", True)
        text.latents[0].copy_(network.arguments("text_step", torch.float32)["text_latents"])
        for row in torch.from_numpy(sampler_table(SDXL_SCHEDULER, DEMO.steps).rows):
            text.at(row, ())
            text.advance()
    assert relative_rms(text.latents[0], found.double()) < 1e-4


def test_a_step_of_diffusers_own_pipeline_is_an_images_time_over_its_steps(
    bench: Bench, held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Bench, "time_long", lambda self, call, samples: (call(), Timing(6.0, 3.0, 9.0, samples))[1])
    result = diffusers_pipeline.eager(held, bench)
    assert (result["median"], result["low"], result["high"], result["steps"]) == (2.0, 1.0, 3.0, 3)
    assert result["finite"]


def test_every_item_has_a_name_of_its_own_in_the_first_command() -> None:
    names = [item.name for item in steps.items(SDXL)]
    assert len(set(names)) == len(names)
    assert {item.phase for item in steps.items(SDXL)} == {1}  # the second command compiles no UNet
    assert {"image 30 joint", "image 30 template", "image 4 joint", "image 4 template"} <= set(names)
