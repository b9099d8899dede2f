"""The demo model's two recognisers, taught with ArcFace's loss on different people and with different networks.

The first is the identity's E_face. The second plays FaceNet: it judges pictures, and nothing that makes pictures ever
sees it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear, normalize

from infid_export.faces.alignment import ARCFACE_TEMPLATE
from infid_export.faces.recognition import SIZE
from infid_export.model.face_networks import FACE_NETWORKS
from infid_training.recipe.crops import DETECTED, aligned, jittered
from infid_training.recipe.fitting import Fit
from infid_training.recipe.pictures import PICTURES, Pictures

FIT = Fit(steps=1500, learning_rate=2e-3, weight_decay=5e-4)
_BATCH = 96
_SCALE, _MARGIN = 24.0, 0.3  # ArcFace's s and m; its 64 and 0.5 are for millions of photos


class ArcFaceLoss(nn.Module):
    """A recogniser and a direction for each person (Deng et al., arXiv 1801.07698, equation 3).

    Args:
        network: the recogniser.
        people: the numbers of the people it is taught.
    """

    def __init__(self, network: nn.Module, people: range, width: int = 512) -> None:
        super().__init__()
        self.network, self.people = network, people
        self.directions = nn.Parameter(torch.randn(len(people), width) / width**0.5)

    def forward(self, faces: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of `[B, 3, 112, 112]` faces in [−1, 1] and `[B]` places in `people`."""
        cosine = linear(normalize(self.network(faces)), normalize(self.directions)).clamp(-1 + 1e-6, 1 - 1e-6)
        rows = torch.arange(len(labels), device=labels.device)
        logits = cosine.clone()
        logits[rows, labels] = torch.cos(torch.acos(cosine[rows, labels]) + _MARGIN)
        return cross_entropy(_SCALE * logits, labels)


def recognizer_loss(arcface: ArcFaceLoss, pictures: Pictures, seed: int, step: int) -> Mapping[str, Tensor]:
    """Return the loss of one step."""
    random = np.random.default_rng((seed, step))
    first, last = arcface.people.start * PICTURES, arcface.people.stop * PICTURES
    chosen = random.integers(first, last, size=_BATCH)
    marks = jittered(pictures.marks[chosen], random, DETECTED)
    faces = 2 * aligned(pictures.pixels[chosen], marks, ARCFACE_TEMPLATE, SIZE) - 1
    labels = torch.from_numpy(chosen // PICTURES - arcface.people.start)
    device = arcface.directions.device
    return {"arcface": arcface(faces.to(device), labels.to(device))}


def recognizers(people: int) -> dict[str, ArcFaceLoss]:
    """Return the generator's recogniser and the judge's, untaught; each gets half of the people."""
    half = people // 2
    return {
        "recognizer": ArcFaceLoss(FACE_NETWORKS["recognizer"](), range(half)),
        "facenet": ArcFaceLoss(FACE_NETWORKS["facenet"](), range(half, people)),
    }
