"""What the members of a shard hold, read with limits: a shard may be damaged, or made by someone else.

A tar file can claim members of any size in a few bytes (sparse ones hold nothing at all), and a small PNG can unfold
to gigabytes. What is here raises nothing but `ValueError`.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from infid_engines.documents import parse_json, record

MOST_BYTES = 256_000_000  # of a member: 12 times a target of 4096 × 4096 pixels in JPEG at quality 95
_MOST_PIXELS = 1 << 26  # of a picture: 8192 × 8192
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Facts:
    """The JSON member of a photo; see `PreparedPhoto`."""

    person: str
    source: str
    original_size: tuple[int, int]
    crop: tuple[int, int]
    caption: str | None


def member_bytes(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    """Read a member.

    Raises:
        ValueError: it is no plain file, larger than any of ours, or cut off.
    """
    if not member.isreg() or member.issparse():
        raise ValueError(f"{member.name[:80]!r} is not a plain file")
    if member.size > MOST_BYTES:
        raise ValueError(f"{member.name[:80]!r} has {member.size} bytes, more than {MOST_BYTES}")
    file = tar.extractfile(member)
    content = b"" if file is None else file.read()
    if len(content) != member.size:
        raise ValueError(f"{member.name[:80]!r} is cut off")
    return content


def picture(members: Mapping[str, bytes], kind: str) -> Array:
    """Return a member's `[H, W, 3]` uint8 RGB pixels.

    Args:
        members: of one photo.
        kind: ends in the picture's format.

    Raises:
        ValueError: it is missing, damaged, of another format, or larger than any of ours.
    """
    kinds = {"jpg": "JPEG", "png": "PNG"}
    try:
        with Image.open(io.BytesIO(members[kind]), formats=(kinds[kind.rpartition(".")[2]],)) as image:
            if image.width * image.height > _MOST_PIXELS:
                raise ValueError(f"it has {image.width} × {image.height} pixels")
            if image.mode != "RGB":
                raise ValueError(f"its pixels are {image.mode}, not RGB")
            return np.asarray(image)
    except KeyError as error:
        raise ValueError(f"a photo has no {kind}") from error
    except Exception as error:  # what a decoder raises on broken files is not documented
        raise ValueError(f"{kind}: {str(error) or type(error).__name__}") from error


def embedding(members: Mapping[str, bytes]) -> Array:
    """Return the `[face_width]` fp32 face embedding.

    Raises:
        ValueError: it is missing, damaged, or not such a vector.
    """
    kind = "embedding.npy"
    try:
        values = np.load(io.BytesIO(members[kind]), allow_pickle=False)
    except KeyError as error:
        raise ValueError(f"a photo has no {kind}") from error
    except Exception as error:  # numpy parses the header as Python, and raises what that raises
        raise ValueError(f"{kind}: {str(error) or type(error).__name__}") from error
    if not isinstance(values, np.ndarray) or values.ndim != 1 or values.dtype != np.float32:
        raise ValueError(f"{kind} is no vector in float32")
    if not np.isfinite(values).all():
        raise ValueError(f"{kind} has non-finite values")
    return values


def facts(members: Mapping[str, bytes]) -> Facts:
    """Return what is said of the photo.

    Raises:
        ValueError: it is missing, or lacks or mistypes an entry.
    """
    if "json" not in members:
        raise ValueError("a photo has no json")
    return record(Facts, parse_json(members["json"]), "json")
