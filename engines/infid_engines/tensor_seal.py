"""The seal of a safetensors file: a sha256 of its content, stored in its header.

The format has no checksum. A person or identity file with one changed bit would be read without an error, and every
image made with it would differ.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

SEAL_KEY = "infid_seal"


@dataclass(frozen=True)
class TensorBytes:
    """A tensor in the file.

    Args:
        name: name in the file.
        dtype: name of its dtype in the library that reads and writes this kind of file.
        shape: shape of the tensor.
        content: contiguous bytes.
    """

    name: str
    dtype: str
    shape: Sequence[int]
    content: Any


def tensor_seal(metadata: Mapping[str, str], tensors: Iterable[TensorBytes]) -> str:
    """Return the seal of a file.

    Args:
        metadata: all metadata of the header, with or without a seal.
        tensors: all tensors of the file, sorted by name.
    """
    facts = {name: value for name, value in metadata.items() if name != SEAL_KEY}
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for tensor in tensors:
        digest.update(f"\n{tensor.name} {tensor.dtype} {list(tensor.shape)}\n".encode(errors="surrogatepass"))
        digest.update(tensor.content)
    return digest.hexdigest()


def array_seal(metadata: Mapping[str, str], arrays: Mapping[str, np.ndarray[Any, Any]]) -> str:
    """Return the seal of a file of contiguous numpy arrays."""
    described = (TensorBytes(name, each.dtype.name, each.shape, each) for name, each in sorted(arrays.items()))
    return tensor_seal(metadata, described)


def sort_header(path: Path) -> None:
    """Sort the metadata entries of a header, so that the same content has the same bytes.

    The library writes them in random order. The header keeps its length.
    """
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        file.seek(8)
        file.write(text.ljust(length))
