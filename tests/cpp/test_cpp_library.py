"""The library as a whole: its unit tests under the sanitizers, and what it exports."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from cpp_library import LIBRARY


def test_unit_tests_pass_under_the_sanitizers(cpp_sanitized: Path) -> None:
    command = ["ctest", "--test-dir", str(cpp_sanitized), "--output-on-failure"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "100% tests passed" in run.stdout


def test_only_the_public_functions_are_exported(cpp_release: Path) -> None:
    command = ["nm", "--dynamic", "--defined-only", "--demangle", "--format=posix", str(cpp_release / "libinfid.so")]
    symbols = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    names = {line.split(" T ")[0] for line in symbols if " T " in line}
    header = (LIBRARY / "include/infid/infid.h").read_text()
    declared = set(re.findall(r"\b(infid_\w+)\(", header))
    assert {name for name in names if name.startswith("infid_")} == declared
    public = r"infid::(version\(|(Error|Image|Person|Pipeline|Template)::)"
    others = [name for name in names if not name.startswith("infid_")]
    assert len(others) > 10
    assert [name for name in others if not re.match(public, name)] == []


def test_the_interfaces_show_no_other_library() -> None:
    for header in (LIBRARY / "include/infid").iterdir():
        included = re.findall(r"#include [<\"](.*)[>\"]", header.read_text())
        assert [name for name in included if "/" in name or name.endswith(".hpp")] == []


def test_lines_fit() -> None:
    files = [path for kind in ("*.hpp", "*.cpp", "*.h", "*.c") for path in LIBRARY.rglob(kind)]
    assert len(files) > 100
    long = [f"{path}:{line}" for path in files for line, text in enumerate(path.read_text().splitlines(), 1)
            if len(text) > 120]  # fmt: skip
    assert long == []
