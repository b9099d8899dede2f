"""Build options as plain JSON: in the manifest, and for the processes that build parts of a folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from infid_export.export.build_options import BuildOptions
from infid_export.model.changes.lora_file import lora_choice
from infid_export.model.sources import BUILT_IN

_PATHS = ("output", "identity", "recognizer", "face_models", "tuning", "vae", "unet")
# Where `verify` finds the model again.
_SOURCES = ("model", "image_encoder", "identity", "lora", "vae", "unet")
_TUPLES = ("backends", "targets", "graphs", "height_range", "width_range", "batch_range", "lora")


def stored_options(options: BuildOptions) -> dict[str, Any]:
    """Return JSON-ready options, with absolute paths, since a folder may be verified from another one."""
    values = asdict(options)
    for name in ("model", "image_encoder"):  # a name or a path
        if values[name] and values[name] not in BUILT_IN and Path(values[name]).exists():
            values[name] = Path(values[name])
    choices = (lora_choice(each) for each in options.lora)
    values["lora"] = tuple(f"{path.absolute()}:{strength!r}" for path, strength in choices)
    plain = {name: str(value.absolute()) if isinstance(value, Path) else value for name, value in values.items()}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in plain.items()}


def sources_moved(options: BuildOptions, stored: Mapping[str, Any]) -> bool:
    """Return whether the model's files are at other paths than in stored options."""
    now = stored_options(options)
    return any(now[name] != stored.get(name, now[name]) for name in _SOURCES)


def read_options(stored: Mapping[str, Any]) -> BuildOptions:
    """Return the options that `stored_options` stored; a size that was settled from a range is left out.

    Options that are newer than the folder have their defaults.
    """
    values = dict(stored)
    for names, kind in ((_PATHS, Path), (_TUPLES, tuple)):
        values |= {name: kind(values[name]) for name in names if values.get(name) is not None}
    for name in ("height", "width"):
        values[name] = None if values[f"{name}_range"] else values[name]
    return BuildOptions(**values)
