"""Safetensors files: names, shapes and types from the header, and tensors from a memory map. Imports are light."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import safe_open

from infid_export.model.checkpoints.files import tensor_names

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class TensorFile:
    """The header of a safetensors file.

    Args:
        path: the file.
        shapes: shapes by tensor name.
        types: safetensors' names of the types, such as `F16`, by tensor name.
        metadata: the header's free text entries.
    """

    path: Path
    shapes: Mapping[str, tuple[int, ...]]
    types: Mapping[str, str]
    metadata: Mapping[str, str]

    @classmethod
    def open(cls, path: Path) -> TensorFile:
        """Read a file's header.

        Raises:
            InputError: the file is missing, truncated, or not safetensors.
        """
        names = tensor_names(path)
        with safe_open(path, framework="numpy") as file:
            slices = {name: file.get_slice(name) for name in names}
            shapes = {name: tuple(each.get_shape()) for name, each in slices.items()}
            types = {name: str(each.get_dtype()) for name, each in slices.items()}
            return cls(path, shapes, types, dict(file.metadata() or {}))

    @contextmanager
    def mapped(self) -> Iterator[Callable[[str], Tensor]]:
        """Map the file into memory; the result reads one tensor by name."""
        with safe_open(self.path, framework="pt") as file:
            yield file.get_tensor
