"""The arguments of a generation: checked, and completed by the defaults of the engine folder."""

from __future__ import annotations

from typing import Any

from infid_engines.errors import InputError
from infid_engines.manifest import Manifest
from infid_engines.validation import text_of, texts_of
from infid_export.runtime.conditioning import check_guidance, fitted_person
from infid_export.runtime.denoise import scalar
from infid_export.runtime.person import Person
from infid_export.runtime.requirements import streams_of
from infid_export.sampling.samplers import SamplerTable, chosen_sampler, sampler_table


class Arguments:
    """Reads arguments of `Pipeline.generate` and `Pipeline.template`; wrong ones raise InputError.

    Args:
        manifest: of the engine folder.
    """

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest

    def texts(self, prompt: Any, negative_prompt: Any) -> tuple[list[str], str | None]:
        """Return the prompts, and the negative prompt or the folder's."""
        prompts = texts_of("A prompt", prompt, "Give a string, or a list of strings.")
        if not prompts:
            raise InputError("No prompt was given.", fix="Give at least one.")
        if negative_prompt is not None:
            text_of("The negative prompt", negative_prompt, "Give one string, which goes with every prompt.")
        negative: str | None = (
            self._manifest.defaults["negative_prompt"] if negative_prompt is None else negative_prompt
        )
        return prompts, negative

    def people(self, person: Any, prompts: int | None = None) -> list[Person]:
        """Return the people with all slots filled: one per prompt, or as many as were given for a template."""
        given = list(person) if isinstance(person, list | tuple) else [person] * (prompts or 1)
        if not given:
            raise InputError("No person was given.", fix="Give at least one.")
        if prompts is not None and len(given) != prompts:
            raise InputError(
                f"{len(given)} people were given for {prompts} prompts.", fix="Give one person, or one per prompt."
            )
        fitted = {id(each): fitted_person(self._manifest, each) for each in given}  # large: each is repeated once
        return [fitted[id(each)] for each in given]

    def strengths(self, **given: float | None) -> dict[str, float]:
        """Return the strengths, or the folder's. One stream has no style strength, and takes 0 for it only.

        Raises:
            InputError: one is not a finite number, or would have no effect.
        """
        found = {name: scalar(name, value, float(self._manifest.defaults[name])) for name, value in given.items()}
        if streams_of(self._manifest) == "one" and found.pop("style_strength") != 0:
            raise InputError(
                "The style strength has no effect: these engines have no text stream to take the style from.",
                fix="Leave it out, or build with --streams two.",
            )
        return found

    def guidance(self, given: float | None) -> float:
        """Return the guidance, or the folder's.

        Raises:
            InputError: the engines were built without guidance, and it is not 1.
        """
        found = scalar("guidance", given, float(self._manifest.defaults["guidance"]))
        check_guidance(self._manifest, found)
        return found

    def sampler(self, sampler: str | None, spacing: str | None) -> tuple[str, str | None]:
        """Return the asked-for sampler and spacing, or the folder's."""
        return chosen_sampler(sampler, spacing, self._manifest.defaults["sampler"], self._manifest.defaults["spacing"])

    def notes(self, steps: int) -> list[str]:
        """Return a sentence on a number of steps that the folder's preset is not for."""
        preset, own = self._manifest.defaults.get("preset"), self._manifest.defaults["steps"]
        if preset is None or steps == own:
            return []
        return [f"The number of steps is {steps}, but the preset {preset} is for {own}: the images may be worse."]

    def table(self, sampler: str | None, spacing: str | None, steps: int | None) -> SamplerTable:
        """Return the table of the asked-for sampler, or of the folder's."""
        asked = self._manifest.defaults["steps"] if steps is None else steps
        return sampler_table(self._manifest.scheduler, asked, *self.sampler(sampler, spacing))
