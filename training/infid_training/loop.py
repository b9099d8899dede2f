"""The training loop: identity-enhanced training (Infinite-ID, arXiv 2403.11781, section 3.2) on cached photos.

The same call trains in one process or in many, on one machine or several, as `torchrun` or `accelerate launch` start
them. On the CPU, a run that was stopped at any step resumes with exactly the losses it would have had; on a GPU, they
agree up to the kernels' order of summation.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from infid_engines.atomic_files import clear_leftovers, locked, whole_file
from infid_engines.errors import InputError, TrainingError
from infid_engines.progress import Reporter, SilentReporter
from infid_export.model.config import IdentityConfig
from infid_export.model.identity import IdentityModules
from infid_training.log import RunLog
from infid_training.photo_folders import Photos
from infid_training.run_checkpoint import STATE, WEIGHTS, Checkpoints
from infid_training.run_options import TrainOptions
from infid_training.stepper import NotFiniteError, Stepper

_MARK = ".infid-train"  # an empty file that marks a folder as a run's before it has a checkpoint
IDENTITY, CHECKPOINTS, SAMPLES, LOCK = "identity.safetensors", "checkpoints", "samples", ".lock"

Sample = Callable[[int, IdentityModules, Path], None]


@dataclass(frozen=True)
class TrainReport:
    """The result of a run.

    Args:
        identity: the trained weights, for `infid-export build --identity`.
        steps: total number of steps made.
        resumed_from: the step this call resumed from.
        loss: loss of the last step. If no step was left to make, it is read from the log; None if the log has none.
        validation_loss: the last validation loss, likewise; None if none was measured.
    """

    identity: Path
    steps: int
    resumed_from: int
    loss: float | None
    validation_loss: float | None


def run_settings(
    options: TrainOptions, model: str, photos: str, config: IdentityConfig, blocks: Mapping[str, int], processes: int
) -> dict[str, Any]:
    """Return the settings that decide a run's losses, which must be the same when it is resumed.

    Args:
        options: see `TrainOptions`.
        model: see `train`.
        photos: the photos' fingerprint.
        config: configuration of the identity modules.
        blocks: blocks of the UNet, see `IdentityModules`.
        processes: number of processes.
    """
    return {
        **options.decisive(),
        "model": model,
        "photos": photos,
        "identity": config.to_dict(),
        "cross-attention blocks": f"{len(blocks)} of {sum(blocks.values())} channels",
        "processes": processes,
    }


@contextmanager
def opened_run(
    folder: Path, options: TrainOptions, settings: Mapping[str, Any], resume: bool = True, main: bool = True
) -> Iterator[Checkpoints]:
    """Lock a run's folder while the block runs, after rejecting a run that cannot start or resume there.

    Args:
        folder: the run's folder; created if it is missing.
        options: see `TrainOptions`.
        settings: see `run_settings`.
        resume: see `train`.
        main: whether this is the first process, whose lock covers all of them.

    Yields:
        The run's checkpoints.

    Raises:
        InputError: the folder is in use by another process, holds other files or is not writable, or its run has other
            settings.
    """
    if main:
        _reject_foreign(folder)
    with locked(folder / LOCK, f"Another process is training in {folder}.") if main else nullcontext():
        checkpoints = Checkpoints(folder / CHECKPOINTS, settings, options.keep)
        made = max(checkpoints.steps(), default=0)
        if made and not resume:
            raise InputError(
                f"{folder} already holds a run of {made} steps.", fix="Give another folder, or let it resume."
            )
        checkpoints.state()
        if made > options.steps:
            raise InputError(
                f"The run in {folder} has already made {made} steps, more than the {options.steps} requested.",
                fix="Request more steps, or give another folder.",
            )
        if main:
            (folder / _MARK).touch()
        yield checkpoints


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
        unet: diffusers' SDXL UNet. It is moved to the device and cast to the precision; its weights are not trained.
        identity: initial weights, trained in place. Their configuration says whether text is on.
        photos: training photos; with text on, they must hold prompt embeddings.
        options: see `TrainOptions`.
        run_folder: gets checkpoints, `log.jsonl`, `samples/` and at the end `identity.safetensors`. With several
            machines, they must share it.
        reporter: shown the progress.
        validation: other people's photos, for the validation loss.
        sample: called with the step, the weights and a folder at every `sample_every`, in the first process only.
        model: a text that changes when the model's frozen weights do; a checkpoint with another one is not resumed.
        resume: whether to resume from the folder's newest checkpoint; if not, the folder must have none.

    Returns:
        Where the weights are, and the last losses.

    Raises:
        InputError: the photos, the options or the run folder cannot be used.
        TrainingError: the loss or the gradient is not finite, or the GPU's memory is full; the last checkpoint is kept.
    """
    # precision is handled here, since accelerate keeps one for the whole process; without `cpu=True` it does not
    # connect several processes on CPUs
    accelerator = Accelerator(mixed_precision="no", cpu=not torch.accelerator.is_available())
    main = accelerator.is_main_process
    shown = reporter if reporter is not None and main else SilentReporter()
    settings = run_settings(
        options, model, photos.fingerprint, identity.config, identity.blocks, accelerator.num_processes
    )
    with opened_run(run_folder, options, settings, resume, main) as checkpoints, _stops_explained(checkpoints, options):
        stepper = Stepper(accelerator, unet, identity, photos, options, validation)
        with closing(stepper):
            if main:
                for folder in (run_folder, run_folder / CHECKPOINTS):
                    clear_leftovers(folder)
            accelerator.wait_for_everyone()
            first = checkpoints.resume(stepper.trained)
            shown.note(
                f"{'resuming at' if first else 'starting from'} step {first}; "
                f"{sum(parameter.numel() for parameter in identity.parameters()) / 1e6:.1f} M parameters on "
                f"{accelerator.num_processes} × {accelerator.device.type}, {options.precision}; "
                f"{len(photos.people)} photos"
            )
            with closing(RunLog(run_folder, first)) if main else nullcontext() as log:
                if log is not None and not log.has_board:
                    shown.note("TensorBoard is not installed: losses are written to log.jsonl only")
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
) -> tuple[float | None, float | None]:
    """Make the steps and return the last losses; only the first process has a log, and only it writes files."""
    loss: float | None = None
    validated: float | None = None
    if first == options.steps and log is not None:
        return log.last("loss"), log.last("validation_loss")
    reporter.plan({"training": 1.0})  # its pace is measured on the way
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
    """Whether something that happens every `every` steps, and at the end, is due now; 0 means never."""
    return every > 0 and (made % every == 0 or made == last)


@contextmanager
def _stops_explained(checkpoints: Checkpoints, options: TrainOptions) -> Iterator[None]:
    """Turn an exception that ends a run into an error that says how to continue with other settings."""
    try:
        yield
    except NotFiniteError as error:
        precision = "" if options.precision == "fp32" else ", or `--precision fp32`"
        changes = f"`--learning-rate {options.learning_rate / 2:g}`{precision}"
        raise TrainingError(str(error), fix=f"Check these photos. {_go_on(checkpoints, changes)}") from error
    except torch.OutOfMemoryError as error:
        changes = "`--gradient-checkpointing`, or a smaller `--batch-size` with more `--accumulation`"
        raise memory_full(error, _go_on(checkpoints, changes)) from error


def memory_full(error: torch.OutOfMemoryError, fix: str) -> TrainingError:
    """Return the error for a GPU that is out of memory; torch's first two sentences say how much was requested."""
    asked = ". ".join(str(error).split(". ")[:2])
    return TrainingError(f"{asked.removesuffix('.')}.", fix=fix)


def _go_on(checkpoints: Checkpoints, changes: str) -> str:
    """Say how to continue a run with other settings, which its own checkpoints reject."""
    if checkpoints.newest is None:
        return f"Run the same command again with {changes}."
    weights = shlex.quote(str(checkpoints.newest / WEIGHTS))
    return (
        "A run's settings cannot change. To continue from the last checkpoint's weights, start a new run: the same "
        f"command with `--identity-init {weights} -o another-folder` and {changes}."
    )


def _reject_foreign(folder: Path) -> None:
    """Reject a folder with files that are not a run's, which a run could overwrite; hidden files do not count."""
    begun = (folder / _MARK).exists() or any((folder / CHECKPOINTS).glob(f"*/{STATE}"))
    if not begun and folder.is_dir() and not all(path.name.startswith(".") for path in folder.iterdir()):
        raise InputError(
            f"{folder} holds files, but no run to resume.", fix="Give a new or an empty folder for the run."
        )
