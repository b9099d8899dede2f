"""How packages could be compiled: as they are, with convolutions in channels_last, or with frozen weights.

Usage::

    python benchmarks/package_choices.py [--rounds N] [--name package-choices] [--machine WORDS]

For a convolutional graph and a transformer, PyTorch's AOTInductor compiles each choice on the CPU, and all of them take
turns, with the module itself for comparison. Frozen weights are packed for the processor and stored in the package. One
matrix product for q, k and v is timed against three. The document goes to benchmarks/results/<name>.json; nothing in it
is edited by hand.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.provenance import RESULTS, measured_on
from benchmarks.publishing import publish
from infid_export.bench.timing import take_turns
from infid_export.cli.output import Output
from infid_export.export.build_options import BuildOptions
from infid_export.export.graphs import GRAPHS
from infid_export.export.graphs.graph import flat
from infid_export.export.packages import CONFIGURATION
from infid_export.export.plan import make_plan

_GRAPHS = {"vae_decoder": "demo", "text_step": "random-medium"}
_PRODUCT = (2 * 1024, 1280)  # rows and channels of the inner self-attention of SDXL, with guidance
_ROUNDS = 9
_TIMESTEP = 500.0


class Choice(NamedTuple):
    """One way to compile.

    Args:
        configuration: of AOTInductor.
        frozen: whether the package holds the weights.
        channels_last: whether convolutions have weights in that layout.
    """

    configuration: Mapping[str, Any]
    frozen: bool = False
    channels_last: bool = False


CHOICES = {
    "as built": Choice(CONFIGURATION),
    "channels_last": Choice(CONFIGURATION, channels_last=True),
    "frozen": Choice({"freezing": True}, frozen=True),
}


def case(graph: str, model: str) -> tuple[nn.Module, dict[str, Any]]:
    """Return the module of a graph with its weights, and random arguments."""
    plan = make_plan(BuildOptions(model=model, backends=("onnxruntime",), detector="drawn", graphs=(graph,)))
    source, sizes, chosen = plan.source, plan.writers.exporter.sizes(), GRAPHS[graph]
    parts = {name: source.load(name, torch.float32) for name in chosen.components.values()}
    random = torch.Generator().manual_seed(0)

    def drawn(each: Any) -> Any:
        if isinstance(each, list):
            return [drawn(one) for one in each]
        if not each.is_floating_point():
            return torch.zeros_like(each, device="cpu")
        return torch.randn(each.shape, generator=random)

    arguments = {name: drawn(each) for name, each in chosen.arguments(sizes, torch.float32).items()}
    if "timestep" in arguments:
        arguments["timestep"].fill_(_TIMESTEP)
    return chosen.module(parts, source.config, "torch").eval(), arguments


def compiled(module: nn.Module, arguments: Mapping[str, Any], choice: Choice, path: Path) -> Callable[[], list[Tensor]]:
    """Compile a module to a package, and return a call of it."""
    layout: Any = torch.channels_last if choice.channels_last else torch.contiguous_format
    module.to(memory_format=layout)
    program = torch.export.export(module, (), dict(arguments), strict=False)
    torch._inductor.aoti_compile_and_package(
        program, package_path=str(path), inductor_configs=dict(choice.configuration)
    )
    package = torch._C._aoti.AOTIModelPackageLoader(str(path), "model", True, 1, -1)
    if not choice.frozen:
        known = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        package.load_constants({name: known[name] for name in package.get_constant_fqns()}, False, True, False)
    tensors = list(flat(arguments).values())
    return lambda: list(package.run(tensors))


def measure_graph(module: nn.Module, arguments: Mapping[str, Any], rounds: int) -> dict[str, Any]:
    """Return milliseconds, size of the package, and error for each choice."""
    with tempfile.TemporaryDirectory() as scratch, torch.no_grad():
        paths = {name: Path(scratch) / f"{index}.pt2" for index, name in enumerate(CHOICES)}
        calls: dict[str, Callable[[], object]] = {"PyTorch": lambda: module(**arguments)}
        expected = _first(module(**arguments))
        found: dict[str, dict[str, float]] = {"PyTorch": {}}
        for name, choice in CHOICES.items():
            call = compiled(module, arguments, choice, paths[name])
            error = float((_first(call()) - expected).norm() / expected.norm())
            calls[name], found[name] = call, {"relative_rms": error, "package_bytes": paths[name].stat().st_size}
        times = take_turns(calls, rounds, burst=2)
    return {name: {"median_ms": times[name].median_ms, **facts} for name, facts in found.items()}


def _first(outputs: Any) -> Tensor:
    return outputs[0] if isinstance(outputs, tuple | list) else outputs


def measure_products(rounds: int) -> dict[str, float]:
    """Return milliseconds of three products of a hidden state, and of one with the three weights joined."""
    rows, channels = _PRODUCT
    random = torch.Generator().manual_seed(0)
    x, *weights = (torch.randn(size, channels, generator=random) for size in (rows, channels, channels, channels))
    joined = torch.cat(weights)
    with torch.no_grad():
        times = take_turns(
            {
                "three": lambda: [torch.nn.functional.linear(x, weight) for weight in weights],
                "one": lambda: torch.nn.functional.linear(x, joined).chunk(3, -1),
            },
            rounds,
            burst=2,
        )
    return {name: each.median_ms for name, each in times.items()}


def measure(arguments: argparse.Namespace, _: Output) -> dict[str, Any]:
    """Measure, and return the document."""
    return {
        "kind": "package choices",
        **measured_on(arguments.machine, ("torch",)),
        "rounds": arguments.rounds,
        "graphs": {
            f"{graph} of {model}": measure_graph(*case(graph, model), arguments.rounds)
            for graph, model in _GRAPHS.items()
        },
        "products": measure_products(arguments.rounds),
    }


def markdown(document: dict[str, Any]) -> str:
    """Return the table of a document."""
    graphs = document["graphs"]
    lines = ["| fp32 | " + " | ".join(f"{name}: ms | package" for name in graphs) + " |"]
    lines.append("|---|" + "---|---|" * len(graphs))
    for name in ("PyTorch", *CHOICES):
        cells = []
        for each in graphs.values():
            size = each[name].get("package_bytes")
            cells += [f"{each[name]['median_ms']:.1f}", "–" if size is None else f"{size / 1e6:.1f} MB"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    products = document["products"]
    note = (
        f"One matrix product for q, k and v: {products['one']:.1f} ms, three: {products['three']:.1f} ms "
        f"({' × '.join(map(str, _PRODUCT))}). Medians of {document['rounds']} rounds on {document['machine']}."
    )
    return "\n".join([*lines, "", note])


def main(words: list[str]) -> int:
    """Measure, write the document and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=_ROUNDS, metavar="N", help=f"({_ROUNDS})")
    parser.add_argument("--name", default="package-choices", help="name of the document")
    parser.add_argument("--machine", default="", help="what it runs on, in words")
    return 1 if publish(measure, markdown, parser.parse_args(words), RESULTS) is None else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
