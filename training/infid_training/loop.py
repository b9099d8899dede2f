"""The training loop: identity-enhanced training (Infinite-ID, arXiv 2403.11781, section 3.2) on cached photos.

The same call trains in one process or in many, on one machine or several, as `torchrun` or `accelerate launch` start
them. On the CPU a run that was stopped at any step goes on to exactly the losses it would have had; on a GPU up to what
its kernels' order of summation varies.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from infid_engines.errors import InputError
from infid_engines.progress import Reporter, SilentReporter
from infid_export.model.identity import IdentityModules
from infid_training.checkpoint import Checkpoints
from infid_training.durable import clear_leftovers, locked, whole_file
from infid_training.log import RunLog
from infid_training.options import TrainOptions
from infid_training.photos import Photos
from infid_training.stepper import Stepper

IDENTITY, CHECKPOINTS, SAMPLES, LOCK = "identity.safetensors", "checkpoints", "samples", ".lock"

Sample = Callable[[int, IdentityModules, Path], None]


@dataclass(frozen=True)
class TrainReport:
    """What a run came to.

    Args:
        identity: the trained weights, for `infid-export build --identity`.
        steps: made in all.
        resumed_from: the step this call went on from.
        loss: of the last step; NaN if none was left to make.
        validation_loss: the last one; None if none was measured.
    """

    identity: Path
    steps: int
    resumed_from: int
    loss: float
    validation_loss: float | None


def train(
    unet: Any,
    identity: IdentityModules,
    photos: Photos,
    options: TrainOptions,
    run_folder: Path,
    reporter: Reporter | None = None,
    *,
    validation: Photos | None = None,
    sample: Sample | None = None,
    model: str = "",
    resume: bool = True,
) -> TrainReport:
    """Train identity modules; nothing else changes.

    Args:
        unet: diffusers' SDXL UNet. Is brought to the device and the precision, and keeps its weights.
        identity: initial weights, trained in place. Their configuration says whether text is on.
        photos: to train on; with text on they must hold prompt embeddings.
        options: see `TrainOptions`.
        run_folder: gets checkpoints, `log.jsonl`, `samples/` and at the end `identity.safetensors`. With several
            machines it must be one they share.
        reporter: shown the progress.
        validation: other people's photos, for the validation loss.
        sample: called with the step, the weights and a folder at every `sample_every`, in the first process only.
        model: what changes when the model's frozen weights do; a checkpoint of another one is not resumed.
        resume: whether to go on from the folder's newest checkpoint; if not, it must have none.

    Returns:
        Where the weights are, and the last losses.

    Raises:
        InputError: the photos, the options or the run folder cannot be used.
        TrainingError: the loss or the gradient is not finite; the last checkpoint is kept.
    """
    # precision is ours, since accelerate keeps one for the whole process; without being told, it leaves several
    # processes on CPUs alone
    accelerator = Accelerator(mixed_precision="no", cpu=not torch.accelerator.is_available())
    main = accelerator.is_main_process
    shown = reporter if reporter is not None and main else SilentReporter()
    with locked(run_folder / LOCK, f"Another process trains in {run_folder}.") if main else nullcontext():
        stepper = Stepper(accelerator, unet, identity, photos, options, validation)
        with closing(stepper):
            checkpoints = Checkpoints(
                run_folder / CHECKPOINTS,
                {
                    **options.decisive(),
                    "model": model,
                    "photos": photos.fingerprint,
                    "identity": identity.config.to_dict(),
                    "cross-attention blocks": f"{len(identity.blocks)} of {sum(identity.blocks.values())} channels",
                    "processes": accelerator.num_processes,
                },
                options.keep,
            )
            if not resume and checkpoints.steps():
                raise InputError(
                    f"{run_folder} holds a run of {checkpoints.steps()[-1]} steps.",
                    fix="Give another folder, or let it resume.",
                )
            if main:
                for folder in (run_folder, run_folder / CHECKPOINTS):
                    clear_leftovers(folder)
            accelerator.wait_for_everyone()
            first = checkpoints.resume(stepper.trained)
            if first > options.steps:
                raise InputError(
                    f"{run_folder} has made {first} steps already, more than the {options.steps} asked for.",
                    fix="Ask for more steps, or give another folder.",
                )
            shown.note(
                f"{'resuming at' if first else 'starting from'} step {first}; "
                f"{sum(parameter.numel() for parameter in identity.parameters()) / 1e6:.1f} M parameters on "
                f"{accelerator.num_processes} × {accelerator.device.type}, {options.precision}; "
                f"{len(photos.people)} photos"
            )
            with closing(RunLog(run_folder, first)) if main else nullcontext() as log:
                if log is not None and not log.has_board:
                    shown.note("TensorBoard is not installed: the losses are in log.jsonl alone")
                loss, validated = _steps(stepper, first, options, run_folder, shown, checkpoints, log, sample)
            if main:
                with whole_file(run_folder / IDENTITY) as partial:
                    stepper.trained.result.save(partial)
            accelerator.wait_for_everyone()
    return TrainReport(run_folder / IDENTITY, options.steps, first, loss, validated)


def _steps(
    stepper: Stepper,
    first: int,
    options: TrainOptions,
    folder: Path,
    reporter: Reporter,
    checkpoints: Checkpoints,
    log: RunLog | None,
    sample: Sample | None,
) -> tuple[float, float | None]:
    """Make the steps; only the first process has a log, and with it the duty to write. Returns the last losses."""
    loss, validated = math.nan, None
    reporter.plan({"training": 1.0})  # its pace is found out on the way
    with reporter.stage("training") as stage:
        started = time.monotonic()
        for step in range(first, options.steps):
            loss, norm, rate = stepper.step(step)
            made = step + 1
            speed = (made - first) / (time.monotonic() - started)
            detail = f"step {made} of {options.steps}, loss {loss:.4f}, {speed:.2f} steps/s"
            stage.update((made - first) / (options.steps - first), detail)
            if _due(made, options.validate_every, options.steps):
                validated = stepper.validate()
            if log is None:
                continue
            if _due(made, options.log_every, options.steps):
                log.write(made, loss=loss, gradient_norm=norm, learning_rate=rate)
            if _due(made, options.validate_every, options.steps) and validated is not None:
                log.write(made, validation_loss=validated)
            if sample is not None and _due(made, options.sample_every, options.steps):
                (folder / SAMPLES).mkdir(exist_ok=True)
                sample(made, stepper.trained.result, folder / SAMPLES)
            if _due(made, options.checkpoint_every, options.steps):
                log.flush()
                checkpoints.save(made, stepper.trained)
    return loss, validated


def _due(made: int, every: int, last: int) -> bool:
    """Whether something that happens every so many steps, and at the end, is to happen now; every 0 is never."""
    return every > 0 and (made % every == 0 or made == last)
