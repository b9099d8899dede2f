"""The cache of templates, on the demo model's engines with one step."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infid_engines.atomic_files import locked
from infid_engines.errors import CancelledError, InputError
from infid_export.runtime.person import Person
from infid_export.runtime.pipeline import Pipeline
from infid_export.runtime.template import Template
from infid_export.runtime.template_cache import TemplateCache

Made = list[str]


@pytest.fixture
def made(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> Made:
    """The prompts of templates that were really made."""
    prompts: Made = []
    make = pipe.template

    def counted(prompt: str, **settings: Any) -> Template:
        prompts.append(prompt)
        return make(prompt, **settings)

    monkeypatch.setattr(pipe, "template", counted)
    return prompts


@pytest.fixture(scope="module")
def size(pipe: Pipeline) -> int:
    """Bytes of a template of one step."""
    return pipe.template("a", seed=0, steps=1).nbytes


@pytest.fixture(params=["memory", "folder"])
def cache(request: pytest.FixtureRequest, pipe: Pipeline, size: int, tmp_path: Path) -> TemplateCache:
    """Room for two templates."""
    folder, overhead = (None, 0) if request.param == "memory" else (tmp_path / "templates", 1 << 16)
    return TemplateCache(pipe, 2 * (size + overhead), folder)


def test_a_template_is_found_only_if_it_is_there_and_can_be_dropped(cache: TemplateCache, pipe: Pipeline) -> None:
    settings = pipe.template_settings("a", seed=0, steps=1)
    assert cache.fits(settings)
    assert cache.find(settings) is None
    made = cache.get("a", steps=1)
    assert cache.find(settings) is made
    taken = cache.nbytes
    cache.drop(settings)
    cache.drop(settings)
    assert cache.find(settings) is None
    assert cache.nbytes in (taken, 0)  # in memory it counts while it is in use, as a file it is gone
    assert len(made) == 1
    del made
    assert cache.nbytes == 0
    assert not TemplateCache(pipe, 1000).fits(settings)


def test_a_template_is_made_once(cache: TemplateCache, made: Made, size: int) -> None:
    first = cache.get("a", steps=1)
    assert cache.get("a", steps=1) is first
    assert (first.settings.seed, len(first)) == (0, 1)
    assert size <= cache.nbytes < size + (1 << 16)
    cache.get("a", steps=1, seed=1)
    cache.get("b", steps=1)
    assert made == ["a", "a", "b"]


def test_the_least_recently_used_goes_first(cache: TemplateCache, made: Made) -> None:
    for prompt in ("a", "b", "a", "c", "a", "b"):  # c takes the place of b, and b that of c
        cache.get(prompt, steps=1)
    assert made == ["a", "b", "c", "b"]
    cache.clear()
    assert cache.nbytes == 0
    cache.get("a", steps=1)
    assert made[-1] == "a"


@pytest.mark.parametrize("folder", [False, True])
def test_a_budget_that_is_too_small_is_rejected_with_one_that_would_do(
    pipe: Pipeline, made: Made, tmp_path: Path, folder: bool
) -> None:
    place = tmp_path if folder else None
    with pytest.raises(InputError, match=r"The template takes [\d,]+ bytes, but the budget is 1,000,000\.") as caught:
        TemplateCache(pipe, 1_000_000, place).get("a", steps=3)
    assert made == []
    fitting = 1 if folder else 2  # 458.8 kB each
    assert f"or fewer steps ({fitting} fit), or build with --quantize-templates" in caught.value.fix
    enough = int(caught.value.fix.split()[6].replace(",", ""))
    assert len(TemplateCache(pipe, 1_000_000, place).get("a", steps=fitting)) == fitting
    with pytest.raises(InputError, match="but the budget is"):
        TemplateCache(pipe, enough - 1, place).get("a", steps=3)
    TemplateCache(pipe, enough, place).get("a", steps=3)
    with pytest.raises(InputError) as caught:
        TemplateCache(pipe, 1000, place).get("a", steps=3)
    assert "steps (" not in caught.value.fix


def test_templates_in_use_count(pipe: Pipeline, size: int, made: Made) -> None:
    cache = TemplateCache(pipe, size)
    held = cache.get("a", steps=1)
    with pytest.raises(InputError, match=rf"Templates in use take {size:,} bytes"):
        cache.get("b", steps=1)
    assert held.settings.prompt == "a"
    del held
    assert cache.nbytes == 0  # the attempt dropped it from the cache
    cache.get("b", steps=1)
    assert made == ["a", "b"]


def test_a_dropped_file_stays_valid_for_whoever_uses_it(
    pipe: Pipeline, size: int, person: Person, tmp_path: Path
) -> None:
    cache = TemplateCache(pipe, size + (1 << 16), tmp_path)
    held = cache.get("a", steps=1)
    expected = pipe.generate(held, person, output_type="latents")
    cache.get("b", steps=1)
    assert len(list(tmp_path.iterdir())) == 1
    np.testing.assert_array_equal(pipe.generate(held, person, output_type="latents"), expected)


def test_a_folder_is_shared_and_mended(pipe: Pipeline, made: Made, size: int, tmp_path: Path) -> None:
    budget = 2 * (size + (1 << 16))
    first, second = (TemplateCache(pipe, budget, tmp_path) for _ in range(2))  # as in two processes
    tensors = first.get("a", steps=1).tensors
    for name, values in second.get("a", steps=1).tensors.items():
        assert isinstance(values, np.memmap)
        np.testing.assert_array_equal(values, tensors[name])
    assert made == ["a"]
    for prompt in ("b", "c"):
        second.get(prompt, steps=1)
    first.get("a", steps=1)  # the second one dropped it
    assert made == ["a", "b", "c", "a"]
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:-1] + b"!")
    TemplateCache(pipe, budget, tmp_path).get("a", steps=1)
    assert made == ["a", "b", "c", "a", "a"]
    assert first.nbytes <= budget


def test_threads_make_it_once_and_can_be_cancelled_while_they_wait(
    pipe: Pipeline, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    started, go_on, make = threading.Event(), threading.Event(), pipe.template
    calls = []

    def slow(prompt: str, **settings: Any) -> Template:
        calls.append(prompt)
        started.set()
        go_on.wait(30)
        return make(prompt, **settings)

    monkeypatch.setattr(pipe, "template", slow)
    cache, cancel = TemplateCache(pipe, size), threading.Event()
    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(cache.get, "a", steps=1) for _ in range(3)]
        started.wait(30)
        stopped = pool.submit(cache.get, "a", steps=1, cancel=cancel)
        cancel.set()
        with pytest.raises(CancelledError):
            stopped.result(30)
        go_on.set()
        assert len({id(each.result(30)) for each in waiting}) == 1
    assert calls == ["a"]


def test_a_cancelled_template_leaves_nothing(cache: TemplateCache, made: Made) -> None:
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(CancelledError):
        cache.get("a", steps=1, cancel=cancel)
    assert cache.nbytes == 0


def test_a_template_in_use_is_found_again(pipe: Pipeline, size: int, made: Made) -> None:
    cache = TemplateCache(pipe, 2 * size)
    held = cache.get("a", steps=1)
    for prompt in ("b", "c"):
        cache.get(prompt, steps=1)
    assert cache.get("a", steps=1) is held
    assert made == ["a", "b", "c"]
    cache.clear()
    assert cache.nbytes == size
    assert cache.get("a", steps=1) is held


def test_files_of_others_are_neither_counted_nor_removed(pipe: Pipeline, size: int, tmp_path: Path) -> None:
    others = [tmp_path / name for name in ("anna.safetensors", ".x.partial", f"cached-{'g' * 64}.safetensors")]
    for path in others:
        path.write_bytes(b"mine")
    left = tmp_path / f".cached-{'0' * 64}.safetensors.partial"  # by a killed process
    left.write_bytes(b"left")
    cache = TemplateCache(pipe, size + (1 << 16), tmp_path)
    for prompt in ("a", "b"):
        cache.get(prompt, steps=1)
    assert not left.exists()
    assert len(list(tmp_path.iterdir())) == len(others) + 1
    cache.clear()
    assert sorted(tmp_path.iterdir()) == sorted(others)
    assert cache.nbytes == 0


def test_dropped_files_are_not_kept_open(pipe: Pipeline, size: int, tmp_path: Path) -> None:
    first, second = (TemplateCache(pipe, size + (1 << 16), tmp_path) for _ in range(2))
    for number in range(4):
        (first, second)[number % 2].get("a", seed=number, steps=1)
    maps = Path("/proc/self/maps").read_text().splitlines()
    assert [line for line in maps if str(tmp_path) in line and "(deleted)" in line] == []


def test_a_busy_folder_is_waited_for_until_cancelled(pipe: Pipeline, size: int, tmp_path: Path) -> None:
    cache, cancel = TemplateCache(pipe, 2 * (size + (1 << 16)), tmp_path), threading.Event()
    cache.get("a", steps=1)
    with ThreadPoolExecutor(1) as pool, locked(tmp_path / ".lock"):  # as another process
        waiting = pool.submit(cache.get, "b", steps=1, cancel=cancel)
        cache.get("a", steps=1)  # a hit does not wait
        with pipe.turn():  # nor do the engines
            cancel.set()
        with pytest.raises(CancelledError):
            waiting.result(30)


def test_a_callback_may_ask_for_a_template(pipe: Pipeline, person: Person, size: int) -> None:
    """It holds the engines already; a thread that makes the same template waits for them, and not the other way."""
    cache, began, others = TemplateCache(pipe, size), threading.Event(), []

    def callback(index: int, timestep: float, latents: object) -> None:
        other = threading.Thread(target=lambda: (began.set(), cache.get("a", steps=1)), daemon=True)
        other.start()
        began.wait(30)
        cache.get("a", steps=1)
        others.append(other)

    pipe.generate("x", person, steps=1, seed=1, callback=callback, output_type="latents")
    others[0].join(30)
    assert not others[0].is_alive()


BAD: dict[str, tuple[Callable[[Pipeline], object], str]] = {
    "budget": (lambda pipe: TemplateCache(pipe, -1), "The budget must be at least 0, not -1"),
    "no number": (lambda pipe: TemplateCache(pipe, "8G"), "The budget must be a whole number, not '8G'"),  # type: ignore[arg-type]
    "cancel": (lambda pipe: TemplateCache(pipe, 1 << 30).get("a", cancel="x"), "cancel"),  # type: ignore[arg-type]
    "seed": (lambda pipe: TemplateCache(pipe, 1 << 30).get("a", seed=None), "must be a whole number"),  # type: ignore[arg-type]
    "a file": (lambda pipe: TemplateCache(pipe, 1 << 30, __file__), "The folder of cached templates cannot be used"),
    "sampler": (lambda pipe: TemplateCache(pipe, 1 << 30).get("a", sampler="unipc"), "unipc"),
    "steps": (lambda pipe: TemplateCache(pipe, 1 << 30).get("a", steps=0), "steps"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments_are_one_sentence(pipe: Pipeline, case: str) -> None:
    call, message = BAD[case]
    with pytest.raises(InputError, match=message) as caught:
        call(pipe)
    assert caught.value.fix
