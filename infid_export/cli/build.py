"""`infid-export build`."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from infid_export.cli.flags import (
    DRY_RUN_HELP,
    ENGINES,
    add_detector,
    add_model,
    add_size,
    add_targets,
    add_tuning,
    backend_choices,
    backend_help,
)
from infid_export.cli.output import Output, shown, size
from infid_export.export.build_options import BuildOptions
from infid_export.export.graphs import DEFAULT, GRAPHS
from infid_export.sampling.presets import PRESETS

if TYPE_CHECKING:
    from infid_engines.manifest import EngineRecord, FileRecord, Manifest
    from infid_export.export.parity import ParityReport

EXAMPLES = (
    "infid-export build --fp16",
    "infid-export build --fp16 --model path/to/sdxl --identity identity.safetensors \\\n"
    "      --image-encoder vit_h_14.safetensors --recognizer arcface.onnx",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments; each is a field of `BuildOptions`."""
    model = parser.add_argument_group("model")
    add_model(model)
    model.add_argument(
        "--lora", action="append", default=[], metavar="FILE[:STRENGTH]",
        help="repeatable: LoRA to merge into the weights (safetensors), and its strength (1)",
    )  # fmt: skip
    model.add_argument(
        "--preset", choices=tuple(PRESETS), metavar="NAME",
        help=f"the few-step model that the weights are: sampler, steps and guidance for it ({', '.join(PRESETS)})",
    )  # fmt: skip
    model.add_argument(
        "--vae", type=Path, metavar="PATH", help="VAE in place of the model's: safetensors file, or diffusers folder"
    )
    model.add_argument("--unet", type=Path, metavar="FILE", help="UNet in place of the model's (safetensors)")
    model.add_argument(
        "--prediction", choices=("epsilon", "v"), help="what the checkpoint's UNet predicts (as the checkpoint says)"
    )
    model.add_argument("--zero-snr", action="store_true", help="the checkpoint was trained with zero terminal SNR")
    add_detector(model)
    model.add_argument(
        "--allow-other-encoders",
        action="store_true",
        help="accept identity weights trained with another recognizer or encoder",
    )
    graphs = parser.add_argument_group("graphs")
    graphs.add_argument("-o", "--output", type=Path, default=ENGINES, metavar="DIR", help=f"engine folder ({ENGINES})")
    precision = graphs.add_mutually_exclusive_group()
    precision.add_argument("--fp16", dest="precision", action="store_const", const="fp16", help="networks in fp16")
    precision.add_argument("--precision", choices=("fp16", "fp32"), help="precision of the networks (fp32)")
    add_size(graphs)
    graphs.add_argument("--batch", type=int, default=1, metavar="N", help="images per call (1)")
    graphs.add_argument(
        "--no-guidance", dest="guidance", action="store_false",
        help="steps without unconditional rows: half the work, for few-step models",
    )  # fmt: skip
    graphs.add_argument(
        "--quantize-templates", action="store_true",
        help="templates with features of 8 bits: half the size of fp16 ones, a quarter of fp32 ones",
    )  # fmt: skip
    graphs.add_argument("--people", type=int, default=1, metavar="N", help="people per image (1)")
    for name in ("height", "width", "batch"):
        graphs.add_argument(
            f"--{name}-range",
            type=int,
            nargs=3,
            metavar=("MIN", "OPT", "MAX"),
            help=f"dynamic {name}",
        )
    others = [graph.name for graph in GRAPHS.values() if not graph.by_default]
    graphs.add_argument(
        "--graph", dest="graphs", action="append", choices=(DEFAULT, *GRAPHS), metavar="NAME",
        help=f"repeatable: {', '.join(GRAPHS)}; {DEFAULT} means all of the model's streams except "
        f"{', '.join(others)} ({DEFAULT})",
    )  # fmt: skip
    engines = parser.add_argument_group("engines")
    engines.add_argument(
        "--backend", dest="backends", action="append", choices=backend_choices(), metavar="NAME",
        help=f"repeatable: {backend_help('auto')}",
    )  # fmt: skip
    add_targets(engines)
    engines.add_argument(
        "--kernels",
        choices=("native", "triton"),
        default="native",
        help="implementation of attention in TensorRT engines (native)",
    )
    add_tuning(engines)
    engines.add_argument("--refit", action="store_true", help="build engines with replaceable weights")
    engines.add_argument("--strip", action="store_true", help="build engines without weights")
    engines.add_argument(
        "--optimization-level", type=int, choices=range(6), help="TensorRT's optimization level (TensorRT's default)"
    )
    parity = parser.add_argument_group("parity")
    parity.add_argument("--parity-size", type=int, metavar="PX", help="size of the images to compare (the engines')")
    parity.add_argument(
        "--parity-image",
        choices=("auto", "on", "off"),
        default="auto",
        help="also compare a whole image (auto: for the demo model)",
    )
    parser.add_argument("--dry-run", action="store_true", help=DRY_RUN_HELP)


def options_of(arguments: argparse.Namespace) -> BuildOptions:
    """Return the build options from the arguments.

    Raises:
        InputError: a value is impossible.
    """
    values = {key: value for key, value in vars(arguments).items() if key in BuildOptions.__dataclass_fields__}
    values |= {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
    values["backends"] = values["backends"] or ("auto",)
    values["graphs"] = values["graphs"] or ()
    values["precision"] = values["precision"] or "fp32"  # not argparse's default, which hides a clash with --fp16
    return BuildOptions(**values)


def run(arguments: argparse.Namespace, output: Output) -> int:
    """Build, or show the plan."""
    options = options_of(arguments)
    if arguments.dry_run:
        return _dry_run(options, output)
    from infid_export.export.builder import build

    with output.progress() as reporter:
        report = build(options, reporter)
    show_parity(report.parity, output)
    show_engines(report.folder, report.manifest, output)
    output.table("Built, and why", ("artifact", "why"), [(name, why) for name, why in report.made.items()])
    output.table("Reused", ("artifact",), [(name,) for name in report.kept])
    output.line(f"{shown(report.folder)}: {len(report.made)} built, {len(report.kept)} reused, {report.seconds:.1f} s")
    output.document(
        {
            "folder": report.folder,
            "seconds": report.seconds,
            "made": report.made,
            "kept": report.kept,
            "notes": report.notes,
            "parity": report.parity.to_json(),
            "engines": [asdict(engine) for engine in report.manifest.engines],
            "files": {
                name: {"size": file.size, "seconds": file.seconds, "peak_bytes": file.peak_bytes}
                for name, file in report.manifest.files.items()
            },
        }
    )
    return 0


def _dry_run(options: BuildOptions, output: Output) -> int:
    from infid_export.cli.progress_bar import duration
    from infid_export.export.build_estimate import estimate, template_bytes

    plan, rows = estimate(options)
    for note in plan.notes:
        output.note(note)
    cells = [
        (row.name, row.shapes, f"{row.parameters / 1e6:.1f} M" if row.parameters else "",
         size(row.bytes), size(row.peak_bytes), row.state)
        for row in rows
    ]  # fmt: skip
    columns = ("artifact", "inputs", "parameters", "size", "peak memory", "state")
    output.table("Plan", columns, cells, numbers=("parameters", "size", "peak memory"))
    total = sum(row.bytes for row in rows)
    highest = max((row.peak_bytes for row in rows if row.state != "cached"), default=0)
    seconds = sum(row.seconds for row in rows)
    output.line(
        f"disk needed: about {size(total)}; memory needed: about {size(highest)}; "
        f"time on two CPU cores: about {duration(seconds)}; nothing was built"
    )
    template, steps = template_bytes(plan), plan.source.architecture.sampling.steps
    if template is not None:
        output.line(f"a template: {size(template)} per step, {size(steps * template)} for {steps} steps")
    document = {"notes": plan.notes, "rows": [asdict(row) for row in rows], "bytes": total, "peak_bytes": highest}
    output.document({**document, "seconds": seconds, "template_bytes_per_step": template})
    return 0


def show_parity(parity: ParityReport, output: Output) -> None:
    """Print the comparisons; for a failed one, also the smallest tolerance that would pass."""
    rows = [
        (_verdict(row.passed), f"{row.name}.{row.output}", row.dtype, _short(row.max_error), _short(row.max_tolerance),
         _short(row.rms_error), _short(row.rms_tolerance), _short(row.cosine))
        for row in parity.rows
    ]  # fmt: skip
    columns = ("verdict", "output", "type", "max", "max ≤", "rms", "rms ≤", "1−cos")
    title = "Parity with the PyTorch reference (errors relative to the reference's RMS)"
    output.table(title, columns, rows, numbers=columns[3:])
    for row in parity.rows:
        if not row.passed:
            output.line(f"FAILED {row.name}.{row.output} would pass with {row.smallest_tolerance}")
    if parity.image is not None:
        output.line(
            f"{_verdict(parity.image.passed)} {parity.image.steps}-step image: PSNR {parity.image.psnr_db:.1f} dB "
            f"(at least {parity.image.threshold_db:.0f})"
        )


def _verdict(passed: bool) -> str:
    return "PASSED" if passed else "FAILED"


def _short(value: float) -> str:
    return f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e+")


_COST_COLUMNS = ("file", "size", "built in", "memory")


def _cost(file: FileRecord) -> tuple[str, str, str]:
    return size(file.size), f"{file.seconds:.0f} s", size(file.peak_bytes)


def show_engines(folder: Path, manifest: Manifest, output: Output) -> None:
    """Print the engines, one table per backend and target."""
    groups: dict[tuple[str, str], list[EngineRecord]] = {}
    for engine in manifest.engines:
        groups.setdefault((engine.backend, engine.target), []).append(engine)
    for (backend, target), engines in groups.items():
        files = [(engine.file, manifest.files[engine.file]) for engine in engines]
        rows = [(shown(folder / name), *_cost(file)) for name, file in files]
        output.table(f"Engines: {backend} {target}", _COST_COLUMNS, rows, numbers=_COST_COLUMNS[1:])
