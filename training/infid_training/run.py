"""A whole run on prepared shards: cache, initial weights, training, sample images."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from tokenizers import Tokenizer

from infid_engines.errors import InputError
from infid_engines.manifest import sha256_file
from infid_engines.progress import Reporter, SilentReporter
from infid_export.model.encoder_match import differences, encoders_of
from infid_export.model.identity import IdentityModules
from infid_export.model.processors import identity_blocks
from infid_export.model.sources import ModelSource
from infid_training.base_model import FRESH, encoder_fingerprint, initial_identity, open_base
from infid_training.cache import ShardedPhotos, fill_cache, photos_fingerprint
from infid_training.loop import TrainReport, memory_full, opened_run, run_settings, train
from infid_training.run_options import TrainOptions
from infid_training.samples import PROMPTS, SampleGrid, fixed_people
from infid_training.shards import SPLITS, ShardIndex, read_captions
from infid_training.stepper import DTYPES, check_device

CACHE = "cache"


@dataclass(frozen=True)
class RunRequest:
    """What to train, on which data, and into which folder.

    Args:
        shards: folder that `prepare` wrote.
        folder: the run's folder.
        options: see `TrainOptions`; the shards decide whether people with one photo are allowed.
        model: a built-in model or a checkpoint folder.
        image_encoder: the image encoder that goes with a checkpoint folder.
        model_seed: seed of a built-in random model.
        initial: `fresh` or an identity file.
        with_text: train with text on (the ablation).
        center_tokens: see `open_base`.
        cache: folder for the frozen networks' outputs; None means `cache` in the shards folder.
        resume: see `train`.
        sample_prompts: prompts of the sample images; empty means the built-in ones.
        sample_steps: steps per image; None means the model's default.
    """

    shards: Path
    folder: Path
    options: TrainOptions
    model: str = "demo"
    image_encoder: str | None = None
    model_seed: int = 0
    initial: str = FRESH
    with_text: bool = False
    center_tokens: bool = False
    cache: Path | None = None
    resume: bool = True
    sample_prompts: tuple[str, ...] = ()
    sample_steps: int | None = None


def train_on_shards(request: RunRequest, reporter: Reporter | None = None) -> TrainReport:
    """Train on prepared shards.

    Args:
        request: see `RunRequest`.
        reporter: shown the progress.

    Returns:
        See `train`.

    Raises:
        InputError: shards, model, options or run folder cannot be used, or the disk is full.
        TrainingError: the loss is not finite, or the GPU's memory is full.
    """
    state = PartialState(cpu=not torch.accelerator.is_available())
    shown = reporter if reporter is not None and state.is_main_process else SilentReporter()
    index = ShardIndex.load(request.shards)
    options = replace(request.options, single_photo=index.single_photo)  # type: ignore[arg-type]
    source = open_base(
        request.model, request.image_encoder, request.initial, request.model_seed, request.with_text,
        request.center_tokens,
    )  # fmt: skip
    for note in source.notes:
        shown.note(note)
    model = f"UNet {source.fingerprint('unet')[:12]} from {_start(request.initial)}"
    for sentence in caption_notes(request.shards, index, source) if request.with_text else ():
        shown.note(f"note: {sentence}")
    _reject_early(request, options, index, source, model, state)
    cache = request.cache or request.shards / CACHE
    shown.plan({"caching": float(sum(shard.photos for shard in index.shards))})
    try:
        with shown.stage("caching") as stage:
            fill_cache(request.shards, cache, source, stage, state.device, state.process_index, state.num_processes)
    except torch.OutOfMemoryError as error:
        advice = "Stop other work on the GPU (`nvidia-smi` lists it), or prepare the photos at a smaller --photo-size."
        raise memory_full(error, advice) from error
    state.wait_for_everyone()
    photos, held_out = (ShardedPhotos(request.shards, cache, source, split) for split in SPLITS)
    unet: Any = source.load("unet", DTYPES[options.precision])
    identity = initial_identity(unet, source.config, request.initial, options.seed)
    encoders = encoders_of(source, index.recognizer, index.recognizer_name, index.detector)
    for clause in () if identity.encoders is None else differences(identity.encoders, encoders):
        shown.note(f"the weights that the run starts from were trained {clause}")
    identity.encoders = encoders
    sample = None
    if options.sample_every:
        split = SPLITS[1] if len(held_out.people) else SPLITS[0]
        shown_photos = held_out if len(held_out.people) else photos
        people = fixed_people(request.shards, shown_photos, split)
        prompts = request.sample_prompts or PROMPTS
        sample = SampleGrid(source, unet, shown_photos, people, prompts, request.sample_steps)
    if not len(held_out.people):
        shown.note("nobody is held out, so there is no validation loss")
    return train(
        unet,
        identity,
        photos,
        options,
        request.folder,
        shown,
        validation=held_out,
        sample=sample,
        model=model,
        resume=request.resume,
    )


def _reject_early(
    request: RunRequest, options: TrainOptions, index: ShardIndex, source: ModelSource, model: str, state: PartialState
) -> None:
    """Reject up front what training would otherwise reject only after hours of caching."""
    if (request.sample_prompts or request.sample_steps) and not options.sample_every:
        raise InputError("Sample images are only drawn with --sample-every.", fix="Add --sample-every.")
    check_device(options, state.device)
    blocks = identity_blocks(source.empty("unet"))
    if request.initial != FRESH:
        if Path(request.initial).resolve().is_relative_to(request.folder.resolve()):
            raise InputError(
                f"The run would start from {request.initial} and write into the same folder.",
                fix="Give another folder for the run.",
            )
        IdentityModules.load(request.initial, blocks)
    photos = photos_fingerprint(index.of(SPLITS[0]), encoder_fingerprint(source))
    settings = run_settings(options, model, photos, source.config, blocks, state.num_processes)
    with opened_run(request.folder, options, settings, request.resume, state.is_main_process):
        pass


def caption_notes(folder: Path, index: ShardIndex, source: ModelSource) -> list[str]:
    """Return one sentence for each problem with the training photos' captions: missing, or cut off.

    Args:
        folder: the shards' folder.
        index: the shards' index.
        source: the model; its tokenizers decide what is cut off.

    Raises:
        InputError: no photo has a caption, or a shard cannot be read.
    """
    tokenizers = [Tokenizer.from_str(text) for text in source.tokenizers()]
    photos = captions = 0
    cut: list[str] = []
    for shard in index.of(SPLITS[0]):
        for name, caption in read_captions(folder / shard.file):
            photos += 1
            captions += bool(caption)
            if any(tokenizer.encode(caption).overflowing for tokenizer in tokenizers):
                cut.append(name)
    if not captions:
        raise InputError(
            f"None of the {photos} training photos has a caption, so there is no text to train with.",
            fix="Put a .txt file of the same name beside each photo and prepare them again, or leave --with-text out.",
        )
    found = []
    if captions < photos:
        found.append(f"{photos - captions} of {photos} training photos have no caption; their text is empty")
    if cut:
        found.append(
            f"{len(cut)} captions are longer than a text encoder reads, such as {cut[0]}'s; their ends are cut off"
        )
    return found


def _start(initial: str) -> str:
    return initial if initial == FRESH else sha256_file(Path(initial))[:12]
