"""What measurements have found in the queue."""

from __future__ import annotations

from test_queue import job, names, queue


def test_without_batches_a_text_stream_is_shared_by_rounds() -> None:
    """Engines that draw one image at a time gain from a template as well: it is made once for all that wait."""
    waiting = queue(batch=1)
    for name, prompt in (("a", "x"), ("b", "y"), ("c", "x")):
        waiting.put(job(name, prompt=prompt))
    found = [waiting.take() for _ in range(3)]
    assert [names(each) for each in found] == [["a0"], ["b0"], ["c0"]]
    assert [each.template for each in found] == [True, False, False]  # `c` finds it, once it is kept
