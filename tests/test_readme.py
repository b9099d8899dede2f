from __future__ import annotations

import importlib.util
import re
import sys
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType

import pytest

from infid_export.cli.main import COMMANDS

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text()


@pytest.fixture
def tables() -> ModuleType:
    spec = importlib.util.spec_from_file_location("readme_tables", ROOT / "benchmarks/readme_tables.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tables_are_drawn_from_the_results(tables: ModuleType) -> None:
    assert tables.drawn() == TEXT, "run `python benchmarks/readme_tables.py draw`"


def test_another_result_draws_another_table(
    tables: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for result in tables.RESULTS.glob("*.json"):
        (tmp_path / result.name).write_text(result.read_text().replace('"passed": true', '"passed": false'))
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    assert tables.drawn().count("FAILED") > TEXT.count("FAILED")


def test_links_lead_to_files() -> None:
    links = re.findall(r"\]\((?!http)([^)#]+)\)", TEXT)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_every_command_is_described() -> None:
    described = set(re.findall(r"^\| `infid-export (\w[\w-]*)", TEXT, re.MULTILINE))
    assert described == set(COMMANDS)


def test_the_command_is_installed() -> None:
    scripts = {script.name: script.value for script in entry_points(group="console_scripts")}
    if "infid-export" not in scripts:
        pytest.skip(f"infid-export is not installed in {sys.prefix}")
    assert scripts["infid-export"] == "infid_export.cli.main:entry_point"
