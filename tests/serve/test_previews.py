from __future__ import annotations

import numpy as np
from PIL import Image

from infid_export.serve.drawing.previews import LatentColors


def decoded(latents: np.ndarray, matrix: np.ndarray) -> Image.Image:
    """An image whose 8 × 8 pixels have the colors of a linear map."""
    colors = (np.einsum("chw,ck->hwk", latents, matrix) + 0.5).clip(0, 1)
    return Image.fromarray((colors * 255).round().astype(np.uint8)).resize((128, 128), Image.Resampling.NEAREST)


def test_colors_are_learned_from_decoded_images() -> None:
    random = np.random.default_rng(0)
    matrix = random.normal(size=(4, 3)) * 0.05
    colors = LatentColors()
    latents = random.normal(size=(4, 16, 16)).astype(np.float32)
    gray = np.asarray(colors.draw(latents, (16, 16)), float)
    assert np.abs(gray - 127.5).max() < 2
    colors.learn(latents, decoded(latents, matrix))
    others = random.normal(size=(4, 16, 16)).astype(np.float32)
    drawn = np.asarray(colors.draw(others, (16, 16)), float)
    expected = np.asarray(decoded(others, matrix).resize((16, 16), Image.Resampling.BOX), float)
    assert np.abs(drawn - expected).mean() < 2
    assert colors.draw(others, (128, 64)).size == (128, 64)


def test_other_decoders_are_learned_as_well() -> None:
    random = np.random.default_rng(0)
    first, second = random.normal(size=(2, 4, 3)) * 0.05
    colors = LatentColors()
    for matrix in (first, *[second] * 60):
        latents = random.normal(size=(4, 16, 16)).astype(np.float32)
        colors.learn(latents, decoded(latents, matrix))
    drawn = np.asarray(colors.draw(latents, (16, 16)), float)
    assert np.abs(drawn - np.asarray(decoded(latents, second).resize((16, 16), Image.Resampling.BOX), float)).mean() < 2


def test_non_finite_latents_give_an_image_too() -> None:
    assert LatentColors().draw(np.full((4, 8, 8), np.nan, np.float32), (64, 64)).size == (64, 64)
