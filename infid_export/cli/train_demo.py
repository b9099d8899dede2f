"""`infid-export train-demo`."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from infid_engines.errors import BackendUnavailableError, InputError
from infid_export.cli.output import Output, shown

EXAMPLES = ("infid-export train-demo -o demo-training", "infid-export train-demo --base-steps 23250 --ablation")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("demo-training"), metavar="DIR",
        help="folder for images and weights, 4 GB; finished stages in it are reused (demo-training)",
    )  # fmt: skip
    parser.add_argument(
        "--base-steps", type=int, metavar="N",
        help="training steps of the UNet, which profits most (as many as fit in three hours on two CPU cores)",
    )  # fmt: skip
    parser.add_argument(
        "--ablation", action="store_true",
        help="also train the identity weights with text enabled, for benchmarks/quality/ablation_scores.py (30 min)",
    )  # fmt: skip
    parser.add_argument("--gpu", action="store_true", help="train on an NVIDIA GPU instead of the CPU")
    parser.add_argument(
        "--no-compile", action="store_true",
        help="do not compile the UNet; compiling saves a fifth of its time, and needs g++ and Python's headers",
    )  # fmt: skip


def run(arguments: argparse.Namespace, output: Output) -> int:
    """Run every stage that is not finished yet, and print the paths of the files."""
    folder: Path = arguments.output
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is not a folder.", fix="Choose another folder with -o.")
    if arguments.base_steps is not None and arguments.base_steps < 1:
        raise InputError(
            f"--base-steps must be at least 1, not {arguments.base_steps}.",
            fix="Give a positive number, or leave it out.",
        )
    import torch

    if arguments.gpu and not torch.cuda.is_available():
        raise BackendUnavailableError(
            "torch finds no NVIDIA GPU.", fix="Leave --gpu out, or run `infid-export doctor`."
        )
    compiled = not arguments.no_compile
    if compiled and not (shutil.which("g++") or shutil.which("clang++")):
        raise BackendUnavailableError(
            "There is no C++ compiler to compile the UNet with.", fix="Run `apt install g++`, or give --no-compile."
        )
    from infid_training.recipe.stages import Recipe

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{folder} cannot be created ({error.strerror}).", fix="Choose another folder with -o."
        ) from error
    with output.progress() as reporter:
        device = "cuda" if arguments.gpu else "cpu"
        recipe = Recipe(
            folder, device, reporter,
            compiled=compiled, base_steps=arguments.base_steps, ablation=arguments.ablation,
        )  # fmt: skip
        files = recipe.run()
    for file in files:
        output.line(shown(file))
    output.document({"files": files})
    return 0
