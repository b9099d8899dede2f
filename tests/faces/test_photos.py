from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from infid_engines.errors import InputError
from infid_export.faces import photos
from infid_export.faces.photos import load_photo, photo_size

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def noise_image(side: int = 64) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (side, side, 3), dtype=np.uint8))


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size but holds almost no data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def test_path_bytes_image_and_array_give_the_same(tmp_path: Path) -> None:
    image = noise_image()
    path = tmp_path / "photo.png"
    image.save(path)
    for photo in (path, str(path), path.read_bytes(), image, np.asarray(image)):
        found = load_photo(photo)
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, np.asarray(image))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(orientation: int) -> None:
    upright = Image.new("RGB", (32, 48), BLUE)
    upright.paste(RED, (0, 0, 16, 16))  # a red corner, top left
    back = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    stored = upright if back is None else upright.transpose(back)
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = load_photo(encoded(stored, "PNG", exif=exif))
    np.testing.assert_array_equal(found, np.asarray(upright))


def test_transparency_is_laid_on_white() -> None:
    rgba = Image.new("RGBA", (4, 4), (*RED, 0))
    rgba.putpixel((0, 0), (*RED, 255))
    rgba.putpixel((1, 0), (*RED, 128))
    found = load_photo(encoded(rgba, "PNG"))
    assert tuple(found[0, 0]) == RED
    assert tuple(found[3, 3]) == WHITE
    assert np.abs(found[0, 1].astype(int) - [255, 127, 127]).max() <= 1


@pytest.mark.parametrize("mode", ["L", "1", "LA", "P", "CMYK"])
def test_other_modes_keep_their_color(mode: str) -> None:
    grey = Image.new("RGB", (8, 8), WHITE)
    grey.paste((0, 0, 0), (0, 0, 4, 8))
    found = load_photo(encoded(grey.convert(mode), "JPEG" if mode == "CMYK" else "PNG"))
    assert found.shape == (8, 8, 3)
    assert np.abs(found.astype(int) - np.asarray(grey)).max() <= 2


def test_transparent_palette_is_laid_on_white() -> None:
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([*RED, *BLUE])
    palette.putpixel((0, 0), 1)
    found = load_photo(encoded(palette, "PNG", transparency=0))
    assert tuple(found[0, 0]) == BLUE
    assert tuple(found[1, 1]) == WHITE


@pytest.mark.parametrize("top", [65535, 255], ids=["full-range", "dark"])
def test_16_bit_grey_is_scaled_whatever_its_brightest_value(top: int) -> None:
    values = np.linspace(0, top, 64).astype(np.uint16).reshape(8, 8)
    found = load_photo(encoded(Image.fromarray(values), "PNG"))
    np.testing.assert_array_equal(found[..., 0], np.round(values / 257))
    assert (found[..., 0] == found[..., 2]).all()


def test_a_phones_several_picture_jpeg_is_its_first_picture() -> None:
    first, second = Image.new("RGB", (16, 16), RED), Image.new("RGB", (8, 8), BLUE)
    photo = encoded(first, "MPO", save_all=True, append_images=[second])
    found = load_photo(photo)
    assert found.shape == (16, 16, 3)
    assert found[8, 8, 0] > 200 > 60 > found[8, 8, 2]


def frames(kind: str) -> bytes:
    images = [Image.new("RGB", (8, 8), color) for color in (RED, BLUE)]
    return encoded(images[0], kind, save_all=True, append_images=images[1:])


def cut(content: bytes) -> bytes:
    return content[: len(content) * 2 // 3]


HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64)
BAD_BYTES = {
    "empty-bytes": (b"", "The image is empty"),
    "text": (b"this is no image", "not an image that can be read"),
    "heic": (HEIC, "HEIC, AVIF and camera raw cannot"),
    "eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image that can be read"),
    "gif-animation": (frames("GIF"), r"is animated \(2 frames\)\. Save one as PNG"),
    "webp-animation": (frames("WEBP"), r"is animated \(2 frames\)"),
    "tiff-pages": (frames("TIFF"), r"has 2 pages\. Save one as PNG"),
    "cut-jpeg": (cut(encoded(noise_image(), "JPEG")), "damaged or truncated"),
    "cut-png": (cut(encoded(noise_image(), "PNG")), "damaged or truncated"),
    "cut-webp": (cut(encoded(noise_image(), "WEBP")), "damaged or truncated|not an image that can be read"),
    "hollow-png": (png_header(64, 64), "damaged or truncated"),
    "bomb": (png_header(50_000, 50_000), "larger than 100 megapixels"),
    "float-tiff": (encoded(Image.new("F", (4, 4)), "TIFF"), "32-bit pixels"),
    "32-bit-tiff": (encoded(Image.new("I", (4, 4), 70_000), "TIFF"), "32-bit pixels"),
}


@pytest.mark.parametrize(("content", "message"), BAD_BYTES.values(), ids=BAD_BYTES)
def test_bad_content_is_rejected_in_one_sentence(content: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        load_photo(content)
    path = tmp_path / "photo.jpg"
    path.write_bytes(content)
    with pytest.raises(InputError, match="empty file" if not content else message) as caught:
        load_photo(path)
    assert str(path) in caught.value.problem
    assert caught.value.fix


def test_between_pillows_limits_a_bomb_is_rejected_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("pixels were decoded"))
    with (
        pytest.warns(Image.DecompressionBombWarning),
        pytest.raises(InputError, match=r"larger than 100 megapixels \(11000 × 11000\)"),
    ):
        load_photo(png_header(11_000, 11_000))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.jpg", "There is no photo at"),
        ("", "is a folder"),
        ("a\0b", "There is no photo at"),
        ("x" * 5000, "File name too long"),
    ],
    ids=["missing", "folder", "null-byte", "too-long"],
)
def test_bad_paths_are_rejected(name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        load_photo(tmp_path / name)


@pytest.mark.parametrize("photo", [None, "", 7, ["a.jpg"]], ids=repr)
def test_what_is_no_photo_is_rejected(photo: object) -> None:
    with pytest.raises(InputError, match="must be a path, bytes, a PIL image or an array"):
        load_photo(photo)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "array",
    [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)],
    ids=["grey", "rgba", "float", "empty"],
)
def test_arrays_of_another_kind_are_rejected(array: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"must be uint8 \[H, W, 3\], not"):
        load_photo(array)


def test_a_large_array_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(photos, "MAX_PIXELS", 15)
    with pytest.raises(InputError, match="megapixels"):
        load_photo(np.zeros((4, 4, 3), np.uint8))


def test_the_size_is_read_without_decoding() -> None:
    encoded = io.BytesIO()
    Image.new("RGB", (300, 200)).save(encoded, format="PNG")
    truncated = encoded.getvalue()[:60]
    assert photo_size(encoded.getvalue()) == photo_size(truncated) == (300, 200)
    with pytest.raises(InputError, match="is not an image that can be read"):
        photo_size(b"no image")
