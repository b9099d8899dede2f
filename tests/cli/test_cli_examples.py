from __future__ import annotations

import shlex

import pytest
from cli_process import Cli

from infid_export.cli import main


@pytest.mark.parametrize("command", main.COMMANDS)
def test_help_ends_with_two_examples_that_parse(command: str, cli: Cli) -> None:
    examples = main._module(command).EXAMPLES
    assert len(set(examples)) == 2
    for example in examples:
        program, *words = shlex.split(example.replace("\\\n", " "))
        assert (program, words[0]) == ("infid-export", command)
        assert main._parse(command, words).command == command
    code, out, _ = cli(command, "--help")
    assert code == 0
    assert out.endswith("examples:\n" + "".join(f"  {example}\n" for example in examples))
