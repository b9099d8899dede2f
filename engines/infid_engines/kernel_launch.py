"""Launches a compiled kernel through the CUDA driver API, without Triton and torch.

The launch description has everything that a launch needs: the arguments in order, grid and integers as expressions of
sizes, block size, shared memory, and the alignment of every address and stride. Run on an H200 (sm_90).
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from infid_engines.errors import BackendUnavailableError, InputError
from infid_engines.expressions import evaluate, names_in

# Bytes of shared memory per block without opting in to more, and the driver's largest grid
# (CUDA C++ Programming Guide, table of compute capabilities).
_DEFAULT_SHARED = 48 * 1024
_MAX_GRID = (2**31 - 1, 65535, 65535)
_MAX_TOKEN_STRIDE = 2**24 - 1  # elements: offsets within a block of up to 128 tokens are 32-bit integers
_INTEGER = "i32"


class PackedArguments:
    """Kernel parameters in memory, and the array of their addresses that the driver reads.

    Args:
        values: the parameters in order.
    """

    def __init__(self, values: Sequence[ctypes.c_uint64 | ctypes.c_int32]) -> None:
        self.values = tuple(values)  # kept alive, since the array has only their addresses
        self.array = (ctypes.c_void_p * len(self.values))(*map(ctypes.addressof, self.values))

    @property
    def address(self) -> int:
        """Address of the array: `kernelParams` of cuLaunchKernel."""
        return ctypes.addressof(self.array)


class Kernel:
    """One compiled kernel.

    Args:
        description: its launch description.
        code: its cubin, or its PTX.
        form: which of the two `code` is.
        choice: why this kernel was chosen, in one sentence.
    """

    def __init__(
        self, description: Mapping[str, Any], code: bytes, form: Literal["cubin", "ptx"], choice: str = ""
    ) -> None:
        self.description = description
        self.code = code
        self.form = form
        self.choice = choice
        self._functions: dict[int, Any] = {}  # by CUDA context
        expressions = [*description["grid"], *(each["value"] for each in description["arguments"] if "value" in each)]
        self._sizes = sorted(set[str]().union(*map(names_in, expressions)))

    def grid(self, sizes: Mapping[str, int]) -> tuple[int, int, int]:
        """Return the launch grid.

        Args:
            sizes: `rows`, `heads`, `queries`, `identity_length`, `text_length`.

        Raises:
            InputError: a size is missing or impossible, or the grid is too large.
        """
        self._check_sizes(sizes)
        x, y, z = (evaluate(expression, sizes) for expression in self.description["grid"])
        for axis, extent, largest in zip("xyz", (x, y, z), _MAX_GRID, strict=True):
            if not 0 < extent <= largest:
                raise InputError(
                    f"The grid of {self.description['op']} must have 1 to {largest} blocks along {axis}, "
                    f"but these sizes give {extent}.",
                    fix="Launch it for fewer rows at once.",
                )
        return x, y, z

    def arguments(
        self, pointers: Mapping[str, int], sizes: Mapping[str, int], strides: Mapping[str, int] | None = None
    ) -> PackedArguments:
        """Pack the kernel's parameters.

        Args:
            pointers: device address of every tensor, by the argument's name (`q`, `k_id`, …, `out`).
            sizes: `rows`, `heads`, `queries`, `identity_length`, `text_length`.
            strides: elements, by the argument's name (`stride_qn`); the default is the strides of a contiguous tensor
                `[B, N, H, d]`.

        Raises:
            InputError: an argument is missing, unknown, or not aligned as the compiled kernel needs it.
        """
        self._check_sizes(sizes)
        strides = strides or {}
        arguments = self.description["arguments"]
        integers = {each["name"] for each in arguments if each["type"] == _INTEGER}
        addresses = {each["name"] for each in arguments if each["type"] != _INTEGER}
        self._check_names("pointer", pointers, addresses, needed=addresses)
        self._check_names("stride", strides, {name for name in integers if name.startswith("stride_")}, needed=set())
        values: list[ctypes.c_uint64 | ctypes.c_int32] = []
        for each in arguments:
            name = each["name"]
            if each["type"] == _INTEGER:
                value = strides[name] if name in strides else evaluate(each["value"], sizes)
                self._check_multiple(name, value, each["multiple_of"], "elements")
                largest = _MAX_TOKEN_STRIDE if name.startswith("stride_") and name.endswith("n") else 2**31 - 1
                if not 0 <= value <= largest:
                    raise InputError(f"{name} must be 0 to {largest}, got {value}.", fix="Use smaller tensors.")
                values.append(ctypes.c_int32(value))
            else:
                self._check_address(each, pointers[name], sizes)
                self._check_multiple(name, pointers[name], each["multiple_of"], "bytes")
                values.append(ctypes.c_uint64(pointers[name]))
        # Triton appends pointers to scratch memory, which these kernels do not read
        values += [ctypes.c_uint64(0)] * self.description["scratch_pointers"]
        return PackedArguments(values)

    def launch(
        self,
        stream: int,
        pointers: Mapping[str, int],
        sizes: Mapping[str, int],
        strides: Mapping[str, int] | None = None,
    ) -> None:
        """Enqueue the kernel in the current CUDA context without waiting for it.

        The first launch in a context loads the code. For PTX this is slow, since the driver compiles it.

        Args:
            stream: handle of the CUDA stream; 0 is the default stream.
            pointers: see `arguments`.
            sizes: see `arguments`.
            strides: see `arguments`.

        Raises:
            BackendUnavailableError: cuda-python, the driver or a context is missing, or the GPU cannot run the code.
            InputError: see `arguments` and `grid`.
        """
        packed, grid = self.arguments(pointers, sizes, strides), self.grid(sizes)
        driver = _driver()
        function = self._function(driver)
        shared = self.description["shared_bytes"]
        status = driver.cuLaunchKernel(function, *grid, *self.description["block"], shared, stream, packed.address, 0)
        self._checked(status, "be launched")

    def _function(self, driver: Any) -> Any:
        """Return the kernel's handle in the current context."""
        context = int(self._checked(driver.cuCtxGetCurrent(), "find a CUDA context"))
        if context == 0:
            raise BackendUnavailableError(
                "No CUDA context is current in this thread.",
                fix="Create one first, as every CUDA library does at its first call (cudaSetDevice, cudaMalloc).",
            )
        if context not in self._functions:
            code = self.code + b"\0" if self.form == "ptx" else self.code  # the driver reads PTX as a C string
            module = self._checked(driver.cuModuleLoadData(code), "be loaded")
            entry = self.description["entry"].encode()
            function = self._checked(driver.cuModuleGetFunction(module, entry), "be found in its code")
            if self.description["shared_bytes"] > _DEFAULT_SHARED:
                attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
                status = driver.cuFuncSetAttribute(function, attribute, self.description["shared_bytes"])
                self._checked(status, f"have {self.description['shared_bytes']} bytes of shared memory")
            self._functions[context] = function
        return self._functions[context]

    def _checked(self, result: tuple[Any, ...], what: str) -> Any:
        """Unpack a driver call's result.

        Raises:
            BackendUnavailableError: it failed.
        """
        status, *values = result
        if int(status) != 0:
            raise BackendUnavailableError(
                f"The kernel {self.choice or self.description['op']} could not {what}: {status.name}.",
                fix="Check the GPU and its driver with `infid-export doctor`, and the kernel's architecture.",
            )
        return values[0] if values else None

    def _check_sizes(self, sizes: Mapping[str, int]) -> None:
        """Reject sizes that are missing, negative or unsupported by this form of the kernel."""
        for name in self._sizes:
            if name not in sizes:
                raise InputError(
                    f"{self.description['op']} needs the size '{name}'; given: {', '.join(sizes) or 'none'}.",
                    fix="Give rows, heads, queries, identity_length and text_length.",
                )
            least = 0 if name == "identity_length" else 1
            if sizes[name] < least:
                raise InputError(f"{name} must be at least {least}, got {sizes[name]}.", fix=f"Correct {name}.")
        for name, multiple in self.description["multiples"].items():
            if sizes[name] % multiple:
                raise InputError(
                    f"This kernel takes full blocks of {multiple} keys, but {name} is {sizes[name]}.",
                    fix="Look the kernel up with `KernelBundle.find` and these lengths.",
                )

    def _check_names(self, kind: str, given: Mapping[str, int], known: set[str], needed: set[str]) -> None:
        missing, unknown = sorted(needed - set(given)), sorted(set(given) - known)
        if missing or unknown:
            what = f"lacks the {kind} {', '.join(missing)}" if missing else f"has no {kind} {', '.join(unknown)}"
            raise InputError(f"{self.description['op']} {what}.", fix=f"It takes {', '.join(sorted(known)) or 'none'}.")

    def _check_address(self, argument: Mapping[str, Any], address: int, sizes: Mapping[str, int]) -> None:
        """Reject a null pointer, unless the tensor is empty (without identity tokens)."""
        empty = any(evaluate(extent, sizes) == 0 for extent in argument["shape"])
        if not 0 < address < 2**64 and not (address == 0 and empty):
            raise InputError(
                f"{argument['name']} must be a device address, got {address}.", fix="Give the tensor's address."
            )

    def _check_multiple(self, name: str, value: int, multiple: int, unit: str) -> None:
        if value % multiple:
            raise InputError(
                f"{name} must be a multiple of {multiple} {unit}, got {value}.",
                fix="Copy the tensor to memory with this alignment, for example from cudaMalloc.",
            )


def _driver() -> Any:
    """Return cuda-python's driver API.

    Raises:
        BackendUnavailableError: cuda-python or NVIDIA's driver is not installed.
    """
    try:
        from cuda.bindings import driver
    except ImportError as error:
        raise BackendUnavailableError(
            f"Launching kernels needs cuda-python ({error}).", fix='pip install "cuda-python>=13"'
        ) from error
    try:
        driver.cuDriverGetVersion()
    except RuntimeError as error:
        raise BackendUnavailableError(
            f"NVIDIA's driver cannot be used ({error}).", fix="Install it; `infid-export doctor` says what it finds."
        ) from error
    return driver
