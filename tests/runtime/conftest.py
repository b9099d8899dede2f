from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tiny_engines import DEPTH_K, DEPTH_T, MODEL, TOKENS, write_folder

from infid_export.runtime.person import Person
from infid_export.runtime.pipeline import Pipeline


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny engine folder; tests must not change it."""
    return write_folder(tmp_path_factory.mktemp("tiny") / "engines")


@pytest.fixture
def fresh_folder(tmp_path: Path) -> Path:
    """A tiny engine folder of the test's own."""
    return write_folder(tmp_path / "engines")


@pytest.fixture
def tiny_pipe(tiny_folder: Path) -> Iterator[Pipeline]:
    with Pipeline.load(tiny_folder, backend="onnxruntime") as pipe:
        yield pipe


@pytest.fixture
def tiny_person() -> Person:
    random = np.random.default_rng(7)
    tokens, keys, values = (
        random.standard_normal((2, TOKENS, depth)).astype(np.float32) for depth in (DEPTH_T, DEPTH_K, DEPTH_K)
    )
    return Person(tokens, keys, values, MODEL, "Eileen")
