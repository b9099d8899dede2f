"""The product on this device: `infid-export build` compiles and compares engines, and `bench` runs them."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from benchmarks.suite import child
from benchmarks.suite.bench import Bench, Item, Result

_SECONDS, _LIMIT = 124.0, 145.0
# On a GPU and on a CPU, which would compile for minutes what images need.
_GRAPHS = {True: ("default", "text_step", "identity_step"), False: ("vae_decoder",)}
_MEASURED = ("graphs", "images", "ratios", "host_ms_per_step", "first_image_seconds", "device_bytes")


def packages(bench: Bench) -> Result:
    """Build packages of the demo model for this device, and on a GPU make images with them.

    `build` fails if a package differs from the reference.
    """
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "engines"
        limit = min(_LIMIT if bench.on_gpu else bench.workload.patience, bench.seconds_left() - child.RESERVE)
        result = _built(folder, bench.on_gpu, limit)
        if bench.on_gpu and result.get("passed"):
            result |= _made(folder, limit - result["build_seconds"])
        return result


def _built(folder: Path, on_gpu: bool, limit: float) -> Result:
    graphs = [word for graph in _GRAPHS[on_gpu] for word in ("--graph", graph)]
    words = ["build", "--backend", "aotinductor", *(["--fp16"] if on_gpu else []), *graphs, "--parity-image", "off"]
    ended = _run([*words, "-o", str(folder)], limit)
    written = [path for path in (folder / "parity.json", folder.with_name("engines.failed-parity.json"))
               if path.exists()]  # fmt: skip
    rows = json.loads(written[0].read_text())["rows"] if written else []
    result: Result = {
        "build_seconds": ended.seconds, "rows": [row for row in rows if row["backend"] == "aotinductor"],
        "output": ended.output,
    }  # fmt: skip
    if ended.code is None:
        return {**result, "error": f"it was stopped after {ended.seconds:.0f} s"}
    if not result["rows"]:
        return {**result, "error": f"nothing was compared: exit code {ended.code}"}
    return {**result, "passed": ended.code == 0}


def _made(folder: Path, limit: float) -> Result:
    """Return what `bench` measures."""
    place = folder.with_name("bench")
    ended = _run(["bench", str(folder), "--backend", "aotinductor", "--rounds", "5", "-o", str(place)], limit)
    if ended.code != 0:
        return {"passed": False, "error": f"bench: exit code {ended.code}", "output": ended.output}
    document = json.loads((place / "bench.json").read_text())
    return {key: document[key] for key in _MEASURED}


def _run(words: list[str], limit: float) -> child.Ended:
    """Run a command of the product; after a crash, Python says where it was."""
    command = [sys.executable, "-X", "faulthandler", "-m", "infid_export", *words, "--quiet"]
    return child.run(command, limit, {"TRITON_INTERPRET": "0"})


def items() -> list[Item]:
    """Return the item; it is of the second command."""
    return [Item("product AOTInductor packages", _SECONDS, packages, decides=True, phase=2)]
