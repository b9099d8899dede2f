"""A person as the engines take it: identity tokens and the keys and values of all layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from infid_engines.atomic_files import whole_file
from infid_engines.errors import InputError
from infid_engines.tensor_seal import SEAL_KEY, array_seal, sort_header
from infid_engines.validation import is_number, path_of, shown, text_of
from infid_export.faces.choice import TakenFace

Array = np.ndarray[Any, Any]
_TENSORS = ("identity_tokens", "identity_keys", "identity_values")
_MODEL_KEY, _NAME_KEY = "infid_model", "infid_name"
_AGAIN = "Enroll the person again with `infid-export enroll`."


@dataclass(frozen=True, eq=False)
class Person:
    """One or several people as identity inputs of the denoising engines.

    Row 0 of each tensor is the unconditional identity, row 1 the person.

    Args:
        identity_tokens: `[2, T, D]`, float16 or float32.
        identity_keys: `[2, T, S]`, the layers concatenated.
        identity_values: `[2, T, S]`.
        model: id of the model that the person was enrolled with.
        name: the person's name, chosen by the user.
        faces: which face of each photo was used. Set by an enrollment, and not stored in the file.

    Raises:
        InputError: the tensors do not match each other, or contain non-finite values.
    """

    identity_tokens: Array
    identity_keys: Array
    identity_values: Array
    model: str
    name: str = ""
    faces: tuple[TakenFace, ...] = ()

    def __post_init__(self) -> None:
        """Reject tensors that no engine could take."""
        tensors = {name: getattr(self, name) for name in _TENSORS}
        for name, tensor in tensors.items():
            if not isinstance(tensor, np.ndarray):
                raise InputError(f"A person's {name} must be an array, not {shown(tensor)}.", fix=_AGAIN)
        text_of("A person's model", self.model)
        text_of("A person's name", self.name)
        tokens, keys, values = (tensor.shape for tensor in tensors.values())
        if not len(tokens) == len(keys) == 3 or tokens[:2] != keys[:2] or keys != values or keys[0] != 2 or 0 in keys:
            raise InputError(
                f"A person needs tokens [2, T, D] and keys and values [2, T, S], not {list(tokens)}, {list(keys)} "
                f"and {list(values)}.",
                fix=_AGAIN,
            )
        kinds = {tensor.dtype.name for tensor in tensors.values()}
        if len(kinds) != 1 or not kinds <= {"float16", "float32"}:
            raise InputError(
                f"A person's tensors must all be float16 or all float32, not {', '.join(sorted(kinds))}.", fix=_AGAIN
            )
        for name, tensor in tensors.items():
            if not np.isfinite(tensor).all():
                raise InputError(f"The person's {name} contain non-finite values.", fix=_AGAIN)

    def save(self, path: str | Path) -> None:
        """Write the person atomically as one safetensors file.

        Raises:
            InputError: the file cannot be written.
        """
        target = path_of("The person file", path, "Give a path that ends in .safetensors.")
        tensors = {name: np.ascontiguousarray(getattr(self, name)) for name in _TENSORS}
        metadata = {_MODEL_KEY: self.model, _NAME_KEY: self.name}
        content = save(tensors, metadata={**metadata, SEAL_KEY: array_seal(metadata, tensors)})
        try:
            with whole_file(target, private=True) as partial:  # a face is personal data
                partial.write_bytes(content)
                sort_header(partial)
        except OSError as error:
            raise InputError(
                f"The person cannot be written to {target} ({error.strerror}).",
                fix="Choose a file in an existing folder with free space.",
            ) from error

    @classmethod
    def load(cls, path: str | Path) -> Person:
        """Read a person.

        Raises:
            InputError: the file is missing, damaged, not a person, or contains non-finite values.
        """
        path = path_of("The person file", path, "Give a file that `infid-export enroll` wrote.")
        if not path.is_file():
            raise InputError(f"There is no person file at {path}.", fix="Make one with `infid-export enroll`.")
        try:
            with safe_open(path, framework="numpy") as file:
                metadata, names = file.metadata() or {}, set(file.keys())
                if names != set(_TENSORS) or _MODEL_KEY not in metadata:
                    raise InputError(
                        f"{path} is not a person file: it has {', '.join(sorted(names)) or 'no tensors'}"
                        f"{'' if _MODEL_KEY in metadata else ' and no model id'}.",
                        fix="Make one with `infid-export enroll`.",
                    )
                tensors = {name: file.get_tensor(name) for name in _TENSORS}
            if SEAL_KEY not in metadata:
                raise ValueError("it has no seal")
            if metadata[SEAL_KEY] != array_seal(metadata, tensors):
                raise ValueError("its content has changed")
        except (SafetensorError, OSError, TypeError, ValueError, AttributeError) as error:  # a dtype that numpy lacks
            raise InputError(f"{path} is not an intact person file ({error}).", fix=_AGAIN) from error
        try:
            return cls(**tensors, model=metadata[_MODEL_KEY], name=metadata.get(_NAME_KEY, ""))
        except InputError as error:
            raise InputError(f"{path} cannot be used. {error.problem}", fix=error.fix) from error

    def fit(self, people: int, tokens_each: int) -> Person:
        """Repeat the people to fill an engine's slots.

        This is exact: repeating every key k times changes neither the attention nor the means.

        Args:
            people: number of slots that the engine has.
            tokens_each: identity tokens per slot.

        Raises:
            InputError: the number of slots is not a multiple of the number of people.
        """
        own = self.identity_keys.shape[1]
        if own % tokens_each:
            raise InputError(
                f"The person has {own} identity tokens, but the engines take {tokens_each} per person.", fix=_AGAIN
            )
        count = own // tokens_each
        if people % count:
            raise InputError(
                f"{count} people were stacked, but the engines have {people} slot(s), not a multiple of {count}.",
                fix=f"Build the folder with --people {count}, or stack a number that divides {people}.",
            )
        times = people // count
        if times == 1:
            return self
        repeated: dict[str, Any] = {name: np.tile(getattr(self, name), (1, times, 1)) for name in _TENSORS}
        return replace(self, **repeated)


def person_name(path: Path) -> str:
    """Return the name in a person file, without reading the tensors.

    Raises:
        SafetensorError: the file is damaged.
        OSError: the file cannot be read.
    """
    with safe_open(path, framework="numpy") as file:
        name: str = (file.metadata() or {}).get(_NAME_KEY, "")
    return name


def mix(people: Sequence[tuple[Person, float]], name: str = "") -> Person:
    """Return the weighted average of people; exact for keys and values too, since the projections are linear.

    Args:
        people: pairs of person and weight; the weights are normalized to sum to 1.
        name: name of the mix.

    Raises:
        InputError: no person was given, models or sizes differ, or the weights do not have a positive sum.
    """
    if not all(isinstance(each, list | tuple) and len(each) == 2 for each in people):
        raise InputError("A mix takes pairs of a person and a weight.", fix="For example [(anna, 0.5), (bert, 0.5)].")
    first = _same_model([person for person, _ in people])
    given = [weight for _, weight in people]
    weights = np.array(given if all(map(is_number, given)) else [np.nan], dtype=np.float64)
    total = weights.sum()
    if not np.isfinite(total) or total <= 0:
        raise InputError(
            f"The weights of a mix must be finite and have a positive sum, not {shown(given)}.", fix="For example 1, 1."
        )
    if len({person.identity_tokens.shape for person, _ in people}) > 1:
        raise InputError("People with different numbers of tokens cannot be averaged.", fix="Stack them instead.")

    def average(tensor: str) -> Any:
        own: Array = getattr(first, tensor)
        # fp32: at SDXL's size, fp64 sums would take 1 GB
        summed = np.zeros(own.shape, dtype=np.float32)
        for (person, _), weight in zip(people, weights / total, strict=True):
            summed += getattr(person, tensor).astype(np.float32) * float(weight)
        return summed.astype(own.dtype)

    return Person(**{tensor: average(tensor) for tensor in _TENSORS}, model=first.model, name=name)


def stack(people: Sequence[Person], name: str = "") -> Person:
    """Concatenate people along the tokens, to show them in one image.

    Args:
        people: the people that the image shows.
        name: name of the group.

    Raises:
        InputError: no person was given, or their models differ.
    """
    first = _same_model(people)
    tensors: dict[str, Any] = {
        tensor: np.concatenate([getattr(person, tensor) for person in people], axis=1) for tensor in _TENSORS
    }
    return Person(**tensors, model=first.model, name=name)


def _same_model(people: Sequence[Person]) -> Person:
    if not people:
        raise InputError("No person was given.", fix="Give at least one.")
    for person in people:
        if not isinstance(person, Person):
            raise InputError(f"A person must be a Person, not {shown(person)}.", fix="Use Pipeline.enroll.")
    if len({person.model for person in people}) > 1:
        raise InputError("The people were enrolled with different models.", fix="Enroll them with the same engines.")
    return people[0]
