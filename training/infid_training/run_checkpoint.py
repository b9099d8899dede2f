"""Checkpoints of a run: safetensors and JSON, written atomically; only the last few are kept."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from infid_engines.atomic_files import remove_folder, whole_folder
from infid_engines.documents import read_json, sealed, unsealed
from infid_engines.errors import InfidError, InputError
from infid_engines.manifest import differing_fields, sha256_file
from infid_export.model.identity import IdentityModules

WEIGHTS, EMA, OPTIMIZER, STATE = "identity.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json"
_VERSION = 2


@dataclass
class Trained:
    """Everything that a run changes.

    Args:
        identity: the weights.
        ema: their moving average; None if none is kept.
        optimizer: over the weights' parameters, in their order.
        scaler: gradient scaler for fp16; unused at other precisions.
    """

    identity: IdentityModules
    ema: IdentityModules | None
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler

    @property
    def result(self) -> IdentityModules:
        """The run's result: the moving average if one is kept, else the weights."""
        return self.ema or self.identity


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: holds one folder per checkpoint, such as `step-00001000`.
        settings: settings that decide the losses; a checkpoint made with others is rejected.
        keep: number of checkpoints to keep.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], keep: int) -> None:
        self._folder, self._keep = folder, keep
        self._settings = json.loads(json.dumps(settings))  # as it comes back from the file

    def steps(self) -> list[int]:
        """Return the steps that have a checkpoint, in ascending order."""
        names = [path.name.removeprefix("step-") for path in self._folder.glob("step-*")]
        return sorted(int(name) for name in names if re.fullmatch("[0-9]{8,}", name))

    @property
    def newest(self) -> Path | None:
        """Return the folder of the newest checkpoint; None if there is none."""
        steps = self.steps()
        return self.path(steps[-1]) if steps else None

    def path(self, step: int) -> Path:
        """Return the folder of the checkpoint after `step` steps."""
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
            files = [WEIGHTS, OPTIMIZER, *([] if trained.ema is None else [EMA])]
            state = {
                "version": _VERSION,
                "files": {name: sha256_file(folder / name) for name in files},
                "step": step,
                "settings": self._settings,
                "optimizer": numbers,
                "scaler": trained.scaler.state_dict(),
            }
            (folder / STATE).write_text(json.dumps(sealed(state), indent=1))
        for old in self.steps()[: -self._keep]:
            remove_folder(self.path(old))

    def state(self) -> dict[str, Any] | None:
        """Return what the newest checkpoint's `state.json` says; None if there is no checkpoint.

        Raises:
            InputError: it is damaged, or was made with another model, other photos or other options.
        """
        folder = self.newest
        if folder is None:
            return None
        try:
            state = unsealed(read_json(folder / STATE))
            if state["version"] != _VERSION:
                raise ValueError(f"version {state['version']}")
            different = differing_fields(state["settings"], self._settings)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise _damaged(folder / STATE, error) from error
        if different:
            raise InputError(
                f"{folder} was made with other settings: {'; '.join(different)}.",
                fix="Give the settings it was made with, or another run folder for a new run.",
            )
        return state

    def resume(self, trained: Trained) -> int:
        """Load the newest checkpoint.

        Args:
            trained: receives the checkpoint's state.

        Returns:
            Number of steps made so far; 0 if there is no checkpoint.

        Raises:
            InputError: as for `state`, or its weights or the optimizer's tensors are damaged.
        """
        state, folder = self.state(), self.newest
        if state is None or folder is None:
            return 0
        modules = [(trained.identity, WEIGHTS), *([(trained.ema, EMA)] if trained.ema is not None else [])]
        for module, name in modules:
            _check_file(folder / name, state)
            try:
                loaded = IdentityModules.load(folder / name, module.blocks)
                different = differing_fields(loaded.config.to_dict(), module.config.to_dict())
                if different:
                    raise ValueError(f"another configuration: {'; '.join(different)}")
            except (InputError, ValueError) as error:
                raise _damaged(folder / name, error) from error
            module.load_state_dict(loaded.state_dict())
        _check_file(folder / OPTIMIZER, state)
        try:
            _load_optimizer(trained, load_file(folder / OPTIMIZER), state["optimizer"])
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise _damaged(folder / OPTIMIZER, error) from error
        try:
            trained.scaler.load_state_dict(state["scaler"])
            return int(state["step"])
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            raise _damaged(folder / STATE, error) from error


def _optimizer_state(trained: Trained) -> tuple[dict[str, torch.Tensor], dict[str, dict[str, Any]]]:
    """Return tensors by `<parameter>.<entry>`, and all other entries by parameter."""
    names = [name for name, _ in trained.identity.named_parameters()]
    tensors: dict[str, torch.Tensor] = {}
    numbers: dict[str, dict[str, Any]] = {}
    for index, entries in trained.optimizer.state_dict()["state"].items():
        for entry, value in entries.items():
            if isinstance(value, torch.Tensor):
                # clone: 8-bit optimizers share one quantization map, and a file cannot hold a tensor twice
                tensors[f"{names[index]}.{entry}"] = value.detach().clone(memory_format=torch.contiguous_format)
            else:
                numbers.setdefault(names[index], {})[entry] = value
    return tensors, numbers


def _load_optimizer(
    trained: Trained, tensors: Mapping[str, torch.Tensor], numbers: Mapping[str, dict[str, Any]]
) -> None:
    """Load a checkpoint's optimizer state.

    Raises:
        KeyError: an entry belongs to no parameter.
        ValueError: a parameter lacks an entry, or has one of another shape.
    """
    parameters = dict(trained.identity.named_parameters())
    indices = {name: index for index, name in enumerate(parameters)}
    state: dict[int, dict[str, Any]] = {indices[name]: dict(entries) for name, entries in numbers.items()}
    for key, tensor in tensors.items():
        name, _, entry = key.rpartition(".")
        state.setdefault(indices[name], {})[entry] = tensor
    if not state and trained.scaler.is_enabled():
        return  # the scaler has skipped every step so far, so the optimizer has no state yet
    moments = ("exp_avg", "exp_avg_sq") if isinstance(trained.optimizer, torch.optim.AdamW) else ("state1", "state2")
    for name, parameter in parameters.items():
        entries = state.get(indices[name], {})
        lacking = [entry for entry in ("step", *moments) if entry not in entries]
        if lacking:
            raise ValueError(f"{name} lacks {', '.join(lacking)}")
        for entry in moments:
            if entries[entry].shape != parameter.shape:
                raise ValueError(f"{name}.{entry} is {list(entries[entry].shape)}, not {list(parameter.shape)}")
    groups = trained.optimizer.state_dict()["param_groups"]
    trained.optimizer.load_state_dict({"state": state, "param_groups": groups})


def _check_file(path: Path, state: Mapping[str, Any]) -> None:
    """Reject a file whose content is not what its checkpoint was written with."""
    try:
        if sha256_file(path) != state["files"][path.name]:
            raise ValueError("its content is not what was written")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> InputError:
    reason = error.problem if isinstance(error, InfidError) else f"{type(error).__name__}: {error}"
    return InputError(
        f"{path} cannot be read ({reason.removesuffix('.')}).",
        fix=f"Remove this checkpoint's folder, {path.parent}; the run then resumes from the previous one, "
        "or starts over if there is none.",
    )
