"""Prepared shards of random noise, as small as possible."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from infid_training.shards import PreparedPhoto, ShardIndex, ShardWriter

SIZE = 64
CAPTIONS = ("a photo of a person", "a pencil sketch of a person")


def write_shards(
    folder: Path,
    crop: int,
    seed: int = 0,
    each: int = 2,
    single_photo: str = "refuse",
    captions: Sequence[str | None] = CAPTIONS,
) -> Path:
    folder.mkdir()
    random = np.random.default_rng(seed)
    shards = []
    for split, names in (("train", range(3)), ("validation", range(100, 101))):
        with ShardWriter(folder, split, photos=4) as writer:
            for person in names:
                for number in range(each):
                    target, face = (random.integers(0, 256, (side, side, 3)).astype(np.uint8) for side in (SIZE, crop))
                    embedding = random.standard_normal(512).astype(np.float32)
                    embedding /= np.linalg.norm(embedding)
                    writer.write(
                        PreparedPhoto(
                            f"p{person}",
                            f"{number}.jpg",
                            target,
                            face,
                            embedding,
                            (90, 80),
                            (3, 0),
                            captions[number % 2],
                        )
                    )
        shards += writer.shards
    ShardIndex(SIZE, crop, 512, single_photo, "", 0, 0.2, tuple(shards)).write(folder)
    return folder
