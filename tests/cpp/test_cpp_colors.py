"""Photos with color profiles have the pixels of Python, whose Pillow brings a Little CMS of its own.

Debian's 2.14 and Pillow's 2.19 give equal bytes. One difference is known: 2.18 and 2.19 compensate for the darkest
color of a profile with a table (of inks or a scanner) without making it neutral, an error that was corrected later.
Where it has a cast, colors differ (by up to 10 levels for a Lab color of 10, 3, -2). Here it is neutral.
"""

from __future__ import annotations

import io
import itertools
import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from icc_profiles import ADOBE_RGB, DISPLAY_P3, SRGB, gray_profile, ink_profile, rgb_profile
from PIL import Image, ImageCms
from test_color import interoperability
from test_cpp_photos import as_in_python, check_equal, chunk, encoded, loaded, palette, png

if TYPE_CHECKING:
    from cpp_library import Probe

pytestmark = pytest.mark.filterwarnings("ignore:.* has a color profile that cannot be used")

P3 = rgb_profile(*DISPLAY_P3)
INKS = ink_profile((55.0, -37.0, -50.0))


def nearly(profile: bytes) -> bytes:
    """A profile whose red is a little lighter."""
    entry = profile.index(b"rXYZ")
    place = int.from_bytes(profile[entry + 4 : entry + 8], "big") + 8
    changed = int.from_bytes(profile[place : place + 4], "big") + 30
    return profile[:place] + changed.to_bytes(4, "big") + profile[place + 4 :]


S_RGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
PROFILES = {
    "srgb": S_RGB,
    "nearly-srgb": nearly(S_RGB),
    "gamma": rgb_profile(SRGB, 2.2),
    "display-p3": P3,
    "adobe-rgb": rgb_profile(*ADOBE_RGB),
    "linear": rgb_profile(DISPLAY_P3[0], 1.0),
    "gray": gray_profile(1.8),
    "inks": INKS,
    "junk": b"no profile at all",
    "cut-off": P3[:200],
    "header-only": P3[:128],
    "lab": P3.replace(b"RGB ", b"Lab ", 1),
}
CHANNELS = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4, "CMYK": 4}


def noise(mode: str) -> Image.Image:
    """All values of each channel, in random combinations."""
    shape = (64, 256, CHANNELS[mode])
    samples = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    return Image.frombytes(mode, (256, 64), samples.tobytes())


def test_every_profile_gives_the_pixels_of_python(cpp_probe: Probe, tmp_path: Path) -> None:
    contents = {}
    kinds = [
        *itertools.product(("PNG",), ("L", "LA", "RGB", "RGBA")),
        *itertools.product(("JPEG",), ("L", "RGB", "CMYK")),
    ]
    for (name, profile), (kind, mode) in itertools.product(PROFILES.items(), kinds):
        contents[f"{name}-{mode}.{kind}"] = encoded(noise(mode), kind, icc_profile=profile)
    check_equal(cpp_probe, tmp_path, contents)
    for name in ("display-p3-RGB.PNG", "adobe-rgb-RGBA.PNG", "linear-L.JPEG", "gray-LA.PNG", "inks-CMYK.JPEG"):
        with Image.open(tmp_path / name) as image:
            unchanged = np.asarray(image.convert("RGB"))
        assert np.abs(as_in_python(tmp_path / name).astype(int) - unchanged).max() > 5, name
    np.testing.assert_array_equal(as_in_python(tmp_path / "nearly-srgb-RGB.PNG"), np.asarray(noise("RGB")))


def profile_chunk(profile: bytes) -> bytes:
    return chunk(b"iCCP", b"name\0\0" + zlib.compress(profile))


def test_palettes_and_16_bits_are_converted_too(cpp_probe: Probe, tmp_path: Path) -> None:
    contents = {}
    for profile in ("display-p3", "gray"):
        extra = profile_chunk(PROFILES[profile])
        for depth, color in ((1, 0), (4, 0), (8, 0), (16, 0), (16, 2), (16, 4), (16, 6)):
            contents[f"{profile}-{depth}-{color}.png"] = png(depth, color, extra=extra)
        contents[f"{profile}-palette.png"] = png(8, 3, extra=extra + palette(256))
        contents[f"{profile}-clear.png"] = png(8, 3, extra=extra + palette(256) + chunk(b"tRNS", bytes(range(256))))
        contents[f"{profile}-clear-gray.png"] = png(8, 0, extra=extra + chunk(b"tRNS", b"\0\7"))
    check_equal(cpp_probe, tmp_path, contents)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_turning_and_profile_go_together(cpp_probe: Probe, tmp_path: Path, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    check_equal(cpp_probe, tmp_path, {"photo": encoded(noise("RGB"), kind, exif=exif, icc_profile=P3)})


def test_broken_profile_chunks_are_read_as_in_python(cpp_probe: Probe, tmp_path: Path) -> None:
    packed = zlib.compress(P3)
    named = b"name\0\0"
    adobe = chunk(b"eXIf", interoperability(b"R03\0")[6:])
    chunks = {
        "cut-off": named + packed[:-20],
        "damaged": named + packed[:100] + b"\xff" * 20 + packed[120:],
        "longer": named + packed + b"more",
        "nothing": named,
        "no-name": b"\0\0" + packed,
        "large": named + zlib.compress(bytes(1 << 20)),
        "too-large": named + zlib.compress(bytes((1 << 20) + 1)),
    }
    contents = {name: png(8, 2, extra=chunk(b"iCCP", data) + adobe) for name, data in chunks.items()}
    contents["two"] = png(8, 2, extra=profile_chunk(P3) + profile_chunk(PROFILES["linear"]))
    plain = png(8, 2)
    contents["behind-the-data"] = plain[:-12] + profile_chunk(P3) + plain[-12:]
    check_equal(cpp_probe, tmp_path, contents)
    for data in (named[:-1], b"name", b"", b"name\0\1" + packed):
        found = loaded(cpp_probe, tmp_path, {"rejected": png(8, 2, extra=chunk(b"iCCP", data))})["rejected"]
        assert isinstance(found, str)
        assert "is damaged or truncated (" in found
        assert isinstance(as_in_python(tmp_path / "rejected"), str)


def in_segments(*segments: tuple[int, int, bytes]) -> bytes:
    """A JPEG with parts of a profile: their number, how many there are, and their bytes."""
    plain = encoded(noise("RGB"), "JPEG")
    parts = [b"ICC_PROFILE\0" + bytes([number, count]) + data for number, count, data in segments]
    return plain[:2] + b"".join(struct.pack(">HH", 0xFFE2, len(part) + 2) + part for part in parts) + plain[2:]


def test_profiles_in_parts_are_joined_as_in_python(cpp_probe: Probe, tmp_path: Path) -> None:
    first, second = P3[:200], P3[200:]
    contents = {
        "in-order": in_segments((1, 2, first), (2, 2, second)),
        "swapped": in_segments((2, 2, second), (1, 2, first)),
        "missing": in_segments((1, 2, first)),
        "too-many": in_segments((1, 1, P3), (2, 1, b"")),
        "empty": in_segments((1, 1, b"")),
        "numbers-from-zero": in_segments((0, 2, first), (1, 2, second)),
    }
    check_equal(cpp_probe, tmp_path, contents)


def test_a_camera_notes_adobe_rgb(cpp_probe: Probe, tmp_path: Path) -> None:
    contents = {}
    for kind, mode, index in itertools.product(("PNG", "JPEG"), ("L", "RGB"), (b"R03\0", b"R03 ", b"\0R03", b"R98\0")):
        name = f"{kind}-{mode}-{index.hex()}"
        contents[name] = encoded(noise(mode), kind, exif=interoperability(index))
    noted = interoperability(b"R03\0")
    contents["and-a-profile"] = encoded(noise("RGB"), "PNG", exif=noted, icc_profile=PROFILES["srgb"])
    contents["and-a-broken-profile"] = encoded(noise("RGB"), "PNG", exif=noted, icc_profile=P3[:200])
    for name, found in loaded(cpp_probe, tmp_path, contents).items():
        # Equal here; NumPy may round the powers and products of float32 in another way on another processor.
        difference = np.abs(np.asarray(found).astype(int) - as_in_python(tmp_path / name))
        assert difference.max() <= 1, name
        assert np.mean(difference > 0) < 1e-3, name
    with Image.open(io.BytesIO(contents["PNG-RGB-52303300"])) as image:
        assert np.abs(np.asarray(image).astype(int) - as_in_python(tmp_path / "PNG-RGB-52303300")).max() > 5
