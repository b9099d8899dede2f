"""The images of a measurement."""

from __future__ import annotations

from collections.abc import Callable

from infid_export.bench import PROMPT, SEED
from infid_export.bench.stand_in import stand_in
from infid_export.runtime.person import Person
from infid_export.runtime.pipeline import Pipeline

# The graphs that templates need.
TEXT, IDENTITY = "text_step", "identity_step"


def image_calls(pipe: Pipeline, steps: int, person: Person | None = None) -> dict[str, Callable[[], object]]:
    """Return calls that each make a batch of images: joint, and from a template if the folder can.

    Args:
        pipe: the pipeline.
        steps: steps per image.
        person: the person on all images; None encodes one.
    """
    shown = person or stand_in(pipe)
    calls = {"joint": joint_call(pipe, steps, shown)}
    if {TEXT, IDENTITY} <= set(pipe.manifest.graphs):
        template = pipe.template(PROMPT, seed=SEED, steps=steps)
        calls["template"] = lambda: pipe.generate(template, [shown] * pipe.manifest.batch)
    return calls


def joint_call(pipe: Pipeline, steps: int, person: Person) -> Callable[[], object]:
    """Return a call that makes a batch of images without a template."""
    return lambda: pipe.generate([PROMPT] * pipe.manifest.batch, person, seed=SEED, steps=steps)
