"""Every section of the suite on a CPU: the demo model, and Triton's interpreter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from benchmarks import gpu_suite
from benchmarks.model import aot
from benchmarks.model.compiled import DECODER, NAMES, PIPELINE
from benchmarks.suite import item_list
from benchmarks.suite.bench import DEMO

# What a CPU cannot run, by the beginning of the items' names; the rest is measured or passes.
UNAVAILABLE = ("clocks", "compile ", "bundle ", "sanitizer ")


def test_the_same_sections_run_on_a_cpu(tmp_path: Path) -> None:
    paths = os.pathsep.join(str(Path(entry or ".").resolve()) for entry in sys.path)
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": paths}
    command = [sys.executable, gpu_suite.__file__, "--model", "demo", "--output", str(tmp_path), "--limit-s", "1200"]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    configurations, path = sorted(tmp_path.iterdir())
    assert configurations.name == f"configurations-{path.name}"
    assert ran.stdout.splitlines()[-2:] == [str(path), str(configurations)]
    document = json.loads(path.read_text())
    outcomes = document["items"]
    assert list(outcomes) == [item.name for item in item_list.items(DEMO, quick=False)]
    assert "restarts" not in document
    for name, outcome in outcomes.items():
        if outcome["state"] == "unavailable":
            assert name.startswith(UNAVAILABLE) or name.endswith("bfloat16"), name
            assert len(outcome["why"]) > 10
        elif name.startswith("speed ") and name.endswith("bfloat16"):
            assert outcome["state"] == "skipped", name
        else:
            assert outcome["state"] in ("passed", "measured"), name
            assert outcome["state"] == "passed" or not name.startswith(("correct ", "race")), name
    results = {name: outcome["result"] for name, outcome in outcomes.items() if "result" in outcome}
    parity = results["step torch against triton"]
    assert parity["network"] == "demo"
    assert parity["relative_rms"]["identity"]["between"] > 0  # another implementation did run
    assert 1e-4 < parity["relative_rms"]["identity"]["torch"] < 1e-2  # fp16's rounding, magnified by guidance
    for name in (each for each in NAMES if each not in (DECODER, PIPELINE, aot.NAME)):
        assert results[name]["passed"] and results[name]["graph_breaks"] == 0, name
        assert results[name]["backend"] == DEMO.compiler
        assert results[name]["median"] > 0 and results[name]["child_seconds"] > results[name]["compile_seconds"]
    assert results[DECODER]["finite"] and results[DECODER]["relative_rms_to_eager"] < 2e-3  # in fp16
    assert results[DECODER]["median"] > 0
    product = results["product AOTInductor packages"]
    assert {row["graph"] for row in product["rows"]} == {"vae_decoder"} and product["passed"]
    package = results[aot.NAME]
    assert package["passed"] and package["cpp"]["passed"]
    assert package["median"] > 0 and package["graph"]["median"] > 0
    assert results[PIPELINE]["finite"] and results[PIPELINE]["graph_breaks"] == 0
    assert results[PIPELINE]["steps"] == DEMO.steps
