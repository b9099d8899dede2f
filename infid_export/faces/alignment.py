"""Five-point similarity alignment of a face to a fixed frame (Umeyama, IEEE TPAMI 1991)."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

Array = np.ndarray[Any, Any]

# Where eyes, nose and mouth corners lie in ArcFace's 112 × 112 crops (insightface, `face_align.py`).
ARCFACE_TEMPLATE = (
    np.array(
        [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]],
        dtype=np.float64,
    )
    / 112
)

# Share of the image encoder's crop that the ArcFace frame fills: hair, ears and chin are then inside.
PORTRAIT_SCALE = 0.6


def portrait_template() -> Array:
    """Return the landmark frame of the image encoder's crop, `[5, 2]` in units of its side."""
    return (ARCFACE_TEMPLATE - 0.5) * PORTRAIT_SCALE + 0.5


def similarity(source: Array, target: Array) -> Array:
    """Return the similarity transform that best maps points onto others, in the least-squares sense.

    Args:
        source: `[n, 2]`.
        target: `[n, 2]`.

    Returns:
        `[2, 3]`, rotation and scale, then translation.
    """
    mean_source, mean_target = source.mean(0), target.mean(0)
    centred_source, centred_target = source - mean_source, target - mean_target
    u, singular, vt = np.linalg.svd(centred_target.T @ centred_source)
    sign = np.array([1.0, np.sign(np.linalg.det(u @ vt))])
    rotation = u @ np.diag(sign) @ vt
    scale = (singular * sign).sum() / (centred_source**2).sum()
    return np.column_stack([scale * rotation, mean_target - scale * rotation @ mean_source])


def align(photo: Array, landmarks: Array, template: Array, size: int) -> Array:
    """Warp a face to a frame.

    Args:
        photo: `[H, W, 3]` uint8 RGB.
        landmarks: `[5, 2]` in pixels of the photo.
        template: `[5, 2]` in units of the crop's side.
        size: side of the crop in pixels.

    Returns:
        `[size, size, 3]` uint8 RGB; what lies outside the photo is black.
    """
    image, points = Image.fromarray(photo), landmarks.astype(np.float64)
    forward = similarity(points, template * size)
    shrink = int(1 / np.sqrt(abs(np.linalg.det(forward[:, :2]))))
    if shrink > 1:  # average whole pixels first: an affine warp alone would alias
        image = image.reduce(shrink)
        forward = similarity((points + 0.5) / shrink - 0.5, template * size)
    inverse = np.linalg.inv(np.vstack([forward, [0, 0, 1]]))[:2]
    # PIL samples at pixel centres (x + ½), landmarks count from pixel centres at 0
    inverse[:, 2] += 0.5 - inverse[:, :2] @ [0.5, 0.5]
    warped = image.transform(
        (size, size), Image.Transform.AFFINE, tuple(inverse.flatten()), resample=Image.Resampling.BICUBIC
    )
    return np.asarray(warped)
