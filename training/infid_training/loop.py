"""The training loop: identity-enhanced training (Infinite-ID, arXiv 2403.11781, section 3.2) on cached photos.

The same call trains in one process or in many, on one machine or several, as `torchrun` or `accelerate launch` start
them. On the CPU a run that was stopped at any step goes on to exactly the losses it would have had; on a GPU up to what
its kernels' order of summation varies.
"""

from __future__ import annotations

import fcntl
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from accelerate import Accelerator
from diffusers import DDIMScheduler
from torch import Tensor, nn

from infid_engines.errors import InputError, TrainingError
from infid_engines.progress import Reporter, SilentReporter
from infid_export.model.identity import IdentityModules
from infid_export.model.processors import install_processors
from infid_export.scheduler import SDXL_SCHEDULER
from infid_training.checkpoint import Checkpoints, Trained
from infid_training.draws import Draw, Draws
from infid_training.durable import clear_leftovers, whole_file
from infid_training.log import RunLog
from infid_training.loss import identity_loss
from infid_training.optimizers import learning_rate, make_optimizer
from infid_training.options import TrainOptions
from infid_training.photos import Photos

IDENTITY, CHECKPOINTS, SAMPLES = "identity.safetensors", "checkpoints", "samples"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Of the moving average, its decay after t steps being at most (1 + t) / (10 + t): it soon leaves the initial weights.
_EMA_START = 10

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
    run = _Run(accelerator, unet, identity, photos, options, run_folder, validation, sample)
    shown = reporter if reporter is not None and accelerator.is_main_process else SilentReporter()
    lock = _locked(run_folder) if accelerator.is_main_process else nullcontext()
    with lock:
        try:
            return run.run(shown, model, resume)
        finally:
            run.close()


class _Loss(nn.Module):
    """The loss as one module, so that gradients are averaged over processes; the frozen UNet is none of its parts."""

    def __init__(self, unet: Any, identity: IdentityModules) -> None:
        super().__init__()
        self.identity = identity
        self._unet = (unet,)

    def forward(self, *tensors: Tensor | None) -> Tensor:
        return identity_loss(self._unet[0], self.identity, *tensors)  # type: ignore[arg-type]


class _Run:
    def __init__(
        self,
        accelerator: Accelerator,
        unet: Any,
        identity: IdentityModules,
        photos: Photos,
        options: TrainOptions,
        folder: Path,
        validation: Photos | None,
        sample: Sample | None,
    ) -> None:
        self._accelerator, self._options, self._folder = accelerator, options, folder
        self._unet, self._photos, self._validation, self._sample = unet, photos, validation, sample
        self._device, self._dtype = accelerator.device, DTYPES[options.precision]
        if options.precision == "fp16" and self._device.type == "cpu":
            raise InputError("fp16 training needs a GPU.", fix="Choose bf16 or fp32.")
        own_pairs = options.single_photo == "own-pair"
        settings = (options.seed, options.batch_size, accelerator.num_processes, options.accumulation)
        self._noising = DDIMScheduler(**SDXL_SCHEDULER)
        self._draws = Draws(photos, *settings, self._noising.config.num_train_timesteps, own_pairs)
        self._fixed: Draws | None = None
        if validation is not None and len(validation.people):
            self._fixed = Draws(validation, *settings, self._noising.config.num_train_timesteps, own_pairs)
        install_processors(unet, identity.config)
        # not diffusers' own `to`, which warns that a list of modules should stay fp32: for this UNet it is empty
        nn.Module.to(unet, self._device, self._dtype).eval().requires_grad_(False)
        if options.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
        identity.to(self._device, torch.float32).train().requires_grad_(True)
        average = deepcopy(identity).requires_grad_(False) if options.ema_decay else None
        optimizer = make_optimizer(identity, options, self._device)
        scaler = torch.amp.GradScaler(self._device.type, enabled=options.precision == "fp16")
        self._trained = Trained(identity, average, optimizer, scaler)
        self._loss: Any = accelerator.prepare_model(_Loss(unet, identity))
        self._log: RunLog | None = None

    def close(self) -> None:
        """Leave the networks as they are used elsewhere."""
        self._unet.disable_gradient_checkpointing()
        self._trained.identity.eval().requires_grad_(False)
        if self._log is not None:
            self._log.close()

    def run(self, reporter: Reporter, model: str, resume: bool) -> TrainReport:
        options, main = self._options, self._accelerator.is_main_process
        checkpoints = Checkpoints(self._folder / CHECKPOINTS, self._settings(model), options.keep)
        if not resume and checkpoints.steps():
            raise InputError(
                f"{self._folder} holds a run of {checkpoints.steps()[-1]} steps.",
                fix="Give another folder, or let it resume.",
            )
        if main:
            for folder in (self._folder, self._folder / CHECKPOINTS):
                clear_leftovers(folder)
        self._accelerator.wait_for_everyone()
        first = checkpoints.resume(self._trained)
        if first > options.steps:
            raise InputError(
                f"{self._folder} has made {first} steps already, more than the {options.steps} asked for.",
                fix="Ask for more steps, or give another folder.",
            )
        if main:
            self._log = RunLog(self._folder, first)
            reporter.note(f"{'resuming at' if first else 'starting from'} step {first}; {self._where()}")
        loss, validated = math.nan, None
        reporter.plan({"training": 1.0})
        with reporter.stage("training") as stage:
            started = time.monotonic()
            for step in range(first, options.steps):
                loss, norm, rate = self._step(step)
                made = step + 1
                speed = (made - first) / (time.monotonic() - started)
                stage.update((made - first) / (options.steps - first), f"step {made} of {options.steps}, "
                             f"loss {loss:.4f}, {speed:.2f} steps/s")  # fmt: skip
                if made % options.log_every == 0 or made == options.steps:
                    self._write(made, loss=loss, gradient_norm=norm, learning_rate=rate)
                if _due(made, options.validate_every, options.steps) and self._fixed is not None:
                    validated = self._validate(self._fixed)
                    self._write(made, validation_loss=validated)
                if self._sample is not None and main and _due(made, options.sample_every, options.steps):
                    (self._folder / SAMPLES).mkdir(exist_ok=True)
                    self._sample(made, self._trained.result, self._folder / SAMPLES)
                if main and _due(made, options.checkpoint_every, options.steps):
                    assert self._log is not None
                    self._log.flush()
                    checkpoints.save(made, self._trained)
        if main:
            with whole_file(self._folder / IDENTITY) as partial:
                self._trained.result.save(partial)
        self._accelerator.wait_for_everyone()
        return TrainReport(self._folder / IDENTITY, options.steps, first, loss, validated)

    def _settings(self, model: str) -> dict[str, Any]:
        identity = self._trained.identity
        return {
            **self._options.decisive(),
            "model": model,
            "photos": self._photos.fingerprint,
            "identity": identity.config.to_dict(),
            "cross-attention blocks": f"{len(identity.blocks)} of {sum(identity.blocks.values())} channels in all",
            "processes": self._accelerator.num_processes,
        }

    def _where(self) -> str:
        trained = sum(parameter.numel() for parameter in self._trained.identity.parameters())
        board = "TensorBoard's files too" if self._log is not None and self._log.has_board else "no TensorBoard here"
        return (
            f"{trained / 1e6:.1f} M parameters on {self._accelerator.num_processes} × {self._device.type}, "
            f"{self._options.precision}; {len(self._photos.people)} photos; log.jsonl, {board}"
        )

    def _write(self, step: int, **values: float) -> None:
        if self._log is not None:
            self._log.write(step, **values)

    def _step(self, step: int) -> tuple[float, float, float]:
        """Make one step; returns loss, gradient norm and learning rate."""
        options, optimizer, scaler = self._options, self._trained.optimizer, self._trained.scaler
        rate = learning_rate(options, step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        total = 0.0
        for part in range(options.accumulation):
            draw = self._draws.batch(step, self._accelerator.process_index, part)
            waits = part + 1 < options.accumulation  # gradients are averaged over processes in the last pass only
            with self._accelerator.no_sync(self._loss) if waits else nullcontext():
                loss = self._of(self._loss, self._photos, draw)
                losses = self._accelerator.gather(loss.detach().reshape(1)).tolist()
                self._require_finite(losses, step, part)
                scaler.scale(loss / options.accumulation).backward()  # type: ignore[no-untyped-call]
            total += math.fsum(losses) / len(losses)
        scaler.unscale_(optimizer)
        parameters = self._trained.identity.parameters()
        norm = float(nn.utils.clip_grad_norm_(parameters, options.max_grad_norm or math.inf))
        if not math.isfinite(norm) and not scaler.is_enabled():  # with fp16 the scaler leaves the step out
            self._stop("gradient", step, self._accelerator.process_index, 0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        if self._trained.ema is not None:
            decay = min(options.ema_decay, (1 + step) / (_EMA_START + step))
            with torch.no_grad():
                pairs = zip(self._trained.ema.parameters(), self._trained.identity.parameters(), strict=True)
                for average, value in pairs:
                    average.lerp_(value, 1 - decay)
        return total / options.accumulation, norm, rate

    def _of(self, loss: Any, photos: Photos, draw: Draw) -> Tensor:
        """Return the loss of a batch."""
        targets, references = photos.targets(draw.targets), photos.references(draw.references)
        latents = self._here(targets.latents)
        noise, timesteps = draw.noise.to(self._device), draw.timesteps.to(self._device)
        noisy = self._noising.add_noise(latents, noise, timesteps)
        features, embeddings, sizes = map(
            self._here, (references.clip_features, references.face_embeddings, targets.time_ids)
        )
        texts = [
            None if each is None or not self._trained.identity.config.trained_with_text else self._here(each)
            for each in (targets.prompt_embeds, targets.pooled_prompt_embeds)
        ]
        with torch.autocast(self._device.type, self._dtype, enabled=self._dtype != torch.float32):
            result: Tensor = loss(noisy, noise, timesteps, features, embeddings, sizes, *texts)
        return result

    def _here(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._device, torch.float32)

    @torch.no_grad()
    def _validate(self, draws: Draws) -> float:
        """Return the mean loss over the fixed pairs, which are shared among the processes."""
        assert self._validation is not None
        loss = _Loss(self._unet, self._trained.result)
        batches = draws.validation(self._options.validation_pairs)
        mine = batches[self._accelerator.process_index :: self._accelerator.num_processes]
        total = torch.zeros(2, dtype=torch.float64, device=self._device)
        for draw in mine:
            total[0] += self._of(loss, self._validation, draw).double() * len(draw.targets)
            total[1] += len(draw.targets)
        summed = self._accelerator.reduce(total, "sum")
        return float(summed[0] / summed[1])

    def _require_finite(self, losses: list[float], step: int, part: int) -> None:
        for rank, loss in enumerate(losses):
            if not math.isfinite(loss):
                self._stop(f"loss ({loss})", step, rank, part)

    def _stop(self, what: str, step: int, rank: int, part: int) -> None:
        names = self._draws.names(self._draws.batch(step, rank, part))
        raise TrainingError(
            f"The {what} of step {step + 1} is not finite. Its pairs were: {', '.join(names)}.",
            fix="Look at these photos, lower the learning rate or choose another precision; "
            "the same command resumes from the last checkpoint.",
        )


def _due(made: int, every: int, last: int) -> bool:
    """Whether something that happens every so many steps, and at the end, is to happen now; every 0 is never."""
    return every > 0 and (made % every == 0 or made == last)


def _locked(folder: Path) -> IO[str]:
    """Return a lock on the run folder, which the process's end gives back.

    Raises:
        InputError: another process trains in it, or it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("a")
    except OSError as error:
        raise InputError(f"{folder} cannot be written to ({error.strerror}).", fix="Choose another folder.") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise InputError(f"Another process trains in {folder}.", fix="Wait for it, or give another folder.") from error
    return file
