"""Fitting a module to a loss: AdamW with a warm-up and a cosine decay, which can stop and resume at any step.

A step's data depends on its number alone, so a fit that was stopped gives the same weights as one that was not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from infid_engines.errors import InputError, TrainingError
from infid_engines.progress import Stage
from infid_training.recipe.files import readable, write_tensors

_SAVED_EVERY = 60.0  # seconds
_WARM_UP = 0.02  # fraction of the steps


@dataclass(frozen=True)
class Fit:
    """How long and how fast a module trains.

    Args:
        steps: optimizer steps.
        learning_rate: the highest learning rate.
        weight_decay: AdamW's weight decay.
    """

    steps: int
    learning_rate: float
    weight_decay: float = 0.01

    def rate(self, step: int) -> float:
        """Return the learning rate of a step: a linear warm-up, then half a cosine down to 0."""
        warm = min(1.0, (step + 1) / max(1.0, _WARM_UP * self.steps))
        return self.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / self.steps))


def fit(
    module: nn.Module, loss: Callable[[int], Mapping[str, Tensor]], how: Fit, folder: Path, name: str, stage: Stage
) -> None:
    """Fit a module, or load it if it was fitted before.

    Args:
        module: its parameters that require a gradient are fitted; all of its state is saved.
        loss: maps a step number to the terms of the loss, whose sum is minimized.
        how: steps and learning rates.
        folder: where `<name>.safetensors` is written at the end, and `<name>.partial.safetensors` during training.
        name: name of the files.
        stage: shown the progress.

    Raises:
        InputError: a file of an earlier run is broken or has another number of steps, or the disk is full.
        TrainingError: the loss is not finite; the last partial file is kept.
    """
    done, partial = folder / f"{name}.safetensors", folder / f"{name}.partial.safetensors"
    for path in (done, partial):
        if path.is_file():
            _require_steps(path, how.steps)
    if done.is_file():
        load(module, done)
        return
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, lr=how.learning_rate, weight_decay=how.weight_decay, betas=(0.9, 0.99), fused=True
    )
    first = _continue(module, optimizer, partial) if partial.is_file() else 0
    module.train()
    saved = time.monotonic()
    shown: dict[str, float] = {}
    for step in range(first, how.steps):
        for group in optimizer.param_groups:
            group["lr"] = how.rate(step)
        torch.manual_seed(step)
        terms = loss(step)
        total = torch.stack(list(terms.values())).sum()
        if not bool(total.isfinite()):
            raise TrainingError(
                f"The loss of {name} is {float(total.detach())} at step {step}.",
                fix=f"Run the command again to resume from {partial}, or delete that file to restart this stage.",
            )
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(total)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        for term, value in terms.items():
            shown[term] = 0.98 * shown.get(term, float(value.detach())) + 0.02 * float(value.detach())
        described = "  ".join(f"{term} {value:.4f}" for term, value in shown.items())
        stage.update((step + 1) / how.steps, f"step {step + 1} of {how.steps}  {described}")
        if time.monotonic() - saved > _SAVED_EVERY:
            _save(module, optimizer, step + 1, how.steps, partial)
            saved = time.monotonic()
    save(module, how.steps, done)
    partial.unlink(missing_ok=True)
    module.eval().requires_grad_(False)


def save(module: nn.Module, steps: int, path: Path) -> None:
    """Write the state of a module that was fitted for `steps` steps, whole or not at all."""
    state = {name: value.detach() for name, value in module.state_dict().items()}
    write_tensors(state, path, {"steps": str(steps)})


def load(module: nn.Module, path: Path) -> None:
    """Read what `save` wrote, and freeze the module."""
    with readable(path):
        module.load_state_dict(load_file(path))
    module.eval().requires_grad_(False)


def _require_steps(path: Path, steps: int) -> None:
    with readable(path), safe_open(path, framework="pt") as file:
        found = (file.metadata() or {}).get("steps", "an unknown number of")
    if found != str(steps):
        raise InputError(
            f"{path} was trained for {found} steps, not {steps}.",
            fix="Delete it to train this stage again, or request the same number of steps.",
        )


def _save(module: nn.Module, optimizer: torch.optim.Optimizer, step: int, steps: int, path: Path) -> None:
    tensors = {f"module.{name}": value.detach() for name, value in module.state_dict().items()}
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in moments.items()}
    write_tensors(tensors, path, {"step": str(step), "steps": str(steps)})


def _continue(module: nn.Module, optimizer: torch.optim.Optimizer, path: Path) -> int:
    moments: dict[int, dict[str, Tensor]] = {}
    state: dict[str, Tensor] = {}
    with readable(path), safe_open(path, framework="pt") as file:
        step = int(file.metadata()["step"])
        for key in file.keys():  # noqa: SIM118, not a dictionary
            if key.startswith("module."):
                state[key.removeprefix("module.")] = file.get_tensor(key)
            else:
                _, index, name = key.split(".")
                moments.setdefault(int(index), {})[name] = file.get_tensor(key)
        module.load_state_dict(state)
        optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    return step
