"""The demo model's face detector, trained to output CenterFace's maps on images at many sizes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import l1_loss

from infid_export.model.face_networks import DetectorNetwork
from infid_training.recipe.fitting import Fit
from infid_training.recipe.pictures import Pictures

Array = np.ndarray[Any, Any]

FIT = Fit(steps=1800, learning_rate=2e-3, weight_decay=1e-4)
_BATCH = 16
_VIEW = 192  # side of the network's input in pixels
_CELL = 4
_FACES = (48, 170)  # smallest and largest height of a face, in pixels
_SPREAD = 0.1  # standard deviation of the heat around a center, in heights of the face
# From the landmarks to the box around a face, as CenterFace defines it: brows to chin, ear to ear.
_BOX = np.array([[-0.55, -0.62], [0.55, 0.62]])
_HEIGHT = 2.3  # in distances between the centers of the eyes and the mouth


def detector_loss(network: DetectorNetwork, pictures: Pictures, step: int) -> Mapping[str, Tensor]:
    """Return the terms of one step: heat, size, offset and landmarks."""
    random = np.random.default_rng((4, step))
    views, marks = zip(*(_view(pictures, random) for _ in range(_BATCH)), strict=True)
    photo = torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2).float()
    device = next(network.parameters()).device
    maps = network.maps(photo.to(device))
    points = np.stack(marks) / _CELL  # in cells
    boxes = np.stack([box_of(each) for each in points])
    centers, sizes = boxes.mean(1), boxes[:, 1] - boxes[:, 0]
    cells = np.floor(centers).astype(int).clip(0, _VIEW // _CELL - 1)
    heat = _heat(cells, sizes[:, 1]).to(device)
    found = maps[range(_BATCH), :, cells[:, 1], cells[:, 0]]
    relative = (points - boxes[:, :1]) / sizes[:, None]
    wanted = {
        "size": (found[:, 1:3], np.log(sizes[:, ::-1])),
        "offset": (found[:, 3:5], (centers - cells - 0.5)[:, ::-1]),
        "landmarks": (found[:, 5:], relative[:, :, ::-1].reshape(_BATCH, 10)),
    }
    terms = {
        name: l1_loss(got, torch.from_numpy(np.ascontiguousarray(to)).float().to(device))
        for name, (got, to) in wanted.items()
    }
    terms["landmarks"] = 5 * terms["landmarks"]
    return {"heat": _focal(maps[:, 0], heat), **terms}


def box_of(marks: Array) -> Array:
    """Return the box `[2, 2]` (left, top), (right, bottom) around a face's landmarks `[5, 2]`, in their unit."""
    eyes, mouth = marks[:2].mean(0), marks[3:].mean(0)
    height = _HEIGHT * float(np.linalg.norm(mouth - eyes))
    box: Array = (eyes + mouth) / 2 + _BOX * height
    return box


def _view(pictures: Pictures, random: np.random.Generator) -> tuple[Array, Array]:
    """Return an image at a random size and position, and its landmarks in pixels of the view."""
    index = int(random.integers(len(pictures)))
    picture, marks = pictures.pixels[index], pictures.marks[index]
    box = box_of(marks)
    side = float(np.exp(random.uniform(*np.log(_FACES))) / (box[1, 1] - box[0, 1]))
    center = box.mean(0) * side
    corner = center - random.uniform(0.3, 0.7, 2) * _VIEW
    corner = np.clip(corner, min(0.0, side - _VIEW), max(0.0, side - _VIEW)) if random.random() < 0.5 else corner
    scale = len(picture) / side
    view = Image.fromarray(picture).transform(
        (_VIEW, _VIEW),
        Image.Transform.AFFINE,
        (scale, 0, corner[0] * scale, 0, scale, corner[1] * scale),
        Image.Resampling.BILINEAR,
    )
    return np.asarray(view), marks * side - corner


def _heat(cells: Array, heights: Array) -> Tensor:
    """Return a Gaussian around each center that is exactly 1 in its cell, `[B, h, w]`."""
    axis = np.arange(_VIEW // _CELL)
    apart = (axis[None, :, None] - cells[:, 1, None, None]) ** 2 + (axis[None, None, :] - cells[:, 0, None, None]) ** 2
    return torch.from_numpy(np.exp(-apart / (2 * (_SPREAD * heights[:, None, None]) ** 2))).float()


def _focal(logits: Tensor, heat: Tensor) -> Tensor:
    """Return the focal loss of heat maps (Zhou et al., arXiv 1904.07850, equation 1)."""
    score = logits.sigmoid().clamp(1e-5, 1 - 1e-5)
    at_center = heat == 1
    center = (1 - score) ** 2 * score.log() * at_center
    around = (1 - heat) ** 4 * score**2 * (1 - score).log() * ~at_center
    return -(center + around).sum() / len(heat)
