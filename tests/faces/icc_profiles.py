"""Hand-written ICC profiles: RGB matrices with a gamma, a gray gamma, and a table of inks."""

from __future__ import annotations

import struct

import numpy as np

D50 = (0.9642, 1.0, 0.8249)
# Red, green and blue as XYZ columns, adapted to D50, and the gamma.
DISPLAY_P3 = (np.array([[0.51512, 0.29198, 0.1571], [0.2412, 0.69225, 0.06657], [-0.00105, 0.04189, 0.78407]]), 2.2)
ADOBE_RGB = (
    np.array([[0.60974, 0.20528, 0.14919], [0.31111, 0.62567, 0.06322], [0.01947, 0.06087, 0.74457]]),
    2.19921875,
)
SRGB = np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.7141]])  # fmt: skip


def rgb_profile(columns: np.ndarray, gamma: float) -> bytes:
    tags = {"wtpt": _xyz(D50)}
    for channel, column in zip("rgb", columns.T, strict=True):
        tags[f"{channel}XYZ"] = _xyz(column)
        tags[f"{channel}TRC"] = _curve(gamma)
    return _profile("RGB ", "XYZ ", tags)


def gray_profile(gamma: float) -> bytes:
    return _profile("GRAY", "XYZ ", {"wtpt": _xyz(D50), "kTRC": _curve(gamma)})


def ink_profile(cyan: tuple[float, float, float]) -> bytes:
    """CMYK in which cyan ink alone gives a Lab color, and every other ink is nearly black."""
    nodes = []
    for corner in np.ndindex(2, 2, 2, 2):
        lab = (100.0, 0.0, 0.0) if not any(corner) else cyan if corner == (1, 0, 0, 0) else (10.0, 0.0, 0.0)
        nodes += [round(lab[0] * 2.55), round(lab[1] + 128), round(lab[2] + 128)]
    straight = bytes(range(256))
    identity = struct.pack(">9i", *(65536 if index % 4 == 0 else 0 for index in range(9)))
    table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + identity + straight * 4 + bytes(nodes) + straight * 3
    return _profile("CMYK", "Lab ", {"wtpt": _xyz(D50), "A2B0": table}, kind="prtr")


def to_srgb(color: tuple[int, int, int], columns: np.ndarray, gamma: float) -> np.ndarray:
    """Convert a color in a profile's space to sRGB, 0 to 255."""
    light = np.linalg.inv(SRGB) @ columns @ (np.array(color) / 255) ** gamma
    light = np.clip(light, 0, 1)
    return 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


def _xyz(values: object) -> bytes:
    return b"XYZ " + bytes(4) + struct.pack(">3i", *(round(float(value) * 65536) for value in values))  # type: ignore[attr-defined]


def _curve(gamma: float) -> bytes:
    return b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)


def _profile(space: str, connection: str, tags: dict[str, bytes], kind: str = "mntr") -> bytes:
    name = b"test\0"
    tags = {"desc": b"desc" + bytes(4) + struct.pack(">I", len(name)) + name + bytes(79), **tags}
    tags["cprt"] = b"text" + bytes(4) + b"none\0"
    directory, body, offset = b"", b"", 128 + 4 + 12 * len(tags)
    for tag, content in tags.items():
        padded = content + bytes(-len(content) % 4)
        directory += tag.encode() + struct.pack(">II", offset + len(body), len(content))
        body += padded
    size = offset + len(body)
    header = struct.pack(">I4sI4s4s4s", size, b"test", 0x02400000, kind.encode(), space.encode(), connection.encode())
    header += struct.pack(">6H", 2024, 1, 1, 0, 0, 0) + b"acsp" + bytes(28)
    header += struct.pack(">3i", *(round(value * 65536) for value in D50))
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + directory + body
