"""Steps in ONNX Runtime on a GPU: each one replays a CUDA graph, which ONNX Runtime captures on the first use.

A captured graph reads and writes fixed addresses, so an engine keeps the memory of its steps between loops.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from infid_engines.backends import Arrays, CarryingLoop

if TYPE_CHECKING:
    from infid_engines.onnxruntime_runner import OnnxRuntimeEngine

# The entry of a run's options that names a graph; a run with the second value is not captured.
ANNOTATION, UNCAPTURED = "gpu_graph_annotation_id", "-1"


class StepMemory:
    """The memory of one loop on the device, and two bindings to it, between which carried tensors swap places.

    Args:
        engine: the engine; its outputs have fixed shapes.
        carry: per input, the output that becomes its next value.
        arrays: all inputs of the first step, for their shapes and types.
        names: names of the two graphs, which no other memory of the engine has.
    """

    def __init__(
        self, engine: OnnxRuntimeEngine, carry: Mapping[str, str], arrays: Arrays, names: tuple[str, str]
    ) -> None:
        from onnxruntime import OrtValue, RunOptions

        def allocated(shape: Iterable[Any], dtype: Any) -> Any:
            return OrtValue.ortvalue_from_shape_and_type(list(shape), np.dtype(dtype), engine.device, 0)

        self.inputs = {name: allocated(array.shape, array.dtype) for name, array in arrays.items()}
        self.outputs = {name: allocated(spec.shape, spec.dtype) for name, spec in engine.outputs.items()}
        swapped = {result: source for source, result in carry.items()}
        inputs = self.inputs | {source: self.outputs[result] for source, result in carry.items()}
        outputs = self.outputs | {result: self.inputs[source] for result, source in swapped.items()}
        self.runs = []
        for reads, writes, name in ((self.inputs, self.outputs, names[0]), (inputs, outputs, names[1])):
            binding, options = engine.session.io_binding(), RunOptions()
            for each, value in reads.items():
                binding.bind_ortvalue_input(each, value)
            for each, value in writes.items():
                binding.bind_ortvalue_output(each, value)
            options.add_run_config_entry(ANNOTATION, name)
            self.runs.append((binding, options, writes))


class OnnxRuntimeCudaLoop(CarryingLoop):
    """See `StepLoop`, with CUDA graphs.

    Args: see `CarryingLoop`.
    """

    def __init__(
        self,
        engine: OnnxRuntimeEngine,
        fixed: Arrays,
        carry: Mapping[str, str],
        initial: Arrays,
        varying: Iterable[Arrays],
    ) -> None:
        super().__init__(engine, fixed, carry, initial, varying)
        self._engine = engine
        with engine.in_library():
            first = {**fixed, **initial, **(self._next or {})}
            self._memory: StepMemory | None = engine.take_memory(carry, first)
            self._fill({**fixed, **initial})
        self._done = 0

    def _fill(self, arrays: Arrays) -> None:
        assert self._memory is not None
        for name, array in arrays.items():
            self._memory.inputs[name].update_inplace(np.ascontiguousarray(array))

    def step(self) -> None:
        """Copy the varying inputs, and run once."""
        varying = self._varying_now()
        assert self._memory is not None
        binding, options, _ = self._memory.runs[self._done % 2]
        with self._engine.in_library():
            self._fill(varying)
            self._engine.session.run_with_iobinding(binding, options)
        self._done += 1
        self._advance()

    def read(self, output: str) -> np.ndarray[Any, Any]:
        """Return a copy of an output of the last step."""
        assert self._memory is not None
        *_, writes = self._memory.runs[(self._done - 1) % 2]
        with self._engine.in_library():
            return np.array(writes[output].numpy())

    def close(self) -> None:
        """Give the memory back to the engine."""
        if self._memory is not None:
            self._engine.give_memory(self._memory)
        self._memory = None
        self._end()
