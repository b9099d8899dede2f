"""The code that each kind of artifact depends on. When it changes, they are stale.

The starting points are listed here, and `code_closure` finds in the source what they reach, so no list of files has to
be maintained. A stop is code that is reached but does not matter, for the reason in its comment.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from functools import cache

from infid_export.export.code_closure import Code, source_file

_PACKAGES = ("infid_engines", "infid_export", "infid_kernels")
# They reject input and build error messages; accepted input is among an artifact's fields.
_REJECTING = ("infid_engines.errors", "infid_engines.validation", "infid_engines.documents")
# The options of a build are among an artifact's fields too; the class names every graph.
_ASKED = ("infid_export.export.build_options:BuildOptions", "infid_export.export.plan:Plan")
# Native graphs have no kernels and no kernel nodes; forms with kernels also depend on the code of `fused`.
_KERNELS = ("infid_kernels.ops:TRITON", "infid_export.export.plugin_nodes")
_STOPS = (*_REJECTING, *_ASKED, *_KERNELS)
# The backend that comparisons run on, instead of all backends in the registry.
_COMPARING = ("infid_engines.onnxruntime_backend:OnnxRuntimeBackend",)
_REGISTRY = "infid_engines.registry"
# Members of graphs and sources that do not affect the export.
_OF_PARITY = ("upstream", "parity_inputs", "by_default", "streams")
_OF_KEYS = ("fingerprint", "tokenizer_fingerprint", "note", "notes", "license", "scheduler")

_CODE: Mapping[str, Code] = {
    "weights": Code(("infid_export.export.weights:WeightsLayout",), _STOPS, (*_OF_KEYS, "tokenizers")),
    "graph": Code(
        ("infid_export.export.graph_export:GraphExporter", "infid_export.model.components:build_component"),
        _STOPS,
        _OF_PARITY,
    ),
    "package": Code(("infid_export.export.packages:write_package",), _STOPS, (*_OF_PARITY, *_OF_KEYS)),
    "fused": Code(("infid_export.export.plugin_nodes", "infid_kernels.ops:TRITON"), _REJECTING),
    "plugins": Code(("infid_kernels.variants:write_plugins", "infid_kernels.tuning:loaded"), _REJECTING),
    "tokenizer": Code(("infid_export.model.tokenizers",), _STOPS),
    "faces": Code(
        (
            "infid_export.export.face_models:write_detector",
            "infid_export.export.face_models:write_random_recognizer",
            "infid_export.export.face_models:write_shipped",
        ),
        _STOPS,
    ),
    "vae_range": Code(("infid_export.export.vae_range:write_vae_range",), _STOPS, (*_OF_KEYS, "tokenizers")),
    "parity": Code(
        (
            "infid_export.export.graph_parity:compare_graphs",
            "infid_export.export.parity_case:ParityCase",
            *_COMPARING,
        ),
        (*_STOPS, _REGISTRY),
        (*_OF_KEYS, "by_default", "streams"),
    ),
    "image": Code(("infid_export.export.image_parity:compare_image", *_COMPARING), (*_STOPS, _REGISTRY)),
}
_DATA: Mapping[str, str] = {"plugins": "configurations.json"}  # a file next to the kernels' source


@cache
def code_hash(kind: str, *subjects: type) -> str:
    """Return a hash of the code that a kind of artifact depends on.

    Args:
        kind: a key of `_CODE`.
        subjects: classes that are further starting points: the graph's, the model source's.

    Raises:
        ValueError: a start or a stop does not exist.
    """
    code = _CODE[kind]
    starts = tuple(f"{subject.__module__}:{subject.__qualname__}" for subject in subjects)
    packages = {*_PACKAGES, *(subject.__module__.partition(".")[0] for subject in subjects)}
    digest = replace(code, starts=(*code.starts, *starts), packages=tuple(sorted(packages))).hash()
    if kind in _DATA:
        package = source_file("infid_kernels")
        assert package is not None
        content = package.with_name(_DATA[kind]).read_bytes()
        digest = hashlib.sha256(digest.encode() + content).hexdigest()
    return digest
