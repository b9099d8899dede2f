"""Faces cut out in batches, where `infid_export.faces.align` takes one photo at a time."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from infid_export.faces.alignment import similarity

# Deviation of the taught detector's landmarks, in shares of the picture's side; a tenth of the distance of the eyes.
DETECTED = 0.012


def aligned(pixels: np.ndarray, marks: np.ndarray, template: np.ndarray, size: int) -> Tensor:
    """Warp the faces of a batch to a frame.

    Args:
        pixels: `[B, S, S, 3]` uint8 RGB.
        marks: `[B, 5, 2]` landmarks in shares of the picture's side.
        template: `[5, 2]` in units of the crop's side.
        size: side of the crops in pixels.

    Returns:
        `[B, 3, size, size]` fp32 in [0, 1]; what lies outside the picture is black.
    """
    # grid_sample counts from −1 to 1 between the edges of a side, and asks where a crop's point was; a template counts
    # from the first pixel's centre
    frame = 2 * (template + 0.5 / size) - 1
    transforms = np.stack([_inverse(similarity(2 * points - 1, frame)) for points in marks.astype(float)])
    grid = affine_grid(torch.from_numpy(transforms).float(), [len(pixels), 3, size, size], align_corners=False)
    signal = torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2).float() / 255
    return grid_sample(signal, grid, align_corners=False)


def _inverse(transform: np.ndarray) -> np.ndarray:
    """Return the inverse of a `[2, 3]` transform."""
    turned = np.linalg.inv(transform[:, :2])
    return np.column_stack([turned, -turned @ transform[:, 2]])


def jittered(marks: np.ndarray, random: np.random.Generator, deviation: float = 0.008) -> np.ndarray:
    """Move landmarks as a detector's errors do; `deviation` is in shares of the picture's side."""
    moved: np.ndarray = marks + random.normal(0, deviation, marks.shape).astype(np.float32)
    return moved
