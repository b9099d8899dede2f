"""`generate_async` and `enroll_async`: the event loop goes on, and a cancelled task leaves nothing running."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infid_engines.errors import InputError
from infid_export.runtime.async_calls import CallThread
from infid_export.runtime.person import Person
from infid_export.runtime.pipeline import Pipeline

PROMPT = "a cat"


class Gate:
    """A callback that stops a generation after a step until it is opened.

    Args:
        at: the step.
    """

    def __init__(self, at: int = 0) -> None:
        self.steps: list[int] = []
        self.reached, self._open, self._at = threading.Event(), threading.Event(), at

    def __call__(self, index: int, timestep: float, latents: Any) -> None:
        self.steps.append(index)
        if index == self._at:
            self.reached.set()
            assert self._open.wait(60), "the gate was never opened"

    def open(self) -> None:
        self._open.set()

    async def wait(self) -> None:
        """Wait until the generation is there; only an event loop that goes on gets to the end of this."""
        while not self.reached.is_set():
            await asyncio.sleep(0.001)


def photo() -> np.ndarray:
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[32:36, 32:36] = 255
    return pixels


def run(main: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """Run a coroutine on a loop of its own, whose complaints fail the test."""
    complaints: list[Any] = []

    async def watched() -> Any:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        return await asyncio.wait_for(main(), 120)

    found = asyncio.run(watched())
    assert complaints == []
    return found


def test_it_returns_what_generate_returns(tiny_pipe: Pipeline, tiny_person: Person) -> None:
    settings: dict[str, Any] = {"seed": 3, "steps": 2, "sampler": "euler", "output_type": "np"}
    expected = tiny_pipe.generate([PROMPT, "a dog"], tiny_person, **settings)
    found = run(lambda: tiny_pipe.generate_async([PROMPT, "a dog"], tiny_person, **settings))
    np.testing.assert_array_equal(found, expected)


def test_people_are_enrolled_the_same(tiny_pipe: Pipeline) -> None:
    expected = tiny_pipe.enroll(photo(), name="Eileen")
    found = run(lambda: tiny_pipe.enroll_async(photo(), name="Eileen"))
    assert found.name == "Eileen"
    np.testing.assert_array_equal(found.identity_tokens, expected.identity_tokens)


def test_the_loop_goes_on_meanwhile(tiny_pipe: Pipeline, tiny_person: Person) -> None:
    gate = Gate()

    async def main() -> None:
        task = asyncio.create_task(tiny_pipe.generate_async(PROMPT, tiny_person, seed=1, callback=gate))
        await gate.wait()
        for _ in range(20):
            await asyncio.sleep(0)
        assert not task.done()
        gate.open()
        assert len(await task) == 1

    run(main)


def test_calls_run_one_at_a_time_in_their_order(tiny_pipe: Pipeline, tiny_person: Person) -> None:
    seen: list[tuple[int, int, int]] = []

    def note(number: int) -> Callable[..., None]:
        return lambda index, *_: seen.append((number, index, threading.get_ident()))

    async def main() -> None:
        calls = (tiny_pipe.generate_async(PROMPT, tiny_person, steps=3, callback=note(each)) for each in range(3))
        await asyncio.gather(*calls)

    run(main)
    assert [each[:2] for each in seen] == [(number, step) for number in range(3) for step in range(3)]
    assert len({thread for *_, thread in seen} - {threading.get_ident()}) == 1


@pytest.mark.parametrize("how", ["task.cancel", "twice", "wait_for"])
def test_a_cancelled_task_stops_within_a_step_and_ends_after_it(
    tiny_pipe: Pipeline, tiny_person: Person, how: str
) -> None:
    gate = Gate(at=1)
    tiny_pipe.generate(PROMPT, tiny_person, steps=1)  # loads the engines, so that the time limit finds a step

    async def main() -> None:
        call = tiny_pipe.generate_async(PROMPT, tiny_person, seed=1, steps=5, callback=gate)
        task = asyncio.create_task(asyncio.wait_for(call, 0.5) if how == "wait_for" else call)
        await gate.wait()
        if how == "wait_for":
            await asyncio.sleep(0.6)
        for _ in range({"task.cancel": 1, "twice": 2, "wait_for": 0}[how]):
            task.cancel()
            await asyncio.sleep(0.01)
        assert not task.done(), "the task ended while its generation ran"
        gate.open()
        with pytest.raises(asyncio.TimeoutError if how == "wait_for" else asyncio.CancelledError):
            await task
        assert gate.steps == [0, 1]
        assert len(await tiny_pipe.generate_async(PROMPT, tiny_person, seed=1, steps=1)) == 1

    run(main)


def test_a_call_that_waits_is_cancelled_at_once(tiny_pipe: Pipeline, tiny_person: Person) -> None:
    gate, never = Gate(), Gate()

    async def main() -> None:
        first = asyncio.create_task(tiny_pipe.generate_async(PROMPT, tiny_person, seed=1, callback=gate))
        await gate.wait()
        waiting = [
            asyncio.create_task(tiny_pipe.generate_async(PROMPT, tiny_person, seed=1, callback=never)),
            asyncio.create_task(tiny_pipe.enroll_async(photo())),
        ]
        await asyncio.sleep(0.01)
        for task in waiting:
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert not first.done()
        gate.open()
        await first

    run(main)
    assert never.steps == []


def test_a_call_that_waits_for_another_thread_is_cancelled_too(tiny_pipe: Pipeline, tiny_person: Person) -> None:
    gate, never = Gate(), Gate()
    other = threading.Thread(target=tiny_pipe.generate, args=(PROMPT, tiny_person), kwargs={"callback": gate})

    async def main() -> None:
        other.start()
        await gate.wait()
        task = asyncio.create_task(tiny_pipe.generate_async(PROMPT, tiny_person, seed=1, callback=never))
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert other.is_alive()
        gate.open()

    run(main)
    other.join()
    assert never.steps == []


def test_the_end_of_the_loop_stops_what_runs(tiny_pipe: Pipeline, tiny_person: Person) -> None:
    gate, tasks = Gate(), []

    async def main() -> None:
        tasks.append(asyncio.create_task(tiny_pipe.generate_async(PROMPT, tiny_person, seed=1, callback=gate)))
        await gate.wait()
        threading.Timer(0.05, gate.open).start()

    run(main)
    assert tasks[0].cancelled()
    assert gate.steps == [0]


@pytest.mark.parametrize("when", ["at once", "in a step"])
def test_errors_pass_through(tiny_pipe: Pipeline, tiny_person: Person, when: str) -> None:
    def fails(*_: Any) -> None:
        raise ZeroDivisionError("the callback's own")

    settings = {"steps": 0} if when == "at once" else {"callback": fails}
    with pytest.raises(InputError if when == "at once" else ZeroDivisionError):
        run(lambda: tiny_pipe.generate_async(PROMPT, tiny_person, seed=1, **settings))
    with pytest.raises(InputError, match="A photo must be a path"):
        run(lambda: tiny_pipe.enroll_async(3))  # type: ignore[arg-type]


def test_the_event_that_cancels_is_not_an_argument(tiny_pipe: Pipeline, tiny_person: Person) -> None:
    with pytest.raises(TypeError, match="cancel"):
        run(lambda: tiny_pipe.generate_async(PROMPT, tiny_person, cancel=threading.Event()))


def test_an_error_after_the_cancellation_is_not_reported_as_lost(tiny_pipe: Pipeline, tiny_person: Person) -> None:
    gate = Gate()

    def fails(*arguments: Any) -> None:
        gate(*arguments)
        raise ZeroDivisionError

    async def main() -> None:
        task = asyncio.create_task(tiny_pipe.generate_async(PROMPT, tiny_person, seed=1, callback=fails))
        await gate.wait()
        task.cancel()
        await asyncio.sleep(0.01)
        gate.open()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(main)


def test_a_closed_pipeline_has_no_thread_and_starts_another(tiny_folder: Path, tiny_person: Person) -> None:
    def threads() -> int:
        return sum(thread.name.startswith("infid-export") for thread in threading.enumerate())

    before = threads()
    with Pipeline.load(tiny_folder) as pipe:
        assert threads() == before
        found = []
        for _ in range(2):
            found.append(run(lambda: pipe.generate_async(PROMPT, tiny_person, seed=1, steps=1, output_type="np")))
            assert threads() == before + 1
            pipe.close()
            assert threads() == before
        np.testing.assert_array_equal(*found)


def test_closing_waits_for_the_calls() -> None:
    calls, ended = CallThread(), []

    async def main() -> None:
        tasks = [asyncio.create_task(calls.run(lambda _: (time.sleep(0.05), ended.append(1)))) for _ in range(2)]
        await asyncio.sleep(0.01)
        calls.close()
        assert ended == [1, 1]
        await asyncio.gather(*tasks)

    run(main)


def test_context_variables_are_those_of_the_task() -> None:
    calls, request = CallThread(), ContextVar("request", default="none")

    async def main() -> None:
        request.set("7")
        assert await calls.run(lambda _: request.get()) == "7"

    run(main)
    calls.close()
