"""The backends by name: the only list of them. Imports are light."""

from __future__ import annotations

from infid_engines.aotinductor_backend import AOTInductorBackend
from infid_engines.backends import Backend
from infid_engines.errors import InputError
from infid_engines.onnxruntime_backend import OnnxRuntimeBackend
from infid_engines.tensorrt_backend import TensorRTBackend, TensorRTRTXBackend

BACKENDS: dict[str, Backend] = {
    backend.name: backend
    for backend in (OnnxRuntimeBackend(), TensorRTBackend(), TensorRTRTXBackend(), AOTInductorBackend())
}
# The backend for parity and for face models: it needs neither a GPU nor a build.
PARITY_BACKEND = OnnxRuntimeBackend.name


def get_backend(name: str) -> Backend:
    """Return a backend by name.

    Raises:
        InputError: there is no backend with that name.
    """
    if name not in BACKENDS:
        raise InputError(f"There is no backend named '{name}'.", fix=f"Choose from {', '.join(BACKENDS)}.")
    return BACKENDS[name]


def fastest_first() -> list[Backend]:
    """Return all backends in the order of `auto`."""
    return sorted(BACKENDS.values(), key=lambda backend: backend.rank)
