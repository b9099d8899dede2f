"""The images of a measurement."""

from __future__ import annotations

from collections.abc import Callable

from infid_engines.manifest import Manifest
from infid_engines.progress import SilentReporter
from infid_export.bench import PROMPT, SEED
from infid_export.bench.stand_in import stand_in
from infid_export.runtime.person import Person
from infid_export.runtime.pipeline import Pipeline
from infid_export.runtime.requirements import streams_of

# The graphs that templates need.
TEXT, IDENTITY = "text_step", "identity_step"


def image_calls(pipe: Pipeline, steps: int, person: Person | None = None) -> dict[str, Callable[[], object]]:
    """Return calls that each make a batch of images: from a prompt, and from a template if the folder can.

    Args:
        pipe: the pipeline.
        steps: steps per image.
        person: the person on all images; None encodes one.
    """
    shown = person or stand_in(pipe)
    calls = {prompt_kind(pipe.manifest): prompt_call(pipe, steps, shown)}
    if {TEXT, IDENTITY} <= set(pipe.manifest.graphs):
        template = pipe.template(PROMPT, seed=SEED, steps=steps, reporter=SilentReporter())
        calls["template"] = lambda: pipe.generate(template, [shown] * pipe.manifest.batch)
    return calls


def prompt_kind(manifest: Manifest) -> str:
    """Return the kind of an image from a prompt: both streams are run jointly, or there is a single one."""
    return {"two": "joint", "one": "single"}[streams_of(manifest)]


def prompt_call(pipe: Pipeline, steps: int, person: Person) -> Callable[[], object]:
    """Return a call that makes a batch of images without a template."""
    prompts, unheard = [PROMPT] * pipe.manifest.batch, SilentReporter()  # of other steps than a preset's
    return lambda: pipe.generate(prompts, person, seed=SEED, steps=steps, reporter=unheard)
