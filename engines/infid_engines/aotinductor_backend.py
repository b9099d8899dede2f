"""AOTInductor: PyTorch's ahead-of-time compiler. Engines are packages of machine code without weights (`.pt2`).

All packages of a folder read the folder's own weights files, so that several share one copy in memory, and new weights
of the same architecture need no compilation. `infid_export.export.packages` builds them.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from infid_engines.backends import Backend, Extra
from infid_engines.device import CPU, Device, requested_device
from infid_engines.errors import BackendUnavailableError, InputError
from infid_engines.gpu import has_gpu, present_architecture
from infid_engines.manifest import TensorSpec
from infid_engines.processor import cpu_target

if TYPE_CHECKING:
    from infid_engines.aotinductor_runner import AOTInductorEngine


class AOTInductorBackend(Backend):
    """Packages for the GPU that is present, or without one for the processor."""

    name = "aotinductor"
    extras = (Extra("aotinductor", {"torch": "2.11"}),)
    device = "cpu"
    suffix = "pt2"
    automatic = False
    builds_anywhere = False
    builds_from_modules = True
    reads_weights = True
    compares = True

    @property
    def rank(self) -> int:
        """On a GPU before ONNX Runtime; on the CPU after it, whose steps are faster there."""
        return 2 if has_gpu() else 4

    def versions(self) -> dict[str, str]:
        """Return the version of PyTorch."""
        try:
            return {"torch": version("torch")}
        except PackageNotFoundError as error:
            raise BackendUnavailableError("PyTorch is not installed.", fix=self.extras[0].install) from error

    def check_target(self, target: str) -> None:
        """Accept the device that is present."""
        if target != self.present_target():
            raise InputError(
                f"{self.name} builds only for the device that it runs on; here it is {self.present_target()}, "
                f"not {target}.",
                fix="Run the build on that device.",
            )

    def default_targets(self) -> tuple[str, ...]:
        """Return the device that is present."""
        return (self.present_target(),)

    def present_target(self, index: int = 0) -> str:
        """Return the architecture of a GPU, or without one the processor's instruction set."""
        return present_architecture(index) or cpu_target()

    def check_device(self, index: int = 0) -> None:
        """Accept every machine: the target decides."""

    def choose_target(self, device: str, targets: Sequence[str]) -> tuple[str | None, Device]:
        """Choose the target whose packages are used: this machine's GPU, else its processor.

        Raises:
            InputError: the folder has no package for that device.
            BackendUnavailableError: the folder's packages are for other devices, or the machine lacks it.
        """
        asked = requested_device(device)
        gpu = Device("cuda", asked.index if asked else 0)
        here = {where: name for where, name in ((gpu, present_architecture(gpu.index)), (CPU, cpu_target())) if name}
        wanted = {where: name for where, name in here.items() if asked == where or device in ("auto", name)}
        for where, name in wanted.items():
            if name in targets:
                return name, where
        if not wanted:
            raise InputError(f"{self.name} cannot run on '{device}' here.", fix=f"Use {' or '.join(map(str, here))}.")
        raise BackendUnavailableError(
            f"The folder's {self.name} engines are for {', '.join(targets) or 'nothing'}, but this machine has "
            f"{' and '.join(wanted.values())}.",
            fix=f"infid-export build --backend {self.name}",
        )

    def load(
        self,
        path: Path,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        device: Device = CPU,
        threads: int | None = None,
    ) -> AOTInductorEngine:
        """Load a package and its weights.

        Raises:
            BackendUnavailableError: PyTorch is missing, or the package needs another processor.
            EngineFolderError: the package or a weights file does not fit.
        """
        self.versions()
        from infid_engines.aotinductor_runner import current, open_package

        with current(device):
            return open_package(path, inputs, outputs, device)
