"""Runs AOTInductor packages on weights that are mapped from the folder. Needs PyTorch.

A package cannot run before its weights are loaded (it would crash), so an engine exists only once they are.
"""

from __future__ import annotations

import json
import warnings
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from infid_engines.backends import Arrays, CarryingLoop, CountedEngine
from infid_engines.device import CPU, Device
from infid_engines.errors import BackendUnavailableError, EngineFolderError
from infid_engines.manifest import TensorSpec
from infid_engines.processor import missing_sets

# The entry of a package's metadata that holds its `PackageFacts`, as JSON.
FACTS = "infid"
_INSTRUCTIONS = "AOTI_CPU_ISA"  # PyTorch's entry, such as "AVX512 AVX512_VNNI"
_AGAIN = "Build the folder again with `infid-export build`."

# PyTorch warns once about read-only memory, such as the features of a template that are mapped from its file. Inputs
# are only read, so it warns here, where nobody hears it.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch.from_numpy(np.frombuffer(bytes(1), np.uint8))


class StoredWeight(NamedTuple):
    """Where a package finds one of its weights.

    Args:
        file: weights file, relative to the package.
        name: its name in that file.
        transposed: whether it is stored transposed; the package was compiled for the transposed view.
    """

    file: str
    name: str
    transposed: bool


class PackageFacts(NamedTuple):
    """What a package records about itself.

    Args:
        inputs: names of its inputs, in the order that it takes them.
        outputs: names of its outputs, in the order that it returns them.
        weights: by the name that the compiled module has for it.
        constants: small tensors that are not in a weights file, as nested lists, with their dtypes.
        channels_last: whether it was compiled for convolution weights in channels_last layout.
    """

    inputs: Sequence[str]
    outputs: Sequence[str]
    weights: Mapping[str, StoredWeight]
    constants: Mapping[str, tuple[str, Any]]
    channels_last: bool

    def to_json(self) -> str:
        """Return the facts as they are stored in the package."""
        return json.dumps(self._asdict())

    @classmethod
    def from_json(cls, text: str) -> PackageFacts:
        """Read stored facts.

        Raises:
            KeyError, TypeError, ValueError: they are not what `to_json` returns.
        """
        found = json.loads(text)
        weights = {name: StoredWeight(*each) for name, each in found["weights"].items()}
        return cls(**{**found, "weights": weights})


class SharedWeights:
    """A weights file, mapped into memory; on a GPU, a copy of each tensor that is asked for.

    All packages that use a file on a device share one object. PyTorch never gives up a package's references to tensors
    that it does not own, so the copies are freed by hand, with the object.

    Args:
        path: the safetensors file.
        device: where the packages run.
    """

    def __init__(self, path: Path, device: Device) -> None:
        self._file: Any = safe_open(path, "pt")  # tensors on the CPU are views of the mapped file
        self._device = device
        self._uploaded: dict[tuple[StoredWeight, bool], Tensor] = {}
        weakref.finalize(self, _free, self._uploaded)

    def tensor(self, stored: StoredWeight, channels_last: bool) -> Tensor:
        """Return a weight with the strides that a package was compiled for.

        Raises:
            SafetensorError: the file has no such tensor.
        """
        if (stored, channels_last) in self._uploaded:
            return self._uploaded[stored, channels_last]
        found: Tensor = self._file.get_tensor(stored.name)
        found = found.t() if stored.transposed else found
        if self._device != CPU:
            layout = torch.channels_last if channels_last and found.dim() == 4 else torch.preserve_format
            found = found.to(torch_device(self._device), memory_format=layout, copy=True)
            self._uploaded[stored, channels_last] = found
        return found


def _free(tensors: dict[tuple[StoredWeight, bool], Tensor]) -> None:
    for tensor in tensors.values():
        tensor.untyped_storage().resize_(0)


_shared: weakref.WeakValueDictionary[tuple[Path, int, Device], SharedWeights] = weakref.WeakValueDictionary()


def shared_weights(path: Path, device: Device) -> SharedWeights:
    """Return a weights file on a device, which stays there while a package uses it."""
    key = (path.resolve(), path.stat().st_mtime_ns, device)
    found = _shared.get(key)
    if found is None:
        found = _shared[key] = SharedWeights(path, device)
    return found


def torch_device(device: Device) -> torch.device:
    """Return a device as PyTorch's; `cuda` alone would be the calling thread's current GPU."""
    return torch.device(device.kind) if device == CPU else torch.device(device.kind, device.index)


def current(device: Device) -> AbstractContextManager[object]:
    """Make a GPU the current one of this thread while a block runs: packages are loaded and launched there."""
    return nullcontext() if device == CPU else torch.cuda.device(device.index)


def open_package(
    path: Path, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], device: Device
) -> AOTInductorEngine:
    """Load a verified package and its weights.

    Raises:
        BackendUnavailableError: it needs instructions that this processor lacks.
        EngineFolderError: it cannot be loaded, or does not fit its weights or the manifest.
    """
    try:
        # not `aoti_load_package`: to compare processors, it needs a C++ compiler, and starts it a dozen times
        name, single_threaded, runners, gpu = "model", True, 1, -1 if device == CPU else device.index
        package = torch._C._aoti.AOTIModelPackageLoader(str(path), name, single_threaded, runners, gpu)
        metadata = package.get_metadata()
        facts = PackageFacts.from_json(metadata[FACTS])
    except Exception as error:  # PyTorch raises RuntimeError and others, without a common class
        raise EngineFolderError(f"PyTorch cannot load {path} ({error}).", fix=_AGAIN) from error
    lacking = missing_sets(metadata.get(_INSTRUCTIONS, "").lower().split()) if device == CPU else []
    if lacking:
        raise BackendUnavailableError(
            f"{path.name} was compiled for a processor with {', '.join(lacking)}, which this one lacks.", fix=_AGAIN
        )
    for kind, specs, names in (("inputs", inputs, facts.inputs), ("outputs", outputs, facts.outputs)):
        different = sorted({spec.name for spec in specs} ^ set(names))
        if different:
            raise EngineFolderError(
                f"The {kind} of {path} differ from the manifest's: only one of them has {different[0]!r}.", fix=_AGAIN
            )
    files = {each.file: shared_weights(path.parent / each.file, device) for each in facts.weights.values()}
    constants = {
        name: torch.tensor(value, dtype=getattr(torch, dtype), device=torch_device(device))
        for name, (dtype, value) in facts.constants.items()
    }
    try:
        for name in package.get_constant_fqns():
            if name not in constants:
                stored = facts.weights[name]
                constants[name] = files[stored.file].tensor(stored, facts.channels_last)
        use_inactive, check_full_update, user_managed = False, True, True
        package.load_constants(constants, use_inactive, check_full_update, user_managed)
    except (KeyError, RuntimeError, SafetensorError) as error:
        raise EngineFolderError(f"{path.name} does not fit its weights ({error}).", fix=_AGAIN) from error
    return AOTInductorEngine(package, facts, inputs, outputs, device, (constants, files))


class AOTInductorEngine(CountedEngine):
    """A package whose weights are loaded.

    Args:
        package: PyTorch's loaded package.
        facts: its names.
        inputs: the graph's inputs.
        outputs: the graph's outputs.
        device: where it runs.
        held: what the package uses and does not own.
    """

    failure = "PyTorch cannot run the package"
    errors = RuntimeError

    def __init__(
        self, package: Any, facts: PackageFacts, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...],
        device: Device, held: object,
    ) -> None:  # fmt: skip
        super().__init__(inputs, outputs)
        self.facts, self.device = facts, device
        self._package, self._held = package, held

    def run(self, inputs: Arrays) -> dict[str, np.ndarray[Any, Any]]:
        """Run once on host arrays."""
        self.checked.check(inputs)
        with self.in_library():
            found = self.run_tensors({name: self.tensor(array) for name, array in inputs.items()})
            return {name: found[name].cpu().numpy() for name in self.outputs}

    def tensor(self, array: np.ndarray[Any, Any]) -> Tensor:
        """Return an array as a tensor on the device; on the CPU, one of the same memory."""
        return torch.from_numpy(np.ascontiguousarray(array)).to(torch_device(self.device))

    def run_tensors(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run on tensors of the device, within `in_library`; a GPU may still compute when this returns."""
        results = self._package.run([tensors[name] for name in self.facts.inputs])
        return dict(zip(self.facts.outputs, results, strict=True))

    def loop(
        self, fixed: Arrays, carry: Mapping[str, str], initial: Arrays, varying: Iterable[Arrays]
    ) -> AOTInductorLoop:
        """Start a loop: fixed inputs are copied to the device once, and carried tensors stay there."""
        return AOTInductorLoop(self, fixed, carry, initial, varying)

    @contextmanager
    def in_library(self) -> Iterator[None]:
        """Count the seconds of calls.

        Raises:
            BackendUnavailableError: the GPU has too little memory.
            EngineFolderError: a call failed.
        """
        try:
            with super().in_library(), current(self.device):
                yield
        except EngineFolderError as error:
            if isinstance(error.__cause__, torch.OutOfMemoryError):
                raise BackendUnavailableError(
                    f"There is not enough GPU memory ({str(error.__cause__).splitlines()[0]}).",
                    fix="Close other programs that use it, or build for a smaller batch or size.",
                ) from error.__cause__
            raise

    def close(self) -> None:
        """Free the package; the weights are freed with the last package that uses them."""
        self._package = self._held = None


class AOTInductorLoop(CarryingLoop):
    """See `StepLoop`: the outputs of a step are passed to the next one as they are.

    Args: see `CarryingLoop`.
    """

    def __init__(
        self,
        engine: AOTInductorEngine,
        fixed: Arrays,
        carry: Mapping[str, str],
        initial: Arrays,
        varying: Iterable[Arrays],
    ) -> None:
        super().__init__(engine, fixed, carry, initial, varying)
        self._engine = engine
        self._tensors = {name: engine.tensor(array) for name, array in {**fixed, **initial}.items()}
        self._outputs = {result: self._tensors[source] for source, result in carry.items()}

    def step(self) -> None:
        """Run once."""
        self._tensors |= {name: self._engine.tensor(array) for name, array in self._varying_now().items()}
        with self._engine.in_library():
            self._outputs = self._engine.run_tensors(self._tensors)
        self._tensors |= {source: self._outputs[result] for source, result in self._carry.items()}
        self._advance()

    def read(self, output: str) -> np.ndarray[Any, Any]:
        """Return a copy of an output of the last step."""
        with self._engine.in_library():
            return np.array(self._outputs[output].cpu().numpy())

    def close(self) -> None:
        """Release the tensors."""
        self._tensors, self._outputs = {}, {}
        self._end()
