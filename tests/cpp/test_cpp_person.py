"""People: loaded, mixed and fitted to the engines as in Python."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from both import cpp_sentences, printed, python_sentences
from cpp_library import Probe
from mutations import damaged
from safetensors.numpy import save_file
from tiny_engines import DEPTH_K, DEPTH_T, MODEL, TOKENS, write_folder

from infid_engines.manifest import Manifest
from infid_engines.tensor_seal import SEAL_KEY, array_seal
from infid_export.runtime.conditioning import fitted_person
from infid_export.runtime.person import Person, mix, stack

Array = np.ndarray[Any, Any]


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("tiny") / "engines")


def random_person(seed: int, dtype: type = np.float32, tokens: int = TOKENS, model: str = MODEL) -> Person:
    random = np.random.default_rng(seed)
    tensors = [random.standard_normal((2, tokens, depth)).astype(dtype) for depth in (DEPTH_T, DEPTH_K, DEPTH_K)]
    return Person(*tensors, model=model, name=f"person {seed}")


def tensors_of(person: Person) -> dict[str, Array]:
    return {name: getattr(person, name) for name in ("identity_tokens", "identity_keys", "identity_values")}


def forged(path: Path, metadata: dict[str, str] | None, **tensors: Array | None) -> Path:
    """Write a file with other metadata or tensors, and its seal."""
    found = {name: each for name, each in {**tensors_of(random_person(0)), **tensors}.items() if each is not None}
    facts = {"infid_model": MODEL} if metadata is None else metadata
    save_file(found, path, metadata={**facts, SEAL_KEY: array_seal(facts, found)})
    return path


def same_sentences(path: Any, cpp_probe: Probe) -> tuple[str, str]:
    expected = python_sentences(lambda: Person.load(path))
    assert expected is not None
    assert cpp_sentences(cpp_probe("person", path)) == expected
    return expected


def test_a_person_of_the_engines_is_read(tmp_path: Path, cpp_probe: Probe) -> None:
    random_person(0).save(tmp_path / "p.safetensors")
    assert printed(cpp_probe("person", f"{tmp_path}//./p.safetensors")) == ["person 0", MODEL]
    forged(tmp_path / "nameless", None)
    assert printed(cpp_probe("person", tmp_path / "nameless")) == ["", MODEL]


def test_missing_and_foreign_files_have_the_same_sentences(tmp_path: Path, cpp_probe: Probe) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "text").write_text("no person")
    save_file({"weights": np.zeros(3, np.float32)}, tmp_path / "other")
    save_file({}, tmp_path / "nothing", metadata={"infid_model": "m"})
    os.mkfifo(tmp_path / "pipe")
    for name in ("missing", "empty", "text", "other", "nothing", "pipe", ".", "it's"):
        same_sentences(tmp_path / name, cpp_probe)
    assert same_sentences("", cpp_probe)[0] == "The person file must be a path, not ''."


DAMAGES: dict[str, Callable[[Path], Path]] = {
    "no model": lambda path: forged(path, {"infid_name": "a"}),
    "too many": lambda path: forged(path, None, more=np.zeros(1, np.float32)),
    "too few": lambda path: forged(path, None, identity_keys=None),
    "NaN": lambda path: forged(path, None, identity_keys=np.full((2, TOKENS, DEPTH_K), np.nan, np.float32)),
    "infinite": lambda path: forged(path, None, identity_values=np.full((2, TOKENS, DEPTH_K), -np.inf, np.float32)),
    "half NaN": lambda path: forged(path, None, **{
        name: np.full_like(each, np.nan, np.float16) for name, each in tensors_of(random_person(0)).items()}),
    "tokens": lambda path: forged(path, None, identity_keys=np.zeros((2, TOKENS + 1, DEPTH_K), np.float32)),
    "width": lambda path: forged(path, None, identity_values=np.zeros((2, TOKENS, DEPTH_K + 1), np.float32)),
    "rank": lambda path: forged(path, None, identity_tokens=np.zeros((TOKENS, DEPTH_T), np.float32)),
    "scalar": lambda path: forged(path, None, identity_tokens=np.zeros((), np.float32)),
    "rows": lambda path: forged(path, None, **{
        name: each[:1] for name, each in tensors_of(random_person(0)).items()}),
    "nobody": lambda path: forged(path, None, **{
        name: each[:, :0] for name, each in tensors_of(random_person(0)).items()}),
    "mixed types": lambda path: forged(path, None, identity_tokens=np.zeros((2, TOKENS, DEPTH_T), np.float16)),
    "integers": lambda path: forged(path, None, identity_tokens=np.zeros((2, TOKENS, DEPTH_T), np.int32)),
    "bytes": lambda path: forged(path, None, **{
        name: each.astype(np.int8) for name, each in tensors_of(random_person(0)).items()}),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_unfit_people_have_the_same_sentences(tmp_path: Path, damage: str, cpp_probe: Probe) -> None:
    same_sentences(DAMAGES[damage](tmp_path / "p.safetensors"), cpp_probe)


def test_changed_files_have_the_same_sentences(tmp_path: Path, cpp_probe: Probe) -> None:
    path = tmp_path / "p.safetensors"
    metadata, tensors = {"infid_model": MODEL}, tensors_of(random_person(0))
    for seal, why in (({}, "it has no seal"), ({SEAL_KEY: "0" * 64}, "its content has changed")):
        save_file(tensors, path, metadata={**metadata, **seal})
        assert same_sentences(path, cpp_probe)[0].endswith(f"({why}).")
    random_person(0).save(path)
    content = path.read_bytes()
    for end in (0, 7, 8, 9, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:end])
        same_sentences(path, cpp_probe)
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    same_sentences(path, cpp_probe)


def test_damaged_files_are_never_accepted(tmp_path: Path, cpp_probe: Probe) -> None:
    random, path = Random(6), tmp_path / "p.safetensors"
    random_person(0).save(path)
    content = path.read_bytes()
    for _ in range(15):
        path.write_bytes(damaged(random, content))
        found = cpp_sentences(cpp_probe("person", path))
        assert found is not None
        assert found[0].startswith(f"{path} is not ")


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_a_mix_has_the_bytes_of_pythons(tmp_path: Path, dtype: type, count: int, cpp_probe: Probe) -> None:
    people = [random_person(seed, dtype) for seed in range(count)]
    files = [tmp_path / str(index) for index in range(count)]
    for person, file in zip(people, files, strict=True):
        person.save(file)
    cpp_probe("mix", tmp_path / "cpp", "both é", *files)
    mix([(person, 1.0) for person in people], "both é").save(tmp_path / "python")
    assert (tmp_path / "cpp").read_bytes() == (tmp_path / "python").read_bytes()


def test_people_who_do_not_belong_together_have_the_same_sentences(tmp_path: Path, cpp_probe: Probe) -> None:
    groups = [[], [random_person(0), random_person(1, model="b" * 64)],
              [random_person(0), random_person(1, tokens=TOKENS + 1)]]  # fmt: skip
    for people in groups:
        files = [tmp_path / str(index) for index in range(len(people))]
        for person, file in zip(people, files, strict=True):
            person.save(file)
        expected = python_sentences(lambda people=people: mix([(person, 1.0) for person in people]))  # type: ignore[misc]
        assert expected is not None
        assert cpp_sentences(cpp_probe("mix", tmp_path / "out", "name", *files)) == expected


def test_float16_is_rounded_as_by_numpy(tmp_path: Path, cpp_probe: Probe) -> None:
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
    finite = halves[np.isfinite(halves)]
    bits = np.random.default_rng(0).integers(0, 1 << 32, 50_000, dtype=np.uint32).view(np.float32)
    with np.errstate(over="ignore"):
        following = np.nextafter(finite.astype(np.float16), np.float16(np.inf))
    middles = (finite + following.astype(np.float32)) / 2
    near = [np.nextafter(middles, np.float32(end)) for end in (-np.inf, np.inf)]
    values = np.concatenate([halves, bits, middles, *near])
    values = values[~np.isnan(values)]
    (tmp_path / "values").write_bytes(values.tobytes())
    cpp_probe("rounded", tmp_path / "values", tmp_path / "out")
    found = (tmp_path / "out").read_bytes()
    with np.errstate(over="ignore"):
        expected = values.astype(np.float16)
    np.testing.assert_array_equal(np.frombuffer(found[: 2 * len(values)], np.uint16), expected.view(np.uint16))
    back = np.frombuffer(found[2 * len(values) :], np.uint32)
    np.testing.assert_array_equal(back, expected.astype(np.float32).view(np.uint32))


def people_to_fit() -> list[Person]:
    one, two = random_person(0), stack([random_person(0, np.float16), random_person(1, np.float16)])
    return [one, two, stack([one, one, one]), random_person(0, tokens=TOKENS + 1), random_person(0, model="é" * 64)]


@pytest.mark.parametrize("index", range(5))
def test_a_fitted_person_is_the_one_of_python(tmp_path: Path, engines: Path, index: int, cpp_probe: Probe) -> None:
    person, manifest = people_to_fit()[index], Manifest.load(engines)
    person.save(tmp_path / "p")
    run = cpp_probe("fit", engines, tmp_path / "p", tmp_path / "cpp")
    expected = python_sentences(lambda: fitted_person(manifest, person).save(tmp_path / "python"))
    assert cpp_sentences(run) == expected
    assert (expected is None) == (index < 2)
    if expected is None:
        assert (tmp_path / "cpp").read_bytes() == (tmp_path / "python").read_bytes()
