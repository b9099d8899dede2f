"""A model of Hopper's guarantees for asynchronous copies and matrix products; it executes a Gluon kernel's own source.

Gluon has no interpreter. Here the kernel's Python functions run unchanged, one program at a time, with `gl` and the
Hopper operations replaced by the classes below. A copy lands as late as its barrier allows, a product reads its
operands as late as its wait allows, and anything that the hardware does not define is a `HazardError`:

- a buffer is overwritten while a product may read it, or is read before its copy was waited for;
- a barrier is waited for in a phase that never comes or has already passed, is armed twice, or receives a different
  number of bytes than it expects;
- a wait by one warpgroup, or a store to shared memory, is not made visible to the others by a CTA barrier, or to TMA by
  a fence;
- a copy, a product or a barrier is left pending, or an element of the output is written twice or not at all.

Threads and layouts are not modeled; the compiler checks layouts.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import FunctionType, ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from triton.runtime.jit import JITFunction


class HazardError(Exception):
    """The kernel relies on something that the hardware does not guarantee."""


def require(condition: bool, message: str) -> None:
    if not condition:
        raise HazardError(message)


@dataclass(eq=False)
class Descriptor:
    """A tensor descriptor over `[rows · tokens, heads · d]`; `tokens` is 0 where blocks may reach into the next row."""

    matrix: Tensor
    block: tuple[int, int]
    tokens: int = 0
    layout: str = "nvmma"

    @property
    def dtype(self) -> torch.dtype:
        return self.matrix.dtype

    def read(self, start: int, channel: int) -> Tensor:
        """Return a block, padded with zeros beyond the end."""
        rows, columns = self.block
        found = torch.zeros(self.block, dtype=self.dtype)
        part = self.matrix[start : start + rows, channel : channel + columns]
        found[: part.shape[0]] = part
        return found


@dataclass(eq=False)
class Barrier:
    initialized: bool = False
    fenced: bool = False
    synchronized: bool = False  # whether all threads know of the initialization, or have passed the last wait
    armed: bool = False
    expected: int = 0  # bytes
    copies: list[Callable[[], int]] = field(default_factory=list)  # each call lands a copy and returns its bytes
    completed: int = 0  # phases
    waited: int = 0  # phases


@dataclass(eq=False)
class Buffer:
    """A block of shared memory."""

    data: Tensor
    arrived: bool = False  # whether its copy was waited for
    readers: int = 0  # products in flight
    synchronized: bool = True  # whether all threads know that its readers are done
    landing: Barrier | None = None  # of its newest copy

    def permute(self, _: tuple[int, int]) -> Transposed:
        return Transposed(self)

    def load(self, _: object) -> Tensor:
        require(self.arrived, "a thread reads a buffer whose copy it did not wait for")
        return self.data.clone()


@dataclass(eq=False)
class Transposed:
    buffer: Buffer


@dataclass(eq=False)
class Stages:
    """Several blocks of shared memory, or barriers."""

    parts: Sequence[Any]

    def index(self, stage: Any) -> Any:
        require(0 <= int(stage) < len(self.parts), f"stage {int(stage)} does not exist")
        return self.parts[int(stage)]


@dataclass(eq=False)
class Product:
    """An accumulator of `warpgroup_mma`; not a tensor until it has been waited for."""

    a: Any
    b: Any
    acc: Any
    use_acc: bool
    value: Tensor | None = None

    @property
    def buffers(self) -> list[Buffer]:
        found = [each.buffer if isinstance(each, Transposed) else each for each in (self.a, self.b)]
        return [each for each in found if isinstance(each, Buffer)]

    def finish(self) -> None:
        def operand(each: Any) -> Tensor:
            if isinstance(each, Transposed):
                return each.buffer.data.float().T
            return (each.data if isinstance(each, Buffer) else each).float()

        acc = self.acc.value if isinstance(self.acc, Product) else self.acc
        product = operand(self.a) @ operand(self.b)
        self.value = acc + product if self.use_acc else product
        for buffer in self.buffers:
            buffer.readers -= 1
            buffer.synchronized = False


@dataclass(eq=False)
class Pointer:
    """A pointer into global memory; `written` counts the stores."""

    memory: Tensor
    written: Tensor
    offset: Any = 0

    @staticmethod
    def to(tensor: Tensor) -> Pointer:
        return Pointer(tensor.view(-1), torch.zeros(tensor.numel(), dtype=torch.int32))

    def __add__(self, offset: Any) -> Pointer:
        return Pointer(self.memory, self.written, self.offset + offset)


class Program:
    """One program of the grid: its shared memory, what is in flight, and the operations that the kernel calls."""

    def __init__(self, ids: tuple[int, int], row: int) -> None:
        self.ids, self.row = ids, row
        self.barriers: list[Barrier] = []
        self.buffers: list[Buffer] = []
        self.products: list[Product] = []

    def allocate(self, dtype: torch.dtype, shape: Sequence[int], layout: object) -> Any:
        *stages, last = shape if layout == "mbarrier" else (*shape[:-2], tuple(shape[-2:]))
        parts: list[Any] = []
        for _ in range(stages[0] if stages else 1):
            if layout == "mbarrier":
                require(last == 1, "a barrier is one number")
                parts.append(Barrier())
                self.barriers.append(parts[-1])
            else:
                parts.append(Buffer(torch.full(last, math.nan, dtype=dtype)))
                self.buffers.append(parts[-1])
        return Stages(parts) if stages else parts[0]

    def init(self, barrier: Barrier, count: int) -> None:
        require(not barrier.initialized and count == 1, "a barrier is initialized once, for one arrival")
        barrier.initialized = True

    def fence(self) -> None:
        for barrier in self.barriers:
            barrier.fenced = barrier.initialized

    def synchronize(self) -> None:
        for each in (*self.barriers, *self.buffers):
            each.synchronized = True

    def expect(self, barrier: Barrier, count: int, pred: Any = True) -> None:
        if not pred:
            return
        require(barrier.initialized and barrier.synchronized, "a barrier is armed before all threads passed its wait")
        require(not barrier.armed, "a barrier is armed twice in one phase")
        barrier.armed, barrier.expected = True, barrier.expected + count

    def copy(self, source: Descriptor, at: Sequence[Any], barrier: Barrier, target: Buffer, pred: Any = True) -> None:
        if not pred:
            return
        start, channel = (int(each) for each in at)
        require(barrier.initialized and barrier.fenced, "TMA does not see the initialization of its barrier")
        require(barrier.armed, "bytes are copied that no barrier expects")
        require(target.readers == 0, "a buffer is overwritten while a product reads it")
        require(target.synchronized, "a buffer is overwritten before all warps are known to have read it")
        if source.tokens:
            inside = self.row * source.tokens <= start and start + source.block[0] <= (self.row + 1) * source.tokens
            require(inside, f"tokens from {start} on are not all of row {self.row}")
        target.arrived = False
        target.data.fill_(math.nan)

        def land() -> int:
            target.data.copy_(source.read(start, channel))
            return target.data.numel() * target.data.element_size()

        barrier.copies.append(land)
        target.landing = barrier

    def wait(self, barrier: Barrier, parity: Any) -> None:
        require(barrier.initialized and barrier.synchronized, "a barrier is waited for before all threads know of it")
        if barrier.armed and barrier.completed % 2 == int(parity):
            barrier.expected -= sum(land() for land in barrier.copies)
            require(barrier.expected == 0, f"a barrier expects {barrier.expected} bytes that do not come")
            barrier.copies.clear()
            barrier.armed, barrier.completed = False, barrier.completed + 1
            for buffer in self.buffers:
                if buffer.landing is barrier:
                    buffer.arrived = True
        require(barrier.completed % 2 != int(parity), "a phase is waited for that never comes")
        require(barrier.completed == barrier.waited + 1, "a wait passes on a phase that was waited for already")
        barrier.waited, barrier.synchronized = barrier.completed, False

    def invalidate(self, barrier: Barrier) -> None:
        require(barrier.initialized and not barrier.armed, "a barrier is invalidated that is not idle")
        barrier.initialized = False

    def multiply(self, a: Any, b: Any, acc: Any, *, use_acc: bool = True, is_async: bool = False) -> Product:
        require(is_async, "the product is not asynchronous")
        product = Product(a, b, acc, use_acc)
        for buffer in product.buffers:
            require(buffer.arrived, "a product reads a buffer whose copy was not waited for")
            buffer.readers += 1
        self.products.append(product)
        return product

    def wait_products(self, left: int, deps: Sequence[Any]) -> Any:
        while len(self.products) > left:
            product = self.products.pop(0)
            product.finish()
            held = not isinstance(product.a, Tensor) or any(dep is product.a for dep in deps)
            require(held, "the registers that a product reads are not held until its wait")
        found = [dep.value if isinstance(dep, Product) else dep for dep in deps]
        require(all(each is not None for each in found), "the result of a product is used before it is complete")
        return found[0] if len(found) == 1 else tuple(found)

    def end(self) -> None:
        require(not self.products, "a product is left in flight")
        require(not any(barrier.armed for barrier in self.barriers), "a copy is left in flight")
        require(not any(barrier.initialized for barrier in self.barriers), "a barrier is left valid")

    def language(self) -> SimpleNamespace:
        """Return the replacement for `gl`."""

        def store(pointer: Pointer, value: Tensor, mask: Tensor) -> None:
            mask = mask.expand(value.shape)
            at = pointer.offset.expand(value.shape)[mask]
            require(bool((at < pointer.memory.numel()).all()), "a store reaches beyond the output")
            pointer.memory[at] = value[mask]
            pointer.written[at] += 1

        return SimpleNamespace(
            float32=torch.float32, int64=torch.int64,
            BlockedLayout=_layout, SliceLayout=_layout, NVMMADistributedLayout=_layout, DotOperandLayout=_layout,
            num_warps=lambda: 4,
            program_id=lambda axis: torch.tensor(self.ids[axis]),
            static_range=range,
            allocate_shared_memory=self.allocate,
            arange=lambda start, end, layout: torch.arange(start, end),
            zeros=lambda shape, dtype, layout: torch.zeros(shape, dtype=dtype),
            full=lambda shape, value, dtype, layout: torch.full(shape, value, dtype=dtype),
            convert_layout=lambda value, layout: value,
            where=lambda condition, a, b: torch.where(torch.as_tensor(condition), a, b),
            minimum=min, maximum=torch.maximum, exp2=torch.exp2,
            max=lambda value, axis: value.amax(axis), sum=lambda value, axis: value.sum(axis),
            load=lambda pointer: pointer.memory[pointer.offset],
            store=store,
        )  # fmt: skip

    def functions(self, module: ModuleType) -> dict[str, Any]:
        """Return the kernel's functions by name, bound to the model."""
        names: dict[str, Any] = dict(vars(module))
        names |= {
            "gl": self.language(),
            "mbarrier": SimpleNamespace(
                MBarrierLayout=lambda: "mbarrier", init=self.init, expect=self.expect, wait=self.wait,
                invalidate=self.invalidate,
            ),
            "async_load": self.copy, "cta_barrier": self.synchronize, "fence_async_shared": self.fence,
            "warpgroup_mma": self.multiply, "warpgroup_mma_wait": self.wait_products,
        }  # fmt: skip
        for name, value in vars(module).items():
            if isinstance(value, JITFunction):
                names[name] = FunctionType(value.fn.__code__, names)
        return names


def _layout(*_: object) -> str:
    return "layout"


def launch(module: ModuleType, name: str, grid: tuple[int, int], heads: int, out: Pointer, **arguments: Any) -> None:
    """Run all programs of a kernel, and check that they write every element of the output exactly once."""
    for ids in itertools.product(*(range(size) for size in grid)):
        program = Program(ids, ids[1] // heads)
        program.functions(module)[name](heads=heads, out=out, **arguments)
        program.end()
    require(bool((out.written == 1).all()), "an element of the output is not written exactly once")
