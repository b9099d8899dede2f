"""Reads photos of all common formats as upright 8-bit RGB, or raises one clear error."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from infid_engines.errors import InputError
from infid_export.faces.color import to_srgb

MAX_PIXELS = 100_000_000  # 100 megapixels: 300 MB decoded, more than nearly every camera has
_STRIP = 1_000_000  # pixels per conversion
# An explicit list, so that Pillow never passes a file to an external program (it runs Ghostscript for EPS).
_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "JPEG2000", "PPM")
_READABLE = "JPEG, PNG, WebP, TIFF, BMP and GIF can be read; HEIC, AVIF and camera raw cannot"

Photo = str | Path | bytes | Image.Image | np.ndarray[Any, Any]


def load_photo(photo: Photo) -> np.ndarray[Any, Any]:
    """Read a photo.

    EXIF rotation is applied, transparency is composited on white (**choice**: the background of cut-out portraits),
    16-bit grayscale is scaled to 8 bits, CMYK and palettes are converted, and colors are converted from the photo's
    profile to sRGB (`to_srgb`).

    Args:
        photo: path, encoded bytes, PIL image, or `[H, W, 3]` uint8 RGB array.

    Returns:
        `[H, W, 3]` uint8 RGB.

    Raises:
        InputError: it cannot be read, is animated, or is too large to be a photo.
    """
    if isinstance(photo, np.ndarray):
        return _checked_array(photo)
    if isinstance(photo, Image.Image):
        return _decode("the image", photo)
    with _opened(photo) as image:
        return _decode(photo_name(photo), image)


def photo_size(photo: str | Path | bytes) -> tuple[int, int]:
    """Return width and height of an encoded photo, as stored; only its header is read.

    Raises:
        InputError: it is not a photo that `load_photo` could read.
    """
    with _opened(photo) as image:
        return image.size


def photo_name(photo: Photo) -> str:
    """Return the name of a photo for messages: its path, or `the image`."""
    return str(photo) if isinstance(photo, str | Path) else "the image"


def _checked_array(photo: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    if photo.ndim != 3 or photo.shape[2] != 3 or photo.dtype != np.uint8 or photo.size == 0:
        raise InputError(
            f"A photo array must be uint8 [H, W, 3], not {photo.dtype} {list(photo.shape)}.",
            fix="Convert it to 8-bit RGB.",
        )
    if photo.shape[0] * photo.shape[1] > MAX_PIXELS:
        raise _too_large("the array", f"{photo.shape[1]} × {photo.shape[0]}")
    return photo


def _opened(photo: Any) -> Image.Image:
    """Read the header of an encoded photo."""
    if isinstance(photo, bytes):
        if not photo:
            raise InputError("The image is empty.", fix="Read the photo's file again.")
        return _open(photo_name(photo), io.BytesIO(photo))
    if isinstance(photo, str | Path) and str(photo):
        return _open(photo_name(photo), io.BytesIO(_read(Path(photo))))
    raise InputError(f"A photo must be a path, bytes, a PIL image or an array, not {photo!r}.", fix="Give one photo.")


def _read(path: Path) -> bytes:
    try:
        if path.is_dir():
            raise InputError(f"{path} is a folder.", fix="Give the path of one photo.")
        if not path.is_file():
            raise InputError(f"There is no photo at {path}.", fix="Check the path.")
        content = path.read_bytes()
    except OSError as error:  # also for a name that no file can have
        raise InputError(f"{path} cannot be read ({error.strerror}).", fix="Check its permissions.") from error
    if not content:
        raise InputError(f"{path} is an empty file.", fix="Copy the photo again.")
    return content


def _open(name: str, source: io.BytesIO) -> Image.Image:
    """Read the header; no pixel is decoded yet."""
    try:
        return Image.open(source, formats=_FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(name, str(error)) from error
    except UnidentifiedImageError as error:
        raise InputError(
            f"{name} is not an image that can be read ({_READABLE}).", fix="Save it as JPEG or PNG."
        ) from error
    except Exception as error:  # exceptions of a format's reader on broken files are not documented
        raise _damaged(name, error) from error


def _decode(name: str, image: Image.Image) -> np.ndarray[Any, Any]:
    if image.width * image.height > MAX_PIXELS:
        raise _too_large(name, f"{image.width} × {image.height}")
    try:
        frames = getattr(image, "n_frames", 1)
        # phones store a depth map or thumbnail as further frames of a JPEG (MPO); the first is the photo
        if frames == 1 or image.format == "MPO":
            return _converted(name, ImageOps.exif_transpose(image), image)
    except InputError:
        raise
    except Exception as error:  # exceptions of a decoder on broken files are not documented
        raise _damaged(name, error) from error
    what = f"has {frames} pages" if image.format == "TIFF" else f"is animated ({frames} frames)"
    raise InputError(f"{name} {what}.", fix="Save one as PNG or JPEG.")


def _converted(name: str, image: Image.Image, photo: Image.Image) -> np.ndarray[Any, Any]:
    """Return the sRGB pixels of an upright image, converted in strips; `photo` is the opened file.

    Each step of a conversion holds a copy: at once, 100 megapixels with transparency took 2.4 GB.
    """
    pixels = np.empty((image.height, image.width, 3), dtype=np.uint8)
    rows = max(1, _STRIP // image.width)
    for top in range(0, image.height, rows):
        bottom = min(top + rows, image.height)
        pixels[top:bottom] = np.asarray(_to_rgb(name, image.crop((0, top, image.width, bottom)), photo))
    return pixels


def _damaged(name: str, error: Exception) -> InputError:
    return InputError(
        f"{name} is damaged or truncated ({str(error) or type(error).__name__}).", fix="Copy or export the photo again."
    )


def _too_large(name: str, what: str) -> InputError:
    return InputError(
        f"{name} is larger than {MAX_PIXELS // 1_000_000} megapixels ({what}).", fix="Scale the photo down first."
    )


def _to_rgb(name: str, image: Image.Image, photo: Image.Image) -> Image.Image:
    """Return sRGB pixels of an upright image; `photo` is the opened file."""
    if image.mode.startswith("I"):
        values = np.asarray(image, dtype=np.float64)
        if values.size and not 0 <= values.min() <= values.max() <= 65535:
            raise _no_white(name)
        return to_srgb(name, Image.fromarray((values * (255 / 65535)).round().astype(np.uint8)), photo)
    if image.mode == "F":
        raise _no_white(name)
    if image.mode == "LAB":  # its profile, if any, describes no other color space
        return image.convert("RGB")
    grey = image.mode in ("1", "L", "LA", "La")
    if "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
        layers = image.convert("LA" if grey else "RGBA")
        colors = layers.getchannel("L") if grey else layers.convert("RGB")
        white = Image.new("RGB", image.size, (255, 255, 255))
        return Image.composite(to_srgb(name, colors, photo), white, layers.getchannel("A"))
    return to_srgb(name, image if image.mode in ("L", "CMYK") else image.convert("L" if grey else "RGB"), photo)


def _no_white(name: str) -> InputError:
    return InputError(
        f"{name} has 32-bit pixels, and it is unknown which value is white.", fix="Save it as 8- or 16-bit."
    )
