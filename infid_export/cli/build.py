"""`infid-export build`."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infid_export.cli.output import Output, size
from infid_export.export.options import GRAPHS, BuildOptions

if TYPE_CHECKING:
    from infid_engines.manifest import Manifest
    from infid_export.export.parity import ParityReport

_CHOICES = {
    "--self-attention": ("self_attention", ("mixed", "mutual", "plain")),
    "--adain": ("adain", ("mean", "standard", "off")),
    "--cross-adain": ("cross_adain", ("kv", "output", "off")),
    "--uncond-identity": ("uncond_identity", ("zeros", "off")),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments; each is a field of `BuildOptions`."""
    model = parser.add_argument_group("model")
    model.add_argument("--model", default="demo", help="demo, random-sdxl, a diffusers folder or a hub id (demo)")
    model.add_argument("--identity", type=Path, metavar="FILE", help="identity weights (safetensors)")
    model.add_argument("--image-encoder", metavar="FILE|TAG", help="OpenCLIP ViT-H-14 checkpoint, or open_clip tag")
    model.add_argument("--recognizer", type=Path, metavar="FILE", help="ArcFace-type recogniser (ONNX)")
    model.add_argument("--detector", choices=("centerface", "insightface"), default="centerface")
    model.add_argument("--face-models", type=Path, metavar="DIR", help="local InsightFace model folder")
    model.add_argument("--seed", type=int, default=0, help="seed of a built-in random model (0)")
    for flag, (name, values) in _CHOICES.items():
        model.add_argument(flag, dest=name, choices=values, help="method variant; default: the identity file's")
    graphs = parser.add_argument_group("graphs")
    graphs.add_argument("-o", "--output", type=Path, default=Path("engines"), metavar="DIR", help="(engines)")
    precision = graphs.add_mutually_exclusive_group()
    precision.add_argument("--fp16", dest="precision", action="store_const", const="fp16", help="networks in fp16")
    precision.add_argument("--precision", choices=("fp16", "fp32"), default="fp32", help="(fp32)")
    graphs.add_argument("--height", type=int, metavar="PX", help="default: the model's own")
    graphs.add_argument("--width", type=int, metavar="PX", help="default: the model's own")
    graphs.add_argument("--batch", type=int, default=1, help="images per call (1)")
    graphs.add_argument("--people", type=int, default=1, help="people one image can hold (1)")
    for name in ("height", "width", "batch"):
        graphs.add_argument(f"--{name}-range", type=int, nargs=3, metavar=("MIN", "OPT", "MAX"), help="dynamic engines")
    graphs.add_argument("--graph", dest="graphs", action="append", choices=GRAPHS, help="only this; repeatable")
    engines = parser.add_argument_group("engines")
    engines.add_argument("--backend", dest="backends", action="append", help="repeatable; default auto")
    engines.add_argument(
        "--target", dest="targets", action="extend", nargs="+", default=[], metavar="SM", help="sm_89 …"
    )
    engines.add_argument("--refit", action="store_true", help="engines whose weights can be replaced")
    engines.add_argument("--strip", action="store_true", help="engines without weights")
    engines.add_argument("--optimization-level", type=int, choices=range(6))
    parity = parser.add_argument_group("parity")
    parity.add_argument("--parity-size", type=int, metavar="PX", help="compare at this size; default: the engines'")
    parity.add_argument("--parity-image", choices=("auto", "on", "off"), default="auto", help="compare a whole picture")
    parser.add_argument("--dry-run", action="store_true", help="show what would be made, and make nothing")


def run(arguments: argparse.Namespace, output: Output) -> int:
    """Build, or show the plan."""
    values = {key: value for key, value in vars(arguments).items() if key in BuildOptions.__dataclass_fields__}
    values |= {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
    values["backends"] = values["backends"] or ("auto",)
    values["graphs"] = values["graphs"] or ()
    options = BuildOptions(**values)
    if arguments.dry_run:
        return _dry_run(options, output)
    from infid_export.export.build import build

    with output.progress() as reporter:
        report = build(options, reporter)
    show_parity(report.parity, output)
    show_engines(report.folder, report.manifest, output)
    output.table("Made", ("artefact", "why"), [(name, why) for name, why in report.made.items()])
    output.line(f"{report.folder}: {len(report.made)} made, {len(report.kept)} kept, {report.seconds:.1f} s")
    output.document(
        {
            "folder": report.folder,
            "seconds": report.seconds,
            "made": report.made,
            "kept": report.kept,
            "notes": report.notes,
            "parity": report.parity.to_json(),
            "engines": [asdict(engine) for engine in report.manifest.engines],
        }
    )
    return 0


def _dry_run(options: BuildOptions, output: Output) -> int:
    from infid_export.export.estimate import estimate

    plan, rows = estimate(options)
    for note in plan.notes:
        output.note(note)
    output.table(
        "Plan",
        ("artefact", "shapes", "parameters", "size", "peak memory", "state"),
        [
            (row.name, row.shapes, f"{row.parameters / 1e6:.1f} M" if row.parameters else "",
             size(row.bytes), size(row.peak_bytes), row.state)
            for row in rows
        ],
    )  # fmt: skip
    output.line(f"disk needed: about {size(sum(row.bytes for row in rows))}")
    output.document({"notes": plan.notes, "rows": [asdict(row) for row in rows]})
    return 0


def show_parity(parity: ParityReport, output: Output) -> None:
    """Print the comparisons."""
    rows = []
    for row in parity.rows:
        verdict = "PASSED" if row.passed else "FAILED"
        rows.append(
            (verdict, row.graph, row.output, row.dtype, f"{row.max_error:.1e}", f"{row.rms_error:.1e}",
             f"{row.cosine:.0e}", row.smallest_tolerance)
        )  # fmt: skip
    heads = ("verdict", "graph", "output", "type", "max", "rms", "1−cos", "passes with")
    output.table("Parity with the PyTorch reference (relative to its RMS)", heads, rows)
    if parity.image is not None:
        verdict = "PASSED" if parity.image.passed else "FAILED"
        output.line(
            f"{verdict} {parity.image.steps}-step picture: PSNR {parity.image.psnr_db:.1f} dB "
            f"(at least {parity.image.threshold_db:.0f})"
        )


def show_engines(folder: Path, manifest: Manifest, output: Output) -> None:
    """Print the engines."""
    rows: list[tuple[Any, ...]] = []
    for engine in manifest.engines:
        cost = f"{engine.seconds:.0f} s, {size(engine.peak_bytes)}" if engine.seconds else ""
        rows.append((engine.backend, engine.target, str(folder / engine.file), size(engine.size), cost))
    output.table("Engines", ("backend", "target", "file", "size", "build"), rows)
