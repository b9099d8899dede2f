"""The denoising loop on an engine: initial noise, batches of prompts, one engine call per step."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from infid_engines.backends import Engine
from infid_engines.errors import CancelledError, InputError, NonFiniteError
from infid_engines.manifest import Manifest
from infid_engines.validation import finite_number, shown, whole_number
from infid_export.runtime.requirements import step_name
from infid_export.sampling.samplers import SamplerTable

Array = np.ndarray[Any, Any]
OnStep = Callable[[int, float, Callable[[str], Array]], None]
FEATURES = "text_features."  # begins the names of the features' inputs and outputs
_STATE = ("latents", "denoised")  # that a step hands to the next one, for each stream


def denoise(
    engine: Engine,
    fixed: Mapping[str, Array],
    streams: Mapping[str, Noise],
    batch: Sequence[int],
    table: SamplerTable,
    varying: Callable[[int], Mapping[str, Array]],
    *,
    on_step: OnStep,
    cancel: threading.Event | None,
    stream: str = "identity",
) -> Array:
    """Run all steps of one batch.

    Args:
        engine: of a step graph.
        fixed: the inputs that do not change between steps: text inputs, identity keys and values, guidance, strengths.
        streams: by stream of the graph, the noise of all images.
        batch: the images of this batch.
        table: the sampler's.
        varying: returns further inputs of a step.
        on_step: called after each step with its index, its timestep and a function that reads an output of the graph.
        cancel: checked before each step and after the last.
        stream: the stream whose latents are returned.

    Returns:
        `[B, 4, h, w]` float32, the stream's final latents.

    Raises:
        CancelledError: `cancel` was set.
        NonFiniteError: the latents have non-finite values.
    """
    reject_cancelled(cancel)
    state, constant = initial_state(streams, batch, table)
    inputs = (
        {**step_inputs(row), **fresh_noise(streams, batch, table), **varying(index)}
        for index, row in enumerate(table.rows)
    )
    loop = engine.loop({**fixed, **constant}, _carried(streams), state, inputs)
    try:
        for index, row in enumerate(table.rows):
            reject_cancelled(cancel)
            loop.step()
            on_step(index, float(row[0]), loop.read)
        reject_cancelled(cancel)
        latents = loop.read(f"next_{stream}_latents")
    finally:  # a cancelled or failed generation must not hold the GPU's memory until it is collected
        loop.close()
    reject_non_finite(latents, "latents")
    return latents


def _carried(streams: Iterable[str]) -> dict[str, str]:
    """Return the output that becomes each input of the next step."""
    return {f"{stream}_{name}": f"next_{stream}_{name}" for stream in streams for name in _STATE}


def initial_state(
    streams: Mapping[str, Noise], batch: Sequence[int], table: SamplerTable
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Return the first state of the streams, and the noise inputs of a sampler that adds no noise: zeros."""
    state, constant = {}, {}
    for stream, noise in streams.items():
        first = noise.first[list(batch)]
        zeros = np.zeros_like(first)
        state[f"{stream}_latents"] = first * np.float32(table.initial_scale)
        state[f"{stream}_denoised"] = zeros
        if not table.stochastic:
            constant[f"{stream}_noise"] = zeros
    return state, constant


def step_inputs(row: Array) -> dict[str, Array]:
    """Return the sampler's inputs of a step."""
    return {"timestep": row[:1], "coefficients": row[1:]}


def fresh_noise(streams: Mapping[str, Noise], batch: Sequence[int], table: SamplerTable) -> dict[str, Array]:
    """Return the fresh noise of a step; streams with the same noise get the same."""
    if not table.stochastic:
        return {}
    drawn = {noise: noise.fresh(batch) for noise in dict.fromkeys(streams.values())}
    return {f"{stream}_noise": drawn[noise] for stream, noise in streams.items()}


def sizes(manifest: Manifest) -> list[tuple[int, int]]:
    """Return the smallest and the largest height, and the smallest and the largest width, in pixels."""
    latents = next(spec for spec in manifest.graph(step_name(manifest)).inputs if spec.name == "identity_latents")
    extents = [(extent, extent) if isinstance(extent, int) else (extent[0], extent[-1]) for extent in latents.shape[2:]]
    return [(manifest.vae_scale_factor * least, manifest.vae_scale_factor * most) for least, most in extents]


def image_size(manifest: Manifest, height: int | None, width: int | None) -> tuple[int, int]:
    """Return the height and width of the images in pixels.

    Args:
        manifest: the folder's manifest.
        height: the requested height; None uses the folder's default.
        width: likewise.

    Raises:
        InputError: a size is not a whole number, or not one that the engines were built for.
    """
    fix = "Give the number of pixels as an int, or leave it out."
    chosen = (
        manifest.height if height is None else whole_number("height", height, fix),
        manifest.width if width is None else whole_number("width", width, fix),
    )
    for name, pixels, (smallest, largest) in zip(("height", "width"), chosen, sizes(manifest), strict=True):
        if not smallest <= pixels <= largest or pixels % 32:
            named = str(smallest) if smallest == largest else f"{smallest} to {largest} in steps of 32"
            raise InputError(
                f"The engines were built for a {name} of {named}, not {pixels}.",
                fix=f"Use that, or build with --{name} {pixels} or --{name}-range.",
            )
    return chosen


def reject_cancelled(cancel: threading.Event | None) -> None:
    """Raise if the caller asked to stop.

    Raises:
        CancelledError: `cancel` was set.
    """
    if cancel is not None and cancel.is_set():
        raise CancelledError("The generation was cancelled.", fix="Run it again to get the image.")


def reject_non_finite(values: Array, what: str) -> None:
    """Raise instead of returning a black image.

    Raises:
        NonFiniteError: a value is not finite.
    """
    bad = values.size - int(np.isfinite(values).sum())
    if bad:
        raise NonFiniteError(
            f"The engines returned {what} with {bad} non-finite values out of {values.size}.",
            fix="Run `infid-export verify` on the folder; if it was built with --fp16, build it with --precision fp32.",
        )


def seeded_noise(seeds: Sequence[int], shape: tuple[int, ...]) -> Array:
    """Return `[n, *shape]` float32 standard normal noise, one numpy generator per seed."""
    return _drawn([np.random.default_rng(seed) for seed in seeds], shape)


def _drawn(generators: Sequence[np.random.Generator], shape: tuple[int, ...]) -> Array:
    return np.stack([each.standard_normal(shape, dtype=np.float32) for each in generators])


class Noise:
    """Standard normal noise for n images, from one generator per seed.

    Args:
        first: `[n, 4, h, w]` float32, the noise that a stream starts from.
        generators: for the noise of stochastic samplers; None if the caller gave the first noise.
    """

    def __init__(self, first: Array, generators: Sequence[np.random.Generator] | None) -> None:
        self.first, self._generators = first, generators

    def fresh(self, rows: Sequence[int]) -> Array:
        """Return the next noise of images; a row that occurs twice is the same image."""
        assert self._generators is not None
        images, places = np.unique(rows, return_inverse=True)
        return _drawn([self._generators[row] for row in images], self.first.shape[1:])[places]


def open_noise(name: str, given: Any, seed: Any, shape: tuple[int, int, int, int], stochastic: bool) -> Noise:
    """Return the noise of a stream.

    Args:
        name: of the argument, for the messages: `noise` or `text_noise`.
        given: `[n, 4, h, w]` initial noise from the caller, or None.
        seed: one seed, or one per image; one seed for several images counts up. None draws one.
        shape: `[n, 4, h, w]`.
        stochastic: whether the sampler adds noise at each step.

    Raises:
        InputError: the noise or the seeds do not fit.
    """
    if given is None:
        generators = [np.random.default_rng(each) for each in _seeds(seed, shape[0])]
        return Noise(_drawn(generators, shape[1:]), generators)
    if seed is not None:
        raise InputError(f"Both a seed and {name} were given.", fix="Give one of them.")
    if stochastic:
        raise InputError(
            f"The sampler draws noise at every step, so {name} does not decide the image.", fix="Give a seed instead."
        )
    try:
        values = np.asarray(given)
    except Exception as error:  # what objects raise that become no array is theirs to choose
        raise InputError(f"{name} cannot be read as an array ({error}).", fix="Give a numpy array.") from error
    if values.shape != shape or values.dtype.kind not in "fiu" or not np.isfinite(values).all():
        raise InputError(
            f"{name} must be finite numbers {list(shape)}, not {values.dtype} {list(values.shape)}"
            f"{' with non-finite values' if values.shape == shape else ''}.",
            fix="Draw it from a standard normal distribution.",
        )
    return Noise(values.astype(np.float32), None)


def random_seed() -> int:
    """Return a seed from the operating system's entropy."""
    return int(np.random.SeedSequence().generate_state(1)[0])


def _seeds(seed: Any, count: int) -> list[int]:
    fix = "Give one non-negative integer, or one per prompt."
    if seed is None:
        seed = random_seed()
    if isinstance(seed, list | tuple):
        found = [whole_number("A seed", value, fix) for value in seed]
    else:
        first = whole_number("A seed", seed, fix)
        found = [first + index for index in range(count)]
    if len(found) != count or min(found) < 0:
        raise InputError(f"The seeds {shown(found)} do not fit {count} prompt(s).", fix=fix)
    return found


def scalar(name: str, value: Any, default: float) -> float:
    """Return the user's number, or the folder's default.

    Raises:
        InputError: it is not a finite number.
    """
    return finite_number(name, default if value is None else value, f"The default is {default}.")


def batches(count: int, size: int) -> list[list[int]]:
    """Split rows into batches of an engine's size; the last batch is padded by repeating its last row."""
    rows = [list(range(start, min(start + size, count))) for start in range(0, count, size)]
    rows[-1] += [rows[-1][-1]] * (size - len(rows[-1]))
    return rows
