"""The optimizer and its learning rate schedule."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from diffusers.optimization import get_scheduler
from torch import nn

from infid_engines.errors import BackendUnavailableError, InputError
from infid_training.run_options import TrainOptions


def make_optimizer(modules: nn.Module, options: TrainOptions, device: torch.device) -> torch.optim.Optimizer:
    """Return AdamW over all parameters of a module; raises as `optimizer_class`."""
    kind = optimizer_class(options, device)
    optimizer: torch.optim.Optimizer = kind(
        modules.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay
    )
    return optimizer


def optimizer_class(options: TrainOptions, device: torch.device) -> Any:
    """Return the AdamW class that the options choose.

    Raises:
        BackendUnavailableError: the 8-bit optimizer was chosen and bitsandbytes is not installed.
        InputError: the 8-bit optimizer was chosen on a CPU.
    """
    if options.optimizer == "adamw":
        return torch.optim.AdamW
    if device.type == "cpu":
        raise InputError("adamw8bit needs a GPU.", fix="Choose --optimizer adamw.")
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise BackendUnavailableError(
            "adamw8bit needs bitsandbytes, which is not installed.", fix="pip install bitsandbytes"
        ) from error
    return AdamW8bit


def learning_rate(options: TrainOptions, step: int) -> float:
    """Return the learning rate of a step, counted from 0; it depends on the step alone, so there is no state."""
    if options.learning_rate == 0:
        return 0.0
    return _course(options)(step)


@lru_cache
def _course(options: TrainOptions) -> Callable[[int], float]:
    """Return step → learning rate, as diffusers computes it."""
    unused = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=options.learning_rate)
    course = get_scheduler(
        options.lr_schedule, unused, num_warmup_steps=options.warmup_steps, num_training_steps=options.steps
    )
    factor = course.lr_lambdas[0]
    return lambda step: float(options.learning_rate * factor(step))
