"""Samplers as tables: one row of coefficients per step, equal to diffusers' schedulers.

A stream carries its latents x and its last data prediction d. At each step the network gets c_in·x and a timestep, and
returns e, which guidance has already combined; n is fresh standard normal noise. Then

    x' = c_x·x + c_e·e + c_d·d + c_n·n        d' = k_x·x + k_e·e

What the network predicts (the noise ε, the velocity v, or the data) only changes the numbers in a row, and so does zero
terminal SNR. One graph therefore runs every sampler. Only numpy is needed: this runs on servers without torch.

References:
    DDIM: Song et al., arXiv 2010.02502, equation 12. Euler and Karras spacing: Karras et al., arXiv 2206.00364,
    algorithm 1 and equation 5. DPM++ 2M: Lu et al., arXiv 2211.01095, algorithm 2. LCM: Luo et al., arXiv 2310.04378.
    TCD: Zheng et al., arXiv 2402.19159, algorithm 2. Spacings and zero terminal SNR: Lin et al., arXiv 2305.08891,
    table 2 and algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from infid_engines.errors import InputError
from infid_engines.validation import shown
from infid_export.sampling import KARRAS, SAMPLERS, SPACINGS, TIMESTEP_SPACINGS
from infid_export.sampling.noise_schedule import NoiseSchedule, noise_schedule

Array = np.ndarray[Any, Any]

COLUMNS = ("timestep", "c_in", "c_x", "c_e", "c_d", "c_n", "k_x", "k_e")
_RHO = 7.0  # of Karras spacing
_ETA = 0.3  # of TCD, diffusers' default
_TIMESTEP_SCALING, _SIGMA_DATA = 10.0, 0.5  # of LCM's boundary condition, diffusers' defaults


@dataclass(frozen=True)
class SamplerTable:
    """The steps of a sampler.

    Args:
        rows: `[steps, 8]` float32, one column for each of `COLUMNS`, first step first.
        initial_scale: standard deviation of the first latents.
    """

    rows: Array
    initial_scale: float

    def __len__(self) -> int:
        """Return the number of steps."""
        return len(self.rows)

    @property
    def timesteps(self) -> Array:
        """`[steps]` float32."""
        return self.rows[:, 0]

    @property
    def coefficients(self) -> Array:
        """`[steps, 7]` float32: c_in, c_x, c_e, c_d, c_n, k_x, k_e."""
        return self.rows[:, 1:]

    @property
    def stochastic(self) -> bool:
        """Whether any step adds fresh noise."""
        return bool(self.rows[:, COLUMNS.index("c_n")].any())


class _Level(NamedTuple):
    """The share of signal and noise in latents: x = signal·data + noise·ε."""

    signal: float
    noise: float

    @classmethod
    def of_alpha(cls, alpha_cumprod: float) -> _Level:
        """Latents of variance 1."""
        return cls(alpha_cumprod**0.5, (1 - alpha_cumprod) ** 0.5)

    @classmethod
    def of_sigma(cls, sigma: float) -> _Level:
        """Latents of variance 1, from σ = noise / signal."""
        signal = (sigma**2 + 1) ** -0.5
        return cls(signal, sigma * signal)


class _Sum(NamedTuple):
    """A weighted sum of x and e."""

    x: float
    e: float


def _estimates(prediction: str, level: _Level) -> tuple[_Sum, _Sum]:
    """Return the data and the noise that the prediction e implies for latents x of a level."""
    signal, noise = level
    if prediction == "epsilon":
        return _Sum(1 / signal, -noise / signal), _Sum(0.0, 1.0)
    if prediction == "sample":
        return _Sum(0.0, 1.0), _Sum(1 / noise, -signal / noise)
    power = signal**2 + noise**2  # 1 except for Euler's latents, whose signal is 1
    return _Sum(signal / power, -noise / power**0.5), _Sum(noise / power, signal / power**0.5)


def _row(
    schedule: NoiseSchedule,
    timestep: float,
    level: _Level,
    following: _Level,
    *,
    c_in: float = 1.0,
    c_n: float = 0.0,
    skip: float = 0.0,
    momentum: float = 0.0,
) -> list[float]:
    """Return the row of a step to signal·data + noise·ε at the following level, with data and ε estimated from x and e.

    Args:
        schedule: of the model.
        timestep: that the network gets.
        level: of the latents before the step.
        following: of the latents after the step, without the fresh noise.
        c_in: factor of the latents that the network gets.
        c_n: factor of the fresh noise.
        skip: factor of x itself, added to the result.
        momentum: factor of the change of the data prediction since the last step, added to the result.
    """
    data, noise = _estimates(schedule.prediction, level)
    of_data = following.signal + momentum
    c_x = of_data * data.x + following.noise * noise.x + skip
    c_e = of_data * data.e + following.noise * noise.e
    return [timestep, c_in, c_x, c_e, -momentum, c_n, *data]


def _ddim(schedule: NoiseSchedule, spacing: str, steps: int) -> SamplerTable:
    alphas, stride = schedule.alphas_cumprod, schedule.trained // steps
    rows = []
    for timestep in _timesteps(schedule, spacing, steps).round().astype(int):
        previous = timestep - stride
        after = alphas[previous] if previous >= 0 else schedule.final_alpha_cumprod
        rows.append(_row(schedule, timestep, _Level.of_alpha(alphas[timestep]), _Level.of_alpha(after)))
    return _table(rows)


def _euler(schedule: NoiseSchedule, spacing: str, steps: int, ancestral: bool = False) -> SamplerTable:
    """Latents are data + σ·ε here; the network gets them scaled to variance 1."""
    if spacing == KARRAS:
        timesteps, sigmas = _karras(schedule, steps)
    else:
        timesteps = _timesteps(schedule, spacing, steps)
        sigmas = schedule.sigmas_at(timesteps)
    rows = []
    for timestep, sigma, after in zip(timesteps, sigmas, [*sigmas[1:], 0.0], strict=True):
        fresh = after * (1 - (after / sigma) ** 2) ** 0.5 if ancestral else 0.0
        following = _Level(1.0, (after**2 - fresh**2) ** 0.5)
        rows.append(
            _row(schedule, timestep, _Level(1.0, sigma), following, c_in=_Level.of_sigma(sigma).signal, c_n=fresh)
        )
    largest = float(sigmas.max())
    return _table(rows, (largest**2 + 1) ** 0.5 if spacing == "leading" else largest)


def _dpmpp_2m(schedule: NoiseSchedule, spacing: str, steps: int) -> SamplerTable:
    """Steps of second order by the midpoint rule; the first and the last are of first order."""
    if spacing == KARRAS:
        timesteps, sigmas = _karras(schedule, steps)
    else:  # as in diffusers, one more timestep is spaced, except for trailing, and the last is dropped
        timesteps = _timesteps(schedule, spacing, steps + (spacing != "trailing"))[:steps].round()
        sigmas = schedule.sigmas_at(timesteps)
    levels = [_Level.of_sigma(sigma) for sigma in (*sigmas, 0.0)]
    rows = []
    for index, timestep in enumerate(timesteps.round()):
        level, following, momentum = levels[index], levels[index + 1], 0.0
        if 0 < index < steps - 1:
            ratio = np.log(sigmas[index - 1] / sigmas[index]) / np.log(sigmas[index] / sigmas[index + 1])
            momentum = (following.signal - following.noise * level.signal / level.noise) / (2 * ratio)
        rows.append(_row(schedule, timestep, level, following, momentum=momentum))
    return _table(rows)


def _lcm(schedule: NoiseSchedule, spacing: str, steps: int) -> SamplerTable:
    """Each step goes to the data, mixed with x by the boundary condition, then to the next level by fresh noise."""
    timesteps = schedule.distilled_timesteps(steps)
    rows = []
    for timestep, following in zip(timesteps, [*timesteps[1:], None], strict=True):
        after = _Level(1.0, 0.0) if following is None else _Level.of_alpha(schedule.alphas_cumprod[following])
        scaled = timestep * _TIMESTEP_SCALING
        c_out = scaled / (scaled**2 + _SIGMA_DATA**2) ** 0.5
        c_skip = _SIGMA_DATA**2 / (scaled**2 + _SIGMA_DATA**2)
        level = _Level.of_alpha(schedule.alphas_cumprod[timestep])
        to_data = _Level(after.signal * c_out, 0.0)
        rows.append(_row(schedule, timestep, level, to_data, skip=after.signal * c_skip, c_n=after.noise))
    return _table(rows)


def _tcd(schedule: NoiseSchedule, spacing: str, steps: int) -> SamplerTable:
    """Each step goes below the next level, and up to it by fresh noise."""
    timesteps, alphas = schedule.distilled_timesteps(steps), schedule.alphas_cumprod
    rows = []
    for timestep, following in zip(timesteps, [*timesteps[1:], None], strict=True):
        below = alphas[int(np.floor(np.float32(1 - _ETA) * np.float32(following or 0)))]
        shrink = 1.0 if following is None else (alphas[following] / below) ** 0.5
        level, target = _Level.of_alpha(alphas[timestep]), _Level.of_alpha(below)
        reached = _Level(shrink * target.signal, shrink * target.noise)
        rows.append(_row(schedule, timestep, level, reached, c_n=(1 - shrink**2) ** 0.5))
    return _table(rows)


class _Sampler(NamedTuple):
    """A sampler and its spacings; without spacings its timesteps come from the model's distillation."""

    table: Callable[[NoiseSchedule, str, int], SamplerTable]
    spacings: tuple[str, ...] = ()


_SAMPLERS: Mapping[str, _Sampler] = {
    "ddim": _Sampler(_ddim, TIMESTEP_SPACINGS),
    "euler": _Sampler(_euler, SPACINGS),
    "dpmpp_2m": _Sampler(_dpmpp_2m, SPACINGS),
    "euler_a": _Sampler(partial(_euler, ancestral=True), TIMESTEP_SPACINGS),
    "lcm": _Sampler(_lcm),
    "tcd": _Sampler(_tcd),
}


def chosen_sampler(
    sampler: str | None, spacing: str | None, own_sampler: str, own_spacing: str | None
) -> tuple[str, str | None]:
    """Return the asked-for sampler and spacing, or the model's own; its own spacing is that of its own sampler."""
    if sampler is None:
        return own_sampler, own_spacing if spacing is None else spacing
    return sampler, spacing


def sampler_table(
    config: Mapping[str, Any], steps: int, sampler: str = "ddim", spacing: str | None = None
) -> SamplerTable:
    """Return the table of a sampler for a model.

    Args:
        config: the model's scheduler configuration, fields as in `SDXL_SCHEDULER`.
        steps: number of steps.
        sampler: one of `SAMPLERS`.
        spacing: one of `SPACINGS`; None is the configuration's. `lcm` and `tcd` take None only.

    Raises:
        InputError: there is no such sampler; it does not support the spacing, the number of steps or the model's
            prediction; or the noise schedule is not supported.
    """
    if not isinstance(sampler, str) or sampler not in _SAMPLERS:
        raise InputError(f"There is no sampler {shown(sampler)}.", fix=f"Use one of {', '.join(SAMPLERS)}.")
    schedule, chosen = noise_schedule(config), _SAMPLERS[sampler]
    if spacing is not None and spacing not in chosen.spacings:
        use = f"Use one of {', '.join(chosen.spacings)}." if chosen.spacings else "Leave the spacing out."
        why = "" if chosen.spacings else ": its timesteps are those of the model's distillation"
        raise InputError(f"The sampler {sampler} does not support the spacing {shown(spacing)}{why}.", fix=use)
    if sampler == "euler_a" and schedule.prediction == "sample":
        raise InputError("The sampler euler_a does not support a model that predicts the data.", fix="Use euler.")
    spacing = (spacing or str(config["timestep_spacing"])) if chosen.spacings else ""
    _check_steps(schedule, sampler, spacing, steps)
    return chosen.table(schedule, spacing, int(steps))


def _check_steps(schedule: NoiseSchedule, sampler: str, spacing: str, steps: Any) -> None:
    """Reject a number of steps for which there are not that many timesteps."""
    least, most, fix = 1, schedule.trained, "30 is usual."
    whole = isinstance(steps, int | np.integer) and not isinstance(steps, bool)
    exact = () if spacing else schedule.exact_timesteps
    if exact:
        if whole and steps == len(exact):
            return
        raise InputError(
            f"The number of steps must be {len(exact)}, not {shown(steps)}: the model was distilled at "
            f"t = {', '.join(map(str, exact))}.",
            fix="Leave the number of steps out.",
        )
    if not spacing:
        most, fix = schedule.distilled_steps, f"A model for {sampler} was distilled to 4 to 8 steps."
    if spacing == "linspace" and sampler != "dpmpp_2m":
        least = 2  # a single step would be at timestep 0
    if spacing == "leading":
        most -= schedule.steps_offset
    if sampler == "dpmpp_2m" and spacing in ("leading", "linspace"):
        most -= 1
    if not whole or not least <= steps <= most:
        raise InputError(
            f"The number of steps must be a whole number from {least} to {most}, not {shown(steps)}.", fix=fix
        )


def _timesteps(schedule: NoiseSchedule, spacing: str, steps: int) -> Array:
    """Return float64 timesteps, the noisiest first."""
    trained, index = schedule.trained, np.arange(steps, dtype=np.float64)
    if spacing == "leading":
        return index[::-1] * (trained // steps) + schedule.steps_offset
    if spacing == "trailing":
        return np.round(trained - index * (trained / steps)) - 1
    return np.linspace(0, trained - 1, steps)[::-1]


def _karras(schedule: NoiseSchedule, steps: int) -> tuple[Array, Array]:
    """Return timesteps, with fractions, and σ; spaced over the whole schedule."""
    known = schedule.sigmas
    first, last = known[-1] ** (1 / _RHO), known[0] ** (1 / _RHO)
    sigmas = (first + np.linspace(0, 1, steps) * (last - first)) ** _RHO
    return np.interp(np.log(sigmas), np.log(known), np.arange(len(known))), sigmas


def _table(rows: list[list[float]], initial_scale: float = 1.0) -> SamplerTable:
    return SamplerTable(np.array(rows, np.float64).astype(np.float32), initial_scale)
