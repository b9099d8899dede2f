"""Reads the members of a shard, within limits: a shard may be damaged, or made by someone else.

A tar file can claim members of any size in a few bytes (sparse ones hold nothing at all), and a small PNG can expand
to gigabytes. These functions raise only `ValueError`.
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

MOST_BYTES = 256_000_000  # per member: 12 times a target of 4096 × 4096 pixels in JPEG at quality 95
_MOST_PIXELS = 1 << 26  # per image: 8192 × 8192
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
        ValueError: it is not a plain file, larger than the limit, or cut off.
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
        members: members of one photo.
        kind: member name without its key; ends in the image format.

    Raises:
        ValueError: it is missing, damaged, in another format, or larger than the limit.
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
        ValueError: it is missing, damaged, or not a finite fp32 vector.
    """
    kind = "embedding.npy"
    try:
        values = np.load(io.BytesIO(members[kind]), allow_pickle=False)
    except KeyError as error:
        raise ValueError(f"a photo has no {kind}") from error
    except Exception as error:  # numpy parses the header as Python, and raises what that raises
        raise ValueError(f"{kind}: {str(error) or type(error).__name__}") from error
    if not isinstance(values, np.ndarray) or values.ndim != 1 or values.dtype != np.float32:
        raise ValueError(f"{kind} is not a float32 vector")
    if not np.isfinite(values).all():
        raise ValueError(f"{kind} has non-finite values")
    return values


def facts(members: Mapping[str, bytes]) -> Facts:
    """Return the contents of a photo's JSON member.

    Raises:
        ValueError: it is missing, lacks an entry, or an entry has the wrong type.
    """
    if "json" not in members:
        raise ValueError("a photo has no json")
    return record(Facts, parse_json(members["json"]), "json")
