"""Runs graphs in ONNX Runtime: inputs and outputs are bound, and carried tensors stay on the device."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from infid_engines.backends import Arrays, CarryingLoop, CountedEngine, StepLoop
from infid_engines.device import Device
from infid_engines.manifest import TensorSpec

# The entry of a run's options that names a graph; a run with the second value is not captured.
_ANNOTATION, _UNCAPTURED = "gpu_graph_annotation_id", "-1"


class OnnxRuntimeEngine(CountedEngine):
    """A graph in ONNX Runtime.

    Args:
        session: onnxruntime.InferenceSession.
        inputs: the graph's inputs.
        outputs: the graph's outputs.
        device: what the session runs on.
        captures: whether the session captures its runs as CUDA graphs.
    """

    failure = "onnxruntime cannot run the graph"

    def __init__(
        self,
        session: Any,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        device: Device,
        captures: bool = False,
    ) -> None:
        super().__init__(inputs, outputs)
        self.session, self.device, self._captures = session, device, captures
        self._free: list[StepMemory] = []
        self._graphs = itertools.count()

    def run(self, inputs: Arrays) -> dict[str, np.ndarray[Any, Any]]:
        """Run once on host arrays."""
        self.checked.check(inputs)
        names, options = list(self.outputs), None
        if self._captures:
            from onnxruntime import RunOptions

            options = RunOptions()
            options.add_run_config_entry(_ANNOTATION, _UNCAPTURED)
        with self.in_library():
            return dict(zip(names, self.session.run(names, dict(inputs), options), strict=True))

    def loop(self, fixed: Arrays, carry: Mapping[str, str], initial: Arrays, varying: Iterable[Arrays]) -> StepLoop:
        """Start a loop: buffers are allocated here, and fixed inputs are copied to the device once."""
        kind = OnnxRuntimeCudaLoop if self._captures else OnnxRuntimeLoop
        return kind(self, fixed, carry, initial, varying)

    def take_memory(self, carry: Mapping[str, str], arrays: Arrays) -> StepMemory:
        """Return memory for a loop on such inputs, used before if possible; `give_memory` gives it back."""
        for index, memory in enumerate(self._free):
            if memory.fits(arrays):
                return self._free.pop(index)
        return StepMemory(self, carry, arrays, (str(next(self._graphs)), str(next(self._graphs))))

    def give_memory(self, memory: StepMemory) -> None:
        """Keep the memory of a loop that has ended for the next one."""
        self._free.append(memory)

    def close(self) -> None:
        """Free the session."""
        self._free.clear()
        self.session = None


class OnnxRuntimeLoop(CarryingLoop):
    """See `StepLoop`, without CUDA graphs. Fixed inputs are bound once.

    A carried tensor has two buffers, which are swapped at every step.

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
        from onnxruntime import OrtValue

        super().__init__(engine, fixed, carry, initial, varying)
        self._engine, place = engine, (engine.device.kind, engine.device.index)
        self._binding: Any = engine.session.io_binding()
        self._held: dict[str, Any] = {}  # what is bound: the binding does not keep it
        for name, array in fixed.items():
            self._held[name] = OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), *place)
            self._binding.bind_ortvalue_input(name, self._held[name])
        for name, array in initial.items():
            self._held[name] = OrtValue.ortvalue_from_numpy(array.copy(), *place)  # it is written to later
            self._held[carry[name]] = OrtValue.ortvalue_from_numpy(array.copy(), *place)
        self._others = [name for name in engine.outputs if name not in self._held]
        for name in self._others:  # before the carried ones: the binding lists outputs in this order
            self._binding.bind_output(name, *place)

    def step(self) -> None:
        """Run once, and swap the buffers of the carried tensors."""
        for name, array in self._varying_now().items():
            self._held[name] = np.ascontiguousarray(array)
            self._binding.bind_cpu_input(name, self._held[name])
        for source, result in self._carry.items():
            self._binding.bind_ortvalue_input(source, self._held[source])
            self._binding.bind_ortvalue_output(result, self._held[result])
        with self._engine.in_library():
            self._engine.session.run_with_iobinding(self._binding)
        for source, result in self._carry.items():
            self._held[source], self._held[result] = self._held[result], self._held[source]
        self._advance()

    def read(self, output: str) -> np.ndarray[Any, Any]:
        """Return a copy of an output of the last step."""
        if output in self._became:
            return np.array(self._held[self._became[output]].numpy())
        return np.array(self._binding.get_outputs()[self._others.index(output)].numpy())

    def close(self) -> None:
        """Release the arrays."""
        self._binding = None
        self._held = {}
        self._end()


class StepMemory:
    """The memory of one loop on a GPU, and two bindings to it, between which carried tensors swap places.

    A captured graph reads and writes fixed addresses, so an engine keeps the memory of its steps between loops.

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

        place = engine.device.kind, engine.device.index

        def allocated(shape: Iterable[Any], dtype: Any) -> Any:
            return OrtValue.ortvalue_from_shape_and_type(list(shape), np.dtype(dtype), *place)

        self.inputs = {name: allocated(array.shape, array.dtype) for name, array in arrays.items()}
        self.outputs = {name: allocated(spec.shape, spec.dtype) for name, spec in engine.outputs.items()}
        inputs = self.inputs | {source: self.outputs[result] for source, result in carry.items()}
        outputs = self.outputs | {result: self.inputs[source] for source, result in carry.items()}
        self.runs = []
        for reads, writes, name in ((self.inputs, self.outputs, names[0]), (inputs, outputs, names[1])):
            binding, options = engine.session.io_binding(), RunOptions()
            for each, value in reads.items():
                binding.bind_ortvalue_input(each, value)
            for each, value in writes.items():
                binding.bind_ortvalue_output(each, value)
            options.add_run_config_entry(_ANNOTATION, name)
            self.runs.append((binding, options, writes))

    def fits(self, arrays: Arrays) -> bool:
        """Return whether these inputs have the shapes of the memory."""
        shapes = {name: tuple(value.shape()) for name, value in self.inputs.items()}
        return shapes == {name: array.shape for name, array in arrays.items()}


class OnnxRuntimeCudaLoop(CarryingLoop):
    """See `StepLoop`, with CUDA graphs: ONNX Runtime captures one on the first use of a binding, and then replays it.

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
