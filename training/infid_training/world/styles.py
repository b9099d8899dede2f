"""The styles of the world: an image sketched, printed, painted or pixelated."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageChops, ImageEnhance, ImageFilter, ImageOps


def apply_style(image: Image.Image, style: str, seed: int) -> Image.Image:
    """Return an RGB image in another style.

    Args:
        image: RGB.
        style: one of `infid_training.world.scenes.STYLES`.
        seed: seed of paper and brush marks.
    """
    return {
        "photo": _photo,
        "pencil sketch": _pencil,
        "flat poster": _poster,
        "oil painting": _oil,
        "pixel art": _pixels,
    }[style](image, np.random.default_rng(seed))


def _photo(image: Image.Image, random: np.random.Generator) -> Image.Image:
    return image


def _pencil(image: Image.Image, random: np.random.Generator) -> Image.Image:
    """Divide the gray image by its blur, so that edges stay and flat areas become paper; then hatch dark areas."""
    grey = np.asarray(ImageOps.grayscale(image), np.float32)
    blurred = np.asarray(ImageOps.grayscale(image).filter(ImageFilter.GaussianBlur(2.2)), np.float32)
    lines = np.clip(grey / np.maximum(blurred, 1) * 1.02, 0, 1) ** 3
    rows, columns = np.indices(grey.shape)
    hatched = np.where(((rows + columns) % 4 == 0) & (grey < 110), 0.72, 1.0)
    paper = 0.97 - 0.03 * random.random(grey.shape, np.float32)
    drawn = 255 * lines * hatched * paper * (0.72 + 0.28 * grey / 255)
    return Image.fromarray(np.clip(drawn, 0, 255).astype(np.uint8)).convert("RGB")


def _poster(image: Image.Image, random: np.random.Generator) -> Image.Image:
    """Print in ten flat, saturated colors."""
    flat = image.filter(ImageFilter.MedianFilter(3)).quantize(10, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    return ImageEnhance.Contrast(ImageEnhance.Color(flat.convert("RGB")).enhance(2.2)).enhance(1.25)


def _oil(image: Image.Image, random: np.random.Generator) -> Image.Image:
    """Paint coarsely: half the detail, and a relief of brush marks."""
    half = image.reduce(2).filter(ImageFilter.MedianFilter(3))
    flat = ImageEnhance.Color(half.resize(image.size, Image.Resampling.BICUBIC)).enhance(1.5)
    noise = random.integers(30, 226, (image.height // 4, image.width // 2), np.uint8)
    marks = Image.fromarray(noise).resize(image.size, Image.Resampling.BILINEAR).filter(ImageFilter.EMBOSS)
    return Image.blend(flat, ImageChops.overlay(flat, Image.merge("RGB", (marks, marks, marks))), 0.45)


def _pixels(image: Image.Image, random: np.random.Generator) -> Image.Image:
    """Draw in blocks of 4 × 4 pixels and 24 colors; in larger blocks nobody would recognize the person."""
    small = image.reduce(4).quantize(24, Image.Quantize.FASTOCTREE).convert("RGB")
    return small.resize(image.size, Image.Resampling.NEAREST)
