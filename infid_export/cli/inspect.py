"""`infid-export inspect`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from infid_engines.errors import BackendUnavailableError, EngineFolderError, InfidError, InputError
from infid_export.cli.build import show_engines, show_parity
from infid_export.cli.flags import add_folder
from infid_export.cli.output import Output, size

if TYPE_CHECKING:
    from infid_engines.manifest import Manifest, TensorSpec
    from infid_export.export.inspection import GraphFacts
    from infid_export.export.parity import ParityReport

EXAMPLES = ("infid-export inspect infid-engines --hash", "infid-export inspect infid-engines/onnx/denoise_step.onnx")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_folder(parser, "path", "engine folder, or one .onnx file")
    parser.add_argument("--hash", action="store_true", help="also compare every file's sha256")


def run(arguments: argparse.Namespace, output: Output) -> int:
    """Show a folder or a graph; exit code 1 if a file is missing, stale or damaged."""
    if not arguments.path.exists():
        raise InputError(f"There is nothing at {arguments.path}.", fix="Give an engine folder or an .onnx file.")
    if arguments.path.is_dir():
        return _folder(arguments.path, arguments.hash, output)
    return _graph(arguments.path, output)


def _graph(path: Path, output: Output) -> int:
    if find_spec("onnx") is None:
        raise BackendUnavailableError("Reading a graph needs onnx.", fix='pip install "infid-export[export]"')
    from infid_export.export.inspection import read_graph

    facts = read_graph(path)
    weights = {name: path.parent / name for name in facts.weights_files}
    problems = {str(file): "missing" for file in weights.values() if not file.is_file()}
    output.line(
        f"{path}: {size(path.stat().st_size)}, opset {facts.opset}, {sum(facts.operators.values())} nodes, "
        f"{facts.parameters / 1e6:.1f} M parameters in external data"
    )
    output.table("Inputs and outputs", ("way", "name", "type", "shape"), _tensors(facts.inputs, facts.outputs))
    sizes = [(name, size(file.stat().st_size) if file.is_file() else "missing") for name, file in weights.items()]
    output.table("External data", ("file", "size"), sizes, numbers=("size",))
    operators = [(name, str(count)) for name, count in facts.operators.items()]
    output.table("Operators", ("operator", "count"), operators, numbers=("count",))
    output.document({"path": path, **asdict(facts), "problems": problems})
    return 1 if problems else 0


def _folder(folder: Path, with_hashes: bool, output: Output) -> int:
    from infid_engines.manifest import Manifest

    manifest = Manifest.load(folder)
    problems = find_problems(folder, manifest, with_hashes)
    facts = _facts(folder, manifest, output)
    parity = _parity(folder, problems)
    shape = f"{manifest.width} × {manifest.height}, batch {manifest.batch}, {manifest.people} person slot(s)"
    output.line(f"{folder}: {manifest.model['name']}, {manifest.precision}, {shape}")
    if license := manifest.model.get("license"):
        output.line(f"license of the identity weights: {license}")
    rows = [
        (name, _size(folder / graph.file), f"{graph.parameters / 1e6:.1f} M",
         str(sum(facts[name].operators.values())) if name in facts else "",
         str(facts[name].opset) if name in facts else "", ", ".join(Path(file).name for file in graph.weights))
        for name, graph in manifest.graphs.items()
    ]  # fmt: skip
    columns = ("graph", "file", "parameters", "nodes", "opset", "weights")
    output.table("Graphs", columns, rows, numbers=columns[1:5])
    for name, graph in manifest.graphs.items():
        output.table(
            f"{name}: inputs and outputs", ("way", "name", "type", "shape"), _tensors(graph.inputs, graph.outputs)
        )
    weights = sorted({file for graph in manifest.graphs.values() for file in graph.weights})
    rows_of_weights = [(file, _size(folder / file)) for file in weights]
    output.table("Weights, shared by the graphs", ("file", "size"), rows_of_weights, numbers=("size",))
    show_engines(folder, manifest, output)
    if parity is not None:
        show_parity(parity, output)
    for note in manifest.notes:
        output.note(note)
    output.table("Problems", ("file", "what"), list(problems.items()))
    output.document(
        {
            "folder": folder,
            "manifest": asdict(manifest),
            "graphs": {name: {"opset": fact.opset, "operators": fact.operators} for name, fact in facts.items()},
            "parity": None if parity is None else parity.to_json(),
            "problems": problems,
        }
    )
    return 1 if problems else 0


def _facts(folder: Path, manifest: Manifest, output: Output) -> dict[str, GraphFacts]:
    """Read the graphs that can be read; a runtime-only installation has no onnx."""
    if find_spec("onnx") is None:
        output.note('nodes and opsets are not shown: onnx is not installed (pip install "infid-export[export]")')
        return {}
    from infid_export.export.inspection import read_graph

    facts = {}
    for name, graph in manifest.graphs.items():
        try:
            facts[name] = read_graph(folder / graph.file)
        except EngineFolderError:
            continue  # the problems already list a missing or damaged file
    return facts


def _parity(folder: Path, problems: dict[str, str]) -> ParityReport | None:
    from infid_export.export.parity import PARITY, stored_parity

    try:
        parity = stored_parity(folder)
    except EngineFolderError as error:
        problems[PARITY] = error.problem
        return None
    if not parity.passed:
        problems[PARITY] = "a comparison failed"
    return parity


def find_problems(folder: Path, manifest: Manifest, with_hashes: bool) -> dict[str, str]:
    """Return the missing, damaged or stale files, and what is wrong with each.

    Args:
        folder: the engine folder.
        manifest: its manifest.
        with_hashes: compare every file's sha256, which reads it all; otherwise compare sizes only.
    """
    from infid_engines.manifest import verify_file
    from infid_engines.registry import get_backend

    problems = {}
    for name, record in manifest.files.items():
        path = folder / name
        if not path.is_file():
            problems[name] = "missing"
        elif path.stat().st_size != record.size:
            problems[name] = f"damaged: {path.stat().st_size} bytes instead of {record.size}"
        elif with_hashes:
            try:
                verify_file(folder, name, record)
            except InfidError as error:
                problems[name] = f"damaged: {error.problem}"
    for engine in manifest.engines:
        if engine.file in problems:
            continue
        try:
            backend = get_backend(engine.backend)
            if backend.uses_graph_as_engine:
                continue  # other versions of the library can read it too
            present = backend.versions()
        except InfidError:
            continue  # built elsewhere: this machine has nothing to compare with
        if present != dict(engine.tool_versions):
            problems[engine.file] = f"stale: built with {_versions(engine.tool_versions)}, here is {_versions(present)}"
    return problems


def _versions(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _size(path: Path) -> str:
    return size(path.stat().st_size) if path.is_file() else "missing"


def _tensors(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> list[Sequence[str]]:
    """Return one row per tensor; tensors of one family (`text_features.<block>`) share a row."""
    rows: list[Sequence[str]] = []
    for way, specs in (("in", inputs), ("out", outputs)):
        for family, members in groupby(specs, key=lambda spec: spec.name.split(".")[0]):
            group = list(members)
            if len(group) == 1:
                rows.append((way, group[0].name, group[0].dtype, _shape(group[0])))
            else:
                shapes = "; ".join(dict.fromkeys(map(_shape, group)))
                rows.append((way, f"{family}.* ({len(group)} tensors)", group[0].dtype, shapes))
    return rows


def _shape(spec: TensorSpec) -> str:
    return " × ".join(map(_side, spec.shape))


def _side(side: int | list[int]) -> str:
    """Return a dimension: fixed, a range, or `?` if the file leaves it dynamic."""
    if isinstance(side, int):
        return str(side or "?")
    return f"{side[0]}–{side[-1]}" if any(side) else "?"
