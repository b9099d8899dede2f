"""Opens a file of weights, safetensors or pickled: what is in it is known before a tensor is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open

from infid_engines.errors import InputError
from infid_export.importing.pickled_file import opened

_AGAIN = "Download it again from where it was published."
_SNIFFED = 1024
# Names of dtypes in torch, by those in safetensors; others keep their name, and are rejected where they matter.
_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}
_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}


class TensorFacts(NamedTuple):
    """What is known of a tensor before it is read: torch's name of its dtype, and its shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes of the tensor."""
        return prod(self.shape) * _BYTES[self.dtype]


@dataclass(frozen=True)
class WeightsFile:
    """An open file of weights.

    Args:
        path: the file.
        tensors: its tensors, by dotted names.
        metadata: of a safetensors file's header.
        readable: returns a safetensors file with the tensors; converts a pickled file.
    """

    path: Path
    tensors: Mapping[str, TensorFacts]
    readable: Callable[[], Path]
    metadata: Mapping[str, str] = field(default_factory=dict)


@contextmanager
def open_weights(path: Path, output: Path) -> Iterator[WeightsFile]:
    """Open a file of weights, by its content and not by its name.

    Args:
        path: the file.
        output: the file that is made from it; a pickled file is converted next to it.

    Raises:
        InputError: the file is missing, damaged or not of weights, or contains code.
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise InputError(f"{path} {what}.", fix="Give the adapter's file, such as ip-adapter_sdxl.bin.")
    with path.open("rb") as file:
        start = file.read(_SNIFFED)
    _check_start(path, start)
    if start[8:9] == b"{":
        tensors, metadata = _safetensors(path)
        yield WeightsFile(path, tensors, lambda: path, metadata)
        return
    with opened(path, output) as pickled:
        found = {name: TensorFacts(dtype, shape) for name, (dtype, shape) in pickled.layout.items()}
        yield WeightsFile(path, found, pickled.converted)


def _check_start(path: Path, start: bytes) -> None:
    """Reject what is often saved under the name of a file of weights."""
    text = start.lstrip().lower()
    if not start:
        raise InputError(f"{path} is empty.", fix=_AGAIN)
    if text.startswith(b"version https://git-lfs"):
        raise InputError(
            f"{path} is a git-lfs pointer: a text that stands for the file, not the file.",
            fix="Run `git lfs pull` in its folder, or download the file itself.",
        )
    if text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        raise InputError(
            f"{path} is a web page that was saved under this name.", fix="Download the file itself, not its page."
        )
    if path.suffix == ".safetensors" and start[:1] not in (b"P", b"\x80") and start[8:9] != b"{":
        raise InputError(f"{path} is not a safetensors file: it does not start with a header.", fix=_AGAIN)


def _safetensors(path: Path) -> tuple[dict[str, TensorFacts], dict[str, str]]:
    try:
        with safe_open(path, framework="numpy") as file:
            tensors = {}
            for name in file.keys():  # noqa: SIM118 (no mapping)
                part = file.get_slice(name)
                dtype = part.get_dtype()
                tensors[name] = TensorFacts(_DTYPES.get(dtype, dtype), tuple(part.get_shape()))
            return tensors, dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is truncated or damaged ({error}).", fix=_AGAIN) from error
