"""One optimizer step: batch, loss, gradients, weights and their moving average; and the validation loss."""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import nullcontext
from copy import deepcopy
from itertools import product
from typing import Any

import torch
from accelerate import Accelerator
from diffusers import DDIMScheduler
from torch import Tensor, nn

from infid_engines.errors import InputError
from infid_export.model.components import cast_module
from infid_export.model.config import IdentityConfig
from infid_export.model.identity import IdentityModules
from infid_export.model.processors import install_processors
from infid_export.sampling.noise_schedule import SDXL_SCHEDULER
from infid_training.batches import Batch, BatchSampler
from infid_training.loss import identity_loss
from infid_training.optimizers import learning_rate, make_optimizer, optimizer_class
from infid_training.photo_folders import Photos
from infid_training.run_checkpoint import Trained
from infid_training.run_options import TrainOptions

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# The moving average's decay after t steps is at most (1 + t) / (10 + t), so that it soon leaves the initial weights.
_EMA_START = 10
# Steps in a row that fp16's scaler may skip. It starts at 65536 and halves its scale each time: after 17 of them there
# is nothing left to scale, and what still overflows does not depend on the scale.
_SKIPPED = 20


class _Loss(nn.Module):
    """The loss as one module, so that gradients are averaged over processes; the frozen UNet is not a submodule."""

    def __init__(self, unet: Any, identity: IdentityModules) -> None:
        super().__init__()
        self.identity = identity
        self._unet = (unet,)

    def forward(self, *tensors: Tensor | None) -> Tensor:
        return identity_loss(self._unet[0], self.identity, *tensors)  # type: ignore[arg-type]


class NotFiniteError(Exception):
    """A step's loss or gradient is not finite; the message says which one, and on which photos."""


def check_device(options: TrainOptions, device: torch.device) -> None:
    """Reject options that need a different device, or a library that is not installed.

    Raises:
        InputError: fp16 or the 8-bit optimizer was asked for on a CPU.
        BackendUnavailableError: the optimizer's library is not installed.
    """
    if options.precision == "fp16" and device.type == "cpu":
        raise InputError("fp16 training needs a GPU.", fix="Choose bf16 or fp32.")
    optimizer_class(options, device)


class Stepper:
    """Makes steps; holds the networks as training needs them until it is closed.

    Args:
        accelerator: device and processes.
        unet: see `train`.
        identity: see `train`.
        photos: training photos.
        options: see `TrainOptions`.
        validation: other people's photos; None or empty if there are none.

    Raises:
        InputError: the options need a different device, or the photos do not fit the networks.
        BackendUnavailableError: the optimizer's library is not installed.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        unet: Any,
        identity: IdentityModules,
        photos: Photos,
        options: TrainOptions,
        validation: Photos | None = None,
    ) -> None:
        self._accelerator, self._options = accelerator, options
        self._unet, self._photos, self._validation = unet, photos, validation
        self._device, self._dtype = accelerator.device, DTYPES[options.precision]
        check_device(options, self._device)
        self._noising = DDIMScheduler(**SDXL_SCHEDULER)
        self.sampler = self._sampler_of(photos)
        self._fixed = self._sampler_of(validation) if validation is not None and len(validation.people) else None
        for each in (photos, validation):
            if each is not None and len(each.people):
                _check_shapes(each, identity.config)
        install_processors(unet, identity.config)
        cast_module(unet, self._device, self._dtype).eval().requires_grad_(False)
        if options.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
        identity.to(self._device, torch.float32).train().requires_grad_(True)
        average = deepcopy(identity).requires_grad_(False) if options.ema_decay else None
        optimizer = make_optimizer(identity, options, self._device)
        scaler = torch.amp.GradScaler(self._device.type, enabled=options.precision == "fp16")
        self.trained = Trained(identity, average, optimizer, scaler)
        self._skipped = 0  # steps in a row that the scaler has skipped
        self._loss: Any = accelerator.prepare_model(_Loss(unet, identity))

    def close(self) -> None:
        """Put the networks back into the state in which they are used elsewhere."""
        self._unet.disable_gradient_checkpointing()
        self.trained.identity.eval().requires_grad_(False)

    def _sampler_of(self, photos: Photos) -> BatchSampler:
        options = self._options
        return BatchSampler(
            photos, options.seed, options.batch_size, self._accelerator.num_processes, options.accumulation,
            self._noising.config.num_train_timesteps, options.single_photo == "own-pair",
            options.identity_dropout,
        )  # fmt: skip

    def step(self, step: int) -> tuple[float, float, float]:
        """Make one step.

        Args:
            step: counted from 0.

        Returns:
            The mean loss over all processes, the gradient's norm before clipping, the learning rate.

        Raises:
            NotFiniteError: the loss or the gradient is not finite (in fp16, the gradient for too many steps in a row);
                the weights are as before the step.
        """
        options, optimizer, scaler = self._options, self.trained.optimizer, self.trained.scaler
        rate = learning_rate(options, step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        total = 0.0
        for part in range(options.accumulation):
            batch = self.sampler.batch(step, self._accelerator.process_index, part)
            waits = part + 1 < options.accumulation  # gradients are averaged over processes in the last pass only
            with self._accelerator.no_sync(self._loss) if waits else nullcontext():
                loss = self.loss_of(self._loss, self._photos, batch)
                losses = self._accelerator.gather(loss.detach().reshape(1)).tolist()
                for rank, value in enumerate(losses):
                    if not math.isfinite(value):
                        raise self._not_finite(f"The loss ({value})", step, [(rank, part)])
                scaler.scale(loss / options.accumulation).backward()  # type: ignore[no-untyped-call]
            total += math.fsum(losses) / len(losses)
        scaler.unscale_(optimizer)
        parameters = self.trained.identity.parameters()
        norm = float(nn.utils.clip_grad_norm_(parameters, options.max_grad_norm or math.inf))
        self._skipped = 0 if math.isfinite(norm) else self._skipped + 1
        if self._skipped > (_SKIPPED if scaler.is_enabled() else 0):
            # by now averaged over all processes and passes, so it may be any of their pairs
            batches = product(range(self._accelerator.num_processes), range(options.accumulation))
            many = f"After {self._skipped - 1} skipped steps, the" if self._skipped > 1 else "The"
            raise self._not_finite(f"{many} gradient", step, batches)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        if self.trained.ema is not None:
            decay = min(options.ema_decay, (1 + step) / (_EMA_START + step))
            with torch.no_grad():
                pairs = zip(self.trained.ema.parameters(), self.trained.identity.parameters(), strict=True)
                for average, value in pairs:
                    average.lerp_(value, 1 - decay)
        return total / options.accumulation, norm, rate

    def loss_of(self, loss: Any, photos: Photos, batch: Batch) -> Tensor:
        """Return a module's loss on a batch."""
        targets, references = photos.targets(batch.targets), photos.references(batch.references)
        latents = self._here(targets.latents)
        noise, timesteps = batch.noise.to(self._device), batch.timesteps.to(self._device)
        noisy = self._noising.add_noise(latents, noise, timesteps)
        features, embeddings, sizes, kept = map(
            self._here, (references.clip_features, references.face_embeddings, targets.time_ids, batch.kept)
        )
        features, embeddings = features * kept[:, None, None], embeddings * kept[:, None]
        texts = [
            None if each is None or not self.trained.identity.config.trained_with_text else self._here(each)
            for each in (targets.prompt_embeds, targets.pooled_prompt_embeds)
        ]
        with torch.autocast(self._device.type, self._dtype, enabled=self._dtype != torch.float32):
            result: Tensor = loss(noisy, noise, timesteps, features, embeddings, sizes, *texts)
        return result

    def _here(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._device, torch.float32)

    @torch.no_grad()
    def validate(self) -> float | None:
        """Return the mean loss over the fixed pairs, which are split among the processes; None if there are none."""
        if self._fixed is None or self._validation is None:
            return None
        loss = _Loss(self._unet, self.trained.result)
        batches = self._fixed.validation(self._options.validation_pairs)
        mine = batches[self._accelerator.process_index :: self._accelerator.num_processes]
        total = torch.zeros(2, dtype=torch.float64, device=self._device)
        for batch in mine:
            total[0] += self.loss_of(loss, self._validation, batch).double() * len(batch.targets)
            total[1] += len(batch.targets)
        summed = self._accelerator.reduce(total, "sum")
        return float(summed[0] / summed[1])

    def _not_finite(self, what: str, step: int, places: Iterable[tuple[int, int]]) -> NotFiniteError:
        """Return the error for a step; it names the pairs of its batches, each given by process and pass."""
        names = [name for place in places for name in self.sampler.names(self.sampler.batch(step, *place))]
        return NotFiniteError(f"{what} of step {step + 1} is not finite. Its pairs were: {', '.join(names)}.")


def _check_shapes(photos: Photos, config: IdentityConfig) -> None:
    """Reject photos whose tensors do not fit the identity modules."""
    first = torch.zeros(1, dtype=torch.int64)
    targets, references = photos.targets(first), photos.references(first)
    wanted = {
        "clip_features": (references.clip_features, (config.clip_tokens, config.clip_width)),
        "face_embeddings": (references.face_embeddings, (config.face_width,)),
        "time_ids": (targets.time_ids, (6,)),
    }
    for name, (tensor, shape) in wanted.items():
        if tuple(tensor.shape[1:]) != shape:
            raise InputError(
                f"Each photo's {name} have shape {list(tensor.shape[1:])}; the identity modules take {list(shape)}.",
                fix="Encode the photos with the networks of this model.",
            )
    if config.trained_with_text and (targets.prompt_embeds is None or targets.pooled_prompt_embeds is None):
        raise InputError(
            "Training with text needs the captions' embeddings, and the photos have none.",
            fix="Encode the captions, or train without text.",
        )
