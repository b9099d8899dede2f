"""What each step trains on: photos, pairs, timesteps and noise, as pure functions of seed, step and process.

No state is carried from one step to the next, so a run that was stopped at any step resumes exactly, and any process
can tell what another one was given.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from infid_engines.errors import InputError
from infid_training.photo_folders import Photos, single_photo_people

Array = np.ndarray[Any, Any]

# First word of the seed of each kind of batch, so that no two share random numbers.
_ORDER, _BATCH, _VALIDATION = 1, 2, 3


@dataclass(frozen=True)
class Batch:
    """One batch; B rows.

    Args:
        targets: `[B]` int64, the photos whose latents are denoised.
        references: `[B]` int64, other photos of the same people.
        timesteps: `[B]` int64.
        noise: `[B, 4, h, w]` fp32.
        kept: `[B]` bool, False where the reference is dropped, to train the unconditional estimate.
    """

    targets: Tensor
    references: Tensor
    timesteps: Tensor
    noise: Tensor
    kept: Tensor


class BatchSampler:
    """The batches of a run. Every photo is a target once before any is a target again.

    Args:
        photos: photos to sample from.
        seed: seed of all random numbers.
        rows: rows per process and pass.
        processes: number of processes.
        accumulation: passes per step.
        timesteps: number of timesteps of the noise schedule.
        own_pairs: whether a person's only photo may be both reference and target.
        dropout: fraction of the references that are dropped; in validation none are.

    Raises:
        InputError: there are no photos, or a person has one photo and `own_pairs` is off.
    """

    def __init__(
        self,
        photos: Photos,
        seed: int,
        rows: int,
        processes: int = 1,
        accumulation: int = 1,
        timesteps: int = 1000,
        own_pairs: bool = False,
        dropout: float = 0.0,
    ) -> None:
        self._photos = photos
        self._seed, self._rows, self._timesteps = seed, rows, timesteps
        self._processes, self._accumulation, self._dropout = processes, accumulation, dropout
        people = photos.people
        if not len(people):
            raise InputError("There are no photos to train on.", fix="Prepare a folder with photos of people.")
        single = single_photo_people(people)
        if len(single) and not own_pairs:
            raise InputError(
                f"{len(single)} people have only one photo, such as {photos.names[int(single[0])]}.",
                fix="Add a second photo of each, leave them out, or use the photo as both reference and target "
                "(own-pair).",
            )
        # photos sorted by person, so that each person's photos are one slice
        self._sorted = np.argsort(people.numpy(), kind="stable")
        _, start, inverse, count = np.unique(
            people.numpy()[self._sorted], return_index=True, return_inverse=True, return_counts=True
        )
        self._place = np.empty(len(people), np.int64)
        self._place[self._sorted] = np.arange(len(people))
        self._start = np.empty(len(people), np.int64)
        self._count = np.empty(len(people), np.int64)
        self._start[self._sorted], self._count[self._sorted] = start[inverse], count[inverse]
        self._epoch = -1
        self._order: Array = np.empty(0, np.int64)

    def batch(self, step: int, rank: int = 0, part: int = 0) -> Batch:
        """Return the batch of a process.

        Args:
            step: counted from 0.
            rank: index of the process.
            part: index of the pass within the step.
        """
        first = ((step * self._accumulation + part) * self._processes + rank) * self._rows
        positions = np.arange(first, first + self._rows)
        epochs, within = positions // len(self._sorted), positions % len(self._sorted)
        targets = np.array([self._permutation(int(epoch))[place] for epoch, place in zip(epochs, within, strict=True)])
        return self._sampled(targets, np.random.default_rng((_BATCH, self._seed, step, rank, part)))

    def validation(self, count: int) -> list[Batch]:
        """Return fixed batches of `count` pairs in total, over as many people as possible, timesteps evenly spaced."""
        random = np.random.default_rng((_VALIDATION, self._seed))
        order = random.permutation(len(self._sorted))
        targets = np.resize(order, count)
        sampled = self._sampled(targets, random)
        spread = torch.from_numpy((np.arange(count) + 0.5) * self._timesteps / count).long()
        kept = torch.ones(count, dtype=torch.bool)
        return [
            Batch(sampled.targets[rows], sampled.references[rows], spread[rows], sampled.noise[rows], kept[rows])
            for rows in (slice(start, start + self._rows) for start in range(0, count, self._rows))
        ]

    def names(self, batch: Batch) -> list[str]:
        """Return the names of a batch's pairs for messages."""
        names = self._photos.names
        pairs = zip(batch.references.tolist(), batch.targets.tolist(), strict=True)
        return [f"{names[reference]} -> {names[target]}" for reference, target in pairs]

    def _permutation(self, epoch: int) -> Array:
        if epoch != self._epoch:
            random = np.random.default_rng((_ORDER, self._seed, epoch))
            self._epoch, self._order = epoch, random.permutation(len(self._sorted))
        return self._order

    def _sampled(self, targets: Array, random: np.random.Generator) -> Batch:
        counts = self._count[targets]
        # 1 to count − 1 places further among the person's photos, wrapping around; 0 if there is only one
        shift = random.integers(1, np.maximum(counts, 2)) * (counts > 1)
        places = (self._place[targets] - self._start[targets] + shift) % counts + self._start[targets]
        timesteps = random.integers(self._timesteps, size=len(targets))
        shape = (len(targets), *self._photos.targets(torch.from_numpy(targets[:1])).latents.shape[1:])
        noise = random.standard_normal(shape, np.float32)
        kept = random.random(len(targets)) >= self._dropout
        arrays = (targets, self._sorted[places], timesteps, noise, kept)
        return Batch(*(torch.from_numpy(array) for array in arrays))
