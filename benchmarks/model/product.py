"""The product on this device: engines that `infid-export build` compiles here and compares with the reference."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from benchmarks.suite import child
from benchmarks.suite.bench import Bench, Item, Result

_SECONDS, _LIMIT = 100.0, 125.0
_GRAPHS = {True: ("identity_step", "vae_decoder"), False: ("vae_decoder",)}  # on a GPU, and on a CPU


def packages(bench: Bench) -> Result:
    """Build packages of the demo model for this device; `build` fails if one differs from the reference."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "engines"
        graphs = [word for graph in _GRAPHS[bench.on_gpu] for word in ("--graph", graph)]
        precision = ["--fp16"] if bench.on_gpu else []
        command = [sys.executable, "-m", "infid_export", "build", "--backend", "aotinductor", *precision, *graphs,
                   "-o", str(folder), "--quiet"]  # fmt: skip
        limit = min(_LIMIT if bench.on_gpu else bench.workload.patience, bench.seconds_left() - child.RESERVE)
        ended = child.run(command, limit, {"TRITON_INTERPRET": "0"})
        written = [path for path in (folder / "parity.json", folder.with_name("engines.failed-parity.json"))
                   if path.exists()]  # fmt: skip
        rows = json.loads(written[0].read_text())["rows"] if written else []
    result: Result = {"build_seconds": ended.seconds, "rows": [row for row in rows if row["backend"] == "aotinductor"]}
    if ended.code is None:
        return {**result, "error": f"it was stopped after {ended.seconds:.0f} s", "output": ended.output}
    if not result["rows"]:
        return {**result, "error": f"nothing was compared: exit code {ended.code}", "output": ended.output}
    return {**result, "passed": ended.code == 0, "output": ended.output}


def items() -> list[Item]:
    """Return the item; it is of the second command."""
    return [Item("product AOTInductor packages", _SECONDS, packages, decides=True, phase=2)]
