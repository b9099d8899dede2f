"""infid-export: identity-preserving SDXL (Infinite-ID) from PyTorch to engines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from infid_export.runtime.person import Person as Person
    from infid_export.runtime.person import mix as mix
    from infid_export.runtime.person import stack as stack
    from infid_export.runtime.pipeline import Pipeline as Pipeline

__version__ = "0.1.0"
__all__ = ["Person", "Pipeline", "__version__", "mix", "stack"]


def __getattr__(name: str) -> Any:
    """Import the runtime when it is first asked for, so that the command's help stays fast."""
    if name == "Pipeline":
        from infid_export.runtime.pipeline import Pipeline

        return Pipeline
    if name in ("Person", "mix", "stack"):
        from infid_export.runtime import person

        return getattr(person, name)
    raise AttributeError(f"module 'infid_export' has no attribute '{name}'")
