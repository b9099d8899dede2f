"""One file of an engine folder, with its key and its writer. Imports are light."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from infid_engines.folder import Written
from infid_engines.manifest import canonical_key
from infid_engines.progress import Stage

RECOGNIZER, DETECTOR = "faces/recognizer.onnx", "faces/detector.onnx"
TOKENIZERS = ("tokenizer/tokenizer.json", "tokenizer_2/tokenizer.json")

# Arguments: the folder with the artifact's inputs, the file to write, and the stage for progress.
Write = Callable[[Path, Path, Stage], Written | None]


class Seconds(NamedTuple):
    """The expected time on two cores, for the demo model and for a full-size one."""

    demo: float
    full: float


SMALL = Seconds(0.2, 0.2)


@dataclass(frozen=True)
class Artifact:
    """A file of the engine folder.

    Args:
        path: path within the folder.
        key_fields: everything that it depends on; when a field changes, it is built again.
        write: writes it; imports its dependencies when called.
        seconds: expected time to write it.
    """

    path: str
    key_fields: Mapping[str, Any]
    write: Write = field(compare=False)
    seconds: Seconds

    @property
    def key(self) -> str:
        """Hash of `key_fields`."""
        return canonical_key(self.key_fields)


def plugins_file(target: str) -> str:
    """Return the file with the kernels that a TensorRT build uses as plugins."""
    return f"kernels/plugins-{target}.json"


def weights_file(component: str) -> str:
    """Return the file with a component's weights."""
    return f"onnx/{component}.safetensors"
