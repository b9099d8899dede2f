"""Steps of AOTInductor packages on a GPU: after the first step, each one replays a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from infid_engines.backends import Arrays

if TYPE_CHECKING:
    from infid_engines.aotinductor_runner import AOTInductorEngine


@dataclass
class _Slot:
    """One of two sets of the varying inputs: while a step reads one, the next step's values are copied to the other.

    Args:
        host: page-locked memory, by name of the input.
        device: its copies on the GPU.
        uploaded: event after the copies to the GPU.
        consumed: event after the step that reads them.
        graph: the CUDA graph of a step with these inputs, once it is captured.
        outputs: what a step with these inputs returns, without what it carries.
    """

    host: dict[str, Tensor]
    device: dict[str, Tensor]
    uploaded: torch.cuda.Event = field(default_factory=lambda: torch.cuda.Event())
    consumed: torch.cuda.Event = field(default_factory=lambda: torch.cuda.Event())
    graph: torch.cuda.CUDAGraph | None = None
    outputs: dict[str, Tensor] = field(default_factory=dict)


class CudaLoop:
    """See `StepLoop`. All inputs have fixed places; a step copies what it carries to its place.

    The varying inputs of the next step are copied on a second stream while a step computes, which hides the features
    of a template behind the computation. The host is at most two steps ahead of the GPU.

    Args:
        engine: the engine.
        fixed: inputs that do not change.
        carry: per input, the output that becomes its next value.
        initial: initial values of the carried inputs.
        varying: the other inputs of each step.

    Raises:
        InputError: an input is missing, unknown, mistyped or misshapen.
    """

    def __init__(
        self,
        engine: AOTInductorEngine,
        fixed: Arrays,
        carry: Mapping[str, str],
        initial: Arrays,
        varying: Iterable[Arrays],
    ) -> None:
        self._engine, self._carry, self._varying = engine, dict(carry), iter(varying)
        self._next = next(self._varying, None)
        engine.checked.check({**fixed, **initial, **(self._next or {})})
        self._compute, self._copies = torch.cuda.Stream(), torch.cuda.Stream()
        self._warm = False
        with torch.cuda.stream(self._compute):
            self._tensors = {name: engine.tensor(array) for name, array in {**fixed, **initial}.items()}
        self._slots = [self._slot(self._next or {}) for _ in range(2)]
        self._fill()

    def _slot(self, arrays: Arrays) -> _Slot:
        host = {name: page_locked(torch.from_numpy(each)) for name, each in arrays.items()}
        return _Slot(host, {name: torch.empty_like(each, device=self._engine.device) for name, each in host.items()})

    def _fill(self) -> None:
        """Copy the varying inputs of the next step to the slot that no step needs any more, if there is a next step."""
        if self._next is None:
            return
        slot = self._slots[0]
        with self._engine.in_library():
            slot.uploaded.synchronize()  # the host memory is free again
        self._copies.wait_event(slot.consumed)  # and then the device memory
        with torch.cuda.stream(self._copies):
            for name, host in slot.host.items():
                array = self._next[name]
                if (array.shape, array.dtype) != (tuple(host.shape), host.numpy().dtype):
                    raise RuntimeError("an input of a step differs in shape or type from that of the first step")
                np.copyto(host.numpy(), array)
                slot.device[name].copy_(host, non_blocking=True)
            slot.uploaded.record(self._copies)

    def _call(self, slot: _Slot) -> None:
        """Queue a step."""
        outputs = self._engine.run_tensors({**self._tensors, **slot.device})
        for source, result in self._carry.items():
            self._tensors[source].copy_(outputs.pop(result))
        slot.outputs = outputs

    def step(self) -> None:
        """Queue a run and the copies for the next one. The first run loads the kernels; later ones are captured."""
        if self._next is None:
            raise RuntimeError("the loop has no further step")
        slot = self._slots[0]
        with torch.cuda.stream(self._compute), self._engine.in_library():
            self._compute.wait_event(slot.uploaded)
            if self._warm and slot.graph is None:
                slot.graph = captured(lambda: self._call(slot), self._slots[1].graph)
            if slot.graph is None:
                self._call(slot)
            else:
                slot.graph.replay()
            slot.consumed.record(self._compute)
        self._warm = True
        self._slots.reverse()
        self._next = next(self._varying, None)
        self._fill()

    def read(self, output: str) -> np.ndarray[Any, Any]:
        """Return a copy of an output of the last step."""
        became = {result: source for source, result in self._carry.items()}
        tensor = self._tensors[became[output]] if output in became else self._slots[1].outputs[output]
        with torch.cuda.stream(self._compute), self._engine.in_library():
            return np.array(tensor.cpu().numpy())

    def close(self) -> None:
        """Free the graphs and the memory."""
        self._compute.synchronize()
        self._copies.synchronize()
        for slot in self._slots:
            if slot.graph is not None:
                slot.graph.reset()
        self._tensors, self._slots, self._next, self._varying = {}, [], None, iter(())
        torch.cuda.empty_cache()  # a graph's memory is of no use to others before


def page_locked(like: Tensor) -> Tensor:
    """Return host memory that the GPU can copy from by itself."""
    return torch.empty_like(like, pin_memory=True)


def captured(call: Callable[[], None], other: torch.cuda.CUDAGraph | None) -> torch.cuda.CUDAGraph:
    """Return the CUDA graph of the work that a call queues on the current stream, where earlier work may still run.

    Args:
        call: queues the work.
        other: a graph that never runs at the same time, so that its memory can be used.
    """
    graph = torch.cuda.CUDAGraph()
    graph.capture_begin(pool=None if other is None else other.pool(), capture_error_mode="thread_local")
    try:
        call()
    finally:
        graph.capture_end()
    return graph
