"""Bundles of compiled kernels: cubin, PTX and launch descriptions, for processes without Triton and torch.

::

    kernels-bundle/
      bundle.json      schema version; per kernel: operation, architecture, dtype, head size and description's hash
      <name>.json      how to launch it (`infid_kernels.compile`), and the hashes of its code
      <name>.cubin     machine code for one architecture
      <name>.ptx       code that the driver compiles for other architectures

`infid-export compile-kernels` writes a bundle. Hashes are checked before use.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from infid_engines.atomic_files import put_in_place, temporary_beside
from infid_engines.documents import parse_json, read_json, record, sealed, unsealed
from infid_engines.errors import EngineFolderError
from infid_engines.kernel_launch import Kernel
from infid_engines.manifest import is_inside, write_json

INDEX = "bundle.json"
SCHEMA_VERSION = 4
_COMMAND = "infid-export compile-kernels"
_TILE_SIZES = ("block_m", "block_n", "num_warps", "num_stages")


class Compiled(Protocol):
    """A compiled kernel from `infid_kernels.compile`."""

    @property
    def ptx(self) -> str:
        """Its PTX."""

    @property
    def cubin(self) -> bytes:
        """Its machine code."""

    @property
    def launch(self) -> Mapping[str, Any]:
        """Its launch description."""


@dataclass(frozen=True)
class Listed:
    """A kernel's entry in the index.

    Args:
        op: the operation.
        architecture: architecture that it was compiled for, such as `sm_90`.
        dtype: dtype of queries, keys and values: `float16` or `bfloat16`.
        head_size: channels per head, d.
        sha256: hash of its description.
    """

    op: str
    architecture: str
    dtype: str
    head_size: int
    sha256: str


@dataclass(frozen=True)
class _Index:
    """The document `bundle.json`."""

    schema_version: int
    kernels: Mapping[str, Listed]

    def __post_init__(self) -> None:
        """Reject names that point outside the folder."""
        for name in self.kernels:
            if not is_inside(name) or "/" in name:
                raise ValueError(f"{name!r} is not the name of a file within the folder")


def require_bundle_or_nothing(folder: Path) -> None:
    """Reject a folder with other content than a bundle.

    Raises:
        EngineFolderError: the path is a file, or a folder with other content.
    """
    if folder.is_file():
        raise EngineFolderError(f"{folder} is a file.", fix="Give a folder with --output.")
    if folder.exists() and any(folder.iterdir()) and not (folder / INDEX).is_file():
        raise EngineFolderError(
            f"{folder} contains files but no {INDEX}, so it is not a kernel bundle.",
            fix="Choose an empty or new folder with --output.",
        )


def write_bundle(folder: Path, kernels: Iterable[Compiled]) -> dict[str, Mapping[str, Any]]:
    """Write a bundle atomically; an older one is replaced.

    Args:
        folder: folder of the bundle.
        kernels: compiled kernels with distinct names.

    Returns:
        Every kernel's description by name.

    Raises:
        EngineFolderError: the folder has other content.
        ValueError: two kernels have the same name.
    """
    require_bundle_or_nothing(folder)
    folder = folder.absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    listed: dict[str, Listed] = {}
    written: dict[str, Mapping[str, Any]] = {}
    with temporary_beside(folder) as scratch:
        staging = Path(scratch) / folder.name
        staging.mkdir()
        for kernel in kernels:
            name = kernel_name(kernel.launch)
            if name in listed:
                raise ValueError(f"two kernels are called {name}")
            contents = {"cubin": kernel.cubin, "ptx": kernel.ptx.encode()}
            for ending, content in contents.items():
                (staging / f"{name}.{ending}").write_bytes(content)
            hashes = {ending: hashlib.sha256(content).hexdigest() for ending, content in contents.items()}
            written[name] = {**kernel.launch, "sha256": hashes}
            write_json(staging / f"{name}.json", written[name])
            digest = hashlib.sha256((staging / f"{name}.json").read_bytes()).hexdigest()
            identity = {field: kernel.launch[field] for field in ("op", "architecture", "dtype", "head_size")}
            listed[name] = Listed(**identity, sha256=digest)
        index = {name: asdict(kernel) for name, kernel in listed.items()}
        write_json(staging / INDEX, sealed({"schema_version": SCHEMA_VERSION, "kernels": index}))
        put_in_place(staging, folder, Path(scratch) / "old")
    return written


def kernel_name(launch: Mapping[str, Any]) -> str:
    """Return the name of a kernel's files: everything that distinguishes it from others."""
    tiles = "x".join(str(launch["configuration"][size]) for size in _TILE_SIZES)
    even_n = launch["constants"].get("EVEN_N")
    ending = [] if even_n is None else ["even" if even_n else "any"]
    return "-".join([launch["op"], launch["architecture"], launch["dtype"], f"d{launch['head_size']}", tiles, *ending])


class KernelBundle:
    """A bundle with verified files.

    Args:
        folder: folder of the bundle.
        index: entries of the index, by name.
        launches: launch descriptions, by name.
    """

    def __init__(self, folder: Path, index: Mapping[str, Listed], launches: Mapping[str, Mapping[str, Any]]) -> None:
        self.folder = folder
        self.index = dict(index)
        self.launches = dict(launches)

    @classmethod
    def load(cls, folder: Path) -> KernelBundle:
        """Read a bundle and check every hash.

        Raises:
            EngineFolderError: there is no bundle, or it is broken, damaged, or has another schema version.
        """
        path = folder / INDEX
        if not path.is_file():
            raise EngineFolderError(
                f"{folder} is not a kernel bundle: it has no {INDEX}.",
                fix=f"Make one with `{_COMMAND} --target … -o {folder}`.",
            )
        again = f"Make the bundle again with `{_COMMAND} --target … -o {folder}`."
        try:
            document = read_json(path)
            version = document["schema_version"]
            if version == SCHEMA_VERSION:
                index = record(_Index, unsealed(document), "it").kernels
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise EngineFolderError(f"{path} cannot be read ({error}).", fix=again) from error
        if version != SCHEMA_VERSION:
            raise EngineFolderError(
                f"{path} has schema version {version}, but this infid-export reads version {SCHEMA_VERSION}.", fix=again
            )
        launches = {}
        for name, listed in index.items():
            launches[name] = parse_json(_verified(folder / f"{name}.json", listed.sha256, again))
            for ending, digest in launches[name]["sha256"].items():
                _verified(folder / f"{name}.{ending}", digest, again)
        return cls(folder, index, launches)

    def find(
        self,
        op: str,
        architecture: str,
        dtype: str,
        head_size: int,
        lengths: Sequence[int],
        queries: int = 0,
        shared_limit: int | None = None,
    ) -> Kernel:
        """Return the kernel for a call, with the same choice as the Triton launcher.

        Machine code for the architecture comes first, then machine code for an older one of its family, which the GPU
        runs too, then PTX for an older one, which the driver compiles. `Kernel.choice` says which was chosen.

        Args:
            op: the operation, such as `mixed_attention`.
            architecture: the GPU's architecture, such as `sm_90`.
            dtype: dtype of queries, keys and values: `float16` or `bfloat16`.
            head_size: channels per head, d.
            lengths: number of keys per segment; they decide between full blocks and any length.
            queries: number of queries; matters if a configuration applies only to large numbers.
            shared_limit: maximum bytes of shared memory; None is no limit.

        Raises:
            EngineFolderError: the bundle has no suitable kernel; the message names the command that compiles one.
        """
        names = [
            name
            for name, kernel in self.index.items()
            if (kernel.op, kernel.dtype, kernel.head_size) == (op, dtype, head_size)
        ]
        origin, form = self._origin(names, architecture)
        if origin is None or form is None:
            has = ", ".join(sorted({self.index[name].architecture for name in names}, key=_number)) or "other calls"
            raise EngineFolderError(
                f"{self.folder} has no kernel of {op} in {dtype} with head size {head_size} that runs on "
                f"{architecture}, only for {has}.",
                fix=f"Compile it with `{self._command(architecture, dtype, head_size)}`.",
            )
        names = [name for name in names if self.index[name].architecture == origin]
        name = self._form(names, lengths, queries, shared_limit)
        if name is None:
            raise EngineFolderError(
                f"{self.folder} has no kernel of {op} for {origin} that takes segments of "
                f"{', '.join(map(str, lengths))} keys within {shared_limit} bytes of shared memory.",
                fix="Allow more shared memory: compile-kernels writes forms that need up to 49152 bytes.",
            )
        again = f"Make the bundle again with `{self._command(architecture, dtype, head_size)}`."
        launch = self.launches[name]
        code = _verified(self.folder / f"{name}.{form}", launch["sha256"][form], again)
        return Kernel(launch, code, form, _choice(name, form, origin, architecture))

    def _origin(
        self, names: Sequence[str], architecture: str
    ) -> tuple[str, Literal["cubin", "ptx"]] | tuple[None, None]:
        """Return the architecture whose code runs on the given one, and the form of that code."""
        targets = {self.index[name].architecture: self.launches[name]["ptx_target"] for name in names}
        newest_first = sorted(targets, key=_number, reverse=True)
        if architecture in targets:
            return architecture, "cubin"
        # code for sm_90a, sm_100a and sm_120a runs only on these, even as PTX (CUDA C++ Programming Guide,
        # "Architecture-specific features")
        portable = [
            known for known in newest_first if targets[known] == known and _number(known) < _number(architecture)
        ]
        family = [known for known in portable if _number(known) // 10 == _number(architecture) // 10]
        if family:
            return family[0], "cubin"
        return (portable[0], "ptx") if portable else (None, None)

    def _form(self, names: Sequence[str], lengths: Sequence[int], queries: int, shared_limit: int | None) -> str | None:
        """Return the form for these lengths. Full blocks are preferred to any length, tuned tiles to small ones."""
        allowed = [
            name for name in names if shared_limit is None or self.launches[name]["shared_bytes"] <= shared_limit
        ]
        for even_n in (True, False):
            forms = [name for name in allowed if bool(self.launches[name]["multiples"]) == even_n]
            starts = {start: name for name in forms for start in self.launches[name]["queries"] if start <= queries}
            if starts:
                chosen = starts[max(starts)]
            elif forms and shared_limit is not None:
                chosen = forms[0]
            else:
                continue
            multiples = self.launches[chosen]["multiples"].values()
            if all(length % multiple == 0 for length in lengths for multiple in multiples):
                return chosen
        return None

    def _command(self, architecture: str, dtype: str, head_size: int) -> str:
        """Return the command that writes this bundle with one more architecture, dtype and head size."""
        kernels = self.index.values()
        targets = sorted({architecture, *(kernel.architecture for kernel in kernels)}, key=_number)
        dtypes = sorted({dtype, *(kernel.dtype for kernel in kernels)}, reverse=True)
        sizes = sorted({head_size, *(kernel.head_size for kernel in kernels)})
        return (
            f"{_COMMAND} --target {' '.join(targets)} --dtype {' '.join(dtypes)} "
            f"--head-size {' '.join(map(str, sizes))} -o {self.folder}"
        )


def _verified(path: Path, sha256: str, again: str) -> bytes:
    """Return a file's content.

    Raises:
        EngineFolderError: it is missing, or has changed.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise EngineFolderError(f"{path} cannot be read ({error.strerror}).", fix=again) from error
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise EngineFolderError(
            f"{path} has changed: its sha256 is {found[:12]}…, the bundle says {sha256[:12]}….", fix=again
        )
    return content


def _choice(name: str, form: str, origin: str, architecture: str) -> str:
    if origin == architecture:
        return f"{name}: machine code for {architecture}"
    if form == "cubin":
        return f"{name}: machine code for {origin}, which {architecture} runs too"
    return f"{name}: PTX for {origin}, which the driver compiles for {architecture}"


def _number(architecture: str) -> int:
    return int(architecture.removeprefix("sm_"))
