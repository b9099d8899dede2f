"""`infid-export compile-kernels`."""

from __future__ import annotations

import argparse
from pathlib import Path

from infid_export.cli.flags import add_targets, add_tuning
from infid_export.cli.output import Output, shown, size
from infid_kernels.targets import ARCHITECTURES, DTYPES, HEAD_SIZES

_NUMBERS = ("d", "registers", "spills", "shared", "cubin")
EXAMPLES = (
    "infid-export compile-kernels --target sm_90",
    "infid-export compile-kernels --target sm_89 sm_90 --tuning tuning.json -o kernels-bundle",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_targets(parser, ARCHITECTURES)
    parser.add_argument(
        "--dtype", dest="dtypes", nargs="+", choices=tuple(DTYPES), default=["float16"], metavar="TYPE",
        help=f"dtype of queries, keys and values: {', '.join(DTYPES)} (float16)",
    )  # fmt: skip
    parser.add_argument(
        "--head-size", dest="head_sizes", nargs="+", type=int, choices=HEAD_SIZES, default=[64], metavar="N",
        help=f"channels per head: {', '.join(map(str, HEAD_SIZES))} (64, SDXL's)",
    )  # fmt: skip
    add_tuning(parser)
    default = Path("kernels-bundle")
    parser.add_argument(
        "-o", "--output", type=Path, default=default, metavar="DIR", help=f"folder to write ({default})"
    )


def run(arguments: argparse.Namespace, output: Output) -> int:
    """Compile, and show the resources that each kernel uses."""
    from infid_export.export.bundle_compilation import compile_bundle

    folder: Path = arguments.output
    with output.progress() as reporter:
        kernels = compile_bundle(
            folder, arguments.targets, arguments.dtypes, arguments.head_sizes, reporter, arguments.tuning
        )
    sizes = {name: (folder / f"{name}.cubin").stat().st_size for name in kernels}
    rows = [
        (each["op"], each["architecture"], each["dtype"], str(each["head_size"]),
         "×".join(map(str, each["configuration"].values())), _lengths(each["constants"].get("EVEN_N")),
         str(each["registers"]), f"{each['stack_bytes']} B", f"{each['shared_bytes']} B", size(sizes[name]))
        for name, each in kernels.items()
    ]  # fmt: skip
    tiles = "queries×keys×warps×stages"
    columns = ("kernel", "target", "type", "d", tiles, "lengths", "registers", "spills", "shared", "cubin")
    output.table("Kernels", columns, rows, numbers=_NUMBERS)
    total = sum(file.stat().st_size for file in folder.iterdir())
    output.line(f"{shown(folder.absolute())}: {len(kernels)} kernels, {size(total)}")
    output.document({"bundle": folder, "bytes": total, "kernels": kernels})
    return 0


def _lengths(even_n: bool | None) -> str:
    """Return which segment lengths a form supports."""
    return "full blocks" if even_n else "any"
