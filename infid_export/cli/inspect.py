"""`infid-export inspect`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from infid_export.cli.build import show_engines, show_parity
from infid_export.cli.output import Output, size

if TYPE_CHECKING:
    from infid_engines.manifest import Manifest, TensorSpec


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("path", type=Path, nargs="?", default=Path("engines"), help="engine folder or .onnx (engines)")
    parser.add_argument("--hash", action="store_true", help="also compare every file's sha256")


def run(arguments: argparse.Namespace, output: Output) -> int:
    """Show a folder or a graph; exit code 1 if something in a folder is missing or damaged."""
    if arguments.path.suffix == ".onnx":
        return _graph(arguments.path, output)
    return _folder(arguments.path, arguments.hash, output)


def _graph(path: Path, output: Output) -> int:
    from infid_export.export.inspection import read_graph

    facts = read_graph(path)
    _tensors("Inputs", facts.inputs, output)
    _tensors("Outputs", facts.outputs, output)
    output.line(f"opset {facts.opset}, {facts.parameters / 1e6:.1f} M parameters in {', '.join(facts.weights_files)}")
    output.table("Operators", ("operator", "count"), [(name, str(count)) for name, count in facts.operators.items()])
    output.document(asdict(facts))
    return 0


def _folder(folder: Path, with_hashes: bool, output: Output) -> int:
    from infid_engines.manifest import Manifest
    from infid_export.export.build import stored_parity

    manifest = Manifest.load(folder)
    problems = _problems(folder, manifest, with_hashes)
    shape = f"{manifest.width} × {manifest.height}, batch {manifest.batch}, {manifest.people} person slot(s)"
    output.line(f"{folder}: {manifest.model['name']}, {manifest.precision}, {shape}")
    rows = [
        (name, size((folder / graph.file).stat().st_size) if (folder / graph.file).is_file() else "missing",
         f"{graph.parameters / 1e6:.1f} M", ", ".join(Path(file).name for file in graph.weights),
         _shapes(graph.inputs), _shapes(graph.outputs))
        for name, graph in manifest.graphs.items()
    ]  # fmt: skip
    output.table("Graphs", ("graph", "file", "parameters", "weights", "inputs", "outputs"), rows)
    show_engines(folder, manifest, output)
    parity = stored_parity(folder)
    show_parity(parity, output)
    for note in manifest.notes:
        output.note(note)
    output.table("Problems", ("file", "what"), list(problems.items()))
    output.document({"manifest": asdict(manifest), "parity": parity.to_json(), "problems": problems})
    return 1 if problems else 0


def _problems(folder: Path, manifest: Manifest, with_hashes: bool) -> dict[str, str]:
    """Return what is missing, damaged or stale."""
    from infid_engines.backends import get_backend
    from infid_engines.errors import InfidError
    from infid_engines.manifest import verify_file

    problems = {}
    for name, record in manifest.files.items():
        path = folder / name
        if not path.is_file():
            problems[name] = "missing"
        elif path.stat().st_size != record.size:
            problems[name] = f"damaged: {path.stat().st_size} bytes, not {record.size}"
        elif with_hashes:
            try:
                verify_file(folder, name, record)
            except InfidError as error:
                problems[name] = f"damaged: {error.problem}"
    for engine in manifest.engines:
        try:
            present = get_backend(engine.backend).versions()
        except InfidError:
            continue  # built elsewhere: nothing to compare with
        if engine.backend != "onnxruntime" and present != dict(engine.tool_versions):
            problems[engine.file] = f"stale: built by {dict(engine.tool_versions)}, installed is {present}"
    return problems


def _shapes(specs: Sequence[TensorSpec]) -> str:
    shown = [f"{spec.name} {'×'.join(map(str, spec.shape))}" for spec in specs[:12]]
    return ", ".join(shown) + (f" and {len(specs) - 12} more" if len(specs) > 12 else "")


def _tensors(title: str, specs: Sequence[TensorSpec], output: Output) -> None:
    output.table(title, ("name", "type", "shape"), [(s.name, s.dtype, "×".join(map(str, s.shape))) for s in specs])
