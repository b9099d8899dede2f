"""The documentation is correct: links, commands, names, and the blocks that the demo model can run in seconds."""

from __future__ import annotations

import ast
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from document_blocks import BLOCKS, DOCUMENTS, NEEDS, ROOT, Block
from PIL import Image

from infid_export.cli import main
from infid_export.runtime.person import Person

LINKED = [*DOCUMENTS, *(ROOT / name for name in ("CONTRIBUTING.md", "benchmarks/README.md", "kernels/README.md"))]
PACKAGES = ("infid_export", "infid_engines", "infid_kernels", "infid_training")
# Flags of the scripts in benchmarks/, which no command has.
OTHER_FLAGS = {"--help", "--part", "--output", "--machine"}


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_every_block_says_how_it_is_tested() -> None:
    assert len(BLOCKS) > 30
    assert [str(block) for block in BLOCKS if not block.mark] == []
    assert {block.detail for block in BLOCKS if block.mark == "needs"} <= set(NEEDS)


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.mark == "tested by"], ids=str)
def test_the_test_that_a_block_names_runs_its_commands(block: Block) -> None:
    text = (ROOT / block.detail).read_text()
    if block.language in ("cpp", "cmake"):
        assert f'block("{block.language}")' in text
        return
    for words in block.commands():
        runs = words[1] if words[0] == "infid-export" else Path(words[1]).name
        assert f'"{runs}"' in text


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language == "sh"], ids=str)
def test_commands_parse(block: Block) -> None:
    for words in block.commands():
        if words[0] in ("torchrun", "accelerate"):  # they start our command, as `python -m infid_export`
            words = ["infid-export", *words[words.index("infid_export") + 1 :]]
        if words[0] == "infid-export":
            assert main._parse(words[1], words[1:]).command == words[1]
        elif words[0] == "make":
            assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        elif words[0] in ("cmake", "infid", "sudo"):
            assert block.mark != "run"  # a test runs them, or says what it lacks
        elif words[0] == "python":
            script = (ROOT / words[1]).read_text()
            shared = (ROOT / "benchmarks/quality/scoring_arguments.py").read_text()
            assert [word for word in words if word.startswith("--") and f'"{word}"' not in script + shared] == []
        else:
            assert words[:2] == ["pip", "install"]
            extras = re.findall(r"infid-export\[(.*)\]", words[2])[0].split(",")
            assert [each for each in extras if not re.search(rf"^{each} = \[", pyproject(), re.MULTILINE)] == []


def pyproject() -> str:
    return (ROOT / "pyproject.toml").read_text()


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language == "python"], ids=str)
def test_python_compiles_and_names_what_exists(block: Block) -> None:
    tree = ast.parse(block.text)
    known: dict[str, Any] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in PACKAGES:
            for name in node.names:
                found = import_module(str(node.module))
                if not hasattr(found, name.name):
                    found = import_module(f"{node.module}.{name.name}")
                    known[name.asname or name.name] = found
                else:
                    known[name.asname or name.name] = getattr(found, name.name)
    assert known
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in known:
            assert hasattr(known[node.value.id], node.attr)


@pytest.mark.parametrize("document", DOCUMENTS, ids=named)
def test_names_in_the_text_exist(document: Path) -> None:
    text = document.read_text()
    for name in re.findall(rf"(?:`|^::: )((?:{'|'.join(PACKAGES)})(?:\.\w+)+)", text, re.MULTILINE):
        assert resolve(name) is not None, name
    for path in re.findall(r"`((?:\w+/)*\w+\.py)`", text):
        assert (ROOT / path).is_file() or (ROOT / "benchmarks" / path).is_file(), path
    flags = set(re.findall(r"`[^`\n]*?(--[a-z][\w-]*)", text))
    assert flags - all_flags() - OTHER_FLAGS == set()


def resolve(name: str) -> Any:
    """Return the object of a dotted name; None if it does not exist."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        try:
            found: Any = import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        for part in parts[count:]:
            found = getattr(found, part, None)
        if found is not None:
            return found
    return None


def all_flags() -> set[str]:
    program = (ROOT / "engines/cpp/program/arguments.cpp").read_text()
    flags = {"--version", *re.findall(r'\{"(--[a-z-]+)"', program)}
    for command in main.COMMANDS:
        parser = main.make_parser(command)
        (commands,) = (action for action in parser._actions if action.dest == "command")
        for action in commands.choices[command]._actions:  # type: ignore[index]
            flags |= set(action.option_strings)
    return flags


@pytest.mark.parametrize("document", LINKED, ids=named)
def test_links_lead_to_files_and_headings(document: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)
    links = re.findall(r"(?:\]\(|^\[[^\]]+\]: )(?!https?:)([^)\s#]*)(?:#([^)\s]+))?", text, re.MULTILINE)
    for path, heading in links:
        target = document.parent / path if path else document
        assert target.is_file(), path
        assert not heading or heading in slugs(target), f"{path}#{heading}"


def slugs(document: Path) -> set[str]:
    """Return the anchors of the headings, as forges and mkdocs make them."""
    text = re.sub(r"^```.*?^```$", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", sorted({block.document for block in BLOCKS if block.mark == "run"}), ids=named)
def test_what_the_demo_can_run(document: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a document's blocks in order, in a folder with an engine folder, a photo and a person."""
    monkeypatch.chdir(workplace)
    for block in BLOCKS:
        if block.document == document and block.mark == "run":
            if block.language == "python":
                exec(compile(block.text, str(block), "exec"), {"__name__": "__main__"})
                continue
            for words in block.commands():
                assert main.run(words[1:]) == 0, words


@pytest.fixture(scope="module")
def workplace(
    quick_folder: Path, portrait: Image.Image, person: Person, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder with the inputs of the documentation's commands."""
    folder = tmp_path_factory.mktemp("workplace")
    (folder / "infid-engines").symlink_to(quick_folder)
    portrait.save(folder / "photo.png")
    person.save(folder / "person.safetensors")
    return folder
