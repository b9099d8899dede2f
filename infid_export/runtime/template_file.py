"""Template files: safetensors with a seal, mapped into memory for writing and for reading.

A template can be larger than the memory, so it is never in memory as a whole: the disk space is reserved, and the
tensors are written into the mapped file as they are computed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from math import prod
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from safetensors import SafetensorError, safe_open

from infid_engines.atomic_files import full_disk_explained, locked, whole_file
from infid_engines.documents import record
from infid_engines.errors import InputError
from infid_engines.tensor_seal import SEAL_KEY, array_seal

Array = np.ndarray[Any, Any]
Settings = TypeVar("Settings")
_SETTINGS_KEY, _MODEL_KEY = "infid_template", "infid_model"
_DTYPES = {"F16": "float16", "F32": "float32", "I8": "int8"}
_NAMES = {numpy_name: name for name, numpy_name in _DTYPES.items()}
_NEEDED = {"prompt_embeds", "pooled_prompt_embeds", "time_ids", "rows", "initial_scale", "latents"}
_AGAIN = "Make the template again with `infid-export template make`."
_ALIGNED = 64  # bytes


class TensorLayout(NamedTuple):
    """Dtype (numpy's name) and shape of a tensor in a template."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return prod(self.shape) * np.dtype(self.dtype).itemsize


def layout_size(layout: Mapping[str, TensorLayout]) -> int:
    """Return the bytes of all tensors."""
    return sum(each.nbytes for each in layout.values())


@contextmanager
def written_tensors(
    path: Path, layout: Mapping[str, TensorLayout], settings: Any, model: str
) -> Iterator[dict[str, Array]]:
    """Write a template file atomically. Its tensors are yielded as arrays in the mapped file, to be filled.

    Raises:
        BusyError: somebody else is writing it.
        InputError: the file cannot be written.
        DiskFullError: the disk is too full for the whole file.
    """
    metadata = {_MODEL_KEY: model, _SETTINGS_KEY: json.dumps(asdict(settings), sort_keys=True)}
    header, size = _header(metadata, layout, "0" * 64), layout_size(layout)
    with ExitStack() as stack:
        with _explained(path, size):
            if path.is_dir() or not path.name:
                raise IsADirectoryError(None, "it is a folder")
            if not path.parent.is_dir():
                raise NotADirectoryError(None, "its folder does not exist")
            busy = f"{path} is being written by another process or thread."
            stack.enter_context(locked(path.with_name(f".{path.name}.lock"), busy=busy))
            partial = stack.enter_context(whole_file(path))
            with partial.open("w+b") as file:
                file.write(header)
                os.posix_fallocate(file.fileno(), 0, len(header) + size)  # a full disk would kill whoever fills it
            content: Array = np.memmap(partial, np.uint8, "r+", offset=len(header))
        tensors = views(content, layout)
        yield tensors
        with _explained(path, size):
            with partial.open("r+b") as file:
                file.write(_header(metadata, layout, array_seal(metadata, tensors)))
            stack.close()


@contextmanager
def _explained(path: Path, size: int) -> Iterator[None]:
    """Turn the system's error into one sentence.

    Raises:
        InputError: there was one.
        DiskFullError: the disk is full.
    """
    try:
        with full_disk_explained(path):
            yield
    except OSError as error:
        raise InputError(
            f"The template cannot be written to {path} ({error.strerror}).",
            fix=f"Choose a file in an existing folder with {size / 1e9:.2f} GB of free space.",
        ) from error


def read_tensors(path: Path, kind: type[Settings], check: bool) -> tuple[dict[str, Array], Settings, str]:
    """Return a template file's tensors, as read-only views of the mapped file, its settings and its model.

    Args:
        path: the file.
        kind: class of the settings.
        check: whether to read all of it and compare it with its seal.

    Raises:
        InputError: the file is missing, damaged, or not a template.
    """
    if not path.is_file():
        raise InputError(f"There is no template file at {path}.", fix=_AGAIN)
    try:
        with safe_open(path, framework="numpy") as file:  # checks the header and the size
            metadata = dict(file.metadata() or {})
            names = set(file.keys())
        if _SETTINGS_KEY not in metadata or not names >= _NEEDED:
            raise InputError(f"{path} is not a template file.", fix=_AGAIN)
        tensors = _mapped(path)
        if check and metadata.get(SEAL_KEY) != array_seal(metadata, tensors):
            raise ValueError("its content has changed")
        settings = record(kind, json.loads(metadata[_SETTINGS_KEY]), _SETTINGS_KEY)
        return tensors, settings, metadata[_MODEL_KEY]
    except (SafetensorError, OSError, TypeError, KeyError, ValueError) as error:
        raise InputError(f"{path} is not an intact template file ({error}).", fix=_AGAIN) from error


def views(content: Array, layout: Mapping[str, TensorLayout]) -> dict[str, Array]:
    """Return tensors as views of one block of bytes."""
    places = _places(layout)
    return {name: content[slice(*places[name])].view(each.dtype).reshape(each.shape) for name, each in layout.items()}


def _places(layout: Mapping[str, TensorLayout]) -> dict[str, tuple[int, int]]:
    """Return the first and the last offset of each tensor, without gaps, as the format wants."""
    places, offset = {}, 0
    # large types first, so that each tensor is aligned to its type
    for name, each in sorted(layout.items(), key=lambda item: (-np.dtype(item[1].dtype).itemsize, item[0])):
        places[name] = (offset, offset := offset + each.nbytes)
    return places


def _header(metadata: Mapping[str, str], layout: Mapping[str, TensorLayout], seal: str) -> bytes:
    """Return everything before the content."""
    header: dict[str, Any] = {"__metadata__": dict(sorted({**metadata, SEAL_KEY: seal}.items()))}
    for name, offsets in _places(layout).items():
        dtype, shape = layout[name]
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": list(offsets)}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNED)
    return len(text).to_bytes(8, "little") + text


def _mapped(path: Path) -> dict[str, Array]:
    """Return the tensors of a file as read-only views of the mapped file."""
    content: Array = np.memmap(path, np.uint8, "r")
    start = 8 + int.from_bytes(content[:8].tobytes(), "little")
    header = json.loads(content[8:start].tobytes())
    header.pop("__metadata__")
    tensors = {}
    for name, facts in sorted(header.items()):
        first, last = (start + offset for offset in facts["data_offsets"])
        tensors[name] = content[first:last].view(_DTYPES[facts["dtype"]]).reshape(facts["shape"])
    return tensors
