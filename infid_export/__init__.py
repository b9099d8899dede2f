"""infid-export: identity-preserving SDXL (Infinite-ID) from PyTorch to engines.

`__all__` lists the public names. `Pipeline`, `Person`, `Template`, `TemplateCache`, `mix` and `stack` are the runtime;
`InfiniteIDPipeline` is the PyTorch reference and needs the extra `export`. Each is imported on first access: `import
infid_export` imports neither numpy nor torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from infid_export.model.reference_pipeline import InfiniteIDPipeline as InfiniteIDPipeline
    from infid_export.runtime.person import Person as Person
    from infid_export.runtime.person import mix as mix
    from infid_export.runtime.person import stack as stack
    from infid_export.runtime.pipeline import Pipeline as Pipeline
    from infid_export.runtime.template import Template as Template
    from infid_export.runtime.template_cache import TemplateCache as TemplateCache

__version__ = "0.1.0"
__all__ = ["InfiniteIDPipeline", "Person", "Pipeline", "Template", "TemplateCache", "__version__", "mix", "stack"]

_MODULE_OF = {
    "InfiniteIDPipeline": "infid_export.model.reference_pipeline",
    "Person": "infid_export.runtime.person",
    "Pipeline": "infid_export.runtime.pipeline",
    "Template": "infid_export.runtime.template",
    "TemplateCache": "infid_export.runtime.template_cache",
    "mix": "infid_export.runtime.person",
    "stack": "infid_export.runtime.person",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first access.

    Raises:
        AttributeError: there is no such name.
        ModuleNotFoundError: `InfiniteIDPipeline` needs torch and diffusers, and one of them is missing.
    """
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'infid_export' has no attribute '{name}'")
    return getattr(import_module(_MODULE_OF[name]), name)
