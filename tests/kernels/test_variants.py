"""The variants of an operation that are compiled for one architecture."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from infid_kernels import tuning, variants
from infid_kernels.compile import CompiledKernel
from infid_kernels.sass import MachineCode
from infid_kernels.targets import ARCHITECTURES, HEAD_SIZES
from infid_kernels.tuning import CANDIDATES, OPS, Configuration, Entry

# Prints one line per variant of both operations: its launch description and its spilled bytes.
PROGRAM = """
import json, sys
from infid_kernels.sass import read_machine_code
from infid_kernels.tuning import OPS
from infid_kernels.variants import compile_variants
for op in OPS:
    for each in compile_variants(op, sys.argv[1], int(sys.argv[2])):
        print(json.dumps({**each.launch, "stack_bytes": read_machine_code(each.cubin).stack_bytes}))
"""


def test_where_every_candidate_spills_there_is_still_a_variant_within_48_kb(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tuned = CANDIDATES[-1]
    rows = [Entry("mixed_attention", "sm_80", 128, 0, even_n, tuned, "made up") for even_n in (True, False)]
    monkeypatch.setattr(tuning, "_measured", rows)

    def compile_kernel(
        op: str, architecture: str, d: int, configuration: Configuration, dtype: str, even_n: bool
    ) -> CompiledKernel:
        launch = {"configuration": configuration.to_dict(), "shared_bytes": 40000}
        return CompiledKernel("", b"spills" if configuration in CANDIDATES else b"", launch)

    monkeypatch.setattr(variants, "compile_kernel", compile_kernel)
    monkeypatch.setattr(variants, "read_machine_code", lambda cubin: MachineCode(255, 8 if cubin else 0, {}))
    made = [each.launch for each in variants.compile_variants("mixed_attention", "sm_80", 128)]
    assert [each["queries"] for each in made] == 2 * [[0], []]
    assert [each["configuration"] == tuned.to_dict() for each in made] == 2 * [True, False]


@pytest.mark.slow
@pytest.mark.parametrize("d", HEAD_SIZES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_and_head_size_has_two_variants_one_of_them_small(architecture: str, d: int) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(str(Path(entry or ".").resolve()) for entry in sys.path)
    command = [sys.executable, "-c", PROGRAM, architecture, str(d)]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    made: list[dict[str, Any]] = [json.loads(line) for line in found.stdout.splitlines()]
    for op in OPS:
        for even_n in (True, False):
            forms = [each for each in made if (each["op"], each["constants"]["EVEN_N"]) == (op, even_n)]
            assert len({json.dumps(each["configuration"]) for each in forms}) == len(forms) >= 2
            assert any(each["shared_bytes"] <= variants.DEFAULT_SHARED and not each["stack_bytes"] for each in forms)
