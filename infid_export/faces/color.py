"""Converts a photo's color space to sRGB, from its ICC profile or from the EXIF data of a camera (Adobe RGB)."""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np
from PIL import Image, ImageCms

Array = np.ndarray[Any, Any]

# ICC color space -> mode of the pixels that such a profile describes.
_MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}
# A profile that changes no color by more than this is sRGB: converting would only add rounding.
_ROUNDING = 2
_INTEROPERABILITY, _INDEX = 0xA005, 1  # EXIF: a directory, and in it `R03` for Adobe RGB (DCF 2.0)
# Adobe RGB (1998): its gamma, and the matrix from its linear light to sRGB's.
_ADOBE_GAMMA = 563 / 256
_ADOBE_TO_SRGB = np.array([[1.39836, -0.39836, 0.0], [0.0, 1.0, 0.0], [0.0, -0.04293, 1.04293]])


def to_srgb(name: str, pixels: Image.Image, photo: Image.Image) -> Image.Image:
    """Return an opaque image in sRGB.

    An unusable profile causes a warning, and the pixels are read as sRGB, as in every viewer.

    Args:
        name: name of the photo, for messages.
        pixels: image in mode RGB, L or CMYK.
        photo: the opened photo, with the file's profile and EXIF data.

    Returns:
        RGB.
    """
    profile = photo.info.get("icc_profile")
    if profile:
        try:
            return _by_profile(profile, pixels)
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            sentence = f"{name} has a color profile that cannot be used ({reason}); its colors are read as sRGB"
            warnings.warn(sentence, stacklevel=2)
            photo.info["icc_profile"] = b""  # warn only once: a photo is converted in strips
    elif profile is None and pixels.mode == "RGB" and _notes_adobe_rgb(photo):
        return _from_adobe_rgb(pixels)
    return pixels.convert("RGB")


def _by_profile(profile: bytes, pixels: Image.Image) -> Image.Image:
    opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    space = opened.profile.xcolor_space.strip()
    mode = _MODES.get(space, "")
    if pixels.mode == "L" and mode == "RGB":  # equal red, green and blue, stored once
        pixels = pixels.convert("RGB")
    if pixels.mode != mode:
        raise ValueError(f"it is for {space} pixels, but these are {pixels.mode}")
    transform = ImageCms.buildTransform(opened, ImageCms.createProfile("sRGB"), mode, "RGB")
    if mode == "RGB" and _changes_nothing(transform):
        return pixels
    converted = ImageCms.applyTransform(pixels, transform)
    assert converted is not None  # it is None only for an in-place conversion
    return converted


def _changes_nothing(transform: ImageCms.ImageCmsTransform) -> bool:
    levels = np.linspace(0, 255, 9).round().astype(np.uint8)
    cube = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(27, 27, 3)
    moved = ImageCms.applyTransform(Image.fromarray(cube), transform)
    return bool(np.abs(np.asarray(moved).astype(int) - cube).max() <= _ROUNDING)


def _notes_adobe_rgb(photo: Image.Image) -> bool:
    try:
        index = photo.getexif().get_ifd(_INTEROPERABILITY).get(_INDEX)
    except KeyError:  # Pillow before 13, where the photo has no such directory
        return False
    return str(index).strip("\0 ") == "R03"


def _from_adobe_rgb(pixels: Image.Image) -> Image.Image:
    light = (np.arange(256) / 255) ** _ADOBE_GAMMA
    linear = np.clip(light.astype(np.float32)[np.asarray(pixels)] @ _ADOBE_TO_SRGB.T.astype(np.float32), 0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return Image.fromarray((encoded * 255).round().astype(np.uint8))
