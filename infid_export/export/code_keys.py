"""Which code decides which artifacts: when it changes, they are stale.

Where the work on an artifact starts is named here; what it reaches is found in the source (`code_closure`), so that no
list of files has to be kept. What a stop names is reached and decides nothing, for the reason beside it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from functools import cache

from infid_export.export.code_closure import Code, source_file

_PACKAGES = ("infid_engines", "infid_export", "infid_kernels")
# They reject input and word errors; what is accepted is among an artifact's fields.
_REJECTING = ("infid_engines.errors", "infid_engines.validation", "infid_engines.documents")
# What a build was asked for is among an artifact's fields too; the class names every graph.
_ASKED = ("infid_export.export.build_options:BuildOptions", "infid_export.export.plan:Plan")
# Native graphs have no kernels and no nodes for them; forms with kernels have the code of `fused` besides.
_KERNELS = ("infid_kernels.ops:TRITON", "infid_export.export.plugin_nodes")
_STOPS = (*_REJECTING, *_ASKED, *_KERNELS)
# The backend that comparisons run on, in place of all that the registry knows.
_COMPARING = ("infid_engines.onnxruntime_backend:OnnxRuntimeBackend",)
_REGISTRY = "infid_engines.registry"
# Members of graphs and sources that do not decide what is exported.
_OF_PARITY = ("upstream", "parity_inputs", "by_default")
_OF_KEYS = ("fingerprint", "tokenizer_fingerprint", "notes")

_CODE: Mapping[str, Code] = {
    "weights": Code(("infid_export.export.weights:WeightsLayout",), _STOPS, (*_OF_KEYS, "tokenizers")),
    "graph": Code(
        ("infid_export.export.graph_export:GraphExporter", "infid_export.model.components:build_component"),
        _STOPS,
        _OF_PARITY,
    ),
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
        (*_OF_KEYS, "by_default"),
    ),
    "image": Code(("infid_export.export.image_parity:compare_image", *_COMPARING), (*_STOPS, _REGISTRY)),
}
_DATA: Mapping[str, str] = {"plugins": "configurations.json"}  # beside the kernels' source


@cache
def code_hash(kind: str, *subjects: type) -> str:
    """Return a hash of the code that decides a kind of artifact.

    Args:
        kind: a key of `_CODE`.
        subjects: classes that it starts in besides: of the graph, of the model's source.

    Raises:
        ValueError: code that it starts or stops in is not there.
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
