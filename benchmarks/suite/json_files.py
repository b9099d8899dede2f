"""Results as JSON files, written whole or not at all."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from infid_engines.atomic_files import whole_file


def write(path: Path, document: Any) -> None:
    """Write a document, whole or not at all; NaN and infinity, which JSON lacks, become strings."""
    with whole_file(path) as partial:
        partial.write_text(json.dumps(plain(document), indent=1, allow_nan=False) + "\n")


def plain(value: Any) -> Any:
    """Return a value with strings instead of NaN and infinity, and lists instead of tuples."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
