"""The walk of docs/embedding-cpp.md, and the examples in C and C++."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from cpp_library import ONNXRUNTIME, tiny_person
from document_blocks import BLOCKS, ROOT
from PIL import Image

from infid_export.runtime.pipeline import Pipeline

PROMPT = "a portrait in the rain"


class Place(NamedTuple):
    """An installed library, and a folder to work in."""

    prefix: Path
    work: Path

    @property
    def environment(self) -> dict[str, str]:
        libraries = self.prefix / "lib"
        return {
            **os.environ,
            "PATH": f"{self.prefix / 'bin'}:{os.environ['PATH']}",
            "PKG_CONFIG_PATH": str(libraries / "pkgconfig"),
            "LD_LIBRARY_PATH": f"{libraries}:{ONNXRUNTIME.parent}",
        }

    def run(self, *words: object) -> str:
        """Run a command in the folder, and return what it prints."""
        finished = subprocess.run(
            list(map(str, words)), cwd=self.work, env=self.environment, capture_output=True, text=True, check=False
        )
        assert finished.returncode == 0, finished.stdout + finished.stderr
        return finished.stdout


@pytest.fixture(scope="module")
def place(cpp_release: Path, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("walk")
    made = Place(folder / "infid", folder)
    made.run("cmake", "--install", cpp_release, "--prefix", made.prefix)
    if not (made.prefix / "lib").exists():  # a system with lib64
        (made.prefix / "lib").symlink_to(made.prefix / "lib64")
    (folder / "infid-engines").symlink_to(tiny)
    tiny_person().save(folder / "anna.safetensors")
    # the name that the linker's path has for it
    (folder / "libonnxruntime.so.1").symlink_to(ONNXRUNTIME)
    return made


@pytest.fixture(scope="module")
def expected(tiny: Path) -> bytes:
    return bytes(Pipeline.load(tiny).generate(PROMPT, tiny_person(), seed=7)[0].tobytes())


def block(language: str) -> str:
    (found,) = (each.text for each in BLOCKS if each.document.name == "embedding-cpp.md" and each.language == language)
    return str(found)


def test_the_program_of_the_page(place: Place, expected: bytes) -> None:
    source = place.work / "own"
    source.mkdir()
    (source / "rain.cpp").write_text(block("cpp"))
    (source / "CMakeLists.txt").write_text(block("cmake"))
    place.run("cmake", "-S", source, "-B", source / "build", f"-DCMAKE_PREFIX_PATH={place.prefix}")
    place.run("cmake", "--build", source / "build")
    shutil.copy(place.work / "libonnxruntime.so.1", place.prefix / "lib/libonnxruntime.so.1")
    place.run(source / "build/rain")
    assert Image.open(place.work / "rain.png").tobytes() == expected


def test_the_static_library(place: Place, expected: bytes) -> None:
    source = place.work / "static"
    source.mkdir()
    (source / "rain.cpp").write_text(
        block("cpp").replace('("infid-engines")', f'("infid-engines", {{"auto", "auto", 1, "{ONNXRUNTIME}"}})')
    )
    (source / "CMakeLists.txt").write_text(block("cmake").replace("infid::infid)", "infid::infid_static)"))
    place.run("cmake", "-S", source, "-B", source / "build", f"-DCMAKE_PREFIX_PATH={place.prefix}")
    place.run("cmake", "--build", source / "build")
    place.run(source / "build/rain")
    assert Image.open(place.work / "rain.png").tobytes() == expected
    assert "libinfid" not in place.run("ldd", source / "build/rain")


def test_the_commands_of_the_page(place: Place, expected: bytes) -> None:
    words = ["infid", "infid-engines", "--prompt", PROMPT, "--person", "anna.safetensors", "--seed", "7", "-o", "x.png"]
    assert place.run(*words, "--onnxruntime", ONNXRUNTIME) == "x.png\n"
    assert Image.open(place.work / "x.png").tobytes() == expected
    made = Pipeline.load(place.work / "infid-engines").template(PROMPT, seed=7, path=place.work / "sketch.safetensors")
    tiny_person(1).save(place.work / "bert.safetensors")
    people = ["--person", "anna.safetensors", "bert.safetensors"]
    words = ["infid", "infid-engines", "--template", "sketch.safetensors", *people, "-o", "sketch.png", "--json"]
    printed = place.run(*words, "--onnxruntime", ONNXRUNTIME)
    assert json.loads(printed) == {"images": ["sketch-0.png", "sketch-1.png"], "backend": "onnxruntime",
                                   "device": "cpu", "seed": made.settings.seed}  # fmt: skip


@pytest.mark.skipif(shutil.which("pkg-config") is None, reason="needs pkg-config")
def test_the_example_in_c(place: Place, expected: bytes) -> None:
    flags = place.run("pkg-config", "--cflags", "--libs", "infid").split()
    place.run("cc", "-std=c99", "-Wall", "-Wextra", "-Werror", ROOT / "examples/c/generate.c", *flags, "-o", "generate")
    printed = place.run("./generate", "infid-engines", "anna.safetensors", PROMPT, "c.png", ONNXRUNTIME)
    assert "c.png: 64 x 64" in printed
    assert Image.open(place.work / "c.png").tobytes() == expected
    run = subprocess.run(["./generate", "nowhere", "anna.safetensors", PROMPT, "c.png"], cwd=place.work,
                         env=place.environment, capture_output=True, text=True, check=False)  # fmt: skip
    assert run.returncode == 1
    assert "nowhere is not an engine folder: it has no manifest.json." in run.stderr


@pytest.fixture(scope="module")
def server(place: Place) -> Iterator[str]:
    if not Path("/usr/include/httplib.h").exists():
        pytest.skip("needs libcpp-httplib-dev")
    build = place.work / "server"
    place.run("cmake", "-S", ROOT / "examples/cpp_server", "-B", build, f"-DCMAKE_PREFIX_PATH={place.prefix}")
    place.run("cmake", "--build", build)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(build / "server"), "infid-engines", ".", str(port), str(ONNXRUNTIME)]
    running = subprocess.Popen(command, cwd=place.work, env=place.environment)
    url = f"http://127.0.0.1:{port}"
    for _ in range(200):
        if subprocess.run(["curl", "-sf", f"{url}/healthz"], capture_output=True, check=False).returncode == 0:
            break
        time.sleep(0.05)
    yield url
    running.send_signal(signal.SIGTERM)
    assert running.wait(20) == 0


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_the_server(place: Place, server: str, expected: bytes) -> None:
    def ask(body: object) -> tuple[int, bytes]:
        text = body if isinstance(body, str) else json.dumps(body)
        words = ["curl", "-s", "-d", text, "-o", "answer", "-w", "%{http_code}", f"{server}/images"]
        code = int(place.run(*words))
        return code, (place.work / "answer").read_bytes()

    status, _ = ask({"person": "anna", "prompt": PROMPT, "seed": 7})
    assert status == 200
    assert Image.open(place.work / "answer").tobytes() == expected
    for body, problem in {
        '{"person": "anna"}': "prompt",
        "no JSON": "parse error",
        '{"person": "../anna", "prompt": "a"}': "There is no such person.",
        '{"person": "nobody", "prompt": "a"}': "There is no such person.",
        '{"person": "anna", "prompt": "a", "steps": 0}': "The number of steps must be a whole number from 1",
    }.items():
        status, answer = ask(body)
        assert status == 400
        assert problem in json.loads(answer)["error"]["message"]
    status, _ = ask({"person": "anna", "prompt": "a" * 100_000})
    assert status == 413
