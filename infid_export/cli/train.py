"""`infid-export train`."""

from __future__ import annotations

import argparse
import os
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from infid_engines.errors import InputError
from infid_engines.text_files import without_marks
from infid_export.cli.flags import DRY_RUN_HELP, MODEL_HELP
from infid_export.cli.output import Output, shown, size
from infid_export.cli.progress_bar import duration

if TYPE_CHECKING:
    from infid_export.model.sources import ModelSource
    from infid_training.run_options import TrainOptions

# Repeated here instead of imported, since that import is too heavy for help.
_SCHEDULES = ("constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial")
# An A100 is specified at 312 in bf16; reaching 40 % of that is an assumption, not measured on a GPU.
_TFLOPS = 125.0
_GPU_GB = 80.0
EXAMPLES = (
    "infid-export train shards/ -o run/ --train-steps 1000 --sample-every 200",
    "infid-export train --dry-run --model random-sdxl --precision bf16 --gpus 16",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments; most are fields of `TrainOptions`."""
    parser.add_argument("shards", type=Path, nargs="?", metavar="SHARDS", help="folder written by `prepare`")
    parser.add_argument("-o", "--output", type=Path, default=Path("run"), metavar="DIR", help="run folder (run)")
    parser.add_argument("--no-resume", action="store_true", help="reject a run folder that has checkpoints")
    model = parser.add_argument_group("model")
    model.add_argument("--model", default="demo", help=MODEL_HELP)
    model.add_argument(
        "--image-encoder", metavar="PATH|TAG", help="CLIP image encoder: file or folder, or open_clip tag"
    )
    model.add_argument("--model-seed", type=int, default=0, metavar="N", help="seed of random weights (0)")
    model.add_argument(
        "--identity-init",
        default="fresh",
        metavar="fresh|FILE",
        help="start fresh, or from an identity file (fresh)",
    )
    model.add_argument("--with-text", action="store_true", help="train with text cross-attention on (ablation)")
    model.add_argument(
        "--center-tokens", action="store_true", help="subtract the mean from a person's tokens, for short training runs"
    )
    model.add_argument("--cache", type=Path, metavar="DIR", help="cache of the frozen networks' outputs (SHARDS/cache)")
    _add_training(parser.add_argument_group("training"))
    _add_watching(parser.add_argument_group("watching"))
    plan = parser.add_argument_group("plan")
    plan.add_argument("--dry-run", action="store_true", help=DRY_RUN_HELP)
    plan.add_argument(
        "--estimate-size",
        type=int,
        metavar="PX",
        help="size of the photos, for --dry-run (the shards', else the model's)",
    )
    plan.add_argument("--gpus", type=int, metavar="N", help="number of GPUs, for --dry-run (1)")
    plan.add_argument("--gpu-memory", type=float, metavar="GB", help=f"memory per GPU, for --dry-run ({_GPU_GB:.0f})")
    plan.add_argument(
        "--tflops", type=float, metavar="N", help=f"TFLOP/s reached per GPU, for --dry-run ({_TFLOPS:.0f})"
    )


def _add_training(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--train-steps", dest="steps", type=int, default=1_000_000, metavar="N",
                       help="number of steps (1000000, the paper's)")  # fmt: skip
    group.add_argument("--batch-size", type=int, default=4, metavar="N", help="photos per process and forward pass (4)")
    group.add_argument("--accumulation", type=int, default=1, metavar="N", help="forward passes per step (1)")
    group.add_argument("--learning-rate", type=float, default=1e-4, metavar="X", help="(1e-4)")
    group.add_argument("--weight-decay", type=float, default=0.01, metavar="X", help="(0.01)")
    group.add_argument("--lr-schedule", choices=_SCHEDULES, default="constant", metavar="NAME",
                       help=f"{', '.join(_SCHEDULES)} (constant)")  # fmt: skip
    group.add_argument("--warmup-steps", type=int, default=0, metavar="N", help="(0)")
    group.add_argument("--max-grad-norm", type=float, default=1.0, metavar="X", help="0 turns clipping off (1)")
    group.add_argument(
        "--ema-decay", type=float, default=0.0, metavar="X", help="decay of the moving average; 0 turns it off (0)"
    )
    group.add_argument("--identity-dropout", type=float, default=0.05, metavar="X",
                       help="share of references that are dropped, for guidance (0.05)")  # fmt: skip
    group.add_argument(
        "--precision", choices=("fp32", "bf16", "fp16"), default="fp32", help="precision of the networks (fp32)"
    )
    group.add_argument("--gradient-checkpointing", action="store_true", help="use less memory, and a third more time")
    group.add_argument("--optimizer", choices=("adamw", "adamw8bit"), default="adamw", help="(adamw)")
    group.add_argument("--train-seed", dest="seed", type=int, default=0, metavar="N",
                       help="seed of pairs, noise and fresh weights (0)")  # fmt: skip


def _add_watching(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--checkpoint-every", type=int, default=1000, metavar="N", help="steps (1000)")
    group.add_argument("--keep", type=int, default=3, metavar="N", help="how many checkpoints to keep (3)")
    group.add_argument("--log-every", type=int, default=10, metavar="N", help="steps (10)")
    group.add_argument("--validate-every", type=int, default=1000, metavar="N", help="steps; 0 is never (1000)")
    group.add_argument("--validation-pairs", type=int, default=64, metavar="N", help="(64)")
    group.add_argument("--sample-every", type=int, default=0, metavar="N", help="steps; 0 is never (0)")
    group.add_argument(
        "--sample-prompt", action="append", metavar="TEXT", help="prompt of the sample images; repeatable"
    )
    group.add_argument("--sample-steps", type=int, metavar="N", help="steps per image (the model's default)")


def run(arguments: argparse.Namespace, output: Output) -> int:
    """Train, or show the estimate."""
    from infid_training.run_options import TrainOptions

    fields = TrainOptions.__dataclass_fields__
    options = TrainOptions(**{name: value for name, value in vars(arguments).items() if name in fields})
    if arguments.dry_run:
        return _dry_run(arguments, options, output)
    for name in ("estimate_size", "gpus", "gpu_memory", "tflops"):
        if getattr(arguments, name) is not None:
            raise InputError(
                f"--{name.replace('_', '-')} is for --dry-run only.", fix="Leave it out, or add --dry-run."
            )
    if arguments.shards is None:
        raise InputError("SHARDS is missing.", fix="Give a folder that `infid-export prepare` wrote.")
    from infid_training.run import RunRequest, train_on_shards

    request = RunRequest(
        shards=arguments.shards, folder=arguments.output, options=options, model=arguments.model,
        image_encoder=arguments.image_encoder, model_seed=arguments.model_seed, initial=arguments.identity_init,
        with_text=arguments.with_text, center_tokens=arguments.center_tokens, cache=arguments.cache,
        resume=not arguments.no_resume,
        sample_prompts=tuple(map(without_marks, arguments.sample_prompt or ())), sample_steps=arguments.sample_steps,
    )  # fmt: skip
    first = os.environ.get("RANK", "0") == "0"  # set by torchrun and accelerate; only the first process prints
    with output.progress() if first else nullcontext() as reporter:
        report = train_on_shards(request, reporter)
    if not first:
        return 0
    done = ", already finished" if report.resumed_from == report.steps else ""
    loss = "" if report.loss is None else f", loss {report.loss:.4f}"
    validation = "" if report.validation_loss is None else f", validation loss {report.validation_loss:.4f}"
    output.line(f"{shown(report.identity)}: {report.steps} steps{done}{loss}{validation}")
    output.document(asdict(report))
    return 0


def _dry_run(arguments: argparse.Namespace, options: TrainOptions, output: Output) -> int:
    from infid_training.base_model import open_base
    from infid_training.run_estimate import estimate

    source = open_base(arguments.model, arguments.image_encoder, arguments.identity_init, with_text=arguments.with_text)
    gpus, tflops = arguments.gpus or 1, arguments.tflops or _TFLOPS
    limit = (arguments.gpu_memory or _GPU_GB) * 1e9
    pixels, photos = _photos(arguments, source, output)
    found = estimate(source, options, pixels, gpus, tflops)
    rows = [(name, size(count)) for name, count in found.memory.items() if count]
    output.table("Memory of one GPU", ("for", "size"), [*rows, ("sum", size(found.peak_bytes))], numbers=("size",))
    fits = found.peak_bytes <= limit
    seen = options.steps * options.batch_size * options.accumulation * gpus
    trained, every = found.parameters / 1e6, (found.parameters + found.frozen_parameters) / 1e6
    output.line(f"{arguments.model} at {pixels} × {pixels}, {options.precision}: "
                f"{trained:.1f} M trained of {every:.1f} M parameters")  # fmt: skip
    output.line(f"per step: {found.flops_per_photo / 1e12:.3g} TFLOP forward per photo, "
                f"{found.flops_per_step / 1e12:.3g} TFLOP per GPU with the backward pass")  # fmt: skip
    output.line(f"time: {duration(found.seconds)} for {options.steps} steps ({seen} photos seen), assuming "
                f"{tflops:g} TFLOP/s per GPU and no communication time")  # fmt: skip
    output.line(f"disk: {size(found.checkpoint_bytes * (options.keep + 1))} for checkpoints, "
                f"{size(found.cache_bytes_per_photo)} per photo for the cache")  # fmt: skip
    verdict = "fits" if fits else "does not fit"
    output.line(f"{'PASSED' if fits else 'FAILED'} {size(found.peak_bytes)} {verdict} in {size(limit)}; an estimate "
                "of the steps, without caching and sample images; nothing was trained")  # fmt: skip
    if not fits:
        output.note("to use less memory: --precision bf16, --gradient-checkpointing, a smaller --batch-size with "
                    "--accumulation, --optimizer adamw8bit")  # fmt: skip
    output.document(
        {
            **asdict(found), "peak_bytes": found.peak_bytes, "fits": fits, "gpus": gpus, "assumed_tflops": tflops,
            "size": pixels, "photos_seen": seen, "photos": photos,
        }
    )  # fmt: skip
    return 0 if fits else 1


def _photos(arguments: argparse.Namespace, source: ModelSource, output: Output) -> tuple[int, int | None]:
    """Return the size of the photos in pixels, and with shards the number of training photos."""
    if arguments.shards is None:
        return arguments.estimate_size or source.architecture.size, None
    from infid_training.run import caption_notes
    from infid_training.shards import ShardIndex

    index = ShardIndex.load(arguments.shards)
    for sentence in caption_notes(arguments.shards, index, source) if arguments.with_text else ():
        output.note(f"note: {sentence}")
    return arguments.estimate_size or index.size, sum(shard.photos for shard in index.of("train"))
