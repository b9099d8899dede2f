from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import openai
import pytest
from running import Running, options_of, running
from tiny_engines import write_folder

from infid_engines.manifest import Manifest


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny engine folder with a batch of 2; tests must not change it."""
    return write_folder(tmp_path_factory.mktemp("tiny") / "engines")


@pytest.fixture(scope="module")
def tiny(tiny_folder: Path) -> Iterator[Running]:
    """A server of the tiny engines."""
    with running(options_of(tiny_folder)) as server:
        yield server


@pytest.fixture
def fresh(tiny_folder: Path) -> Iterator[Running]:
    """Likewise, of the test's own."""
    with running(options_of(tiny_folder)) as server:
        yield server


@pytest.fixture(scope="module")
def client(tiny: Running) -> openai.OpenAI:
    """The official client."""
    return openai.OpenAI(base_url=f"{tiny.url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def server(demo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server of the demo model's engines, with few steps."""
    folder = shutil.copytree(demo_folder, tmp_path_factory.mktemp("served") / "engines")
    manifest = Manifest.load(folder)
    replace(manifest, defaults={**manifest.defaults, "steps": 6}).write(folder)
    with running(options_of(folder, template_budget=None)) as server:
        yield server
