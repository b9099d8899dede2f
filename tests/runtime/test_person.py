from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from tiny_engines import DEPTH_K, DEPTH_T, MODEL, TOKENS

from infid_engines.errors import DiskFullError, InputError
from infid_engines.tensor_seal import SEAL_KEY, array_seal
from infid_export.runtime.person import Person, mix, stack

TENSORS = ("identity_tokens", "identity_keys", "identity_values")


def random_person(seed: int, dtype: type = np.float32, tokens: int = TOKENS, model: str = MODEL) -> Person:
    random = np.random.default_rng(seed)
    tensors = [random.standard_normal((2, tokens, depth)).astype(dtype) for depth in (DEPTH_T, DEPTH_K, DEPTH_K)]
    return Person(*tensors, model=model, name=f"person {seed}")


def same(first: Person, second: Person) -> bool:
    pairs = [(getattr(first, name), getattr(second, name)) for name in TENSORS]
    return all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_a_saved_person_is_the_same(tmp_path: Path, dtype: type) -> None:
    person = random_person(0, dtype)
    path = tmp_path / "person.safetensors"
    for _ in range(2):  # the second time it replaces the first
        person.save(path)
    found = Person.load(str(path))
    assert same(found, person)
    assert (found.model, found.name) == (MODEL, "person 0")
    assert [item.name for item in tmp_path.iterdir()] == ["person.safetensors"]
    assert path.stat().st_mode & 0o077 == 0


def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "person.safetensors"
    random_person(0).save(path)
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(DiskFullError, match=r"The disk with .*person\.safetensors is full"):
        random_person(1).save(path)
    assert path.read_bytes() == before
    assert [item.name for item in tmp_path.iterdir()] == ["person.safetensors"]


def test_saving_where_there_is_no_folder_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot be written to .*existing folder"):
        random_person(0).save(tmp_path / "missing" / "person.safetensors")
    with pytest.raises(InputError, match="cannot be written to"):
        random_person(0).save(tmp_path)


def test_missing_and_foreign_files_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="There is no person file at"):
        Person.load(tmp_path / "missing.safetensors")
    with pytest.raises(InputError, match="There is no person file at"):
        Person.load(tmp_path)
    (tmp_path / "text").write_text("no person")
    with pytest.raises(InputError, match="not an intact person file"):
        Person.load(tmp_path / "text")
    save_file({"weights": np.zeros(3, np.float32)}, tmp_path / "other")
    with pytest.raises(InputError, match="not a person file: it has weights and no model id"):
        Person.load(tmp_path / "other")


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.99])
def test_a_cut_off_file_is_rejected(tmp_path: Path, share: float) -> None:
    path = tmp_path / "person.safetensors"
    random_person(0).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(InputError, match="not an intact person file"):
        Person.load(path)


def test_a_type_that_numpy_lacks_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "person.safetensors"
    random_person(0).save(path)
    content = path.read_bytes()
    size = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:size])
    tokens = header["identity_tokens"]
    wide = int(tokens["dtype"][1:]) // 8
    tokens.update(dtype="F8_E4M3", shape=[*tokens["shape"][:-1], tokens["shape"][-1] * wide])
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[size:])
    with pytest.raises(InputError, match="not an intact person file"):
        Person.load(path)


def changed(path: Path, **tensors: np.ndarray) -> Path:
    random_person(0).save(path)
    found, metadata = {**load_file(path), **tensors}, {"infid_model": MODEL}
    save_file(found, path, metadata={**metadata, SEAL_KEY: array_seal(metadata, found)})
    return path


def test_the_same_person_is_the_same_file(tmp_path: Path) -> None:
    for number in range(8):  # the library orders metadata randomly
        random_person(0).save(tmp_path / str(number))
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1


@pytest.mark.parametrize("sealed", [True, False], ids=["another seal", "no seal"])
def test_what_was_changed_after_it_was_written_is_rejected(tmp_path: Path, sealed: bool) -> None:
    path = tmp_path / "person.safetensors"
    random_person(0).save(path)
    with safe_open(path, framework="numpy") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if not sealed:
        del metadata[SEAL_KEY]
    save_file(tensors, path, metadata={**metadata, "infid_name": "somebody else"})
    why = "its content has changed" if sealed else "it has no seal"
    with pytest.raises(InputError, match=f"not an intact person file \\({why}"):
        Person.load(path)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (
            {"identity_keys": np.full((2, TOKENS, DEPTH_K), np.nan, np.float32)},
            "identity_keys contain non-finite",
        ),
        ({"identity_values": np.full((2, TOKENS, DEPTH_K), -np.inf, np.float32)}, "identity_values contain non-finite"),
        ({"identity_keys": np.zeros((2, TOKENS + 1, DEPTH_K), np.float32)}, r"needs tokens \[2, T, D\]"),
        ({"identity_values": np.zeros((2, TOKENS, DEPTH_K + 1), np.float32)}, r"needs tokens \[2, T, D\]"),
        ({"identity_tokens": np.zeros((TOKENS, DEPTH_T), np.float32)}, r"needs tokens \[2, T, D\]"),
        ({"identity_tokens": np.zeros((2, TOKENS, DEPTH_T), np.float16)}, "not float16, float32"),
        ({"identity_tokens": np.zeros((2, TOKENS, DEPTH_T), np.int32)}, "not float32, int32"),
        ({"more": np.zeros(1, np.float32)}, "not a person file: it has .*more"),
    ],
    ids=["nan", "inf", "tokens", "width", "rank", "mixed", "integers", "extra"],
)
def test_unfit_tensors_are_rejected(tmp_path: Path, tensors: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Person.load(changed(tmp_path / "person.safetensors", **tensors))


def attention(query: np.ndarray, keys: np.ndarray, values: np.ndarray) -> np.ndarray:
    weights = np.exp(query @ keys.T)
    return weights / weights.sum(-1, keepdims=True) @ values


@pytest.mark.parametrize(("count", "slots"), [(1, 1), (1, 3), (2, 4)])
def test_filling_slots_changes_neither_attention_nor_means(count: int, slots: int) -> None:
    people = stack([random_person(seed) for seed in range(count)])
    fitted = people.fit(slots, TOKENS)
    assert fitted.identity_keys.shape == (2, slots * TOKENS, DEPTH_K)
    query = np.random.default_rng(9).standard_normal((8, DEPTH_K))
    for row in range(2):
        one, many = (
            attention(query, value.identity_keys[row].astype(float), value.identity_values[row].astype(float))
            for value in (people, fitted)
        )
        np.testing.assert_allclose(one, many, rtol=1e-12)
    for name in TENSORS:
        means = [getattr(value, name).astype(float).mean(1) for value in (people, fitted)]
        np.testing.assert_allclose(*means, atol=1e-12)


@pytest.mark.parametrize(("count", "slots"), [(2, 1), (2, 3), (3, 4)])
def test_people_that_do_not_fill_the_slots_are_rejected(count: int, slots: int) -> None:
    with pytest.raises(InputError, match=rf"{count} people were stacked.*{slots} slot\(s\)"):
        stack([random_person(seed) for seed in range(count)]).fit(slots, TOKENS)


def test_tokens_of_another_method_are_rejected() -> None:
    with pytest.raises(InputError, match=f"has {TOKENS} identity tokens, but the engines take {TOKENS + 1} per person"):
        random_person(0).fit(2, TOKENS + 1)


def test_mix_is_the_weighted_average() -> None:
    people = [random_person(seed) for seed in range(3)]
    found = mix([(people[0], 1.0), (people[1], 2.0), (people[2], 1.0)], "mixed")
    assert found.name == "mixed"
    for name in TENSORS:
        a, b, c = (getattr(person, name).astype(float) for person in people)
        np.testing.assert_allclose(getattr(found, name), (a + 2 * b + c) / 4, atol=1e-6)
    assert same(mix([(people[0], 3.0)]), people[0])
    assert mix([(random_person(0, np.float16), 1.0)]).identity_keys.dtype == np.float16


def test_stack_puts_people_side_by_side() -> None:
    people = [random_person(seed) for seed in range(2)]
    found = stack(people, "both")
    assert found.name == "both"
    for name in TENSORS:
        assert np.array_equal(getattr(found, name)[:, :TOKENS], getattr(people[0], name))
        assert np.array_equal(getattr(found, name)[:, TOKENS:], getattr(people[1], name))


@pytest.mark.parametrize(
    "weights", [(1.0, -1.0), (0.0, 0.0), (1.0, -3.0), (float("nan"), 1.0), (float("inf"), 1.0)], ids=str
)
def test_weights_that_sum_to_nothing_are_rejected(weights: tuple[float, float]) -> None:
    with pytest.raises(InputError, match="finite and have a positive sum"):
        mix([(random_person(0), weights[0]), (random_person(1), weights[1])])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Person(None, None, None, MODEL), "identity_tokens must be an array, not None"),  # type: ignore[arg-type]
        (lambda: replace(random_person(0), model=None), "model must be a string, not None"),
        (lambda: replace(random_person(0), name=3), "name must be a string, not 3"),
        (lambda: Person.load(None), "The person file must be a path, not None"),  # type: ignore[arg-type]
        (lambda: Person.load(b"a"), "The person file must be a path"),  # type: ignore[arg-type]
        (lambda: random_person(0).save(None), "The person file must be a path"),  # type: ignore[arg-type]
        (lambda: mix([random_person(0)]), "pairs of a person and a weight"),  # type: ignore[list-item]
        (lambda: mix([("anna", 1)]), "must be a Person, not 'anna'"),  # type: ignore[list-item]
        (lambda: mix([(random_person(0), "1")]), r"not \['1'\]"),  # type: ignore[list-item]
        (lambda: mix([(random_person(0), True)]), r"not \[True\]"),
        (lambda: stack(["anna.safetensors"]), "must be a Person, not 'anna.safetensors'"),  # type: ignore[list-item]
    ],
)
def test_wrong_types_are_rejected(call: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()


def test_people_who_do_not_belong_together_are_rejected() -> None:
    other = replace(random_person(1), model="b" * 64)
    for combine in (lambda: mix([(random_person(0), 1), (other, 1)]), lambda: stack([random_person(0), other])):
        with pytest.raises(InputError, match="enrolled with different models"):
            combine()
    with pytest.raises(InputError, match="different numbers of tokens"):
        mix([(random_person(0), 1), (random_person(1, tokens=TOKENS + 1), 1)])
    for combine in (lambda: mix([]), lambda: stack([])):
        with pytest.raises(InputError, match="No person was given"):
            combine()
