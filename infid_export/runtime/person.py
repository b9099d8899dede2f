"""A person, ready for the engines: identity tokens and the keys and values of all layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from infid_engines.errors import InputError

Array = np.ndarray[Any, Any]
_TENSORS = ("identity_tokens", "identity_keys", "identity_values")
_MODEL_KEY = "infid_model"


@dataclass(frozen=True)
class Person:
    """One or several people as identity inputs of the denoising engines.

    Row 0 of each tensor is the unconditional identity, row 1 the person.

    Args:
        identity_tokens: `[2, T, D]`.
        identity_keys: `[2, T, S]`, all layers side by side.
        identity_values: `[2, T, S]`.
        model: id of the model whose engines made it.
    """

    identity_tokens: Array
    identity_keys: Array
    identity_values: Array
    model: str

    def save(self, path: str | Path) -> None:
        """Write the person as one safetensors file, whole or not at all."""
        target = Path(path)
        partial = target.with_name(f".{target.name}.partial")
        tensors = {name: np.ascontiguousarray(getattr(self, name)) for name in _TENSORS}
        save_file(tensors, partial, metadata={_MODEL_KEY: self.model})
        partial.replace(target)

    @classmethod
    def load(cls, path: str | Path) -> Person:
        """Read a person.

        Raises:
            InputError: the file is missing, cut off, not a person, or holds non-finite values.
        """
        if not Path(path).is_file():
            raise InputError(f"There is no person file at {path}.", fix="Make one with `infid-export enroll`.")
        try:
            with safe_open(path, framework="numpy") as file:
                metadata, names = file.metadata() or {}, set(file.keys())
                if names != set(_TENSORS) or _MODEL_KEY not in metadata:
                    raise InputError(f"{path} is not a person file.", fix="Make one with `infid-export enroll`.")
                tensors = {name: file.get_tensor(name) for name in _TENSORS}
        except (SafetensorError, OSError) as error:
            raise InputError(
                f"{path} is not a whole safetensors file ({error}).", fix="Enroll the person again."
            ) from error
        if not all(np.isfinite(tensor).all() for tensor in tensors.values()):
            raise InputError(f"{path} holds non-finite values.", fix="Enroll the person again.")
        return cls(**tensors, model=metadata[_MODEL_KEY])

    def fit(self, tokens: int) -> Person:
        """Repeat the tokens to fill an engine's slots.

        Attention over keys that are all there k times equals attention over them once, and means do not change,
        so this is exact.

        Args:
            tokens: identity tokens the engine takes.

        Raises:
            InputError: the engine has too few slots, or no whole multiple.
        """
        own = self.identity_tokens.shape[1]
        if tokens % own:
            raise InputError(
                f"The person has {own} identity tokens, the engines take {tokens}.",
                fix="Build the folder with --people set to the number of people stacked.",
            )
        return self if tokens == own else self._map(lambda tensor: np.tile(tensor, (1, tokens // own, 1)))

    def _map(self, change: Any) -> Person:
        return replace(self, **{name: change(getattr(self, name)) for name in _TENSORS})


def mix(people: Sequence[tuple[Person, float]]) -> Person:
    """Average people by weights; exact on keys and values too, since the projections are linear.

    Args:
        people: person and weight; the weights are divided by their sum.

    Raises:
        InputError: no person, different models or sizes, or weights that sum to nothing.
    """
    total = sum(weight for _, weight in people)
    if not np.isfinite(total) or abs(total) < 1e-6:
        raise InputError(f"The weights of a mix sum to {total}.", fix="Give weights with a positive sum.")
    first = _same_model([person for person, _ in people])
    if len({person.identity_tokens.shape for person, _ in people}) > 1:
        raise InputError("People of different token counts cannot be averaged.", fix="Stack them instead.")
    tensors = {}
    for name in _TENSORS:
        own: Array = getattr(first, name)
        summed = sum(getattr(person, name).astype(np.float32) * (weight / total) for person, weight in people)
        tensors[name] = np.asarray(summed).astype(own.dtype)
    return Person(**tensors, model=first.model)


def stack(people: Sequence[Person]) -> Person:
    """Put people side by side along the tokens.

    Raises:
        InputError: no person, or people of different models.
    """
    first = _same_model(people)
    tensors = {name: np.concatenate([getattr(person, name) for person in people], axis=1) for name in _TENSORS}
    return Person(**tensors, model=first.model)


def _same_model(people: Sequence[Person]) -> Person:
    if not people:
        raise InputError("No person was given.", fix="Give at least one.")
    if len({person.model for person in people}) > 1:
        raise InputError("The people were enrolled with different models.", fix="Enroll them with the same engines.")
    return people[0]
