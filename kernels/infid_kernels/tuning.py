"""The tile sizes that a kernel runs with: from the table `configurations.json`, or measured on the user's GPU.

Nothing is tuned at import or in a call. `infid-export tune` measures the candidates on a GPU and writes a file in the
format of the table; `load` makes this process use it. Every entry holds the evidence for its choice.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import triton

from infid_kernels.targets import ARCHITECTURES

OPS = ("mixed_attention", "merged_cross_attention")
TABLE = Path(__file__).with_name("configurations.json")
_SCHEMA_VERSION = 2
_LARGEST = 4096  # limit of a tile's sides, warps and stages


@dataclass(frozen=True)
class Configuration:
    """Tile sizes, warps, stages and form of one kernel.

    Args:
        block_m: queries per tile.
        block_n: keys per block.
        num_warps: warps per tile.
        num_stages: depth of the software pipeline that loads keys and values.
        descriptors: whether TMA loads keys and values through tensor descriptors.
        gluon: whether mixed attention runs in its Gluon form (`mixed_attention_gluon`).
    """

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int
    descriptors: bool = False
    gluon: bool = False

    @property
    def plain(self) -> Configuration:
        """The same tiles in the plain form, whose arguments are only pointers and integers.

        The driver makes tensor descriptors at launch; launch descriptions and TensorRT's plugins cannot express that.
        """
        return replace(self, descriptors=False, gluon=False)

    def divides(self, lengths: Sequence[int]) -> bool:
        """Return whether `block_n` divides the length of every segment."""
        return all(length % self.block_n == 0 for length in lengths)

    def to_dict(self) -> dict[str, int | bool]:
        """Return the fields for a file: the tile sizes, and the other fields if they are set."""
        return {name: value for name, value in asdict(self).items() if value}

    def launch_options(self) -> dict[str, int | bool]:
        """Return Triton's options; multiply-add fusion is explicit, since its default differs between versions."""
        return {"num_warps": self.num_warps, "num_stages": self.num_stages, "enable_fp_fusion": True}


@dataclass(frozen=True)
class Library:
    """Mixed attention by a library's attention, called once per segment (`library_attention`), instead of our kernel.

    Args:
        library: `cudnn` or `flash`.
    """

    library: str

    def divides(self, lengths: Sequence[int]) -> bool:
        """Return whether the lengths are multiples of our kernel's largest block, like those that it is measured on."""
        return all(length % max(each.block_n for each in CANDIDATES) == 0 for length in lengths)

    def to_dict(self) -> dict[str, str]:
        """Return the fields for a file."""
        return asdict(self)


Choice = Configuration | Library
Only = Literal["kernels", "plain"]  # what a caller can run: our kernels, or their plain form


@dataclass(frozen=True)
class Entry:
    """A choice, the calls that it applies to, and the evidence for it.

    Args:
        op: operation.
        architecture: such as `sm_90`.
        block_d: head size, rounded up to a power of two.
        queries: smallest number of queries that it applies to.
        even_n: whether it is for segments whose lengths `block_n` divides.
        configuration: configuration of our kernel, or a library.
        evidence: the measurement or the compiler report behind it.
    """

    op: str
    architecture: str
    block_d: int
    queries: int
    even_n: bool
    configuration: Choice
    evidence: str

    def fits(self, op: str, architecture: str, block_d: int, queries: int, even_n: bool) -> bool:
        """Return whether the entry applies to a call."""
        mine = (self.op, self.architecture, self.block_d, self.even_n)
        same = mine == (op, architecture, block_d, even_n)
        return same and self.queries <= queries


# Candidates for every architecture, the most promising first: large tiles read keys and values less often, and four
# warps per tile leave room for a second tile on an SM, whose products overlap with the first one's exponentials.
CANDIDATES: Sequence[Configuration] = tuple(
    Configuration(*sizes)
    for sizes in (
        (128, 128, 8, 3), (128, 128, 8, 2), (128, 64, 4, 3), (128, 64, 4, 2), (128, 64, 8, 3), (128, 64, 8, 2),
        (64, 128, 4, 3), (64, 128, 4, 2), (64, 64, 4, 3), (64, 64, 4, 2), (128, 32, 4, 3), (128, 32, 8, 2),
        (64, 32, 4, 3), (64, 32, 4, 2), (64, 32, 8, 2), (32, 32, 4, 2),
    )
)  # fmt: skip
# Candidates of mixed attention where TMA loads the blocks: one thread issues a load instead of every thread. That frees
# registers (sm_90, 64 × 128 with 4 warps: 166 instead of 228), so an SM holds three programs, and its units are busy
# while one program waits for its product. Per 128 keys and 64 queries: 452 instructions, 512 clocks of products, 512 of
# exponentials. An H200 ran the best of them as fast as the best plain tiles.
_TMA = ("sm_90", "sm_100")
_TMA_CANDIDATES: Sequence[Configuration] = tuple(
    Configuration(*sizes, descriptors=True)
    for sizes in (
        (64, 128, 4, 2), (128, 128, 8, 2), (64, 64, 4, 3), (64, 64, 4, 2), (128, 64, 8, 3), (64, 128, 4, 3),
        (128, 64, 4, 2),
    )
)  # fmt: skip
# Candidates in the Gluon form of mixed attention, by head size: none spills or is serialized, and at least half of a
# block's exponentials overlap with the second product, with triton 3.6 and 3.8. For d = 64, 64 × 128 with 2 stages
# needs 163 to 165 registers, so an SM holds three programs. 128 × 64 with 4 warps and 128 × 128 with 3 stages are left
# out: with triton 3.6 ptxas moves their exponentials after both waits. On an H200, the first is the fastest of all.
GLUON_CANDIDATES: Mapping[int, Sequence[Configuration]] = {
    d: tuple(Configuration(*sizes, gluon=True) for sizes in tiles)
    for d, tiles in {
        64: ((64, 128, 4, 2), (64, 128, 4, 3), (64, 64, 4, 3), (128, 64, 8, 3), (128, 128, 8, 2)),
        128: ((64, 128, 4, 2), (128, 128, 8, 2), (64, 64, 4, 2)),
    }.items()
}
_GLUON = "sm_90"  # no other architecture has wgmma
_LIBRARIES: Sequence[Library] = (Library("cudnn"), Library("flash"))
_INTERPRETER = Configuration(32, 32, 4, 1)  # small, so that the shapes of tests have several tiles
_measured: list[Entry] = []


def candidates(op: str, architecture: str) -> tuple[Configuration, ...]:
    """Return the candidates of our kernel to compile and measure, the most promising first.

    Args:
        op: one of `OPS`.
        architecture: one of `ARCHITECTURES`.
    """
    if op == "merged_cross_attention":  # 77 and 261 keys: smaller blocks compute less padding
        return tuple(sorted(CANDIDATES, key=lambda each: each.block_n))
    return (*(_TMA_CANDIDATES if architecture in _TMA else ()), *CANDIDATES)


def choices(op: str, architecture: str, d: int, most: int | None = None) -> tuple[Choice, ...]:
    """Return the choices to measure: candidates, the Gluon form, and libraries that compute the same.

    Args:
        op: one of `OPS`.
        architecture: one of `ARCHITECTURES`.
        d: head size.
        most: maximum number of candidates; all if not given.
    """
    tiles = candidates(op, architecture)[:most]
    if op != "mixed_attention":
        return tiles
    gluon = GLUON_CANDIDATES.get(d, ()) if architecture == _GLUON else ()
    return (*tiles, *gluon[:most], *_LIBRARIES)


def choose(
    op: str, device: torch.device, d: int, queries: int, lengths: Sequence[int], only: Only | None = None
) -> tuple[Choice, bool]:
    """Return the choice for an operation; the choice for the same call changes only with `load`.

    Args:
        op: one of `OPS`.
        device: where it runs; the CPU is Triton's interpreter.
        d: head size.
        queries: number of queries N.
        lengths: numbers of keys of the segments.
        only: as in `entry`.

    Returns:
        The choice, and whether it is for segments whose lengths `block_n` divides.

    Raises:
        ValueError: the GPU is older than every architecture of the table.
    """
    if device.type != "cuda":
        return _INTERPRETER, _INTERPRETER.divides(lengths)
    architecture = architecture_of(device)
    even = entry(op, architecture, d, queries, True, only)
    if even is not None and even.configuration.divides(lengths):
        return even.configuration, True
    any_length = entry(op, architecture, d, queries, False, only)
    if any_length is None:
        raise RuntimeError(f"{TABLE.name} has no entry of {op} for {architecture} and head size {d}")
    return any_length.configuration, False


def choose_kernel(
    op: str, device: torch.device, d: int, queries: int, lengths: Sequence[int], only: Only = "kernels"
) -> tuple[Configuration, bool]:
    """Return the configuration of our kernel, even if `choose` returns a library; arguments as in `choose`."""
    chosen, even_n = choose(op, device, d, queries, lengths, only)
    assert isinstance(chosen, Configuration)
    return chosen, even_n


def architecture_of(device: torch.device) -> str:
    """Return the architecture whose entries a GPU uses.

    Raises:
        ValueError: the GPU is older than every architecture of the table.
    """
    major, minor = torch.cuda.get_device_capability(device)
    return nearest(f"sm_{major}{minor}")


def nearest(architecture: str) -> str:
    """Return the newest architecture of the table that is not newer than the given one.

    Raises:
        ValueError: there is none.
    """
    number = int(architecture.removeprefix("sm_"))
    older = [known for known in ARCHITECTURES if int(known.removeprefix("sm_")) <= number]
    if not older:
        raise ValueError(f"the kernels need a GPU of {ARCHITECTURES[0]} or newer, this one is {architecture}")
    return older[-1]


def entry(op: str, architecture: str, d: int, queries: int, even_n: bool, only: Only | None = None) -> Entry | None:
    """Return the entry that applies to a call: a measured one if there is one, else the table's, else None.

    Args:
        op: one of `OPS`.
        architecture: one of `ARCHITECTURES`.
        d: head size.
        queries: number of queries N.
        even_n: whether `block_n` divides the segments' lengths.
        only: for callers that cannot run a library (`kernels`), and for those that launch from a description or while
            PyTorch traces, where neither descriptors nor Gluon exist (`plain`); other entries are skipped.
    """
    block_d = triton.next_power_of_2(d)
    for rows in (_measured, table()):
        fitting = [
            row
            for row in rows
            if row.fits(op, architecture, block_d, queries, even_n) and runs(row.configuration, only)
        ]
        if fitting:
            return max(fitting, key=lambda row: row.queries)
    return None


def runs(choice: Choice, only: Only | None) -> bool:
    """Return whether a caller can run a choice."""
    if only is None:
        return True
    return isinstance(choice, Configuration) and (only == "kernels" or choice == choice.plain)


@functools.cache
def table() -> tuple[Entry, ...]:
    """Return the entries that the package ships."""
    return read(TABLE)


def measured() -> tuple[Entry, ...]:
    """Return the entries that this process uses before the table, see `load`."""
    return tuple(_measured)


def load(path: Path) -> None:
    """From now on in this process, use a file that `infid-export tune` wrote; its entries precede the table's.

    Raises:
        ValueError: the file is missing or has another format.
    """
    _measured[:] = read(path)


@contextmanager
def loaded(path: Path | None) -> Iterator[None]:
    """Use a file that `infid-export tune` wrote, or only the table, within a `with` block.

    Raises:
        ValueError: the file is missing or has another format.
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
        ValueError: it is missing or has another format.
    """
    try:
        if path.exists() and not path.is_file():
            raise ValueError("it is not a plain file")
        document = json.loads(path.read_bytes())  # as bytes, so that a byte order mark does not matter
        if document["schema_version"] != _SCHEMA_VERSION:
            raise ValueError(f"it has schema version {document['schema_version']}, not {_SCHEMA_VERSION}")
        entries = tuple(Entry(**{**row, "configuration": parse_choice(row["configuration"])})
                        for row in document["entries"])  # fmt: skip
        for each in entries:
            _check(each)
        return entries
    except (OSError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{path} is not a file of kernel configurations ({error}); write one with `infid-export tune`"
        ) from error


def _check(entry: Entry) -> None:
    """Reject an entry of an unknown operation, or with fields of the wrong type or range.

    Raises:
        ValueError: the message names the entry.
    """
    if entry.op not in OPS or entry.architecture not in ARCHITECTURES:
        raise ValueError(f"there is no {entry.op!r} for {entry.architecture!r}")
    chosen, wrong = entry.configuration, ""
    if isinstance(chosen, Library):
        wrong = "" if entry.op == "mixed_attention" else f"implementation by {chosen.library}"
    else:
        sizes = (chosen.block_m, chosen.block_n, chosen.num_warps, chosen.num_stages, entry.block_d)
        flags = (chosen.descriptors, chosen.gluon, entry.even_n)
        sized = all(type(size) is int and 0 < size <= _LARGEST for size in sizes)
        wrong = "" if sized and all(type(flag) is bool for flag in flags) else f"configuration {chosen}"
    if wrong or type(entry.queries) is not int or type(entry.evidence) is not str:
        raise ValueError(f"{entry.op} has no {wrong or 'such entry'}")


def parse_choice(fields: Mapping[str, Any]) -> Choice:
    """Return a choice from its fields, as `to_dict` or `asdict` returns them.

    Raises:
        TypeError: a field is unknown.
        ValueError: there is no such library.
    """
    if "library" not in fields:
        return Configuration(**fields)
    library = Library(**fields)
    if library not in _LIBRARIES:
        raise ValueError(f"there is no implementation by {library.library}")
    return library


def write(path: Path, entries: Sequence[Entry]) -> None:
    """Write a file of entries that `read` reads."""
    rows = [{**asdict(row), "configuration": row.configuration.to_dict()} for row in entries]
    document = {"schema_version": _SCHEMA_VERSION, "entries": rows}
    path.write_text(json.dumps(document, indent=1) + "\n")
