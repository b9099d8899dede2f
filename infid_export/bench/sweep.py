"""How an image's time grows: with its steps, and with batch, size and people of engine folders that differ in them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from infid_engines.errors import InputError
from infid_engines.manifest import Manifest
from infid_export.bench.images import image_calls, prompt_call, prompt_kind
from infid_export.bench.timing import Times
from infid_export.runtime.conditioning import has_guidance
from infid_export.runtime.person import Person
from infid_export.runtime.pipeline import Pipeline
from infid_export.runtime.requirements import only_steps, streams_of

_SHARES = (4, 2)  # of the steps, that images are also made with
_ALIKE = ("model", "precision", "guidance", "streams")
# What folders may differ in, by the name of the document's entry.
_PROPERTIES: Mapping[str, Callable[[Manifest], int]] = {
    "batch": lambda manifest: manifest.batch,
    "pixels": lambda manifest: manifest.height * manifest.width,
    "people": lambda manifest: manifest.people,
}


def folder_facts(manifest: Manifest) -> dict[str, Any]:
    """Return what a folder was built for."""
    return {
        "model": manifest.model["name"], "precision": manifest.precision, "height": manifest.height,
        "width": manifest.width, "batch": manifest.batch, "people": manifest.people,
        "guidance": has_guidance(manifest), "streams": streams_of(manifest),
    }  # fmt: skip


class Sweep:
    """Images with fewer steps, and images of other folders.

    Args:
        pipe: pipeline of the folder that is measured.
        steps: its steps per image.
        person: its person.
        beside: pipelines of other folders, on the same backend.

    Attributes:
        calls: the further images, by name.

    Raises:
        InputError: another folder does not differ from this one in exactly one of batch, size and people.
    """

    def __init__(self, pipe: Pipeline, steps: int, person: Person, beside: Iterable[Pipeline] = ()) -> None:
        self.calls: dict[str, Callable[[], object]] = {}
        kind = prompt_kind(pipe.manifest)
        # by property: name of the call, kind of image, value of the property, images per call
        self._points: dict[str, list[tuple[str, str, int, int]]] = {"steps": [(kind, kind, steps, pipe.manifest.batch)]}
        shares = () if only_steps(pipe.manifest) else _SHARES
        for fewer in sorted({steps // share for share in shares} - {0, steps}):
            name = f"{kind}, {fewer} steps"
            self.calls[name] = prompt_call(pipe, fewer, person)
            self._points["steps"].append((name, kind, fewer, pipe.manifest.batch))
        for other in beside:
            self._add(pipe, other, steps)

    def _add(self, pipe: Pipeline, other: Pipeline, steps: int) -> None:
        ours, theirs = folder_facts(pipe.manifest), folder_facts(other.manifest)
        differing = [name for name, value in _PROPERTIES.items() if value(other.manifest) != value(pipe.manifest)]
        if len(differing) != 1 or any(ours[name] != theirs[name] for name in _ALIKE):
            raise InputError(
                f"{other.folder} must differ from {pipe.folder} in exactly one of batch, size and people.",
                fix="Build it with the same options but one.",
            )
        (name,) = differing
        value = _PROPERTIES[name]
        usual = [
            (kind, kind, value(pipe.manifest), pipe.manifest.batch) for kind in (prompt_kind(pipe.manifest), "template")
        ]
        points = self._points.setdefault(name, usual)
        for kind, call in image_calls(other, steps).items():
            self.calls[f"{other.folder.name}, {kind}"] = call
            points.append((f"{other.folder.name}, {kind}", kind, value(other.manifest), other.manifest.batch))

    def scaling(self, times: Mapping[str, Times]) -> dict[str, dict[str, list[list[float]]]]:
        """Return by property and kind of image the pairs of the property's value and the milliseconds of an image."""
        found: dict[str, dict[str, list[list[float]]]] = {}
        for name, points in self._points.items():
            kinds: dict[str, list[list[float]]] = {}
            for call, kind, value, images in points:
                if call in times:
                    kinds.setdefault(kind, []).append([value, round(times[call].median_ms / images, 3)])
            found[name] = {kind: sorted(pairs) for kind, pairs in kinds.items()}
        return found
