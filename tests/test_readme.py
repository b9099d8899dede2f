from __future__ import annotations

import re
import sys
from importlib.metadata import entry_points

import pytest
from document_blocks import ROOT

from infid_export.cli.main import COMMANDS

README = ROOT / "README.md"
TEXT = README.read_text()


def test_it_is_short() -> None:
    assert README.stat().st_size <= 9000


def test_every_command_is_described() -> None:
    described = set(re.findall(r"^\| `infid-export (\w[\w-]*)", TEXT, re.MULTILINE))
    assert described == set(COMMANDS)


def test_the_two_commands_of_a_clone_are_there() -> None:
    assert re.findall(r"^make (\w+)", TEXT, re.MULTILINE) == ["demo", "test"]


def test_it_says_that_there_are_no_public_weights() -> None:
    assert "No public weights of Infinite-ID exist" in TEXT


def test_the_command_is_installed() -> None:
    scripts = {script.name: script.value for script in entry_points(group="console_scripts")}
    if "infid-export" not in scripts:
        pytest.skip(f"infid-export is not installed in {sys.prefix}")
    assert scripts["infid-export"] == "infid_export.cli.main:entry_point"
