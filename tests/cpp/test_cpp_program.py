"""Bad input gives the sentences and exit codes of `infid-export generate`."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cpp_library import ONNXRUNTIME, program, tiny_person
from PIL import Image
from tiny_engines import write_folder

from infid_engines.manifest import Manifest
from infid_export.cli import main


def damaged_engine(folder: Path, person: Path) -> None:
    content = bytearray((folder / "onnx/denoise_step.onnx").read_bytes())
    content[-5] ^= 1
    (folder / "onnx/denoise_step.onnx").write_bytes(content)


def missing_engine(folder: Path, person: Path) -> None:
    (folder / "onnx/vae_decoder.onnx").unlink()


def other_schema(folder: Path, person: Path) -> None:
    document = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**document, "schema_version": 99}))


def changed_manifest(folder: Path, person: Path) -> None:
    document = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**document, "height": 96}))


def no_manifest(folder: Path, person: Path) -> None:
    (folder / "manifest.json").unlink()


def no_engines(folder: Path, person: Path) -> None:
    replace(Manifest.load(folder), engines=()).write(folder)


def person_of_another_model(folder: Path, person: Path) -> None:
    tiny_person(model="b" * 64).save(person)


def truncated_person(folder: Path, person: Path) -> None:
    person.write_bytes(person.read_bytes()[:-7])


def changed_person(folder: Path, person: Path) -> None:
    content = bytearray(person.read_bytes())
    content[-3] ^= 4
    person.write_bytes(content)


def no_person(folder: Path, person: Path) -> None:
    person.unlink()


def three_people(folder: Path, person: Path) -> None:
    one = tiny_person()
    wide = {name: np.tile(getattr(one, name), (1, 3, 1)) for name in ("identity_tokens", "identity_keys")}
    tiny_person(**wide, identity_values=np.tile(one.identity_values, (1, 3, 1))).save(person)


DAMAGES = [
    damaged_engine, missing_engine, other_schema, changed_manifest, no_manifest, no_engines, person_of_another_model,
    truncated_person, changed_person, no_person, three_people,
]  # fmt: skip
ARGUMENTS: list[list[object]] = [
    ["--steps", 0], ["--steps", 1000], ["--guidance", "nan"], ["--height", 96], ["--sampler", "lcm", "--steps", 90],
    ["--style-strength", "inf"], ["--device", "cuda:x"], ["--sampler", "ddim", "--spacing", "karras"],
]  # fmt: skip


def compare(build: Path, folder: Path, person: Path, extra: list[object], capsys: pytest.CaptureFixture[str]) -> None:
    output = folder.parent / "out.png"
    code = main.run(["generate", "a", "--engines", str(folder), "--person", str(person), "-o", str(output),
                     *map(str, extra)])  # fmt: skip
    expected = capsys.readouterr().err
    found = program(
        build, folder, "--prompt", "a", "--person", person, "-o", output, "--onnxruntime", ONNXRUNTIME, *extra
    )
    assert code == found.returncode == 1
    said, meant = ([line for line in text.splitlines() if line.startswith(("error:", "  fix:"))]
                   for text in (found.stderr, expected))  # fmt: skip
    assert len(said) == 2
    assert said == meant
    assert not output.exists()
    assert found.stdout == ""


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_said_as_in_python(
    cpp_release: Path, tiny: Path, tmp_path: Path, damage: Callable[[Path, Path], None],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    folder, person = shutil.copytree(tiny, tmp_path / "engines"), tmp_path / "person.safetensors"
    tiny_person().save(person)
    damage(folder, person)
    compare(cpp_release, folder, person, [], capsys)


@pytest.mark.parametrize("extra", ARGUMENTS, ids=lambda words: " ".join(map(str, words)))
def test_wrong_settings_are_said_as_in_python(
    cpp_release: Path, tiny: Path, tmp_path: Path, extra: list[object], capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_person().save(tmp_path / "person.safetensors")
    compare(cpp_release, tiny, tmp_path / "person.safetensors", extra, capsys)


def test_a_library_that_is_missing_or_another(cpp_release: Path, tiny: Path, tmp_path: Path) -> None:
    tiny_person().save(tmp_path / "person.safetensors")
    words = [tiny, "--prompt", "a", "--person", tmp_path / "person.safetensors", "-o", tmp_path / "out.png"]
    missing = program(cpp_release, *words, "--onnxruntime", tmp_path / "no.so")
    assert missing.returncode == 1
    assert missing.stderr.startswith(f"error: ONNX Runtime cannot be loaded ({tmp_path}/no.so: cannot open")
    assert "  fix: Install it with `pip install onnxruntime`" in missing.stderr
    other = program(cpp_release, *words, "--onnxruntime", cpp_release / "libinfid.so")
    assert other.returncode == 1
    assert "libinfid.so is not ONNX Runtime's library: it has no OrtGetApiBase." in other.stderr


def test_a_library_that_is_too_old(cpp_release: Path, tiny: Path, tmp_path: Path) -> None:
    source = tmp_path / "old.c"
    source.write_text("""
        static const void* get(unsigned version) { (void)version; return 0; }
        static const char* version(void) { return "1.16.3"; }
        static const struct { const void* (*get)(unsigned); const char* (*version)(void); } base = {get, version};
        const void* OrtGetApiBase(void) { return &base; }
    """)
    subprocess.run(["cc", "-shared", "-fPIC", source, "-o", tmp_path / "old.so"], check=True)
    tiny_person().save(tmp_path / "person.safetensors")
    old = program(cpp_release, tiny, "--prompt", "a", "--person", tmp_path / "person.safetensors", "--onnxruntime",
              tmp_path / "old.so", "-o", tmp_path / "out.png")  # fmt: skip
    assert old.returncode == 1
    assert "old.so is ONNX Runtime 1.16.3, but 1.23 is the oldest that can be used." in old.stderr


def test_arguments_that_do_not_go_together(cpp_release: Path, tiny: Path) -> None:
    for words, problem in {
        (): "No engine folder was given.",
        (tiny,): "No prompt was given.",
        (tiny, "--prompt", "a"): "infid needs either --person or --photo.",
        (tiny, "--prompt", "a", "--template", "t", "--person", "p"): "A template has a prompt already.",
        (tiny, "--prompt", "a", "--person", "p", "q"): "Several people were given for a prompt.",
        (tiny, "--stepz", "3"): "infid has no flag --stepz.",
        (tiny, "--seed", "-1"): "--seed needs a number from 0 up, not '-1'.",
        (tiny, "--steps", "3x"): "--steps needs a number, not '3x'.",
        (tiny, "--prompt", "a", "--person", "p", "-o", "a.jpg"): "a.jpg does not end in .png.",
    }.items():
        found = program(cpp_release, *words, "--json")
        assert found.returncode == 1
        assert json.loads(found.stdout)["error"]["problem"] == problem


def test_help_names_every_flag(cpp_release: Path) -> None:
    found = program(cpp_release, "--help")
    assert found.returncode == 0
    source = (Path(__file__).parents[2] / "engines/cpp/program/arguments.cpp").read_text()
    flags = {line.split('"')[1] for line in source.splitlines() if line.strip().startswith('{"--')}
    assert len(flags) > 20
    assert [flag for flag in flags if flag not in found.stdout] == []
    assert program(cpp_release, "--version").stdout == "infid 0.1.0\n"


@pytest.mark.parametrize("facts", [{"crop": "whole"}, {"crop": "aligned"}, {"embedding": "raw"}], ids=str)
def test_photos_of_another_method_are_read_in_python(
    cpp_release: Path, tmp_path: Path, astronaut: np.ndarray, facts: dict[str, str]
) -> None:
    folder = write_folder(tmp_path / "engines")
    faces = {**Manifest.load(folder).faces, **facts}
    replace(Manifest.load(folder), faces=faces).write(folder)
    Image.fromarray(astronaut).save(tmp_path / "a.png")
    words = "--prompt", "a", "--photo", tmp_path / "a.png", "-o", tmp_path / "out.png", "--onnxruntime", ONNXRUNTIME
    found = program(cpp_release, folder, *words)
    assert found.returncode == 1
    assert "identity weights of another method, whose photos are read in Python only." in found.stderr
    assert "fix: Enroll with `infid-export enroll`" in found.stderr
