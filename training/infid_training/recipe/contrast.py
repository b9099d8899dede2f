"""The demo model's CLIP: one image tower and the two text towers, trained to match an image with its caption.

As in SDXL, the towers are frozen afterwards: the text towers condition the UNet, the image tower is the identity's
E_clip, and the image tower and the second text tower together score images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate, normalize

from infid_export.faces.alignment import portrait_template
from infid_export.model.architectures import DEMO
from infid_export.model.encoders import normalized
from infid_export.model.tokenizers import sdxl_tokenizers
from infid_training.recipe.crops import aligned, jittered
from infid_training.recipe.fitting import Fit
from infid_training.recipe.pictures import Pictures

FIT = Fit(steps=1500, learning_rate=1e-3, weight_decay=0.05)
_BATCH = 96
_FACES = 0.4  # fraction of the images that are replaced by their aligned face, as the identity encoder sees them
_DESCRIBED = 0.7  # fraction of the captions that describe the person


class ContrastiveTowers(nn.Module):
    """Image tower, both text towers, and the parameters that only their training needs.

    Args:
        image: open_clip's vision transformer.
        text_encoder: transformers' CLIPTextModel.
        text_encoder_2: transformers' CLIPTextModelWithProjection.
    """

    def __init__(self, image: Any, text_encoder: Any, text_encoder_2: Any) -> None:
        super().__init__()
        self.image, self.text_encoder, self.text_encoder_2 = image, text_encoder, text_encoder_2
        width = DEMO.image_encoder["embed_dim"]
        self.projection = nn.Linear(text_encoder.config.hidden_size, width, bias=False)
        self.scale = nn.Parameter(torch.tensor(2.66))  # ln(1 / 0.07), CLIP's initial value

    def forward(self, pictures: Tensor, ids: Tensor, ids_2: Tensor) -> Tensor:
        """Return the mean contrastive loss over both text towers."""
        images = normalize(self.image(normalized(pictures)), dim=-1)
        texts = (self.projection(self.text_encoder(ids).pooler_output), self.text_encoder_2(ids_2).text_embeds)
        wanted = torch.arange(len(pictures), device=pictures.device)
        losses = []
        for text in texts:
            logits = self.scale.exp() * images @ normalize(text, dim=-1).T
            losses += [cross_entropy(logits, wanted), cross_entropy(logits.T, wanted)]
        return torch.stack(losses).mean()


def tokenizers() -> tuple[Tokenizer, Tokenizer]:
    """Return SDXL's two tokenizers."""
    first, second = map(Tokenizer.from_str, sdxl_tokenizers())
    return first, second


def token_ids(tokenizer: Tokenizer, captions: Sequence[str]) -> Tensor:
    """Return `[B, 77]` ids."""
    return torch.tensor([encoding.ids for encoding in tokenizer.encode_batch(list(captions))])


def contrastive_loss(
    towers: ContrastiveTowers, words: tuple[Tokenizer, Tokenizer], pictures: Pictures, step: int
) -> Mapping[str, Tensor]:
    """Return the loss of one step."""
    random = np.random.default_rng((2, step))
    chosen = random.integers(len(pictures), size=_BATCH)
    captions = [pictures.caption(int(index), random.random() < _DESCRIBED) for index in chosen]
    pixels, marks = pictures.pixels[chosen], pictures.marks[chosen]
    size = DEMO.image_encoder["image_size"]
    faces = round(_FACES * _BATCH)
    shown = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    batch = interpolate(shown, (size, size), mode="bilinear")
    places = random.permutation(_BATCH)[:faces]
    batch[places] = aligned(pixels[places], jittered(marks[places], random), portrait_template(), size)
    ids, ids_2 = (token_ids(tokenizer, captions) for tokenizer in words)
    device = towers.scale.device
    return {"contrast": towers(batch.to(device), ids.to(device), ids_2.to(device))}
