"""The fixed inputs for comparing graphs and images: prompts, a face, noise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from infid_export.export.graphs.sizes import Sizes
from infid_export.faces.reader import FaceInputs
from infid_export.model.architectures import Architecture
from infid_export.model.config import IdentityConfig
from infid_export.model.sources import ModelSource
from infid_export.runtime.denoise import seeded_noise

Array = np.ndarray[Any, Any]
PROMPT = "a portrait photo of a person in the rain, oil painting"
NEGATIVE_PROMPT = "blurry"
SEED = 20240319
_RAW_LENGTH = 20.0  # of a stand-in for an embedding that is not normalized; ArcFace's are longer than 1, too
_NOISES = 6  # batches of noise that a graph can ask for


@dataclass(frozen=True)
class ParityCase:
    """The sources of a graph's parity inputs.

    Args:
        source: the model.
        sizes: shapes of the comparison.
        outputs: the reference outputs of the upstream graphs, by graph and flat name.
    """

    source: ModelSource
    sizes: Sizes
    outputs: Mapping[str, Mapping[str, Array]]

    @cached_property
    def _noise(self) -> Array:
        return seeded_noise([SEED + row for row in range(_NOISES * self.sizes.batch)], self.sizes.latents.extents[1:])

    def noise(self, index: int) -> Array:
        """Return one of six batches of noise, `[B, 4, h, w]` fp32."""
        batch = self.sizes.batch
        return self._noise[index * batch : (index + 1) * batch]

    def filled(self, value: float) -> Array:
        """Return `[B]` fp32, filled with one value."""
        return np.full(self.sizes.batch, value, np.float32)

    def token_ids(self, tokenizer: int) -> Array:
        """Return `[R, 77]` int32 ids of the negative prompt and the prompt, from one of the model's two tokenizers."""
        from tokenizers import Tokenizer

        texts = ([NEGATIVE_PROMPT] * self.sizes.batch + [PROMPT] * self.sizes.batch)[-self.sizes.rows :]
        encoded = Tokenizer.from_str(self.source.tokenizers()[tokenizer]).encode_batch(texts)
        return np.array([item.ids for item in encoded], np.int32)

    def face(self) -> FaceInputs:
        """Return the fixed face at the model's sizes."""
        return model_face(self.sizes.architecture, self.sizes.config)


def model_face(architecture: Architecture, config: IdentityConfig) -> FaceInputs:
    """Return the fixed face of a comparison, as far as a model reads it.

    Args:
        architecture: of the model; has the size of the crop.
        config: of its identity modules.
    """
    return parity_face(
        architecture.image_encoder["image_size"] if config.reads_image else None,
        config.face_width if config.reads_face else None,
        1.0 if config.face_embedding == "normalized" else _RAW_LENGTH,
    )


def parity_face(size: int | None, width: int | None, length: float = 1.0) -> FaceInputs:
    """Return a fixed stand-in for an aligned face: smooth random colors and a random embedding.

    Args:
        size: height and width of the crop; None for no crop.
        width: channels of the embedding; None for no embedding.
        length: L2 norm of the embedding.
    """
    random = np.random.default_rng(SEED)
    coarse = random.random((1, 3, 8, 8), dtype=np.float32)
    embedding = random.standard_normal((1, width or 0)).astype(np.float32)
    return FaceInputs(
        None if size is None else np.repeat(np.repeat(coarse, size // 8, axis=2), size // 8, axis=3),
        None if width is None else embedding / (np.linalg.norm(embedding) / np.float32(length)),
    )
