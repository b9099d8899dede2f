"""Checkpoints of a run: safetensors and JSON, whole or not there, the last few kept."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from infid_engines.errors import InputError
from infid_engines.manifest import differing_fields
from infid_export.model.identity import IdentityModules
from infid_training.durable import remove_folder, whole_folder

WEIGHTS, EMA, OPTIMIZER, STATE = "identity.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json"
_VERSION = 1


@dataclass
class Trained:
    """All that a run changes.

    Args:
        identity: the weights.
        ema: their moving average; None if none is kept.
        optimizer: over the weights' parameters, in their order.
        scaler: of fp16 gradients; the others do not use it.
    """

    identity: IdentityModules
    ema: IdentityModules | None
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler

    @property
    def result(self) -> IdentityModules:
        """What the run gives: the moving average where one is kept."""
        return self.ema or self.identity


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: holds one folder a checkpoint, `step-00001000`.
        settings: that decide the losses; a checkpoint made with others is refused.
        keep: how many stay.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], keep: int) -> None:
        self._folder, self._keep = folder, keep
        self._settings = json.loads(json.dumps(settings))  # as it comes back from the file

    def steps(self) -> list[int]:
        """Return the steps there are checkpoints of, rising."""
        return sorted(int(path.name.removeprefix("step-")) for path in self._folder.glob("step-*"))

    def path(self, step: int) -> Path:
        """Return the folder of the checkpoint after so many steps."""
        return self._folder / f"step-{step:08d}"

    def save(self, step: int, trained: Trained) -> None:
        """Write a checkpoint, and remove the oldest ones.

        Raises:
            InputError: the disk is full; the earlier checkpoints are untouched.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        tensors, numbers = _optimizer_state(trained)
        with whole_folder(self.path(step)) as folder:
            trained.identity.save(folder / WEIGHTS)
            if trained.ema is not None:
                trained.ema.save(folder / EMA)
            save_file(tensors, folder / OPTIMIZER)
            state = {
                "version": _VERSION,
                "step": step,
                "settings": self._settings,
                "optimizer": numbers,
                "scaler": trained.scaler.state_dict(),
            }
            (folder / STATE).write_text(json.dumps(state, indent=1))
        for old in self.steps()[: -self._keep]:
            remove_folder(self.path(old))

    def resume(self, trained: Trained) -> int:
        """Load the newest checkpoint.

        Args:
            trained: is filled with it.

        Returns:
            Steps it has made; 0 if there is no checkpoint.

        Raises:
            InputError: the checkpoint is damaged, or of another model, other photos or other options.
        """
        if not self.steps():
            return 0
        folder = self.path(self.steps()[-1])
        try:
            state = json.loads((folder / STATE).read_text())
            found = state["settings"]
            if state["version"] != _VERSION:
                raise ValueError(f"version {state['version']}")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise _damaged(folder / STATE, error) from error
        different = differing_fields(found, self._settings)
        if different:
            raise InputError(
                f"{folder} was made with other settings: {'; '.join(different)}.",
                fix="Give the settings it was made with, or another run folder for a new run.",
            )
        modules = [(trained.identity, WEIGHTS), *([(trained.ema, EMA)] if trained.ema is not None else [])]
        for module, name in modules:
            loaded = IdentityModules.load(folder / name, module.blocks)
            module.load_state_dict(loaded.state_dict())
        try:
            _load_optimizer(trained, load_file(folder / OPTIMIZER), state["optimizer"])
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise _damaged(folder / OPTIMIZER, error) from error
        trained.scaler.load_state_dict(state["scaler"])
        return int(state["step"])


def _optimizer_state(trained: Trained) -> tuple[dict[str, torch.Tensor], dict[str, dict[str, Any]]]:
    """Return tensors by `<parameter>.<entry>`, and what is no tensor by parameter."""
    names = [name for name, _ in trained.identity.named_parameters()]
    tensors: dict[str, torch.Tensor] = {}
    numbers: dict[str, dict[str, Any]] = {}
    for index, entries in trained.optimizer.state_dict()["state"].items():
        for entry, value in entries.items():
            if isinstance(value, torch.Tensor):
                # clone: 8-bit optimizers share one quantisation map, and a file cannot hold a tensor twice
                tensors[f"{names[index]}.{entry}"] = value.detach().clone(memory_format=torch.contiguous_format)
            else:
                numbers.setdefault(names[index], {})[entry] = value
    return tensors, numbers


def _load_optimizer(
    trained: Trained, tensors: Mapping[str, torch.Tensor], numbers: Mapping[str, dict[str, Any]]
) -> None:
    indices = {name: index for index, (name, _) in enumerate(trained.identity.named_parameters())}
    state: dict[int, dict[str, Any]] = {indices[name]: dict(entries) for name, entries in numbers.items()}
    for key, tensor in tensors.items():
        name, _, entry = key.rpartition(".")
        state.setdefault(indices[name], {})[entry] = tensor
    groups = trained.optimizer.state_dict()["param_groups"]
    trained.optimizer.load_state_dict({"state": state, "param_groups": groups})


def _damaged(path: Path, error: Exception) -> InputError:
    return InputError(
        f"{path} cannot be read ({type(error).__name__}: {error}).",
        fix="Remove this checkpoint's folder; the run then resumes from the one before.",
    )
