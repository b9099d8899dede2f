from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from cpp_library import Probe, built
from shared_folder import shared
from tiny_engines import write_folder


@pytest.fixture(scope="session")
def cpp_release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build folder as users build it."""
    return built(shared(tmp_path_factory, "cpp_release"), "-DINFID_TESTS=OFF")


@pytest.fixture(scope="session")
def cpp_sanitized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build folder with the tests, under AddressSanitizer and UndefinedBehaviorSanitizer."""
    return built(shared(tmp_path_factory, "cpp_sanitized"), "-DINFID_SANITIZE=ON", "-DCMAKE_BUILD_TYPE=Debug")


@pytest.fixture(scope="session")
def cpp_probe(cpp_sanitized: Path) -> Probe:
    """Runs a part of the library, under the sanitizers: `cpp_probe("tokens", folder, input=lines)`."""

    def run(name: str, *arguments: object, input: str | None = None) -> subprocess.CompletedProcess[str]:
        command = [str(cpp_sanitized / "tests/infid_probe"), name, *map(str, arguments)]
        finished = subprocess.run(command, input=input, capture_output=True, text=True, check=False)
        assert "Sanitizer" not in finished.stderr, finished.stderr
        return finished

    return run


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny engine folder with a batch of 2; tests must not change it."""
    return write_folder(tmp_path_factory.mktemp("tiny") / "engines")
