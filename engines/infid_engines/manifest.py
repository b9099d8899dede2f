"""The manifest of an engine folder: its contents, what each file depends on, and hashes of everything."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from infid_engines.atomic_files import whole_file
from infid_engines.documents import read_json, record, require_plain, sealed, unsealed
from infid_engines.errors import EngineFolderError

SCHEMA_VERSION = 3
MANIFEST = "manifest.json"
_REBUILD = "Build the folder again with its original `infid-export build` command."

Dimension = int | list[int]  # fixed, or [smallest, usual, largest]
_LARGEST = 1 << 16  # pixels per side, images per batch, tokens: far more than any engine has
_DTYPES = ("float16", "float32", "int8", "int32", "int64")


@dataclass(frozen=True)
class TensorSpec:
    """An input or output of a graph.

    Args:
        name: name in the graph.
        dtype: numpy's name of the dtype.
        shape: one entry per dimension: an integer, or [smallest, usual, largest].
    """

    name: str
    dtype: str
    shape: tuple[Dimension, ...]


@dataclass(frozen=True)
class GraphRecord:
    """One exported graph; `key` is the hash of `key_fields`, everything that the file depends on."""

    file: str
    sha256: str
    key: str
    key_fields: Mapping[str, Any]
    weights: tuple[str, ...]
    parameters: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True)
class EngineRecord:
    """One built engine."""

    graph: str
    backend: str
    target: str
    file: str
    sha256: str
    size: int
    key: str
    key_fields: Mapping[str, Any]
    flags: Mapping[str, Any]
    tool_versions: Mapping[str, str]


@dataclass(frozen=True)
class FileRecord:
    """One file of the folder; `key` is the hash of `key_fields`, everything that it depends on.

    Args:
        sha256: hash of its content.
        size: size in bytes.
        key: hash of `key_fields`.
        key_fields: see above.
        seconds: time that it took to write.
        peak_bytes: peak memory of the process that wrote it.
    """

    sha256: str
    size: int
    key: str = ""
    key_fields: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    peak_bytes: int = 0


@dataclass(frozen=True)
class Manifest:
    """An engine folder's table of contents; paths are relative to the folder."""

    infid_export: str
    model: Mapping[str, Any]
    options: Mapping[str, Any]
    precision: str
    height: int
    width: int
    batch: int
    people: int
    identity_tokens: int
    graphs: Mapping[str, GraphRecord]
    engines: tuple[EngineRecord, ...]
    files: Mapping[str, FileRecord]
    scheduler: Mapping[str, Any]
    defaults: Mapping[str, Any]
    faces: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    vae_scale_factor: int = 8  # pixels per latent along each side
    schema_version: int = SCHEMA_VERSION

    def write(self, folder: Path) -> None:
        """Write the manifest atomically."""
        write_json(folder / MANIFEST, sealed(asdict(self)))

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """Read and check a folder's manifest.

        Raises:
            EngineFolderError: there is no manifest, it is damaged, or it has another schema version.
        """
        path = folder / MANIFEST
        if not path.is_file():
            raise EngineFolderError(
                f"{folder} is not an engine folder: it has no {MANIFEST}.",
                fix=f"Build one with `infid-export build -o {folder}`.",
            )
        try:
            document = read_json(path)
            version = document["schema_version"]
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise EngineFolderError(f"{path} cannot be read ({error}).", fix=_REBUILD) from error
        if version != SCHEMA_VERSION:
            raise EngineFolderError(
                f"{path} has schema version {version}, but this infid-export reads version {SCHEMA_VERSION}.",
                fix=_REBUILD,
            )
        try:
            manifest = record(cls, unsealed(document), "it")
            _check(manifest)
        except ValueError as error:
            raise EngineFolderError(f"{path} cannot be used: {error}.", fix=_REBUILD) from error
        return manifest

    def graph(self, name: str) -> GraphRecord:
        """Return one graph's record.

        Raises:
            EngineFolderError: the folder was built without it.
        """
        if name not in self.graphs:
            raise EngineFolderError(
                f"This engine folder has no graph '{name}', only {', '.join(self.graphs)}.",
                fix=f"Build it with `infid-export build --graph default --graph {name}`.",
            )
        return self.graphs[name]


def _check(manifest: Manifest) -> None:
    """Reject what no build writes: impossible sizes, or files outside the folder.

    Raises:
        ValueError: the message names the entry.
    """
    for name in ("height", "width", "batch", "people", "identity_tokens", "vae_scale_factor"):
        if not 1 <= getattr(manifest, name) <= _LARGEST:
            raise ValueError(f"{name} is {getattr(manifest, name)}, not from 1 to {_LARGEST}")
    if not isinstance(manifest.model.get("id"), str) or not isinstance(manifest.model.get("name"), str):
        raise ValueError("model has no id or no name")
    for name, graph in manifest.graphs.items():
        for spec in (*graph.inputs, *graph.outputs):
            _check_spec(f"graphs.{name}.{spec.name}", spec)
    names = [*manifest.files, *(graph.file for graph in manifest.graphs.values())]
    names += [weights for graph in manifest.graphs.values() for weights in graph.weights]
    names += [engine.file for engine in manifest.engines]
    for name in names:
        if not is_inside(name):
            raise ValueError(f"{name!r} is not the path of a file within the folder")
        if name not in manifest.files:
            raise ValueError(f"files lacks {name!r}")


def _check_spec(name: str, spec: TensorSpec) -> None:
    if spec.dtype not in _DTYPES:
        raise ValueError(f"{name} has the type {spec.dtype!r}, not one of {', '.join(_DTYPES)}")
    for extent in spec.shape:
        ends = [extent] * 3 if isinstance(extent, int) else extent
        if len(ends) != 3 or sorted(ends) != ends or ends[0] < 0:  # 0 is a dynamic dimension
            raise ValueError(
                f"{name} has the dimension {extent}, which is neither a size nor [smallest, usual, largest]"
            )


def is_inside(name: str) -> bool:
    """Return whether a name is the plain relative path of a file within a folder."""
    parts = PurePosixPath(name).parts
    return (
        bool(parts)
        and str(PurePosixPath(*parts)) == name
        and ".." not in parts
        and not name.startswith("/")
        and ("\0" not in name and "\\" not in name and all(len(part.encode(errors="replace")) < 256 for part in parts))
    )


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically."""
    with whole_file(path) as partial, partial.open("w") as file:
        json.dump(value, file, indent=1, sort_keys=True)


def canonical_key(fields: Mapping[str, Any]) -> str:
    """Return the sha256 of the fields' canonical JSON."""
    return hashlib.sha256(json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def differing_fields(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Say which fields changed, one phrase each: `opset: 17 -> 18`."""
    phrases = []
    for name in sorted(set(old) | set(new)):
        before, after = old.get(name), new.get(name)
        # compared as JSON, since that is how the old ones were kept
        if json.dumps(before, sort_keys=True) != json.dumps(after, sort_keys=True):
            phrases.append(f"{name}: {_brief(before)} -> {_brief(after)}")
    return phrases


def _brief(value: Any) -> str:
    text = "none" if value is None else value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    return text if len(text) <= 40 else f"{text[:12]}…{text[-8:]}"


def sha256_file(path: Path, on_progress: Callable[[float], None] | None = None) -> str:
    """Hash a file in blocks; `on_progress` receives the fraction read."""
    require_plain(path)
    digest, done, size = hashlib.sha256(), 0, max(path.stat().st_size, 1)
    with path.open("rb") as file:
        while block := file.read(1 << 24):
            digest.update(block)
            done += len(block)
            if on_progress:
                on_progress(done / size)
    return digest.hexdigest()


def verify_file(folder: Path, name: str, record: FileRecord) -> Path:
    """Check one file of a folder before it is used.

    Args:
        folder: the engine folder.
        name: path within it.
        record: its record in the manifest.

    Returns:
        The file's path.

    Raises:
        EngineFolderError: it is missing, or has another size or hash.
    """
    path = folder / name
    if not path.is_file():
        raise EngineFolderError(f"{path} is missing.", fix=_REBUILD)
    size = path.stat().st_size
    if size != record.size:
        raise EngineFolderError(f"{path} has {size} bytes, but the manifest says {record.size}.", fix=_REBUILD)
    found = sha256_file(path)
    if found != record.sha256:
        raise EngineFolderError(
            f"{path} has changed: its sha256 is {found[:12]}…, but the manifest says {record.sha256[:12]}….",
            fix=_REBUILD,
        )
    return path


def stored_engines(manifest: Manifest, backend: str, target: str | None = None) -> dict[str, EngineRecord]:
    """Return the engines of one backend by graph; a target narrows the choice."""
    return {
        engine.graph: engine
        for engine in manifest.engines
        if engine.backend == backend and target in (None, engine.target)
    }
