"""The files of the recipe's stages: written atomically, and rejected if they are broken."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from infid_engines.atomic_files import whole_file
from infid_engines.errors import InputError


def write_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file.

    Raises:
        InputError: the disk is full.
    """
    laid = {name: value.contiguous() for name, value in tensors.items()}
    with whole_file(path) as partial:
        save_file(laid, partial, None if metadata is None else dict(metadata))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        InputError: it is broken.
    """
    with readable(path):
        return load_file(path)


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn an exception from reading a broken or foreign file into an `InputError` that names the file."""
    try:
        yield
    # numpy and safetensors raise the first three, missing tensors and `load_state_dict` the last two
    except (ValueError, EOFError, SafetensorError, KeyError, RuntimeError) as error:
        raise InputError(
            f"{path} is broken, or was written by another version ({str(error).partition(chr(10))[0]}).",
            fix="Delete it, and run the same command again.",
        ) from error
