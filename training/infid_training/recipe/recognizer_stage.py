"""The demo model's two recognizers, trained with ArcFace's loss on different people and with different networks.

The first is the identity's E_face. The second takes FaceNet's part: it judges images, and nothing that generates images
ever uses it.

The world knows its people's traits. So an embedding has to tell people apart, and also give their traits to a linear
layer.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear, mse_loss, normalize

from infid_export.faces.alignment import ARCFACE_TEMPLATE
from infid_export.faces.recognition import SIZE
from infid_export.model.face_networks import FACE_NETWORKS
from infid_training.recipe.crops import DETECTED, aligned, jittered
from infid_training.recipe.fitting import Fit
from infid_training.recipe.pictures import PICTURES, Pictures
from infid_training.world.people import person

FIT = Fit(steps=3000, learning_rate=2e-3, weight_decay=5e-4)
_BATCH = 96
_TRAITS_WEIGHT = 5.0
_SCALE, _MARGIN = 24.0, 0.3  # ArcFace's s and m; the paper's 64 and 0.5 are for millions of photos


class RecognizerLoss(nn.Module):
    """A recognizer, a direction per person (Deng et al., arXiv 1801.07698, equation 3), and a layer for the traits.

    Args:
        network: the recognizer.
        people: numbers of the people it is trained on.
    """

    traits: Tensor

    def __init__(self, network: nn.Module, people: range, width: int = 512) -> None:
        super().__init__()
        self.network, self.people = network, people
        self.directions = nn.Parameter(torch.randn(len(people), width) / width**0.5)
        traits = torch.from_numpy(np.stack([person(number).vector() for number in people]))
        # traits are uniform in [0, 1]: normalized to mean 0 and deviation 1
        self.register_buffer("traits", (traits - 0.5) * 12**0.5, persistent=False)
        self.reader = nn.Linear(width, traits.shape[1])

    def forward(self, faces: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return the loss terms for `[B, 3, 112, 112]` faces in [−1, 1] and `[B]` indices into `people`."""
        with torch.autocast(faces.device.type, torch.bfloat16):
            embeddings = self.network(faces)
        directions = normalize(embeddings.float())
        cosine = linear(directions, normalize(self.directions)).clamp(-1 + 1e-6, 1 - 1e-6)
        rows = torch.arange(len(labels), device=labels.device)
        logits = cosine.clone()
        logits[rows, labels] = torch.cos(torch.acos(cosine[rows, labels]) + _MARGIN)
        read = self.reader(directions.shape[1] ** 0.5 * directions)
        return {
            "arcface": cross_entropy(_SCALE * logits, labels),
            "traits": _TRAITS_WEIGHT * mse_loss(read, self.traits[labels]),
        }


def recognizer_loss(loss: RecognizerLoss, pictures: Pictures, seed: int, step: int) -> Mapping[str, Tensor]:
    """Return the loss of one step."""
    random = np.random.default_rng((seed, step))
    first, last = loss.people.start * PICTURES, loss.people.stop * PICTURES
    chosen = random.integers(first, last, size=_BATCH)
    marks = jittered(pictures.marks[chosen], random, DETECTED)
    faces = 2 * aligned(pictures.pixels[chosen], marks, ARCFACE_TEMPLATE, SIZE) - 1
    labels = torch.from_numpy(chosen // PICTURES - loss.people.start)
    device = loss.directions.device
    terms: Mapping[str, Tensor] = loss(faces.to(device), labels.to(device))
    return terms


def recognizers(people: int) -> dict[str, RecognizerLoss]:
    """Return the generator's recognizer and the judge's, untrained; each gets half of the people."""
    half = people // 2
    return {
        "recognizer": RecognizerLoss(FACE_NETWORKS["recognizer"](), range(half)),
        "facenet": RecognizerLoss(FACE_NETWORKS["facenet"](), range(half, people)),
    }
