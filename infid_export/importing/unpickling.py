"""The child process of `pickled_file`: reads a file of torch.save in limited memory, and writes it as safetensors.

It answers with one line of JSON, either the tensors or what is wrong with the file, and writes the tensors only if it
is then asked to. torch's restricted unpickler makes tensors and containers, and rejects everything else that a pickle
can call.
"""

from __future__ import annotations

import json
import re
import resource
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from infid_engines.atomic_files import is_full

ARCHIVE = b"PK\x03\x04"  # torch.save's format since 1.6; before, pickles one after the other
WRITE = "write"
# Besides the file itself and copies of its tensors: torch's own work.
_SPARE = 256 << 20
_MOST_LEVELS = 8  # of dictionaries in dictionaries; published files have two
_CALLED = re.compile(r"GLOBAL (\S+)")
_NO_MEMORY = ("can't allocate memory", "Cannot allocate memory", "bad alloc", "bad_alloc")


class _UnknownContentError(Exception):
    """The file has something besides tensors; the text says what."""


def limit_memory(size: int) -> None:
    """Limit the private memory of this process to what it uses now, twice the file's size, and a little more."""
    used = re.findall(r"VmData:\s+(\d+) kB", Path("/proc/self/status").read_text())
    limit = int(used[0]) * 1024 + 2 * size + _SPARE
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def read_tensors(path: Path) -> dict[str, Any]:
    """Return the tensors of a file by dotted names; archives are mapped into memory.

    Raises:
        _UnknownContentError: it has something else.
        Exception: torch's and pickle's own, which have no common base.
    """
    import torch

    with path.open("rb") as file:
        is_archive = file.read(len(ARCHIVE)) == ARCHIVE
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_archive or None)
    if not isinstance(content, dict):
        raise _UnknownContentError(f"a {type(content).__name__} instead of named tensors")
    tensors = dict(_flat(content))
    if sum(each.numel() * each.itemsize for each in tensors.values()) > 2 * path.stat().st_size:
        raise _UnknownContentError("tensors that are larger than the file")
    return tensors


def _flat(content: dict[Any, Any], prefix: str = "", level: int = 0) -> Iterator[tuple[str, Any]]:
    """Yield the tensors of nested dictionaries; numbers and texts beside them, such as a step count, are left out."""
    import torch

    for key, value in content.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and level < _MOST_LEVELS:
            yield from _flat(value, f"{name}.", level + 1)
        elif isinstance(value, torch.Tensor) and value.layout == torch.strided and not value.is_meta:
            yield name, value.detach().resolve_neg()  # safetensors would drop the sign of a lazy negation
        elif value is not None and not isinstance(value, bool | int | float | str):
            raise _UnknownContentError(f"a {type(value).__name__} named {name}")


def explain(error: Exception) -> dict[str, str]:
    """Return what is wrong with the file, as a kind and a detail."""
    text = str(error)
    lines = text.strip().splitlines() or [""]
    first = f"{type(error).__name__}: {lines[0].partition('. This is an internal')[0][:160]}"
    if isinstance(error, MemoryError) or any(words in text for words in _NO_MEMORY):
        return {"problem": "memory", "detail": first}
    if is_full(error):
        return {"problem": "full", "detail": first}
    if isinstance(error, _UnknownContentError):
        return {"problem": "content", "detail": text}
    called = _CALLED.search(text)
    if isinstance(error, UnpicklingError) and called is not None:
        return {"problem": "code", "detail": called[1]}
    return {"problem": "damaged", "detail": first}


def _serve(path: Path, target: Path) -> None:
    from safetensors.torch import save_file

    tensors = read_tensors(path)
    layout = {name: [str(each.dtype).removeprefix("torch."), list(each.shape)] for name, each in tensors.items()}
    _say({"tensors": layout})
    if sys.stdin.readline().strip() != WRITE:
        return
    held: dict[int, str] = {}
    for name, tensor in tensors.items():
        # the library rejects tensors that share memory, and those with gaps
        owner = held.setdefault(tensor.untyped_storage().data_ptr(), name)
        tensors[name] = tensor.contiguous() if owner == name else tensor.clone().contiguous()
    save_file(tensors, target)
    _say({"written": True})


def _say(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def main(path: str, target: str) -> None:
    """Answer for one file, whatever is in it."""
    import torch

    torch.set_num_threads(1)  # each thread's stack would count as memory
    limit_memory(Path(path).stat().st_size)
    try:
        _serve(Path(path), Path(target))
    except Exception as error:
        _say(explain(error))
