"""The inputs of a step that do not change between steps: of the prompts, and of the people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from infid_engines.errors import InputError
from infid_engines.manifest import Manifest
from infid_export.runtime.engine_set import EngineSet
from infid_export.runtime.person import Person
from infid_export.runtime.requirements import step_name
from infid_export.runtime.tokenizer import PromptTokenizer

Array = np.ndarray[Any, Any]


def has_guidance(manifest: Manifest) -> bool:
    """Return whether the steps have unconditional rows."""
    return any(spec.name == "guidance" for spec in manifest.graph(step_name(manifest)).inputs)


def check_guidance(manifest: Manifest, guidance: float) -> None:
    """Reject a guidance that the engines cannot apply.

    Raises:
        InputError: the steps have no unconditional rows, and the guidance is not 1.
    """
    if not has_guidance(manifest) and guidance != 1:
        raise InputError(
            "These engines were built without guidance: they take a guidance of 1 only.",
            fix="Leave the guidance out, or build the folder again without --no-guidance.",
        )


def text_inputs(
    engines: EngineSet, tokenizer: PromptTokenizer, prompts: Sequence[str], negative: str | None, guidance: bool,
    pixels: tuple[int, int],
) -> dict[str, Array]:  # fmt: skip
    """Return the text inputs of a step: rows of the negative prompt, if there is guidance, then of the prompts.

    Args:
        engines: of the text encoders.
        tokenizer: of the folder.
        prompts: as many as the engines' batch.
        negative: the negative prompt; None means zero embeddings.
        guidance: whether there are rows of the negative prompt.
        pixels: height and width of the images.
    """
    texts = [*([negative or ""] * len(prompts) if guidance else []), *prompts]
    first, second = tokenizer.encode(texts)
    one = engines["text_encoder"].run({"input_ids": first})
    two = engines["text_encoder_2"].run({"input_ids": second})
    height, width = pixels
    embeds = np.concatenate([one["hidden_states"], two["hidden_states"]], axis=-1)
    # zeros instead of an empty text: SDXL was trained with them, and diffusers does the same
    keep = np.repeat(np.array([negative is not None, True], embeds.dtype), len(prompts))[-len(texts) :]
    return {
        "prompt_embeds": embeds * keep[:, None, None],
        "pooled_prompt_embeds": two["pooled"] * keep[:, None],
        "time_ids": np.tile(np.array([height, width, 0, 0, height, width], np.float32), (len(texts), 1)),
    }


def fitted_person(manifest: Manifest, person: Any) -> Person:
    """Return a person with all slots of the engines filled.

    Raises:
        InputError: it is not a person, was enrolled with another model, or does not fit the slots.
    """
    if not isinstance(person, Person):
        raise InputError(f"The person must be a Person, not {type(person).__name__}.", fix="Use Pipeline.enroll.")
    if person.model != manifest.model["id"]:
        raise InputError(
            f"The person was enrolled with the model {person.model[:12]}…, but these engines are of "
            f"{str(manifest.model['id'])[:12]}….",
            fix="Enroll the photo again with `infid-export enroll`.",
        )
    return person.fit(manifest.people, manifest.identity_tokens)


def identity_inputs(people: Sequence[Person], strengths: Mapping[str, float], guidance: bool) -> dict[str, Array]:
    """Return the identity inputs of a step.

    Args:
        people: one per image of the batch, with all slots filled.
        strengths: `identity_strength`, and `style_strength` if there are two streams.
        guidance: whether there are unconditional rows.
    """
    conditions = (0, 1) if guidance else (1,)  # row 0 of a person is unconditional
    stacked = {
        name: np.stack([getattr(person, name)[row] for row in conditions for person in people])
        for name in ("identity_keys", "identity_values")
    }
    return {**stacked, **{name: np.full(len(people), value, np.float32) for name, value in strengths.items()}}
