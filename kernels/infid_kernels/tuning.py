"""Which tile sizes a kernel runs with: the table `configurations.json`, or what was measured on the user's GPU.

Nothing is tuned at import or in a call. `infid-export tune` measures the candidates on a GPU and writes a file of the
same form as the table; `load` makes this process use it. Every entry says what chose it.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import triton

OPS = ("mixed_attention", "merged_cross_attention")
ARCHITECTURES = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")
TABLE = Path(__file__).with_name("configurations.json")
_SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Configuration:
    """How one kernel is cut into tiles.

    Args:
        block_m: queries of a tile.
        block_n: keys taken at once.
        num_warps: warps of a tile.
        num_stages: depth of the software pipeline that loads keys and values.
        persistent: programs a multiprocessor that share all tiles; 0 is one program a tile.
        descriptors: whether keys and values are fetched by tensor descriptors, as Hopper's copy engine wants it.
        polynomial: whether a quarter of the exponentials is computed on the fp32 units.
        gluon: whether mixed attention runs in its Gluon form (`mixed_attention_gluon`).
    """

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int
    persistent: int = 0
    descriptors: bool = False
    polynomial: bool = False
    gluon: bool = False

    @property
    def plain(self) -> Configuration:
        """The same tiles in the form that needs nothing but addresses and sizes to be launched.

        A persistent grid depends on the GPU's multiprocessors, and descriptors are made by the driver: the launch
        descriptions of bundles and TensorRT's plugins know neither.
        """
        return replace(self, persistent=0, descriptors=False)

    def programs(self, tiles: int, device: torch.device) -> int:
        """Return how many programs share the tiles of a persistent launch; the interpreter is one multiprocessor."""
        cuda = device.type == "cuda"
        multiprocessors = torch.cuda.get_device_properties(device).multi_processor_count if cuda else 1
        return min(tiles, self.persistent * multiprocessors)

    def told(self) -> dict[str, int | bool]:
        """Return the fields for a file: the tiles, and of the others those that are set."""
        return {name: value for name, value in asdict(self).items() if value}

    def launch_options(self) -> dict[str, int | bool]:
        """Return Triton's options; fusing multiply and add is asked for, since its default changes with versions."""
        return {"num_warps": self.num_warps, "num_stages": self.num_stages, "enable_fp_fusion": True}


@dataclass(frozen=True)
class Entry:
    """A configuration, where it applies, and what chose it.

    Args:
        op: operation.
        architecture: as `sm_90`.
        block_d: head size, rounded up to a power of two.
        queries: smallest number of queries it is meant for.
        whole: whether it is for segments that are whole numbers of blocks.
        configuration: the choice.
        evidence: the measurement or the compiler report behind it.
    """

    op: str
    architecture: str
    block_d: int
    queries: int
    whole: bool
    configuration: Configuration
    evidence: str

    def fits(self, op: str, architecture: str, block_d: int, queries: int, whole: bool) -> bool:
        """Return whether the entry applies to a call."""
        mine = (self.op, self.architecture, self.block_d, self.whole)
        same = mine == (op, architecture, block_d, whole)
        return same and self.queries <= queries


# What is worth trying everywhere, the most promising first: large tiles read keys and values less often, and four warps
# a tile leave room for a second tile on a multiprocessor, whose products run while the first one takes exponentials.
CANDIDATES: Sequence[Configuration] = tuple(
    Configuration(*sizes)
    for sizes in (
        (128, 128, 8, 3), (128, 128, 8, 2), (128, 64, 4, 3), (128, 64, 4, 2), (128, 64, 8, 3), (128, 64, 8, 2),
        (64, 128, 4, 2), (64, 64, 4, 3), (64, 64, 4, 2), (128, 32, 4, 3), (128, 32, 8, 2), (64, 32, 4, 3),
        (64, 32, 4, 2), (64, 32, 8, 2), (32, 32, 4, 2),
    )
)  # fmt: skip
# Forms of mixed attention for the architectures whose copy engine fetches whole blocks, with one thread's instruction
# instead of one of every thread. That frees registers (sm_90, 128 × 128 with 8 warps: 145 instead of 171), so three
# tiles of 64 × 128 lie on a multiprocessor. None of them was timed yet.
_COPY_ENGINE = ("sm_90", "sm_100")
_COPY_ENGINE_CANDIDATES: Sequence[Configuration] = (
    Configuration(128, 128, 8, 2, descriptors=True),
    Configuration(64, 128, 4, 2, descriptors=True),
    Configuration(128, 128, 8, 2, descriptors=True, polynomial=True),
    Configuration(64, 128, 4, 2, descriptors=True, polynomial=True),
    Configuration(128, 128, 8, 3, polynomial=True),
    Configuration(64, 128, 4, 2, persistent=2, descriptors=True),
    Configuration(128, 128, 8, 2, persistent=1, descriptors=True),
    Configuration(128, 64, 4, 2, descriptors=True),
    Configuration(64, 64, 4, 3, descriptors=True),
)
_INTERPRETER = Configuration(32, 32, 4, 1)  # tiles small enough that test shapes have several
_measured: list[Entry] = []


def candidates(op: str, architecture: str) -> tuple[Configuration, ...]:
    """Return what is worth measuring, the most promising first.

    Args:
        op: one of `OPS`.
        architecture: one of `ARCHITECTURES`.
    """
    if op == "merged_cross_attention":  # 77 and 261 keys: the smaller the block, the less work is padding
        return tuple(sorted(CANDIDATES, key=lambda each: each.block_n))
    first, *others = CANDIDATES
    return (first, *(_COPY_ENGINE_CANDIDATES if architecture in _COPY_ENGINE else ()), *others)


def choose(op: str, device: torch.device, d: int, queries: int, lengths: Sequence[int]) -> tuple[Configuration, bool]:
    """Return what an operation runs with; the same call always gives the same answer until `load` is called.

    Args:
        op: one of `OPS`.
        device: where it runs; the CPU is Triton's interpreter.
        d: head size.
        queries: number of queries N.
        lengths: numbers of keys of the segments.

    Returns:
        The configuration, and whether its `block_n` divides all lengths.

    Raises:
        ValueError: the GPU is older than every architecture of the table.
    """
    if device.type != "cuda":
        return _INTERPRETER, divides(_INTERPRETER, lengths)
    architecture = architecture_of(device)
    whole = entry(op, architecture, d, queries, True)
    if whole is not None and divides(whole.configuration, lengths):
        return whole.configuration, True
    ragged = entry(op, architecture, d, queries, False)
    if ragged is None:
        raise RuntimeError(f"{TABLE.name} has no entry of {op} for {architecture} and head size {d}")
    return ragged.configuration, False


def architecture_of(device: torch.device) -> str:
    """Return the architecture whose entries a GPU uses.

    Raises:
        ValueError: the GPU is older than every architecture of the table.
    """
    major, minor = torch.cuda.get_device_capability(device)
    return nearest(f"sm_{major}{minor}")


def divides(configuration: Configuration, lengths: Sequence[int]) -> bool:
    """Return whether all segments are whole numbers of blocks."""
    return all(length % configuration.block_n == 0 for length in lengths)


def nearest(architecture: str) -> str:
    """Return the newest architecture of the table that is not newer than the one asked for.

    Raises:
        ValueError: there is none.
    """
    number = int(architecture.removeprefix("sm_"))
    older = [known for known in ARCHITECTURES if int(known.removeprefix("sm_")) <= number]
    if not older:
        raise ValueError(f"the kernels need a GPU of {ARCHITECTURES[0]} or newer, this one is {architecture}")
    return older[-1]


def entry(op: str, architecture: str, d: int, queries: int, whole: bool) -> Entry | None:
    """Return the entry that applies to a call: a measured one if there is one, else the table's, else None."""
    block_d = triton.next_power_of_2(d)
    for rows in (_measured, table()):
        fitting = [row for row in rows if row.fits(op, architecture, block_d, queries, whole)]
        if fitting:
            return max(fitting, key=lambda row: row.queries)
    return None


@functools.cache
def table() -> tuple[Entry, ...]:
    """Return the entries that the package ships."""
    return read(TABLE)


def load(path: Path) -> None:
    """Use a file that `infid-export tune` wrote, in this process from now on; it goes before the table.

    Raises:
        ValueError: the file is missing or of another form.
    """
    _measured[:] = read(path)


@contextmanager
def loaded(path: Path | None) -> Iterator[None]:
    """Use a file that `infid-export tune` wrote within a block, or the table alone.

    Raises:
        ValueError: the file is missing or of another form.
    """
    before = list(_measured)
    _measured[:] = () if path is None else read(path)
    try:
        yield
    finally:
        _measured[:] = before


def read(path: Path) -> tuple[Entry, ...]:
    """Read a file of entries.

    Raises:
        ValueError: it is missing or of another form.
    """
    try:
        document = json.loads(path.read_text())
        if document["schema_version"] != _SCHEMA_VERSION:
            raise ValueError(f"it has schema version {document['schema_version']}, not {_SCHEMA_VERSION}")
        return tuple(
            Entry(**{**row, "configuration": Configuration(**row["configuration"])}) for row in document["entries"]
        )
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is not a file of kernel configurations ({error}); write one with `infid-export tune`"
        ) from error


def write(path: Path, entries: Sequence[Entry]) -> None:
    """Write a file of entries, whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    rows = [{**asdict(row), "configuration": row.configuration.told()} for row in entries]
    document = {"schema_version": _SCHEMA_VERSION, "entries": rows}
    partial.write_text(json.dumps(document, indent=1) + "\n")
    partial.replace(path)
