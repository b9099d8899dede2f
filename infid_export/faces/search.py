"""Finds the faces of a photo: in the whole photo, and if there are none, in tiles."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from infid_export.faces.choice import plausible_faces
from infid_export.faces.detection import Face, FaceDetector, without_repeats

Array = np.ndarray[Any, Any]

# Side of the smallest tiles in pixels. Detectors scale their input to 960 or 640 pixels, so eyes that are 12 pixels
# apart keep 6 to 9 pixels.
_FINEST = 1280
_SHARED = 0.2  # overlap of neighboring tiles, relative to their side: more than a face that larger tiles missed


def find_faces(detector: FaceDetector, photo: Array) -> list[Face]:
    """Return a photo's faces.

    A face in a large photo can be too small in the detector's scaled input. If the whole photo shows no plausible face,
    it is searched in tiles of half its longer side, then of a quarter and so on, until there is one. The detector sees
    one tile at a time, so its memory does not grow with the photo. 100 megapixels are about 150 tiles.

    Args:
        detector: finds the faces.
        photo: `[H, W, 3]` uint8 RGB.

    Returns:
        The faces from the last search, plausible or not, largest first.
    """
    height, width = photo.shape[:2]
    found = detector.detect(photo)
    for side in _sides(max(height, width)):
        if plausible_faces(found, (width, height)):
            break
        closer = [face for corner in _tiles(height, width, side) for face in _within(detector, photo, side, *corner)]
        found = sorted(without_repeats([*closer, *found]), key=lambda face: -face.area)
    return found


def _sides(longest: int) -> Iterator[int]:
    """Yield the sides of the tiles, largest first."""
    side = longest // 2
    while side > 1.5 * _FINEST:
        yield side
        side //= 2
    if longest > _FINEST:
        yield _FINEST


def _tiles(height: int, width: int, side: int) -> Iterator[tuple[int, int]]:
    """Yield top and left of tiles that cover the photo."""
    for top in _starts(height, side):
        for left in _starts(width, side):
            yield top, left


def _starts(extent: int, side: int) -> list[int]:
    count = 1 + max(0, -(-(extent - side) // int(side * (1 - _SHARED))))
    return [round(place) for place in np.linspace(0, max(0, extent - side), count)]


def _within(detector: FaceDetector, photo: Array, side: int, top: int, left: int) -> list[Face]:
    """Return the faces of a tile, in pixels of the photo."""
    corner = np.array([left, top])
    found = detector.detect(np.ascontiguousarray(photo[top : top + side, left : left + side]))
    return [replace(face, box=face.box + np.tile(corner, 2), landmarks=face.landmarks + corner) for face in found]
