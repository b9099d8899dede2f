"""Presets: how the known few-step models are sampled. Imports are light, for the command line's help.

Each is what the model's own card sets up in diffusers. Guidance 0 there means the prompt alone, which is 1 here.

References:
    Model cards of ByteDance/SDXL-Lightning, ByteDance/Hyper-SD, stabilityai/sdxl-turbo,
    latent-consistency/lcm-lora-sdxl and tianweiy/DMD2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Preset:
    """The settings that a few-step model was made for.

    Args:
        model: the model's name, for notes.
        steps: number of steps.
        sampler: one of `infid_export.sampling.SAMPLERS`.
        spacing: one of `infid_export.sampling.SPACINGS`; None for `lcm` and `tcd`.
        guidance: classifier-free guidance scale; 1 is the prompt alone.
        prediction: what the model predicts, one of `infid_export.sampling.PREDICTIONS`; None is what its base predicts.
        timesteps: those that the model was distilled to; empty where they follow from the steps.
        size: largest height and width in pixels that the model was trained on; None is the base model's.
    """

    model: str
    steps: int
    sampler: str
    spacing: str | None = None
    guidance: float = 1.0
    prediction: str | None = None
    timesteps: tuple[int, ...] = ()
    size: int | None = None

    @property
    def guided(self) -> bool:
        """Whether steps need unconditional rows."""
        return self.guidance != 1


def _lightning(steps: int, prediction: str | None = None) -> Preset:
    return Preset("SDXL-Lightning", steps, "euler", "trailing", prediction=prediction)


def _hyper(steps: int, guidance: float = 1.0) -> Preset:
    return Preset("Hyper-SD", steps, "ddim", "trailing", guidance)


def _turbo(steps: int) -> Preset:
    return Preset("SDXL-Turbo", steps, "euler_a", "trailing", size=512)


def _lcm(steps: int) -> Preset:
    return Preset("LCM-LoRA", steps, "lcm")


def _dmd2(*timesteps: int) -> Preset:
    return Preset("DMD2", len(timesteps), "lcm", timesteps=timesteps)


PRESETS: Mapping[str, Preset] = {
    "lightning-1": _lightning(1, "sample"),
    "lightning-2": _lightning(2),
    "lightning-4": _lightning(4),
    "lightning-8": _lightning(8),
    "hyper-1": Preset("Hyper-SD (unified LoRA)", 1, "tcd"),
    "hyper-1-unet": Preset("Hyper-SD (1-step UNet)", 1, "lcm", timesteps=(800,)),
    "hyper-2": _hyper(2),
    "hyper-4": _hyper(4),
    "hyper-8": _hyper(8),
    "hyper-8-cfg": _hyper(8, 5.0),
    "hyper-12-cfg": _hyper(12, 5.0),
    "turbo-1": _turbo(1),
    "turbo-4": _turbo(4),
    "lcm-4": _lcm(4),
    "lcm-8": _lcm(8),
    "dmd2-1": _dmd2(399),
    "dmd2-4": _dmd2(999, 749, 499, 249),
}
