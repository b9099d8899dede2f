from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from small_run import small_photos

from infid_engines.errors import InputError
from infid_training.draws import Draws
from infid_training.run_options import TrainOptions


def test_pairs_are_different_photos_of_one_person() -> None:
    photos = small_photos(people=4, each=3)
    shuffled = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    photos = replace(photos, people=photos.people[shuffled])
    draws, seen = Draws(photos, seed=0, rows=5), Counter()
    for step in range(60):
        draw = draws.batch(step)
        assert torch.equal(photos.people[draw.targets], photos.people[draw.references])
        assert not (draw.targets == draw.references).any()
        seen.update(zip(draw.targets.tolist(), draw.references.tolist(), strict=True))
    assert len(seen) == 4 * 3 * 2  # every pair comes up


def test_every_photo_is_a_target_once_before_any_is_twice() -> None:
    """Over two processes and two passes a step, whose batches do not divide the photos."""
    draws = Draws(small_photos(people=5, each=3), seed=3, rows=2, processes=2, accumulation=2)
    targets = [
        target
        for step in range(15)
        for part in range(2)
        for rank in range(2)
        for target in draws.batch(step, rank, part).targets.tolist()
    ]
    epochs = [targets[start : start + 15] for start in range(0, 120, 15)]
    assert all(sorted(epoch) == list(range(15)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 8


def test_a_batch_depends_on_seed_step_process_and_pass_alone() -> None:
    photos = small_photos()
    one, other = (Draws(photos, seed=7, rows=2, processes=2, accumulation=2) for _ in range(2))
    for step in range(9):  # other is asked in another order
        one.batch(step)
    found = {key: one.batch(*key) for key in [(8, 0, 0), (8, 1, 0), (8, 0, 1), (2, 0, 0)]}
    again = {key: other.batch(*key) for key in reversed(found)}
    for key, draw in found.items():
        for field in ("targets", "references", "timesteps", "noise", "kept"):
            assert torch.equal(getattr(draw, field), getattr(again[key], field))
    noises = [draw.noise for draw in found.values()] + [Draws(photos, 8, 2, 2, 2).batch(8).noise]
    assert len({float(noise.sum()) for noise in noises}) == len(noises)
    assert all(0 <= int(step) < 1000 for draw in found.values() for step in draw.timesteps)


def test_noise_is_normal_and_timesteps_cover_the_schedule() -> None:
    draws = Draws(small_photos(), seed=0, rows=4)
    drawn = [draws.batch(step) for step in range(300)]
    noise = torch.cat([draw.noise for draw in drawn])
    assert abs(float(noise.mean())) < 0.01
    assert abs(float(noise.std()) - 1) < 0.01
    timesteps = torch.cat([draw.timesteps for draw in drawn])
    assert timesteps.min() < 10
    assert timesteps.max() > 989
    assert len(set(torch.histc(timesteps.float(), 10, 0, 1000).gt(80).tolist())) == 1


def test_a_share_of_the_references_is_not_seen() -> None:
    draws = Draws(small_photos(), seed=0, rows=4, dropout=0.25)
    kept = torch.cat([draws.batch(step).kept for step in range(300)])
    assert abs(float(kept.float().mean()) - 0.75) < 0.04
    assert all(bool(draw.kept.all()) for draw in draws.validation(40))
    assert bool(Draws(small_photos(), seed=0, rows=4).batch(0).kept.all())


def test_one_photo_is_rejected_or_its_own_pair() -> None:
    photos = replace(small_photos(people=1, each=3), people=torch.tensor([0, 1, 1]))
    with pytest.raises(InputError, match=r"1 people have one photo only, such as that of person-0/0.png"):
        Draws(photos, seed=0, rows=1)
    draws = Draws(photos, seed=0, rows=3, own_pairs=True)
    drawn = [draws.batch(step) for step in range(5)]
    pairs = {pair for draw in drawn for pair in zip(draw.targets.tolist(), draw.references.tolist(), strict=True)}
    assert pairs == {(0, 0), (1, 2), (2, 1)}


def test_no_photos() -> None:
    with pytest.raises(InputError, match="no photos to train on"):
        Draws(small_photos(people=0), seed=0, rows=1)


def test_validation_pairs_are_fixed_and_spread_over_the_timesteps() -> None:
    draws = Draws(small_photos(), seed=0, rows=4)
    draws.batch(3)
    one, other = draws.validation(10), Draws(small_photos(), seed=0, rows=4).validation(10)
    assert [len(draw.targets) for draw in one] == [4, 4, 2]
    assert torch.cat([draw.timesteps for draw in one]).tolist() == list(range(50, 1000, 100))
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
