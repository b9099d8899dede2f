"""Arguments that several commands share, with one meaning."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infid_engines.device import Device
from infid_engines.progress import Reporter
from infid_engines.registry import BACKENDS
from infid_engines.text_files import without_marks
from infid_export.sampling import SAMPLERS, SPACINGS

if TYPE_CHECKING:
    from infid_export.runtime.pipeline import Pipeline

# Not "engines": a clone of the repository has source code there.
ENGINES = Path("infid-engines")
MODEL_HELP = (
    "demo, random-sdxl, random-medium, an SDXL safetensors file, a diffusers folder or a hub id "
    "(demo; import: random-sdxl)"
)
DRY_RUN_HELP = "show what would be done, without doing it"
# By flag, the field of the configuration and its choices; None for a number.
METHOD_CHOICES: dict[str, tuple[str, tuple[str, ...] | None]] = {
    "--streams": ("streams", ("one", "two")),
    "--self-attention": ("self_attention", ("mixed", "mutual", "plain")),
    "--adain": ("adain", ("mean", "standard", "off")),
    "--cross-adain": ("cross_adain", ("kv", "output", "off")),
    "--cross-merge": ("cross_merge", ("sum", "orthogonal", "orthogonal_v2")),
    "--uncond-identity": ("uncond_identity", ("zeros", "zero_image", "off")),
    "--zero-tokens": ("zero_tokens", None),
}


def add_common(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that every command has."""
    group = parser.add_argument_group("output")
    group.add_argument("--json", action="store_true", help="print one JSON document on stdout")
    group.add_argument("--quiet", action="store_true", help="no progress and no notes")


def add_engines(parser: argparse.ArgumentParser) -> None:
    """Add the choice of an engine folder and how to run it."""
    group = parser.add_argument_group("engines")
    group.add_argument("--engines", type=Path, default=ENGINES, metavar="DIR", help=f"engine folder ({ENGINES})")
    add_running(group)


def add_running(group: argparse._ActionsContainer) -> None:
    """Add the arguments that choose how engines run."""
    group.add_argument(
        "--backend", choices=backend_choices(), default="auto", metavar="NAME", help=backend_help("auto")
    )
    group.add_argument(
        "--device", type=_device, default="auto", metavar="NAME",
        help="auto, cpu, cuda, or cuda:1 for the second GPU (auto: the CPU for onnxruntime)",
    )  # fmt: skip
    group.add_argument("--threads", type=int, metavar="N", help="CPU threads of onnxruntime (one per core)")


def _device(text: str) -> str:
    """Return the choice of a device as it is.

    Raises:
        InputError: there is no such device.
    """
    return text if text == "auto" else str(Device.parse(text))


def open_pipeline(arguments: argparse.Namespace, folder: Path, reporter: Reporter | None = None) -> Pipeline:
    """Open an engine folder with the arguments of `add_running`; see `Pipeline.load`."""
    from infid_export.runtime.pipeline import Pipeline

    return Pipeline.load(folder, arguments.backend, arguments.device, reporter, arguments.threads)


def backend_choices() -> tuple[str, ...]:
    """Return the choices of --backend in every command."""
    return ("auto", *BACKENDS)


def backend_help(default: str) -> str:
    """Return the help of --backend in every command."""
    return f"{', '.join(backend_choices())} ({default})"


def add_folder(parser: argparse.ArgumentParser, name: str, what: str) -> None:
    """Add an engine folder as the command's own argument."""
    parser.add_argument(name, type=Path, nargs="?", default=ENGINES, metavar=name.upper(), help=f"{what} ({ENGINES})")


def add_seed(parser: argparse._ActionsContainer) -> None:
    """Add the seed of the noise."""
    parser.add_argument(
        "--seed", type=int, metavar="N", help="seed of the noise; several images count up (0, or the template's)"
    )


def add_negative_prompt(parser: argparse._ActionsContainer) -> None:
    """Add the negative prompt."""
    parser.add_argument("--negative-prompt", metavar="TEXT", help="what to avoid (the folder's)")


def add_size(parser: argparse._ActionsContainer) -> None:
    """Add the size of the image."""
    for name in ("height", "width"):
        parser.add_argument(f"--{name}", type=int, metavar="PX", help=f"{name} of the image (the model's default)")


def add_sampling(parser: argparse._ActionsContainer) -> None:
    """Add the sampling settings and the strengths."""
    add_sampler(parser)
    parser.add_argument(
        "--style-strength", type=float, metavar="S",
        help="AdaIN-mean: 1 is the paper's, for styles; 0 is off and keeps more of the person (the folder's)",
    )  # fmt: skip
    parser.add_argument(
        "--identity-strength", type=float, metavar="L", help="strength of the identity: 1 is the paper's (the folder's)"
    )


def prompt_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the negative prompt, and the settings of `add_size` and `add_sampler`, as arguments of `Pipeline`."""
    negative: str | None = arguments.negative_prompt
    names = ("height", "width", "steps", "guidance", "sampler", "spacing")
    return {
        "negative_prompt": None if negative is None else without_marks(negative),
        **{name: getattr(arguments, name) for name in names},
    }


def add_steps(parser: argparse._ActionsContainer) -> None:
    """Add the number of steps."""
    parser.add_argument("--steps", type=int, metavar="N", help="number of steps (the folder's)")


def add_sampler(parser: argparse._ActionsContainer) -> None:
    """Add the sampling settings of both streams."""
    add_steps(parser)
    parser.add_argument("--sampler", choices=SAMPLERS, metavar="NAME", help=f"{', '.join(SAMPLERS)} (the folder's)")
    parser.add_argument(
        "--spacing", choices=SPACINGS, metavar="NAME", help=f"of the timesteps: {', '.join(SPACINGS)} (the folder's)"
    )
    parser.add_argument(
        "--guidance", type=float, metavar="G",
        help="classifier-free guidance scale; 1 is the prompt alone, diffusers' 0 of few-step models (the folder's)",
    )  # fmt: skip


def add_model(model: argparse._ActionsContainer) -> None:
    """Add the choice of a model and of the variant of the method."""
    model.add_argument("--model", default="demo", help=MODEL_HELP)
    model.add_argument("--identity", type=Path, metavar="FILE", help="identity weights (safetensors)")
    model.add_argument(
        "--image-encoder", metavar="PATH|TAG", help="CLIP image encoder: file or folder, or open_clip tag"
    )
    add_recognizer(model)
    model.add_argument("--model-seed", dest="seed", type=int, default=0, metavar="N", help="seed of random weights (0)")
    for flag, (name, values) in METHOD_CHOICES.items():
        kind: dict[str, Any] = {"choices": values} if values else {"type": int, "metavar": "N"}
        model.add_argument(flag, dest=name, help="method variant (the identity file's)", **kind)


def add_recognizer(parser: argparse._ActionsContainer) -> None:
    """Add the choice of the face recognizer."""
    parser.add_argument("--recognizer", type=Path, metavar="FILE", help="ArcFace-type recognizer (ONNX)")


def add_targets(parser: argparse._ActionsContainer, choices: Sequence[str] | None = None) -> None:
    """Add the choice of GPU architectures; with `choices`, at least one is required."""
    parser.add_argument(
        "--target", dest="targets", action="extend", nargs="+", default=None if choices else [], metavar="SM",
        choices=choices, required=choices is not None,
        help="GPU architectures, such as sm_89 sm_120 (build: the backend's default)",
    )  # fmt: skip


def add_tuning(parser: argparse._ActionsContainer) -> None:
    """Add the choice of the kernels' tile sizes."""
    parser.add_argument(
        "--tuning", type=Path, metavar="FILE", help="tile sizes of the Triton kernels, from tune (the built-in table)"
    )


def add_face_index(parser: argparse.ArgumentParser) -> None:
    """Add the choice among several faces."""
    parser.add_argument(
        "--face-index", type=int, metavar="N", help="which face, largest first; faces with far lower scores last (0)"
    )


def add_detector(parser: argparse._ActionsContainer) -> None:
    """Add the choice of the face detector."""
    parser.add_argument(
        "--detector", choices=("centerface", "drawn", "insightface"),
        help="for photos: centerface (default) or insightface; for drawn people: drawn (the demo model's default)",
    )  # fmt: skip
    parser.add_argument("--face-models", type=Path, metavar="DIR", help="your InsightFace model folder")
