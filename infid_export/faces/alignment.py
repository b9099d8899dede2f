"""Five-point similarity alignment of a face to a fixed frame (Umeyama, IEEE TPAMI 1991)."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

Array = np.ndarray[Any, Any]

# Positions of eyes, nose and mouth corners in ArcFace's 112 × 112 crops (insightface, `face_align.py`).
ARCFACE_TEMPLATE = (
    np.array(
        [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]],
        dtype=np.float64,
    )
    / 112
)

# Share of the image encoder's crop that the ArcFace frame fills. This is a choice, since no source specifies the crop:
# at 0.6, the hair, ears and chin of a frontal face are inside.
PORTRAIT_SCALE = 0.6


def portrait_template() -> Array:
    """Return the landmark frame of the image encoder's crop, `[5, 2]` in units of its side."""
    return (ARCFACE_TEMPLATE - 0.5) * PORTRAIT_SCALE + 0.5


def similarity(source: Array, target: Array) -> Array:
    """Return the similarity transform that best maps `source` to `target`, in the least-squares sense.

    Args:
        source: `[n, 2]`, not all the same point.
        target: `[n, 2]`.

    Returns:
        `[2, 3]`, rotation and scale, then translation; never a reflection.
    """
    mean_source, mean_target = source.mean(0), target.mean(0)
    centered_source, centered_target = source - mean_source, target - mean_target
    u, singular, vt = np.linalg.svd(centered_target.T @ centered_source)
    sign = np.array([1.0, np.sign(np.linalg.det(u @ vt))])
    rotation = u @ np.diag(sign) @ vt
    scale = (singular * sign).sum() / (centered_source**2).sum()
    return np.column_stack([scale * rotation, mean_target - scale * rotation @ mean_source])


def align(photo: Array, landmarks: Array, template: Array, size: int) -> Array:
    """Warp a face to a frame.

    Args:
        photo: `[H, W, 3]` uint8 RGB.
        landmarks: `[5, 2]` in pixels of the photo, counted from the center of the first pixel.
        template: `[5, 2]` in units of the crop's side.
        size: side of the crop in pixels.

    Returns:
        `[size, size, 3]` uint8 RGB; the area outside the photo is black.
    """
    image, points = Image.fromarray(photo), landmarks.astype(np.float64)
    forward = similarity(points, template * size)
    shrink = 1 / np.sqrt(abs(np.linalg.det(forward[:, :2])))  # photo pixels per crop pixel
    finer = 1
    if shrink > 1:
        # An affine warp samples single points and would alias. So average whole pixels first, which leaves a factor
        # below 2, and warp the result to twice the size.
        whole, finer = int(shrink), 2
        image = image.reduce(whole)
        points = (points + 0.5) / whole - 0.5
    # pixel centers are at ½ in Pillow's coordinates, and at 0 in the landmarks'
    forward = similarity(points + 0.5, (template * size + 0.5) * finer)
    inverse = np.linalg.inv(np.vstack([forward, [0, 0, 1]]))[:2]
    warped = image.transform(
        (size * finer, size * finer),
        Image.Transform.AFFINE,
        tuple(inverse.flatten()),
        resample=Image.Resampling.BICUBIC,
    )
    return np.asarray(warped.reduce(finer))
