"""Opens a file of weights, safetensors or pickled: what is in it is known before a tensor is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import NamedTuple

from infid_engines.errors import InputError
from infid_export.importing.pickled_file import opened
from infid_export.model.checkpoints.files import PICKLED, foreign_file
from infid_export.model.checkpoints.tensor_file import TensorFile

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
        start = file.read(9)
    is_header = start[8:] == b"{"
    pickled = not is_header and start.startswith(PICKLED)
    if not pickled and (foreign := foreign_file(path)):
        raise foreign
    if is_header or (path.suffix == ".safetensors" and not pickled):
        header = TensorFile.open(path)
        tensors = {
            name: TensorFacts(_DTYPES.get(header.types[name], header.types[name]), shape)
            for name, shape in header.shapes.items()
        }
        yield WeightsFile(path, tensors, lambda: path, header.metadata)
        return
    with opened(path, output) as old:
        found = {name: TensorFacts(dtype, shape) for name, (dtype, shape) in old.layout.items()}
        yield WeightsFile(path, found, old.converted)
