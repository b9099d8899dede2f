"""Folders that the tests of all workers share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def shared(tmp_path_factory: pytest.TempPathFactory, name: str) -> Path:
    """Return a folder that all workers share: one makes its contents, the others reuse them."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / name
    folder.mkdir(exist_ok=True)
    return folder
