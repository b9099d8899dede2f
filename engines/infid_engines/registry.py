"""The backends by name."""

from __future__ import annotations

from infid_engines.backends import Backend
from infid_engines.errors import InputError

BACKENDS = ("onnxruntime", "tensorrt", "tensorrt_rtx")


def get_backend(name: str) -> Backend:
    """Return a backend by name.

    Raises:
        InputError: there is none of that name.
    """
    if name == "onnxruntime":
        from infid_engines.onnxruntime_backend import OnnxRuntimeBackend

        return OnnxRuntimeBackend()
    if name in ("tensorrt", "tensorrt_rtx"):
        from infid_engines.tensorrt_backend import TensorRTBackend

        return TensorRTBackend(name)
    raise InputError(f"There is no backend named '{name}'.", fix=f"Choose from {', '.join(BACKENDS)}.")
