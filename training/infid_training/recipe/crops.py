"""Face crops in batches: of pixels, as `infid_export.faces.align` does one photo at a time, and of latents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from infid_export.faces.alignment import similarity
from infid_training.recipe.pictures import SIZE

Array = np.ndarray[Any, Any]

# Standard deviation of the trained detector's landmarks, as a fraction of the image's side; a tenth of the distance
# between the eyes.
DETECTED = 0.012
# Half of an image's side, in latents: most of a head.
FACE_SIDE = 16
_FACE_OFF = 3.0  # most latents per axis from the center of the crop to the center of the face


def aligned(pixels: Array, marks: Array, template: Array, size: int) -> Tensor:
    """Warp the faces of a batch to a frame.

    Args:
        pixels: `[B, S, S, 3]` uint8 RGB.
        marks: `[B, 5, 2]` landmarks as fractions of the image's side.
        template: `[5, 2]` in units of the crop's side.
        size: side of the crops in pixels.

    Returns:
        `[B, 3, size, size]` fp32 in [0, 1]; black outside the image.
    """
    # grid_sample's coordinates run from −1 to 1 between a side's edges, and map crop to image; a template's start at
    # the first pixel's center
    frame = 2 * (template + 0.5 / size) - 1
    transforms = np.stack([_inverse(similarity(2 * points - 1, frame)) for points in marks.astype(float)])
    grid = affine_grid(torch.from_numpy(transforms).float(), [len(pixels), 3, size, size], align_corners=False)
    signal = torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2).float() / 255
    return grid_sample(signal, grid, align_corners=False)


def _inverse(transform: Array) -> Array:
    """Return the inverse of a `[2, 3]` transform."""
    turned = np.linalg.inv(transform[:, :2])
    return np.column_stack([turned, -turned @ transform[:, 2]])


def jittered(marks: Array, random: np.random.Generator, deviation: float = 0.008) -> Array:
    """Add noise to landmarks, like a detector's errors; `deviation` is a fraction of the image's side."""
    noise: Array = np.asarray(random.normal(0, deviation, marks.shape), np.float32)
    return marks + noise


@dataclass(frozen=True)
class Squares:
    """A square of each image of a batch, in latents; a square may be the whole image.

    Args:
        corners: `[B, 2]` int64, left and top.
        side: side of the squares.
        size: side of the whole images.
    """

    corners: Array
    side: int
    size: int

    @classmethod
    def around(cls, marks: Array, size: int, side: int, random: np.random.Generator) -> Squares:
        """Return squares with the faces near their center.

        Args:
            marks: `[B, 5, 2]` landmarks as fractions of the image's side.
            size: side of the whole images.
            side: side of the squares.
            random: moves the squares at random.
        """
        middle = size * marks.mean(1) + random.uniform(-_FACE_OFF, _FACE_OFF, (len(marks), 2))
        return cls(np.clip(np.rint(middle - side / 2), 0, size - side).astype(np.int64), side, size)

    def cut(self, values: Tensor) -> Tensor:
        """Crop `[B, C, size, size]` to the squares, `[B, C, side, side]`."""
        rows = zip(values, self.corners, strict=True)
        return torch.stack([row[:, top : top + self.side, left : left + self.side] for row, (left, top) in rows])

    def time_ids(self) -> Tensor:
        """Return SDXL's original size, crop's top left and target size in pixels, `[B, 6]` fp32."""
        pixels = SIZE // self.size
        left_top = pixels * torch.from_numpy(self.corners).float()
        original, target = (torch.full_like(left_top, pixels * each) for each in (self.size, self.side))
        return torch.cat([original, left_top.flip(1), target], dim=1)
