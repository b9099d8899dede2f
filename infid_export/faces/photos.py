"""Reading photos: whatever people have in their folders, to upright 8-bit RGB, or one clear refusal."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from infid_engines.errors import InputError

MAX_PIXELS = 100_000_000  # 100 megapixels: larger than any camera's photo, 300 MB decoded

Photo = str | Path | bytes | Image.Image | np.ndarray[Any, Any]


def load_photo(photo: Photo) -> np.ndarray[Any, Any]:
    """Read a photo.

    EXIF rotation is applied, transparency is laid on white, 16-bit greyscale is scaled to 8 bits, and CMYK and
    palettes are converted.

    Args:
        photo: path, encoded bytes, PIL image, or `[H, W, 3]` uint8 RGB array.

    Returns:
        `[H, W, 3]` uint8 RGB.

    Raises:
        InputError: it cannot be read, is animated, or is too large to be a photo.
    """
    if isinstance(photo, np.ndarray):
        if photo.ndim != 3 or photo.shape[2] != 3 or photo.dtype != np.uint8:
            raise InputError(
                f"A photo array must be uint8 [H, W, 3], not {photo.dtype} {list(photo.shape)}.",
                fix="Convert it to 8-bit RGB.",
            )
        return photo
    name, source = _open(photo)
    _refuse_bombs(name, source)
    if getattr(source, "n_frames", 1) > 1:
        raise InputError(f"{name} is animated ({source.n_frames} frames).", fix="Save one frame as PNG or JPEG.")
    try:
        image = ImageOps.exif_transpose(source)
        return np.asarray(_to_rgb(image))
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"{name} is damaged or cut off ({error}).", fix="Copy or export the photo again.") from error


def _open(photo: str | Path | bytes | Image.Image) -> tuple[str, Image.Image]:
    if isinstance(photo, Image.Image):
        return "the image", photo
    name = "the image" if isinstance(photo, bytes) else str(photo)
    if not isinstance(photo, bytes):
        path = Path(photo)
        if path.is_dir():
            raise InputError(f"{name} is a folder.", fix="Give the path of one photo.")
        if not path.is_file():
            raise InputError(f"There is no photo at {name}.", fix="Check the path.")
        if path.stat().st_size == 0:
            raise InputError(f"{name} is an empty file.", fix="Copy the photo again.")
    try:
        return name, Image.open(io.BytesIO(photo) if isinstance(photo, bytes) else photo)
    except Image.DecompressionBombError as error:
        raise _too_large(name, str(error)) from error
    except UnidentifiedImageError as error:
        raise InputError(
            f"{name} is not an image that can be read (JPEG, PNG, WebP, TIFF and others can; HEIC cannot).",
            fix="Save it as JPEG or PNG.",
        ) from error
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"{name} cannot be read ({error}).", fix="Save it again as JPEG or PNG.") from error


def _refuse_bombs(name: str, image: Image.Image) -> None:
    """Refuse by the header, before a pixel is decoded."""
    if image.width * image.height > MAX_PIXELS:
        raise _too_large(name, f"{image.width} × {image.height}")


def _too_large(name: str, what: str) -> InputError:
    return InputError(
        f"{name} is larger than {MAX_PIXELS // 1_000_000} megapixels ({what}).", fix="Scale the photo down first."
    )


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image, dtype=np.float64)
        # 16-bit files arrive as "I;16" or, from some decoders, as 32-bit integers with 16-bit content
        top = 65535.0 if image.mode != "F" and values.max(initial=0) > 255 else 255.0
        return Image.fromarray((values * (255.0 / top)).round().clip(0, 255).astype(np.uint8)).convert("RGB")
    if "A" in image.getbands() or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")
