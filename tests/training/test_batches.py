from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from small_run import small_photos

from infid_engines.errors import InputError
from infid_training.batches import BatchSampler
from infid_training.run_options import TrainOptions


def test_pairs_are_different_photos_of_one_person() -> None:
    photos = small_photos(people=4, each=3)
    shuffled = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    photos = replace(photos, people=photos.people[shuffled])
    sampler, seen = BatchSampler(photos, seed=0, rows=5), Counter()
    for step in range(60):
        batch = sampler.batch(step)
        assert torch.equal(photos.people[batch.targets], photos.people[batch.references])
        assert not (batch.targets == batch.references).any()
        seen.update(zip(batch.targets.tolist(), batch.references.tolist(), strict=True))
    assert len(seen) == 4 * 3 * 2  # every pair occurs


def test_every_photo_is_a_target_once_before_any_is_twice() -> None:
    """There are two processes and two passes per step, whose batches do not divide the photos."""
    sampler = BatchSampler(small_photos(people=5, each=3), seed=3, rows=2, processes=2, accumulation=2)
    targets = [
        target
        for step in range(15)
        for part in range(2)
        for rank in range(2)
        for target in sampler.batch(step, rank, part).targets.tolist()
    ]
    epochs = [targets[start : start + 15] for start in range(0, 120, 15)]
    assert all(sorted(epoch) == list(range(15)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 8


def test_a_batch_depends_on_seed_step_process_and_pass_alone() -> None:
    photos = small_photos()
    one, other = (BatchSampler(photos, seed=7, rows=2, processes=2, accumulation=2) for _ in range(2))
    for step in range(9):  # other is called in a different order
        one.batch(step)
    found = {key: one.batch(*key) for key in [(8, 0, 0), (8, 1, 0), (8, 0, 1), (2, 0, 0)]}
    again = {key: other.batch(*key) for key in reversed(found)}
    for key, batch in found.items():
        for field in ("targets", "references", "timesteps", "noise", "kept"):
            assert torch.equal(getattr(batch, field), getattr(again[key], field))
    noises = [batch.noise for batch in found.values()] + [BatchSampler(photos, 8, 2, 2, 2).batch(8).noise]
    assert len({float(noise.sum()) for noise in noises}) == len(noises)
    assert all(0 <= int(step) < 1000 for batch in found.values() for step in batch.timesteps)


def test_noise_is_normal_and_timesteps_cover_the_schedule() -> None:
    sampler = BatchSampler(small_photos(), seed=0, rows=4)
    batches = [sampler.batch(step) for step in range(300)]
    noise = torch.cat([batch.noise for batch in batches])
    assert abs(float(noise.mean())) < 0.01
    assert abs(float(noise.std()) - 1) < 0.01
    timesteps = torch.cat([batch.timesteps for batch in batches])
    assert timesteps.min() < 10
    assert timesteps.max() > 989
    assert len(set(torch.histc(timesteps.float(), 10, 0, 1000).gt(80).tolist())) == 1


def test_a_share_of_the_references_is_not_seen() -> None:
    sampler = BatchSampler(small_photos(), seed=0, rows=4, dropout=0.25)
    kept = torch.cat([sampler.batch(step).kept for step in range(300)])
    assert abs(float(kept.float().mean()) - 0.75) < 0.04
    assert all(bool(batch.kept.all()) for batch in sampler.validation(40))
    assert bool(BatchSampler(small_photos(), seed=0, rows=4).batch(0).kept.all())


def test_one_photo_is_rejected_or_its_own_pair() -> None:
    photos = replace(small_photos(people=1, each=3), people=torch.tensor([0, 1, 1]))
    with pytest.raises(InputError, match=r"1 people have only one photo, such as person-0/0.png"):
        BatchSampler(photos, seed=0, rows=1)
    sampler = BatchSampler(photos, seed=0, rows=3, own_pairs=True)
    batches = [sampler.batch(step) for step in range(5)]
    pairs = {pair for batch in batches for pair in zip(batch.targets.tolist(), batch.references.tolist(), strict=True)}
    assert pairs == {(0, 0), (1, 2), (2, 1)}


def test_no_photos() -> None:
    with pytest.raises(InputError, match="no photos to train on"):
        BatchSampler(small_photos(people=0), seed=0, rows=1)


def test_validation_pairs_are_fixed_and_spread_over_the_timesteps() -> None:
    sampler = BatchSampler(small_photos(), seed=0, rows=4)
    sampler.batch(3)
    one, other = sampler.validation(10), BatchSampler(small_photos(), seed=0, rows=4).validation(10)
    assert [len(batch.targets) for batch in one] == [4, 4, 2]
    assert torch.cat([batch.timesteps for batch in one]).tolist() == list(range(50, 1000, 100))
    for mine, same in zip(one, other, strict=True):
        assert torch.equal(mine.noise, same.noise)
        assert not (mine.targets == mine.references).any()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"learning_rate": float("nan")}, "learning_rate must be at least 0"),
        ({"precision": "fp8"}, "precision must be one of fp32, bf16, fp16"),
        ({"ema_decay": 1.0}, "ema_decay must be below 1"),
        ({"identity_dropout": 1.0}, "identity_dropout must be below 1"),
        ({"warmup_steps": 5}, "warmup_steps has no effect"),
    ],
)
def test_impossible_options(values: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        TrainOptions(**values)
