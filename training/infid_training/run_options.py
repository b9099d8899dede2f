"""The options of a training run. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from infid_engines.errors import InputError
from infid_engines.validation import settle_fields

Precision = Literal["fp32", "bf16", "fp16"]
Optimizer = Literal["adamw", "adamw8bit"]
Schedule = Literal["constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"]
SinglePhoto = Literal["refuse", "own-pair"]

# How often a run logs, saves and validates: these may change when it is resumed.
_WITHOUT_EFFECT = ("checkpoint_every", "keep", "log_every", "validate_every", "validation_pairs", "sample_every")
_AT_LEAST = {
    "steps": 1, "batch_size": 1, "accumulation": 1, "learning_rate": 0.0, "weight_decay": 0.0, "warmup_steps": 0,
    "max_grad_norm": 0.0, "ema_decay": 0.0, "identity_dropout": 0.0, "seed": 0, "checkpoint_every": 1, "keep": 1,
    "log_every": 1, "validate_every": 0, "validation_pairs": 1, "sample_every": 0,
}  # fmt: skip


@dataclass(frozen=True)
class TrainOptions:
    """How a run trains; the defaults are the paper's where it gives one (Infinite-ID, arXiv 2403.11781, section 4.1).

    Args:
        steps: optimizer steps.
        batch_size: photos per process and pass.
        accumulation: passes per optimizer step.
        learning_rate: AdamW's learning rate.
        weight_decay: AdamW's weight decay.
        lr_schedule: diffusers' name of the learning rate schedule.
        warmup_steps: steps over which the learning rate rises from 0; not with `constant`.
        max_grad_norm: norm to which gradients are clipped; 0 turns clipping off.
        ema_decay: decay of the weights' moving average, which is then the run's result; 0 keeps no average.
        identity_dropout: fraction of the references whose encoder features are set to zero. Guidance subtracts the
            model's estimate for zero features (`uncond_identity`), so training must include them. The paper does not
            say how many; the default is IP-Adapter's (Ye et al., arXiv 2308.06721, section 4.1).
        precision: dtype of the networks; the trained weights and the optimizer are always fp32.
        gradient_checkpointing: recompute activations in the backward pass instead of storing them.
        optimizer: `adamw`, or bitsandbytes' `adamw8bit`.
        seed: seed of pairs, noise, timesteps and the initial weights.
        single_photo: whether a person with one photo is rejected, or that photo is both reference and target.
        checkpoint_every: steps between checkpoints.
        keep: number of checkpoints to keep.
        log_every: steps between log records.
        validate_every: steps between validations; 0 means never.
        validation_pairs: number of fixed pairs over which the validation loss is averaged.
        sample_every: steps between sample images; 0 means never.
    """

    steps: int = 1_000_000
    batch_size: int = 4
    accumulation: int = 1
    learning_rate: float = 1e-4
    weight_decay: float = 0.01
    lr_schedule: Schedule = "constant"
    warmup_steps: int = 0
    max_grad_norm: float = 1.0
    ema_decay: float = 0.0
    identity_dropout: float = 0.05
    precision: Precision = "fp32"
    gradient_checkpointing: bool = False
    optimizer: Optimizer = "adamw"
    seed: int = 0
    single_photo: SinglePhoto = "refuse"
    checkpoint_every: int = 1000
    keep: int = 3
    log_every: int = 10
    validate_every: int = 1000
    validation_pairs: int = 64
    sample_every: int = 0

    def __post_init__(self) -> None:
        """Reject impossible values."""
        settle_fields(self)
        for name, least in _AT_LEAST.items():
            value = getattr(self, name)
            # not (value >= least), so that a NaN is rejected as well
            if not value >= least:
                raise InputError(f"{name} must be at least {least}, not {value}.", fix=f"Give another {name}.")
        for name, usual in (("ema_decay", "0.9999"), ("identity_dropout", "0.05")):
            if getattr(self, name) >= 1:
                raise InputError(f"{name} must be below 1, not {getattr(self, name)}.", fix=f"{usual} is usual.")
        if self.warmup_steps and self.lr_schedule == "constant":
            raise InputError(
                "warmup_steps has no effect with lr_schedule constant.", fix="Use constant_with_warmup instead."
            )

    def decisive(self) -> dict[str, Any]:
        """Return the options that decide the losses; a resumed run must have the same ones.

        With a constant learning rate the number of steps is not among them, so that a finished run can be extended.
        """
        values = {name: value for name, value in asdict(self).items() if name not in _WITHOUT_EFFECT}
        if self.lr_schedule in ("constant", "constant_with_warmup"):
            del values["steps"]
        return values
