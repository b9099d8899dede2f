from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from icc_profiles import ADOBE_RGB, DISPLAY_P3, gray_profile, ink_profile, rgb_profile, to_srgb
from PIL import Image, ImageCms

from infid_export.faces.photos import load_photo

COLOR = (200, 120, 60)
P3 = rgb_profile(*DISPLAY_P3)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def flat(mode: str, color: object) -> Image.Image:
    return Image.new(mode, (8, 8), color)  # type: ignore[arg-type]


pytestmark = pytest.mark.filterwarnings("error")  # except for `pytest.warns`


@pytest.mark.parametrize("space", [DISPLAY_P3, ADOBE_RGB], ids=["display-p3", "adobe-rgb"])
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG"])
def test_a_wide_gamut_photo_is_brought_to_srgb(space: tuple[np.ndarray, float], kind: str) -> None:
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}.get(kind, {})
    photo = encoded(flat("RGB", COLOR), kind, icc_profile=rgb_profile(*space), **options)
    expected = to_srgb(COLOR, *space)
    assert np.abs(expected - COLOR).max() > 5  # so reading it as sRGB would be noticed
    assert np.abs(load_photo(photo)[4, 4] - expected).max() <= (4 if kind == "JPEG" else 2)


def test_an_opened_image_keeps_its_profile() -> None:
    photo = Image.open(io.BytesIO(encoded(flat("RGB", COLOR), icc_profile=P3)))
    assert np.abs(load_photo(photo)[4, 4] - to_srgb(COLOR, *DISPLAY_P3)).max() <= 2


def test_srgb_with_its_profile_is_untouched() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8))
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    np.testing.assert_array_equal(load_photo(encoded(image, icc_profile=profile)), np.asarray(image))


@pytest.mark.parametrize("mode", ["RGBA", "P"])
def test_transparency_and_palettes_are_converted_too(mode: str) -> None:
    image = flat("RGB", COLOR)
    image = image.quantize(2) if mode == "P" else image.convert(mode)
    if mode == "RGBA":
        image.putpixel((0, 0), (*COLOR, 0))
    found = load_photo(encoded(image, icc_profile=P3))
    assert np.abs(found[4, 4] - to_srgb(COLOR, *DISPLAY_P3)).max() <= 2
    assert mode == "P" or tuple(found[0, 0]) == (255, 255, 255)


def test_rotation_and_profile_go_together() -> None:
    image = flat("RGB", COLOR)
    image.paste((0, 0, 0), (0, 0, 8, 4))  # stored upside down: the top half is colored
    exif = Image.Exif()
    exif[0x0112] = 3
    found = load_photo(encoded(image, "PNG", exif=exif, icc_profile=P3))
    assert np.abs(found[1, 4] - to_srgb(COLOR, *DISPLAY_P3)).max() <= 2
    assert found[6, 4].max() <= 1


@pytest.mark.parametrize("stored", ["L", "LA", "16-bit"])
def test_gray_with_a_gray_profile(stored: str) -> None:
    """A linear gray of one fifth is 124 in sRGB."""
    if stored == "16-bit":
        image = Image.fromarray(np.full((8, 8), 51 * 257, np.uint16))
    else:
        image = flat("L", 51).convert(stored)
    found = load_photo(encoded(image, icc_profile=gray_profile(1.0)))
    assert np.abs(found.astype(int) - 124).max() <= 2


def test_gray_stored_with_an_rgb_profile() -> None:
    photo = encoded(flat("L", 51), icc_profile=rgb_profile(DISPLAY_P3[0], 1.0))
    assert np.abs(load_photo(photo).astype(int) - 124).max() <= 2


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_inks_have_the_colors_of_their_profile(kind: str) -> None:
    photo = encoded(flat("CMYK", (255, 0, 0, 0)), kind, icc_profile=ink_profile((55.0, -37.0, -50.0)))
    red, green, blue = (int(value) for value in load_photo(photo)[4, 4])
    assert red < 30
    assert 120 < green < 170  # without the profile, cyan is (0, 255, 255)
    assert 190 < blue < 235


def interoperability(index: bytes) -> bytes:
    """EXIF data as cameras write it: the main directory contains EXIF's, and that the interoperability directory."""
    header = b"Exif\0\0II" + struct.pack("<HI", 42, 8)
    main = struct.pack("<HHHIII", 1, 0x8769, 4, 1, 26, 0)
    exif = struct.pack("<HHHIII", 1, 0xA005, 4, 1, 44, 0)
    return header + main + exif + struct.pack("<HHHI4sI", 1, 1, 2, 4, index, 0)


def test_a_camera_that_notes_adobe_rgb_and_embeds_no_profile() -> None:
    image = flat("RGB", COLOR)
    found = load_photo(encoded(image, "JPEG", quality=100, subsampling=0, exif=interoperability(b"R03\0")))
    assert np.abs(found[4, 4] - to_srgb(COLOR, *ADOBE_RGB)).max() <= 4
    found = load_photo(encoded(image, "JPEG", quality=100, subsampling=0, exif=interoperability(b"R98\0")))
    assert np.abs(found[4, 4].astype(int) - COLOR).max() <= 1


def test_pillow_that_raises_where_no_camera_notes_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    def before_13(exif: Image.Exif, tag: int) -> dict[int, object]:
        raise KeyError(tag)

    monkeypatch.setattr(Image.Exif, "get_ifd", before_13)
    assert (load_photo(encoded(flat("RGB", COLOR)))[4, 4] == COLOR).all()


BROKEN = {
    "junk": b"no profile at all",
    "cut-off": P3[:200],
    "header-only": P3[:128],
    "of-inks": ink_profile((55.0, -37.0, -50.0)),
    "of-gray": gray_profile(1.0),
    "of-lab": P3.replace(b"RGB ", b"Lab ", 1),
}


@pytest.mark.parametrize("profile", BROKEN.values(), ids=BROKEN)
def test_a_profile_that_cannot_be_used_is_said_and_the_photo_is_read(profile: bytes, tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    path.write_bytes(encoded(flat("RGB", COLOR), icc_profile=profile))
    with pytest.warns(UserWarning, match=r"photo\.png has a color profile that cannot be used .* read as sRGB"):
        found = load_photo(path)
    assert tuple(found[4, 4]) == COLOR


def test_lab_is_lab_with_or_without_a_profile() -> None:
    lab = flat("LAB", (150, 160, 140))
    plain, tagged = (load_photo(encoded(lab, "TIFF", **options)) for options in ({}, {"icc_profile": P3}))
    np.testing.assert_array_equal(plain, tagged)
    assert np.ptp(plain[4, 4].astype(int)) > 20
