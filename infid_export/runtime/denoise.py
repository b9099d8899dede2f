"""The denoising loop on an engine: initial noise, batches of prompts, one engine call per step."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from infid_engines.backends import Engine
from infid_engines.errors import CancelledError, EngineFolderError, InputError
from infid_engines.manifest import Manifest
from infid_engines.validation import finite_number, shown, whole_number

Array = np.ndarray[Any, Any]
OnStep = Callable[[int, float, Callable[[], Array]], None]
_CARRY = {"text_latents": "next_text_latents", "identity_latents": "next_identity_latents"}


def denoise(
    engine: Engine,
    fixed: Mapping[str, Array],
    text_noise: Array,
    noise: Array,
    table: Array,
    *,
    on_step: OnStep,
    cancel: threading.Event | None,
) -> Array:
    """Run all steps of one batch.

    Args:
        engine: the engine of the graph `denoise_step`.
        fixed: the inputs that do not change between steps: text inputs, identity keys and values, guidance, strengths.
        text_noise: `[B, 4, h, w]` float32, the text stream's initial noise.
        noise: `[B, 4, h, w]` float32, the identity stream's initial noise.
        table: `[steps, 3]`, see `ddim_table`.
        on_step: called after each step with its index, its timestep and a function that returns the latents.
        cancel: checked before each step and after the last.

    Returns:
        `[B, 4, h, w]` float32, the identity stream's final latents.

    Raises:
        CancelledError: `cancel` was set.
        EngineFolderError: the latents contain non-finite values.
    """
    reject_cancelled(cancel)
    loop = engine.loop(fixed, _CARRY, {"text_latents": text_noise, "identity_latents": noise})
    try:
        for index, row in enumerate(table):
            reject_cancelled(cancel)
            loop.step({"timestep": row[:1], "ddim_coefficients": row[1:]})
            on_step(index, float(row[0]), lambda: loop.read("identity_latents"))
        reject_cancelled(cancel)
        latents = loop.read("identity_latents")
    finally:  # a cancelled or failed generation must not hold GPU memory until garbage collection
        loop.close()
    reject_non_finite(latents, "latents")
    return latents


def image_size(manifest: Manifest, height: int | None, width: int | None) -> tuple[int, int]:
    """Return the height and width of the images in pixels.

    Args:
        manifest: the folder's manifest.
        height: the requested height; None uses the folder's default.
        width: likewise.

    Raises:
        InputError: a size is not a whole number, or not one that the engines were built for.
    """
    latents = next(spec for spec in manifest.graph("denoise_step").inputs if spec.name == "identity_latents")
    fix = "Give the number of pixels as an int, or leave it out."
    chosen = (
        manifest.height if height is None else whole_number("height", height, fix),
        manifest.width if width is None else whole_number("width", width, fix),
    )
    for name, pixels, extent in zip(("height", "width"), chosen, latents.shape[2:], strict=True):
        ends = [extent] if isinstance(extent, int) else extent
        smallest, largest = (manifest.vae_scale_factor * end for end in (ends[0], ends[-1]))
        if not smallest <= pixels <= largest or pixels % 32:
            sizes = str(smallest) if smallest == largest else f"{smallest} to {largest} in steps of 32"
            raise InputError(
                f"The engines were built for a {name} of {sizes}, not {pixels}.",
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
        EngineFolderError: a value is not finite.
    """
    bad = values.size - int(np.isfinite(values).sum())
    if bad:
        raise EngineFolderError(
            f"The engines returned {what} with {bad} non-finite values out of {values.size}.",
            fix="Run `infid-export verify` on the folder; if it was built with --fp16, build it with --precision fp32.",
        )


def seeded_noise(seeds: Sequence[int], shape: tuple[int, ...]) -> Array:
    """Return `[n, *shape]` float32 standard normal noise, one numpy generator per seed."""
    return np.stack([np.random.default_rng(seed).standard_normal(shape, dtype=np.float32) for seed in seeds])


def initial_noise(name: str, given: Any, seed: Any, count: int, shape: tuple[int, int, int]) -> Array:
    """Return a stream's initial noise.

    Args:
        name: name of the argument, for the messages: `noise` or `text_noise`.
        given: `[n, 4, h, w]` noise from the caller, or None.
        seed: one seed, or one per image. A single seed for several images counts up. None picks a random one.
        count: number of images n.
        shape: shape of one image's latents.

    Raises:
        InputError: the noise or the seeds do not fit.
    """
    if given is None:
        return seeded_noise(_seeds(seed, count), shape)
    if seed is not None:
        raise InputError(f"Both a seed and {name} were given.", fix="Give one of them.")
    try:
        values = np.asarray(given)
    except Exception as error:  # an object that is no array may raise anything
        raise InputError(f"{name} cannot be read as an array ({error}).", fix="Give a numpy array.") from error
    if values.shape != (count, *shape) or values.dtype.kind not in "fiu" or not np.isfinite(values).all():
        raise InputError(
            f"{name} must be finite numbers {[count, *shape]}, not {values.dtype} {list(values.shape)}"
            f"{' with non-finite values' if values.shape == (count, *shape) else ''}.",
            fix="Sample it from a standard normal distribution.",
        )
    return values.astype(np.float32)


def _seeds(seed: Any, count: int) -> list[int]:
    fix = "Give one non-negative integer, or one per prompt."
    if seed is None:
        seed = int(np.random.SeedSequence().generate_state(1)[0])
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
