"""Fuzzed photos."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from random import Random

import numpy as np
from fuzz_harness import AcceptedDamageError, Attempt
from mutations import damaged
from PIL import Image

from infid_export.faces.photos import MAX_PIXELS, load_photo

_BOMB_SHARE = 0.006  # one takes a second


def photos(_: Path) -> Attempt:
    """Read damaged photos in every format, and small files that decompress to many pixels."""
    seeds = _seeds()

    def attempt(random: Random) -> None:
        content = bomb(random) if random.random() < _BOMB_SHARE else damaged(random, random.choice(seeds), seeds)
        pixels = load_photo(content)
        if (
            pixels.dtype != np.uint8
            or pixels.ndim != 3
            or pixels.shape[2] != 3
            or not 0 < pixels.size <= 3 * MAX_PIXELS
        ):
            raise AcceptedDamageError(f"{pixels.dtype} {pixels.shape}")

    return attempt


def _seeds() -> tuple[bytes, ...]:
    random = np.random.default_rng(0)
    rgb = Image.fromarray(random.integers(0, 256, (20, 24, 3)).astype(np.uint8))
    found = []
    modes = {
        "PNG": ("RGB", "RGBA", "L", "LA", "P", "1", "I;16"), "JPEG": ("RGB", "L", "CMYK"), "WEBP": ("RGB", "RGBA"),
        "TIFF": ("RGB", "L", "CMYK", "I;16", "F", "LAB"), "BMP": ("RGB", "P"), "GIF": ("P", "L"),
        "PPM": ("RGB", "L"), "JPEG2000": ("RGB", "L"),
    }  # fmt: skip
    for kind, each in modes.items():
        for mode in each:
            image = (
                rgb.convert("I;16" if mode == "I;16" else mode) if mode != "I;16" else rgb.convert("L").convert("I;16")
            )
            found.append(_saved(image, kind))
    exif = Image.Exif()
    exif[274] = 6
    found += [
        _saved(rgb, "JPEG", exif=exif), _saved(rgb, "PNG", exif=exif), _saved(rgb, "JPEG", progressive=True),
        _saved(rgb, "TIFF", compression="tiff_lzw"), _saved(rgb, "TIFF", compression="tiff_adobe_deflate"),
        _saved(rgb, "GIF", save_all=True, append_images=[rgb.rotate(90)]),
        _saved(rgb, "WEBP", save_all=True, append_images=[rgb.rotate(90)]),
        _saved(rgb, "PNG", icc_profile=random.bytes(200)), _saved(rgb, "JPEG", icc_profile=random.bytes(200)),
    ]  # fmt: skip
    return tuple(found)


def _saved(image: Image.Image, kind: str, **options: object) -> bytes:
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def bomb(random: Random) -> bytes:
    """Return a small file that claims many pixels, or really has them."""
    side = random.choice((4000, 9999, 10_000, 10_001, 30_000, 60_000))
    kind = random.randrange(4)
    if kind == 0:
        depth, colors = random.choice(((8, 2), (8, 6), (16, 0), (16, 2), (16, 6), (8, 4), (1, 0)))
        channels = {0: 1, 2: 3, 4: 2, 6: 4}[colors]
        row = b"\0" * (1 + side * channels * depth // 8)
        rows = side if side <= 10_001 else 1000  # for the others only the header matters: they are too large
        return png(side, side, depth, colors, row, rows)
    if kind == 1:  # a JPEG's size is in its frame header
        content = bytearray(_saved(Image.new("RGB", (16, 16)), "JPEG"))
        place = content.index(b"\xff\xc0") + 5
        content[place : place + 4] = struct.pack(">HH", side, side)
        return bytes(content)
    if kind == 2:
        content = bytearray(_saved(Image.new("P", (16, 16)), "GIF"))
        content[6:10] = struct.pack("<HH", side, side)
        return bytes(content)
    text = b"x" * 200_000_000  # a compressed comment
    return png(8, 8, 8, 2, b"\0" * 25, 8, (b"zTXt", b"k\0\0" + zlib.compress(text, 9)))


def png(width: int, height: int, depth: int, colors: int, row: bytes, rows: int, *more: tuple[bytes, bytes]) -> bytes:
    """Return a PNG file of equal rows, with extra chunks before its pixels."""
    packer = zlib.compressobj(9)
    packed = b"".join(packer.compress(row) for _ in range(rows)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, depth, colors, 0, 0, 0)
    chunks = [(b"IHDR", header), *more, (b"IDAT", packed), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )
