"""The three scores of the paper, on small protocols that any encoder can follow.

CLIP-T is the cosine similarity of the picture's and the prompt's CLIP embeddings, CLIP-I that of the picture's and the
reference photo's, M_FaceNet that of the FaceNet embeddings of the faces found in them. All are plain cosines from −1 to
1, as the paper reports them, and not a hundred times that (Infinite-ID, arXiv 2403.11781, section 4).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from PIL import Image

from infid_engines.errors import InputError

Array = np.ndarray[Any, Any]
METRICS = {"clip_t": "CLIP-T", "clip_i": "CLIP-I", "m_facenet": "M_FaceNet"}


class ImageTextScorer(Protocol):
    """Puts pictures and texts into one space."""

    def embed_images(self, images: Sequence[Image.Image]) -> Array:
        """Return `[n, D]` embeddings of RGB pictures; their length means nothing."""

    def embed_texts(self, texts: Sequence[str]) -> Array:
        """Return `[n, D]` embeddings of texts."""

    def describe(self) -> dict[str, Any]:
        """Return what a document says of the encoder; the same for the same weights."""


class FaceScorer(Protocol):
    """Finds faces and tells people apart."""

    def embed_faces(self, images: Sequence[Image.Image]) -> list[Array | None]:
        """Return a `[D]` embedding of the largest face of each RGB picture, None where no face is found."""

    def describe(self) -> dict[str, Any]:
        """Return what a document says of detector and encoder; the same for the same weights."""


@dataclass(frozen=True)
class Scorers:
    """Both encoders.

    Args:
        image_text: for CLIP-T and CLIP-I.
        face: for M_FaceNet; the generator must not have seen it in training.
    """

    image_text: ImageTextScorer
    face: FaceScorer

    def describe(self) -> dict[str, Any]:
        """Return what a document says of them."""
        return {"image_text": self.image_text.describe(), "face": self.face.describe()}


def cosine(first: Array, second: Array) -> float:
    """Return the cosine similarity of two embeddings `[D]`.

    Raises:
        InputError: one of them has no direction, so its model is broken; or they have different lengths.
    """
    if first.shape != second.shape:
        raise InputError(
            f"The encoders give embeddings of {first.shape[-1]} and {second.shape[-1]} numbers.",
            fix="Use the two towers of one CLIP model.",
        )
    product = float(np.linalg.norm(first.astype(np.float64)) * np.linalg.norm(second.astype(np.float64)))
    if not np.isfinite(product) or product == 0:
        raise InputError("A scorer gave an embedding that is zero or not finite.", fix="Check the scorer's weights.")
    return float(first.astype(np.float64) @ second.astype(np.float64)) / product


def face_similarity(picture: Array | None, reference: Array) -> float:
    """Return M_FaceNet of one picture; where no face was found in it, 0: it shows nobody."""
    return 0.0 if picture is None else cosine(picture, reference)
