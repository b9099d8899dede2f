"""What an enrollment reads of a photo: a face, the whole image, or a box in it."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from PIL import Image

from infid_engines.errors import InputError
from infid_engines.validation import shown

Array = np.ndarray[Any, Any]
Box = tuple[int, int, int, int]  # left, top, width and height in pixels
Reference = Literal["face", "whole"] | Box

# The longer side of a photo that is scaled, in shorter sides. What is farther from the middle is not in the crop.
_MOST_SIDES = 20
_FIX = "Give face, whole, or a box: left, top, width and height in pixels."


def checked_reference(value: Any) -> Reference:
    """Return a reference that was given by a caller.

    Raises:
        InputError: it is none.
    """
    if isinstance(value, str) and value in ("face", "whole"):
        return value  # type: ignore[return-value]
    if not isinstance(value, list | tuple) or len(value) != 4 or not all(type(each) is int for each in value):
        raise InputError(f"There is no reference {shown(value)}.", fix=_FIX)
    left, top, width, height = value
    if min(left, top) < 0 or min(width, height) < 1:
        raise InputError(f"{list(value)} is no box in a photo.", fix=_FIX)
    return left, top, width, height


def boxed(photo: Array, box: Box) -> Array:
    """Return a box of a photo `[H, W, 3]`.

    Raises:
        InputError: it is not inside.
    """
    left, top, width, height = box
    if left + width > photo.shape[1] or top + height > photo.shape[0]:
        raise InputError(
            f"The box {left} {top} {width} {height} is not inside the photo ({photo.shape[1]} × {photo.shape[0]}).",
            fix="Give left, top, width and height in pixels of the upright photo.",
        )
    return photo[top : top + height, left : left + width]


def center_crop(photo: Array, size: int) -> Array:
    """Scale the shorter side to `size` with a bicubic filter and cut out the middle, as CLIP's image processor does.

    Args:
        photo: `[H, W, 3]` uint8 RGB.
        size: side of the crop in pixels.

    Returns:
        `[size, size, 3]` uint8 RGB.
    """
    height, width = photo.shape[:2]
    most = _MOST_SIDES * min(height, width)
    left, top = max(0, width - most) // 2, max(0, height - most) // 2
    image = Image.fromarray(photo[top : top + most, left : left + most])
    scaled = [size * side // min(image.size) for side in image.size]
    left, top = ((side - size) // 2 for side in scaled)
    return np.asarray(image.resize(scaled, Image.Resampling.BICUBIC).crop((left, top, left + size, top + size)))
