from __future__ import annotations

import io
import itertools
import os
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from test_color import interoperability

from infid_engines.errors import InputError
from infid_export.faces.photos import load_photo

if TYPE_CHECKING:
    from cpp_library import Probe

Pixels = np.ndarray[Any, np.dtype[np.uint8]]


def loaded(cpp_probe: Probe, folder: Path, contents: Mapping[str, bytes]) -> dict[str, Pixels | str]:
    """Return the pixels of photos, or the sentences of the error, as the C++ library reads them."""
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    found = cpp_probe("photos", folder / "pixels", *(folder / name for name in contents))
    assert found.returncode == 0, found.stderr
    pixels, place = (folder / "pixels").read_bytes(), 0
    results: dict[str, Pixels | str] = {}
    for name, line in zip(contents, found.stdout.split("\n")[:-1], strict=True):
        if "|" in line:
            results[name] = line
            continue
        width, height = map(int, line.split())
        results[name] = np.frombuffer(pixels, np.uint8, width * height * 3, place).reshape(height, width, 3)
        place += width * height * 3
    assert place == len(pixels)
    return results


def as_in_python(path: Path) -> Pixels | str:
    try:
        return load_photo(path)
    except InputError as error:
        return f"{error.problem}|{error.fix}"


def check_equal(cpp_probe: Probe, folder: Path, contents: Mapping[str, bytes]) -> None:
    for name, found in loaded(cpp_probe, folder, contents).items():
        expected = as_in_python(folder / name)
        if isinstance(found, str) or isinstance(expected, str):
            assert found == expected, name
        else:
            np.testing.assert_array_equal(found, expected, name)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    depth: int, color: int, interlaced: bool = False, extra: bytes = b"", size: tuple[int, int] = (23, 17)
) -> bytes:
    """A PNG of random samples, with chunks before its data."""
    width, height = size
    samples = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[color]
    generator = np.random.default_rng(depth * 10 + color)
    passes = [(0, 0, 1, 1)]
    if interlaced:
        passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    rows = b""
    for left, top, across, down in passes:
        columns = len(range(left, width, across))
        for _ in range(top, height, down):
            if columns:
                rows += bytes([generator.integers(5)]) + generator.bytes((columns * samples * depth + 7) // 8)
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, interlaced)
    parts = [chunk(b"IHDR", header), extra, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def palette(count: int) -> bytes:
    return chunk(b"PLTE", np.random.default_rng(count).bytes(3 * count))


KINDS = [(1, 0), (2, 0), (4, 0), (8, 0), (16, 0), (8, 2), (16, 2), (8, 4), (16, 4), (8, 6), (16, 6)]


def test_every_kind_of_png_has_the_pixels_of_python(cpp_probe: Probe, tmp_path: Path) -> None:
    contents = {}
    for (depth, color), interlaced in itertools.product(KINDS, (False, True)):
        contents[f"{depth}-{color}-{interlaced}.png"] = png(depth, color, interlaced)
    for depth, interlaced in itertools.product((1, 2, 4, 8), (False, True)):
        contents[f"palette-{depth}-{interlaced}.png"] = png(depth, 3, interlaced, palette(1 << depth))
    contents["short-palette.png"] = png(8, 3, extra=palette(100))
    contents["one-pixel.png"] = png(8, 2, True, size=(1, 1))
    contents["palette-of-rgb.png"] = png(8, 2, extra=palette(7))
    contents["gamma.png"] = png(8, 2, extra=chunk(b"gAMA", struct.pack(">I", 100000)))
    check_equal(cpp_probe, tmp_path, contents)


def test_transparency_is_laid_on_white(cpp_probe: Probe, tmp_path: Path) -> None:
    contents = {}
    for depth in (1, 2, 4, 8, 16):
        for value in (0, 1, 3, 85, 200, 300):
            contents[f"gray-{depth}-{value}.png"] = png(depth, 0, extra=chunk(b"tRNS", struct.pack(">H", value)))
    for depth in (8, 16):
        array = np.asarray(Image.open(io.BytesIO(png(depth, 2))))
        color = chunk(b"tRNS", struct.pack(">3H", *map(int, array[3, 4])))
        contents[f"color-{depth}.png"] = png(depth, 2, extra=color)
    generator = np.random.default_rng(0)
    for depth in (1, 2, 4, 8):
        for count in {1, 1 << depth}:
            alpha = chunk(b"tRNS", generator.bytes(count))
            contents[f"palette-{depth}-{count}.png"] = png(depth, 3, extra=palette(1 << depth) + alpha)
    contents["palette-index.png"] = png(4, 3, extra=palette(16) + chunk(b"tRNS", b"\xff\xff\0\xff"))
    check_equal(cpp_probe, tmp_path, contents)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def photo(width: int = 61, height: int = 45) -> Image.Image:
    """Smooth colors with noise, whose JPEG uses all of its coefficients."""
    y, x = np.mgrid[:height, :width]
    waves = np.stack([np.sin(x / 7), np.cos(y / 5), np.sin((x + y) / 11)], axis=-1) * 100 + 128
    noise = np.random.default_rng(0).normal(0, 12, waves.shape)
    return Image.fromarray(np.clip(waves + noise, 0, 255).astype(np.uint8))


def test_every_kind_of_jpeg_has_the_pixels_of_python(cpp_probe: Probe, tmp_path: Path) -> None:
    contents = {
        f"{subsampling}-{quality}-{progressive}-{width}.jpg": encoded(
            photo(width), "JPEG", subsampling=subsampling, quality=quality, progressive=progressive
        )
        for subsampling, quality, progressive, width in itertools.product((0, 1, 2), (30, 95), (False, True), (61, 64))
    }
    contents["gray.jpg"] = encoded(photo().convert("L"), "JPEG")
    contents["cmyk.jpg"] = encoded(photo().convert("CMYK"), "JPEG", quality=95)
    contents["rgb.jpg"] = encoded(photo(), "JPEG", keep_rgb=True)
    contents["restarts.jpg"] = encoded(photo(), "JPEG", restart_marker_rows=1)
    contents["one-pixel.jpg"] = encoded(photo(1, 1), "JPEG")
    contents["several.jpg"] = encoded(photo(), "MPO", save_all=True, append_images=[photo(8, 8)])
    check_equal(cpp_probe, tmp_path, contents)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_photos_are_turned_as_in_python(cpp_probe: Probe, tmp_path: Path, kind: str) -> None:
    contents = {}
    for value in (0, *range(1, 9), 9, 300):
        for endian in "<>":
            exif = Image.Exif()
            exif.endian = endian
            exif[0x0112] = value
            exif[0x010F] = "A maker"
            contents[f"{value}-{endian}"] = encoded(photo(), kind, exif=exif)
    xmp = b'<x tiff:Orientation="6"/><y><tiff:Orientation>3<'
    if kind == "PNG":
        info = PngImagePlugin.PngInfo()
        info.add_itxt("XML:com.adobe.xmp", xmp.decode(), zip=True)
        contents["xmp"] = encoded(photo(), kind, pnginfo=info)
        plain = png(8, 2)
        contents["exif-behind-the-data"] = plain[:-12] + chunk(b"eXIf", exif.tobytes()[6:]) + plain[-12:]
    else:
        contents["xmp"] = encoded(photo(), kind, xmp=xmp)
        contents["xmp-and-exif"] = encoded(photo(), kind, xmp=xmp, exif=exif)
    check_equal(cpp_probe, tmp_path, contents)


# JPEG with a density: without one, Pillow looks for it in the EXIF data early, and ignores broken ones.
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "JPEG with a density"])
@pytest.mark.filterwarnings("ignore:Corrupt EXIF|Truncated File Read|Tag data larger|Metadata Warning")
def test_broken_exif_data_are_read_as_in_python(cpp_probe: Probe, tmp_path: Path, kind: str) -> None:
    """An exception: turning a photo, Pillow rejects EXIF data that it reads but cannot write again."""
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010F] = "A maker"
    generator = np.random.default_rng(0)
    contents = {"empty": b"", "marked-twice": exif.tobytes()[:6] + exif.tobytes()}
    for start, whole in {"turned": exif.tobytes(), "adobe": interoperability(b"R03\0")}.items():
        contents |= {f"{start}-{end}": whole[:end] for end in range(6, len(whole))}
        for number in range(150):
            damaged = bytearray(whole)
            for place in generator.integers(6, len(whole), 2):
                damaged[place] = generator.integers(256)
            contents[f"damaged-{start}-{number}"] = bytes(damaged)
    options = {"dpi": (72, 72)} if kind == "JPEG with a density" else {}
    photos = {name: encoded(photo(), kind[:4].strip(), exif=each, **options) for name, each in contents.items()}
    unwritable = 0
    for name, found in loaded(cpp_probe, tmp_path, photos).items():
        expected = as_in_python(tmp_path / name)
        if isinstance(expected, str) and not isinstance(found, str):
            assert "not a TIFF file" not in expected, name
            unwritable += 1
        elif isinstance(expected, str):
            assert found == expected, name
        else:
            np.testing.assert_array_equal(found, expected, name)
    assert unwritable <= 10


@pytest.mark.parametrize("kind", range(1, 17))
@pytest.mark.filterwarnings("ignore:Corrupt EXIF|Truncated File Read|Tag data larger|Metadata Warning")
def test_an_orientation_of_any_type_is_read_as_in_python(cpp_probe: Probe, tmp_path: Path, kind: int) -> None:
    contents = {}
    for count, value in itertools.product((1, 2), (struct.pack("<I", 6), struct.pack("<f", 6), struct.pack("<d", 6))):
        inline = struct.pack("<HHI", 0x0112, kind, count) + (
            value[:4] if kind not in (5, 10, 12, 16) else b"\x1a\0\0\0"
        )
        data = b"II*\0\x08\0\0\0\1\0" + inline + bytes(4)
        data += value + struct.pack("<3I", 1, 6, 1) if kind in (5, 10) else value.ljust(8, b"\0") * 2
        contents[f"{count}-{value.hex()}"] = png(8, 2, extra=chunk(b"eXIf", data))
    check_equal(cpp_probe, tmp_path, contents)


def test_the_first_of_two_orientations_counts(cpp_probe: Probe, tmp_path: Path) -> None:
    entries = b"".join(struct.pack("<HHIHH", 0x0112, 3, 1, value, 0) for value in (6, 3))
    data = b"II*\0\x08\0\0\0\2\0" + entries + bytes(4)
    check_equal(cpp_probe, tmp_path, {"photo": png(8, 2, extra=chunk(b"eXIf", data))})


def test_exif_data_as_text_are_read(cpp_probe: Probe, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    text = exif.tobytes().hex()
    texts = {"plain": f"\nexif\n{len(text) // 2:8}\n{text}\n", "lines": f"\nexif\n 9\n{text[:40]}\n{text[40:]}\n"}
    texts |= {"short": "exif", "empty": "\nexif\n0\n"}
    start = b"Raw profile type exif\0"
    contents = {name: png(8, 2, extra=chunk(b"tEXt", start + content.encode())) for name, content in texts.items()}
    check_equal(cpp_probe, tmp_path, contents)
    for content in (b"\nexif\n1\n4", b"\nexif\n1\n45x8"):
        broken = {"broken": png(8, 2, extra=chunk(b"tEXt", start + content))}
        assert "is damaged or truncated (" in str(loaded(cpp_probe, tmp_path, broken)["broken"])
        assert "is damaged or truncated (" in str(as_in_python(tmp_path / "broken"))


def animation() -> bytes:
    return encoded(photo(), "PNG", save_all=True, append_images=[photo(61, 45).rotate(5)])


def with_size(width: int, height: int) -> bytes:
    """A PNG that claims a size but holds almost no data."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(b"\0"))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + data + chunk(b"IEND", b"")


def with_frames(count: int) -> bytes:
    """An animation whose data is no frame."""
    return png(8, 2, extra=chunk(b"acTL", struct.pack(">II", count, 0)))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning", "ignore:Invalid APNG")
def test_rejected_photos_have_the_sentence_of_python(cpp_probe: Probe, tmp_path: Path) -> None:
    contents = {
        "empty": b"",
        "bomb": with_size(50_000, 50_000),
        "large": with_size(10_001, 10_000),
        "animated": animation(),
        "default-image-and-one-frame": with_frames(1),
        "no-frames": with_frames(0),
    }
    check_equal(cpp_probe, tmp_path, contents)


def test_missing_photos_have_the_sentence_of_python(cpp_probe: Probe, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").touch()
    names = ["", "no", "file", "file/no", "pipe", "x" * 300]
    places = [*(tmp_path / name for name in names), Path("/dev/null")]
    found = cpp_probe("photos", tmp_path / "pixels", *places).stdout.split("\n")[:-1]
    assert found == [as_in_python(place) for place in places]


def test_other_files_are_rejected(cpp_probe: Probe, tmp_path: Path) -> None:
    contents = {kind: encoded(photo(), kind) for kind in ("GIF", "WEBP", "TIFF")}
    contents |= {"text": b"no image", "start": b"\xff\xd8"}
    for name, found in loaded(cpp_probe, tmp_path, contents).items():
        readable = "is not an image that can be read (JPEG and PNG can be read; other formats cannot)."
        assert found == f"{tmp_path / name} {readable}|Save it as JPEG or PNG."


def test_damaged_photos_are_rejected(cpp_probe: Probe, tmp_path: Path) -> None:
    sources = {
        "rgb.png": encoded(photo(), "PNG"),
        "interlaced.png": png(8, 6, True),
        "palette.png": png(4, 3, extra=palette(16)),
        "plain.jpg": encoded(photo(), "JPEG"),
        "steps.jpg": encoded(photo(), "JPEG", progressive=True),
    }
    cuts = {
        f"{number}-{name}": content[: len(content) * number // 10]
        for name, content in sources.items()
        for number in range(4, 10)
    }
    for name, found in loaded(cpp_probe, tmp_path, cuts).items():
        assert isinstance(found, str), name
        assert f"{tmp_path / name} is damaged or truncated (" in found, name


def test_damaged_bytes_do_no_harm(cpp_probe: Probe, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    contents = {}
    for kind in ("PNG", "JPEG"):
        whole = encoded(photo(), kind)
        for number in range(150):
            damaged = bytearray(whole)
            for place in generator.integers(8, 300 if number % 2 else len(whole), 3):
                damaged[place] = generator.integers(256)
            contents[f"{number}-{kind}"] = bytes(damaged)
    assert len(loaded(cpp_probe, tmp_path, contents)) == len(contents)


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (300, 200)])
def test_an_image_is_saved_as_it_is(cpp_probe: Probe, tmp_path: Path, size: tuple[int, int]) -> None:
    path = tmp_path / "image.png"
    assert cpp_probe("save", *size, path).returncode == 0
    with Image.open(path) as image:
        assert (image.format, image.mode, image.size) == ("PNG", "RGB", size)
        expected = np.arange(size[0] * size[1] * 3) % 251
        np.testing.assert_array_equal(np.asarray(image).ravel(), expected)
    assert [each.name for each in tmp_path.iterdir()] == ["image.png"]


def test_a_path_that_cannot_be_written_is_one_sentence(cpp_probe: Probe, tmp_path: Path) -> None:
    found = cpp_probe("save", 1, 1, tmp_path / "no/image.png")
    assert found.returncode == 1
    assert found.stderr.startswith(f"{tmp_path / 'no/image.png'} cannot be written (No such file or directory).\n")
