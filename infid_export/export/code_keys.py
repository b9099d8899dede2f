"""Which code decides which artifacts: when it changes, they are stale."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path

# The code that decides an artifact, by its kind; what else decides it is among the artifact's own fields.
_PARTS = tuple(f"model/{name}.py" for name in ("architectures", "components", "config", "encoders", "identity"))
_REFERENCES = tuple(f"kernels/{name}.py" for name in ("adain", "mixed_attention", "merged_cross_attention"))
_CODE: Mapping[str, tuple[str, ...]] = {
    "weights": (*_PARTS, "model/shipped.py", "model/sources.py", "model/loading.py", "model/checkpoint_files.py",
                "export/weights.py"),
    "graph": (*_PARTS, *_REFERENCES, "model/processors.py", "model/step.py", "model/exported.py", "export/graphs/*.py",
              "export/graph_export.py", "export/onnx_graph.py", "export/weights.py"),
    "fused": ("export/plugin_nodes.py", "kernels/mean_shift.py"),
    "plugins": ("kernels/*.py", "kernels/configurations.json"),
    "tokenizer": ("model/tokenizers.py",),
    "faces": ("export/face_models.py", "faces/model_files.py", "faces/detection.py", "model/face_networks.py"),
    "vae_range": ("export/vae_range.py",),
    "parity": ("export/reference.py", "export/parity_case.py", "export/parity.py", "export/tolerances.py",
               "export/graph_parity.py", "export/image_parity.py"),
}  # fmt: skip


@cache
def code_hash(kind: str) -> str:
    """Return a hash of the code that decides a kind of artifact (a key of `_CODE`)."""
    kernels = find_spec("infid_kernels")  # found, not imported: that would import torch
    if kernels is None or kernels.origin is None:
        raise RuntimeError("the package infid_kernels is not installed beside infid_export")
    roots = {"kernels": Path(kernels.origin).parent, "": Path(__file__).resolve().parent.parent}
    digest = hashlib.sha256()
    for pattern in _CODE[kind]:
        root, _, rest = pattern.partition("/") if pattern.startswith("kernels/") else ("", "", pattern)
        files = sorted(roots[root].glob(rest))
        if not files:
            raise RuntimeError(f"there is no source file {pattern}")
        for file in files:
            digest.update(file.read_bytes())
    return digest.hexdigest()
