"""Who is drawn next, and with whom."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from typing import Any

import pytest

from infid_export.runtime.template import TemplateSettings
from infid_export.serve.drawing.jobs import Call, ImageJob
from infid_export.serve.drawing.queue import JobQueue, Round
from infid_export.serve.http.problems import Problem

SETTINGS = TemplateSettings("a", None, 0, 64, 64, 5, 5.0, "ddim", "leading")
STOPPED = Problem(503, "The server is stopping.")


def job(name: str, prompt: str = "a", n: int = 1, seed: int = 0, **changes: Any) -> ImageJob:
    fields = {"style_strength": 1.0, "identity_strength": 1.0, **changes}
    settings = fields.pop("settings", SETTINGS)
    texts = [replace(settings, prompt=prompt, seed=seed + i) for i in range(n)]
    return ImageJob(name, None, range(seed, seed + n), texts, **fields)


def queue(batch: int = 2, size: int = 8, kept: bool = False, shareable: bool = True) -> JobQueue:
    return JobQueue(size, batch, lambda _: kept, lambda _: shareable)


def names(found: Any) -> list[str]:
    return [f"{task.job.id}{task.index}" for task in found.tasks]


def test_the_first_comes_first() -> None:
    waiting = queue(batch=1)
    for name in "abc":
        waiting.put(job(name, prompt=name))
    assert [names(waiting.take()) for _ in range(3)] == [["a0"], ["b0"], ["c0"]]
    assert len(waiting) == 0


def test_a_batch_is_filled_with_images_that_differ_in_prompt_seed_and_person_only() -> None:
    waiting = queue(batch=3)
    waiting.put(job("a", prompt="x", seed=1))
    waiting.put(job("b", prompt="y", style_strength=0.5))
    waiting.put(job("c", prompt="z", settings=replace(SETTINGS, steps=4)))
    waiting.put(job("d", prompt="w", seed=5))
    found = waiting.take()
    assert isinstance(found, Round)
    assert names(found) == ["a0", "d0"]
    assert not found.template
    assert names(waiting.take()) == ["b0"]


def test_two_of_one_text_stream_share_it() -> None:
    waiting = queue(batch=4)
    for name, prompt in (("a", "x"), ("b", "y"), ("c", "x"), ("d", "x")):
        waiting.put(job(name, prompt=prompt))
    found = waiting.take()
    assert names(found) == ["a0", "c0", "d0"]
    assert found.template
    alone = waiting.take()
    assert (names(alone), alone.template) == (["b0"], False)


@pytest.mark.parametrize("change", ["seed", "style_strength", "identity_strength"])
def test_what_differs_does_not_share(change: str) -> None:
    waiting = queue(batch=4, shareable=True)
    waiting.put(job("a"))
    waiting.put(job("b", **{change: 2}))
    found = waiting.take()
    assert not found.template
    assert names(found) == (["a0", "b0"] if change == "seed" else ["a0"])


@pytest.mark.parametrize(
    ("batch", "same", "others", "kept", "template"),
    [
        (1, 1, 0, False, False), (1, 2, 0, False, True), (1, 1, 3, True, True), (1, 2, 3, False, True),
        (4, 2, 0, False, True), (4, 2, 2, False, False), (4, 2, 2, True, False), (4, 3, 1, True, True),
        (4, 8, 0, False, True), (4, 1, 3, True, False), (2, 1, 1, True, False), (2, 2, 4, True, True),
    ],
)  # fmt: skip
def test_a_text_stream_is_shared_where_that_is_faster(
    batch: int, same: int, others: int, kept: bool, template: bool
) -> None:
    """Rows per image: a joint round costs 4.4 per place of the batch, one from a template 2.4, a text stream 2."""
    waiting = queue(batch=batch, size=16, kept=kept)
    for number in range(same):
        waiting.put(job(f"same{number}-"))
    for number in range(others):
        waiting.put(job(f"other{number}-", prompt="another", seed=number))
    found = waiting.take()
    assert found.template is template
    assert len(found.tasks) == min(batch, same if template else same + others)


def test_those_who_ask_at_the_same_time_are_drawn_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infid_export.serve.drawing.queue._GATHER", 10.0)
    waiting = queue(batch=4)
    taken: list[Any] = []
    thread = threading.Thread(target=lambda: taken.append(waiting.take()))
    thread.start()
    for name in "abcd":
        waiting.put(job(name, prompt=name))
        time.sleep(0.002)
    thread.join(10)
    assert names(taken[0]) == ["a0", "b0", "c0", "d0"]


def test_nobody_waits_for_others_who_do_not_come(monkeypatch: pytest.MonkeyPatch) -> None:
    waiting = queue(batch=4)
    waiting.put(job("a"))
    assert names(waiting.take()) == ["a0"]
    monkeypatch.setattr("infid_export.serve.drawing.queue._GATHER", 60.0)
    alone, full = queue(batch=1), queue(batch=2)
    alone.put(job("a"))
    full.put(job("a", n=2))
    started = time.monotonic()
    assert (names(alone.take()), names(full.take())) == (["a0"], ["a0", "a1"])
    assert time.monotonic() - started < 30


def test_a_template_that_is_at_hand_is_used_for_one_image_too() -> None:
    waiting = queue(kept=True)
    waiting.put(job("a"))
    assert waiting.take().template


def test_a_template_that_was_asked_for_is_made_for_one_image() -> None:
    waiting = queue()
    waiting.put(job("a", from_template=True))
    assert waiting.take().template


def test_a_template_that_does_not_fit_is_not_made() -> None:
    waiting = queue(shareable=False)
    waiting.put(job("a"))
    waiting.put(job("b"))
    found = waiting.take()
    assert (names(found), found.template) == (["a0", "b0"], False)


def test_nobody_waits_for_more_rounds_than_there_are_jobs_before() -> None:
    """A customer with many images, and a popular template, do not keep the others waiting."""
    waiting = queue(batch=2, size=64)
    waiting.put(job("large", prompt="many", n=10))
    for number in range(6):
        waiting.put(job(f"popular{number}-", prompt="popular"))
    waiting.put(job("lonely", prompt="rare", settings=replace(SETTINGS, guidance=3.0)))
    for number in range(6):
        waiting.put(job(f"later{number}-", prompt="popular"))
    rounds = [names(waiting.take()) for _ in range(8)]
    assert rounds.index(["lonely0"]) <= 7
    assert rounds[0] == ["large0", "large1"]
    large = [index for index, tasks in enumerate(rounds) if tasks[0].startswith("large")]
    assert len(large) == 1  # its next images are drawn after everybody who waited


def test_images_left_go_to_the_end_and_all_are_drawn() -> None:
    waiting = queue(batch=2)
    waiting.put(job("a", n=5, prompt="x"))
    waiting.put(job("b", prompt="y", settings=replace(SETTINGS, steps=4)))
    rounds = [names(waiting.take()) for _ in range(4)]
    assert rounds == [["a0", "a1"], ["b0"], ["a2", "a3"], ["a4"]]


def test_cancelled_jobs_are_not_drawn() -> None:
    waiting = queue(batch=1)
    first, second = job("a"), job("b", prompt="y")
    waiting.put(first)
    waiting.put(second)
    first.cancel.set()
    assert names(waiting.take()) == ["b0"]


def test_urgent_calls_go_first_and_others_wait_their_turn() -> None:
    waiting = queue(batch=1)
    waiting.put(job("a"))
    slow, urgent = Call(lambda _: None, urgent=False), Call(lambda _: None)
    waiting.put(slow)
    waiting.put(job("b"))
    waiting.put(urgent)
    assert waiting.take() is urgent
    assert names(waiting.take()) == ["a0"]
    assert waiting.take() is slow
    assert names(waiting.take()) == ["b0"]


def test_a_full_queue_says_when_to_try_again() -> None:
    waiting = queue(size=2)
    waiting.took(11.0)  # the mean goes from 1 to 3 seconds
    for _ in range(2):
        waiting.put(job("a"))
    with pytest.raises(Problem, match="The queue is full: 2 requests wait") as caught:
        waiting.put(job("b"))
    assert (caught.value.status, caught.value.headers) == (429, {"Retry-After": "6"})
    waiting.put(Call(lambda _: None))  # has a lane of its own


def test_take_waits_for_a_job_and_ends_when_closed() -> None:
    waiting = queue(batch=1)
    taken: list[Any] = []
    thread = threading.Thread(target=lambda: taken.extend([waiting.take(), waiting.take(), waiting.take()]))
    thread.start()
    waiting.put(job("a"))
    waiting.put(job("b", prompt="y"))
    waiting.close(STOPPED)
    thread.join(10)
    assert [names(found) if found else None for found in taken] == [["a0"], ["b0"], None]
    with pytest.raises(Problem, match="stopping"):
        waiting.put(job("c"))


def test_stopping_ends_everybody() -> None:
    waiting = queue()
    image, call = job("a"), Call(lambda _: None)
    waiting.put(image)
    waiting.put(call)
    waiting.stop(STOPPED)
    assert (image.problem, image.over, len(waiting)) == (STOPPED, True, 0)
    assert call.future.exception() is STOPPED
