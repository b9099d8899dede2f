"""A source with updates: every weight is W + s·U·D, components without updates stay what they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from infid_engines.errors import InputError
from infid_export.export.build_estimate import held_bytes
from infid_export.export.weights import WeightsLayout
from infid_export.model.changes.lora_merge import LowRank, merged
from infid_export.model.changes.updated_source import UpdatedSource, base_of, check_updates, classes_of
from infid_export.model.checkpoints.folder_source import CheckpointSource
from infid_export.model.encoder_match import encoders_of
from infid_export.model.opening import open_source
from infid_export.model.shipped import ShippedSource
from infid_export.model.sources import COMPONENTS, ModelSource, RandomSource

LINEAR = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.weight"
CONV = "conv_in.weight"


@dataclass
class Updates:
    """Updates of the UNet."""

    values: Mapping[str, Sequence[LowRank]]
    fingerprint: str = "f"
    name: str = "The test's updates"
    note: str = "a note"
    components: frozenset[str] = field(default=frozenset({"unet"}))

    def updates(self, component: str) -> Mapping[str, Sequence[LowRank]]:
        assert component == "unet"
        return self.values


def low_rank(shape: Sequence[int], scale: float, rank: int = 3) -> LowRank:
    up = torch.randn(shape[0], rank, *[1] * (len(shape) - 2)) / 4
    return LowRank(torch.randn(rank, *shape[1:]) / 4, up, scale)


@pytest.fixture
def sources(parts: dict[str, Path]) -> dict[str, ModelSource]:
    checkpoint = open_source(str(parts["base"]), identity=parts["identity"], image_encoder=str(parts["encoder"]))
    return {"random": RandomSource("demo"), "checkpoint": checkpoint, "demo": ShippedSource()}


@pytest.mark.parametrize("kind", ["random", "checkpoint", "demo"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_weights_are_updated_in_fp32_and_rounded_once(sources, kind, dtype):
    base = sources[kind]
    before = dict(base.weights("unet", torch.float32))
    changes = {name: [low_rank(before[name].shape, 0.5), low_rank(before[name].shape, -2.0)] for name in (LINEAR, CONV)}
    updated = UpdatedSource(base, [Updates({name: each[:1] for name, each in changes.items()}),
                                   Updates({name: each[1:] for name, each in changes.items()})])  # fmt: skip
    streamed = dict(updated.weights("unet", dtype))
    loaded = updated.load("unet", dtype)
    assert not loaded.training
    for name, value in before.items():
        expected = value.double()
        for each in changes.get(name, ()):
            expected = expected + each.scale * (each.up.double().flatten(1) @ each.down.double().flatten(1)).reshape(
                value.shape
            )
        assert streamed[name].dtype == dtype
        assert torch.equal(streamed[name], loaded.get_parameter(name))
        if dtype == torch.float32:
            assert (streamed[name] - expected).abs().max() <= 1e-6
        elif name in changes:
            assert torch.equal(streamed[name], merged(before[name], changes[name]).half())
    assert any(not torch.equal(streamed[name].float(), before[name]) for name in changes)


def test_only_the_changed_component_has_another_fingerprint(sources):
    base = sources["random"]
    updated = UpdatedSource(base, [Updates({})])
    different = {name for name in COMPONENTS if updated.fingerprint(name) != base.fingerprint(name)}
    assert different == {"unet"}
    prints = {
        UpdatedSource(base, each).fingerprint("unet")
        for each in ([], [Updates({})], [Updates({}, "g")], [Updates({}), Updates({}, "g")])
    }
    assert len(prints) == 4
    assert updated.tokenizer_fingerprint() == base.tokenizer_fingerprint()
    assert (updated.name, updated.notes) == ("demo", ("a note",))


def test_code_of_the_base_and_of_the_updates_counts(sources):
    updated = UpdatedSource(UpdatedSource(sources["checkpoint"], [Updates({})]), [Updates({})])
    assert classes_of(updated, ("unet", "vae")) == (UpdatedSource, Updates, CheckpointSource)
    assert classes_of(updated, ("vae",)) == (CheckpointSource,)
    assert base_of(updated) is sources["checkpoint"]
    arguments = ("recognizer", "a recognizer", "centerface")
    assert encoders_of(updated, *arguments) == encoders_of(sources["checkpoint"], *arguments)


@pytest.mark.parametrize(
    ("name", "change", "problem"),
    [
        ("foreign.weight", low_rank((4, 4), 1.0), "changes foreign.weight, which this model does not have"),
        ("conv_in.bias", low_rank((32, 4), 1.0), "do not fit its"),
        (CONV, LowRank(torch.zeros(3, 4, 1, 1), torch.zeros(32, 3, 1, 1), 1.0), "do not fit its"),
        (CONV, LowRank(torch.zeros(3, 4, 3, 3), torch.zeros(32, 2, 1, 1), 1.0), "do not fit its"),
        (CONV, LowRank(torch.zeros(3, 4, 3, 3), torch.zeros(32, 3, 3, 3), 1.0), "do not fit its"),
        (CONV, LowRank(torch.zeros(3, 4, 3, 3), torch.full((32, 3, 1, 1), torch.nan), 1.0), "not finite"),
    ],
)
def test_an_update_that_does_not_fit_is_rejected(sources, name, change, problem):
    updated = UpdatedSource(sources["random"], [Updates({name: [change]})])
    with pytest.raises(InputError, match=problem):
        check_updates(UpdatedSource(updated, []))
    with pytest.raises(InputError, match="The test's updates"):
        updated.load("unet", torch.float32)


def test_an_updated_weight_must_be_finite_in_its_type(sources):
    shape = sources["random"].empty("unet").get_parameter(LINEAR).shape
    large = LowRank(torch.full((1, shape[1]), 300.0), torch.full((shape[0], 1), 300.0), 1.0)
    updated = UpdatedSource(sources["random"], [Updates({LINEAR: [large]})])
    assert updated.load("unet", torch.float32).get_parameter(LINEAR).max() > 65504
    with pytest.raises(InputError, match=f"The weight {LINEAR} reaches 9e\\+04, but fp16 ends at 65504"):
        updated.load("unet", torch.float16)


@pytest.mark.parametrize("kernel", [(), (1, 1)], ids=["linear", "1x1"])
def test_a_layer_and_a_1x1_convolution_replace_each_other(kernel):
    weight = torch.randn(8, 6, *kernel)
    for extra in ((), (1, 1)):
        change = LowRank(torch.randn(2, 6, *extra), torch.randn(8, 2, *extra), 1.5)
        assert change.fits(weight.shape)
        expected = weight.flatten(1) + 1.5 * change.up.flatten(1) @ change.down.flatten(1)
        assert torch.allclose(merged(weight, [change]), expected.reshape(weight.shape), atol=1e-6)


def test_the_planner_knows_how_much_is_in_memory_at_once(sources):
    """A folder's network is loaded whole, in fp32 if it is updated; what can be streamed takes one weight at a time."""
    layout = WeightsLayout.of(sources["checkpoint"].empty("unet"), torch.float16)
    updates = Updates({LINEAR: [low_rank((64, 64), 1.0)]})
    assert held_bytes(sources["checkpoint"], "unet", layout) == layout.size
    assert held_bytes(UpdatedSource(sources["checkpoint"], [updates]), "unet", layout) >= 1.99 * layout.size
    assert held_bytes(UpdatedSource(sources["checkpoint"], [updates]), "vae", layout) == layout.size
    assert held_bytes(sources["random"], "unet", layout) < layout.size / 2
