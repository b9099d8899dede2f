"""Identity-enhanced training of the demo model: the world's photos in the form that the training loop takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from infid_engines.progress import Stage
from infid_export.faces.alignment import ARCFACE_TEMPLATE, portrait_template
from infid_export.faces.recognition import SIZE as FACE_SIZE
from infid_export.model.architectures import DEMO
from infid_export.model.encoders import ImageEncoder
from infid_training.photo_folders import References, Targets
from infid_training.recipe.base import Texts
from infid_training.recipe.crops import DETECTED, FACE_SIDE, Squares, aligned, jittered
from infid_training.recipe.files import read_tensors, write_tensors
from infid_training.recipe.pictures import PICTURES, Pictures
from infid_training.run_options import TrainOptions

Array = np.ndarray[Any, Any]

OPTIONS = TrainOptions(
    steps=3600, batch_size=32, learning_rate=2e-3, lr_schedule="cosine", warmup_steps=60, identity_dropout=0.1,
    checkpoint_every=200, keep=1, validate_every=0, precision="bf16",
)  # fmt: skip
# Three of four batches have faces only: most of a person in a quarter of the latents.
_WHOLE_EVERY = 4
_ENCODED_AT_ONCE = 64


@dataclass(frozen=True)
class PhotosOfTheWorld:
    """The images in the style of a photo, as the training loop's `Photos`.

    Real people are known from photos, so identity is learned from them alone; styles come from the text. The first
    photo of a batch decides whether all are whole or cropped to their faces, so they cannot be used for validation.

    Args:
        numbers: `[N]` int64, numbers of the images.
        latents: `[all images, 4, h, w]`, scaled.
        clip_features: `[N, clip_tokens, clip_width]`.
        face_embeddings: `[N, 512]`.
        pictures: the images, for their captions and landmarks.
        texts: encodes the captions, for training with text; else None. The captions describe the person, as a
            captioner of photos would.
    """

    numbers: Tensor
    latents: Tensor
    clip_features: Tensor
    face_embeddings: Tensor
    pictures: Pictures
    texts: Texts | None = None

    @property
    def people(self) -> Tensor:
        """Return the number of each photo's person."""
        return self.numbers // PICTURES

    @property
    def names(self) -> Sequence[str]:
        """Return the name of each photo for messages."""
        return [f"person {number // PICTURES}, image {number % PICTURES}" for number in self.numbers.tolist()]

    @property
    def fingerprint(self) -> str:
        """Return the number of photos; that is enough, since the recipe's folder holds one version of each file."""
        return f"{len(self.numbers)} photos of the world"

    def targets(self, indices: Tensor) -> Targets:
        """Return photos as targets."""
        chosen = self.numbers[indices]
        whole = self.latents.shape[-1]
        side = FACE_SIDE if indices[0] % _WHOLE_EVERY else whole
        random = np.random.default_rng(indices.tolist())
        squares = Squares.around(self.pictures.marks[chosen.numpy()], whole, side, random)
        latents, sizes = squares.cut(self.latents[chosen]), squares.time_ids()
        if self.texts is None:
            return Targets(latents, sizes)
        captions = [self.pictures.caption(number, True) for number in chosen.tolist()]
        return Targets(latents, sizes, *self.texts.encode(captions))

    def references(self, indices: Tensor) -> References:
        """Return photos as references."""
        return References(self.clip_features[indices], self.face_embeddings[indices])


@torch.no_grad()
def encode_faces(
    image_encoder: ImageEncoder, recognizer: nn.Module, pictures: Pictures, path: Path, stage: Stage
) -> dict[str, Tensor]:
    """Return `numbers`, `clip_features` and `face_embeddings` of the images in the style of a photo; cached in a file.

    Args:
        image_encoder: the trained image tower.
        recognizer: the generator's recognizer.
        pictures: the images; photos are encoded, with landmarks as inaccurate as a detector's.
        path: safetensors file.
        stage: shown the progress.
    """
    if not path.is_file():
        numbers, _ = pictures.by_style
        parts: dict[str, list[Tensor]] = {"clip_features": [], "face_embeddings": []}
        random = np.random.default_rng(6)
        for start in range(0, len(numbers), _ENCODED_AT_ONCE):
            chosen = numbers[start : start + _ENCODED_AT_ONCE]
            features, embeddings = read_faces(
                image_encoder, recognizer, pictures.pixels[chosen], jittered(pictures.marks[chosen], random, DETECTED)
            )
            parts["clip_features"].append(features.half().cpu())
            parts["face_embeddings"].append(embeddings.half().cpu())
            stage.update(start / len(numbers), f"photo {start} of {len(numbers)}")
        write_tensors(
            {"numbers": torch.from_numpy(numbers), **{name: torch.cat(each) for name, each in parts.items()}}, path
        )
    return read_tensors(path)


def read_faces(
    image_encoder: ImageEncoder, recognizer: nn.Module, pixels: Array, marks: Array
) -> tuple[Tensor, Tensor]:
    """Return what the runtime's `FaceReader` and the identity encoder would compute for faces.

    Args:
        image_encoder: `E_clip`.
        recognizer: `E_face`.
        pixels: `[B, S, S, 3]` uint8 RGB.
        marks: `[B, 5, 2]` landmarks as fractions of the side.

    Returns:
        `[B, clip_tokens, clip_width]` features and `[B, 512]` L2-normalized embeddings.
    """
    device = next(recognizer.parameters()).device
    crops = aligned(pixels, marks, portrait_template(), DEMO.image_encoder["image_size"]).to(device)
    faces = 2 * aligned(pixels, marks, ARCFACE_TEMPLATE, FACE_SIZE).to(device) - 1
    embeddings: Tensor = normalize(recognizer(faces), dim=-1)
    features: Any = image_encoder(crops)
    return features, embeddings
