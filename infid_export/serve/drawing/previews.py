"""Previews of unfinished images: each latent becomes one color, by a linear map that is fitted to decoded images.

A decoder of latents is close to linear in the mean colors of its 8 × 8 pixels. The map is fitted to what this folder's
own decoder returns, so it suits any decoder, and costs nothing beside a step.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from PIL import Image

Array = np.ndarray[Any, Any]
_KEPT = 0.9  # weight of everything learned before, at each new image
_RIDGE = 1e-3


class LatentColors:
    """A linear map from latents to colors, which learns from each decoded image. For threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._products = np.eye(5) * _RIDGE
        self._targets = np.zeros((5, 3))
        self._targets[4] = _RIDGE / 2  # gray before the first image

    def learn(self, latents: Array, image: Image.Image) -> None:
        """Learn from an image and the latents `[4, h, w]` that it was decoded from."""
        height, width = latents.shape[1:]
        colors = np.asarray(image.resize((width, height), Image.Resampling.BOX), np.float64).reshape(-1, 3) / 255
        inputs = _inputs(latents)
        with self._lock:
            self._products = _KEPT * self._products + inputs.T @ inputs / len(inputs)
            self._targets = _KEPT * self._targets + inputs.T @ colors / len(inputs)

    def draw(self, latents: Array, size: tuple[int, int]) -> Image.Image:
        """Return latents `[4, h, w]` as an image of a width and a height."""
        with self._lock:
            solution = np.linalg.solve(self._products + np.eye(5) * 1e-9, self._targets)
        colors = (_inputs(latents) @ solution).clip(0, 1).reshape(*latents.shape[1:], 3)
        return Image.fromarray((colors * 255).round().astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)


def _inputs(latents: Array) -> Array:
    """Return `[h · w, 5]`: the channels, and a constant."""
    flat = np.nan_to_num(latents.astype(np.float64)).reshape(4, -1).T
    return np.concatenate([flat, np.ones((len(flat), 1))], axis=1)
