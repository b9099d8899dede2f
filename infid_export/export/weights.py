"""Weights next to the graphs: one safetensors file per component, which ONNX external data points into.

ONNX external data consists of a file, an offset and a length of raw little-endian values, and safetensors stores just
those. So several graphs share one copy, tensors are streamed one at a time, and any safetensors reader can read the
file. Weights of linear layers are stored transposed, as `[in, out]`: ONNX MatMul needs this layout, and no backend has
to transpose gigabytes when it loads them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from infid_export.model.finite import require_finite_tensor

LAYOUT_VERSION = 1
_TYPE_NAMES = {torch.float16: "F16", torch.float32: "F32", torch.bfloat16: "BF16", torch.int64: "I64"}


@dataclass(frozen=True)
class StoredTensor:
    """The position of one weight in its file.

    Args:
        name: parameter name within the component.
        shape: shape as stored.
        dtype: dtype as stored.
        transposed: whether it is stored `[in, out]`.
        offset: first byte, counted from the start of the file.
        length: number of bytes.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    transposed: bool
    offset: int
    length: int


@dataclass(frozen=True)
class WeightsLayout:
    """The layout of one component's weights file. It is known before any weight is read."""

    tensors: Mapping[str, StoredTensor]
    header: bytes

    @property
    def size(self) -> int:
        """Size of the file in bytes."""
        return len(self.header) + sum(tensor.length for tensor in self.tensors.values())

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return sum(tensor.length // tensor.dtype.itemsize for tensor in self.tensors.values())

    @classmethod
    def of(cls, module: nn.Module, dtype: torch.dtype) -> WeightsLayout:
        """Plan the weights file of a module, which may be on the meta device.

        Args:
            module: the component.
            dtype: dtype to store floating-point weights in.
        """
        transposed = _linear_weights(module)
        entries: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
        for name, parameter in sorted(module.named_parameters()):
            shape = tuple(reversed(parameter.shape)) if name in transposed else tuple(parameter.shape)
            entries[name] = (shape, dtype)
        header: dict[str, object] = {"__metadata__": {"layout": str(LAYOUT_VERSION), "linear": "in,out"}}
        position = 0
        spans = {}
        for name, (shape, stored) in entries.items():
            length = stored.itemsize
            for extent in shape:
                length *= extent
            header[name] = {
                "dtype": _TYPE_NAMES[stored],
                "shape": list(shape),
                "data_offsets": [position, position + length],
            }
            spans[name] = (position, length)
            position += length
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-(len(text) + 8) % 64)  # data starts at a multiple of 64 bytes
        prefix = len(text).to_bytes(8, "little") + text
        tensors = {
            name: StoredTensor(name, shape, stored, name in transposed, len(prefix) + spans[name][0], spans[name][1])
            for name, (shape, stored) in entries.items()
        }
        return cls(tensors, prefix)

    def write(
        self,
        path: Path,
        weights: Iterable[tuple[str, Tensor]],
        on_progress: Callable[[float], None] | None = None,
    ) -> str:
        """Stream weights into the file.

        Args:
            path: file to write.
            weights: names and values in any order; each stays in memory only while it is written.
            on_progress: called with the fraction written.

        Returns:
            The file's sha256.

        Raises:
            InputError: a weight is not finite in the stored dtype.
            ValueError: a weight is missing or unknown, or has another shape.
        """
        missing = set(self.tensors)
        with path.open("wb") as file:
            file.write(self.header)
            file.truncate(self.size)
            for name, value in weights:
                stored = self.tensors.get(name)
                if stored is None:
                    raise ValueError(f"unknown weight {name}")
                data = (value.T if stored.transposed else value).to(stored.dtype).contiguous().cpu()
                if tuple(data.shape) != stored.shape:
                    raise ValueError(f"weight {name} has shape {tuple(data.shape)}, expected {stored.shape}")
                if not bool(data.isfinite().all()):
                    require_finite_tensor(value, f"The weight {name}", stored.dtype)
                file.seek(stored.offset)
                file.write(memoryview(data.flatten().view(torch.uint8).numpy()))
                missing.discard(name)
                if on_progress:
                    on_progress(1 - len(missing) / len(self.tensors))
        if missing:
            raise ValueError(f"missing weights: {', '.join(sorted(missing)[:3])}")
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(1 << 24):
                digest.update(block)
        return digest.hexdigest()


def _linear_weights(module: nn.Module) -> set[str]:
    """Return the names of the parameters that are multiplied from the right as Wᵀ."""
    names = set()
    for path, layer in module.named_modules():
        prefix = f"{path}." if path else ""
        if isinstance(layer, nn.Linear):
            names.add(f"{prefix}weight")
        elif isinstance(layer, nn.MultiheadAttention) and layer.in_proj_weight is not None:
            names.add(f"{prefix}in_proj_weight")
    return names


def named_weights(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield a loaded module's parameters by name."""
    for name, parameter in module.named_parameters():
        yield name, parameter.detach()
