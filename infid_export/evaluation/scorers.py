"""The three scores of the paper, on small protocols that any encoder can implement.

CLIP-T is the cosine similarity between the CLIP embeddings of the image and the prompt. CLIP-I is the one between the
image and the reference photo. M_FaceNet compares the FaceNet embeddings of the faces found in the image and the photo.
All are plain cosines from −1 to 1 and not scaled by 100, as in the paper (Infinite-ID, arXiv 2403.11781, section 4).
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
    """Embeds images and texts into one space."""

    def embed_images(self, images: Sequence[Image.Image]) -> Array:
        """Return `[n, D]` embeddings of RGB images; their norm has no meaning."""

    def embed_texts(self, texts: Sequence[str]) -> Array:
        """Return `[n, D]` embeddings of texts."""

    def describe(self) -> dict[str, Any]:
        """Return the description of the encoder for a document; the same for the same weights."""


class FaceScorer(Protocol):
    """Finds and embeds faces."""

    def embed_faces(self, images: Sequence[Image.Image]) -> list[Array | None]:
        """Return a `[D]` embedding of the largest face in each RGB image, or None if no face is found."""

    def describe(self) -> dict[str, Any]:
        """Return the description of detector and encoder for a document; the same for the same weights."""


@dataclass(frozen=True)
class Scorers:
    """Both encoders.

    Args:
        image_text: for CLIP-T and CLIP-I.
        face: for M_FaceNet; the generator must not have been trained with it.
    """

    image_text: ImageTextScorer
    face: FaceScorer

    def describe(self) -> dict[str, Any]:
        """Return their description for a document."""
        return {"image_text": self.image_text.describe(), "face": self.face.describe()}


def cosine(first: Array, second: Array) -> float:
    """Return the cosine similarity of two embeddings `[D]`.

    Raises:
        InputError: one of them is zero or not finite, so its model is broken; or they have different lengths.
    """
    if first.shape != second.shape:
        raise InputError(
            f"The encoders return embeddings of length {first.shape[-1]} and {second.shape[-1]}.",
            fix="Use the two towers of one CLIP model.",
        )
    product = float(np.linalg.norm(first.astype(np.float64)) * np.linalg.norm(second.astype(np.float64)))
    if not np.isfinite(product) or product == 0:
        raise InputError(
            "A scorer returned an embedding that is zero or not finite.", fix="Check the scorer's weights."
        )
    return float(first.astype(np.float64) @ second.astype(np.float64)) / product


def face_similarity(picture: Array | None, reference: Array) -> float:
    """Return M_FaceNet of one image; 0 if no face was found in it."""
    return 0.0 if picture is None else cosine(picture, reference)
