"""One file of an engine folder, with what it is made from and what makes it. Imports nothing heavy."""

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

# The folder that holds what the artifact is made from, the file to write, the stage that is shown.
Write = Callable[[Path, Path, Stage], Written | None]


class Seconds(NamedTuple):
    """How long something is expected to take on two cores: for the demo model, and for a full-size one."""

    demo: float
    full: float


SMALL = Seconds(0.2, 0.2)


@dataclass(frozen=True)
class Artifact:
    """A file to have.

    Args:
        path: within the folder.
        key_fields: everything that it is made from; when one changes, it is made again.
        write: makes it; imports what it needs when it is called.
        seconds: that this is expected to take.
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
    """Return where the kernels are stored that a TensorRT build takes as plugins."""
    return f"kernels/plugins-{target}.json"


def weights_file(component: str) -> str:
    """Return where a component's weights are stored."""
    return f"onnx/{component}.safetensors"
