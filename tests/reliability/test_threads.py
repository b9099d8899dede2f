from __future__ import annotations

import gc
import json
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import numpy as np
import pytest
from fuzz_folders import person, small_folder

from infid_engines.errors import CancelledError
from infid_export.runtime.pipeline import Pipeline

Record = Callable[[str, object], None]
THREADS, STEPS = 8, 10
CANCELLED_SHARE = 0.2
PROMPTS = tuple(f"a photo of a person, {number}" for number in range(7))
# Of resident memory per generation, over hundreds of them; a leaked array of latents would be 16 KB.
MOST_BYTES_EACH = 4096


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_folder(tmp_path_factory.mktemp("threads"))


def resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def generate(pipe: Pipeline, number: int, cancel: threading.Event | None = None) -> np.ndarray:
    return pipe.generate(
        PROMPTS[number % len(PROMPTS)], person(), seed=number % 11, steps=STEPS, cancel=cancel, output_type="np"
    )


def cancelled_or_alone(pipe: Pipeline, number: int, alone: dict[tuple[int, int], bytes]) -> str:
    """Generate, sometimes with a cancellation at a random moment; finished images must equal those of one thread."""
    random = Random(number)
    cancel = threading.Event()
    if random.random() < CANCELLED_SHARE:
        timer = threading.Timer(random.random() * 0.02, cancel.set)
        timer.start()
    try:
        found = generate(pipe, number, cancel)
    except CancelledError:
        return "cancelled"
    same = found.tobytes() == alone[number % len(PROMPTS), number % 11]
    return "same" if same else "different"


def slope(memory: Sequence[int]) -> float:
    """Return the growth per entry in bytes by least squares, without the first fifth, while pools fill."""
    settled = np.array(memory[len(memory) // 5 :], np.float64)
    return float(np.polyfit(np.arange(len(settled)), settled, 1)[0])


def run(engines: Path, count: int, shared: bool) -> dict[str, object]:
    """Generate in eight threads, on one shared pipeline or one per thread."""
    pipes = [Pipeline.load(engines, backend="onnxruntime") for _ in range(1 if shared else THREADS)]
    alone = {
        (prompt, seed): generate(pipes[0], number).tobytes()
        for number in range(77)
        for prompt, seed in [(number % len(PROMPTS), number % 11)]
    }
    memory: list[int] = []
    results: list[str] = []

    def work(thread: int) -> None:
        for number in range(thread, count, THREADS):
            results.append(cancelled_or_alone(pipes[thread % len(pipes)], number, alone))
            memory.append(resident())

    gc.collect()
    started = time.monotonic()
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(work, range(THREADS)))
    for pipe in pipes:
        pipe.close()
    return {
        "pipelines": len(pipes), "threads": THREADS, "generations": len(results), "same": results.count("same"),
        "cancelled": results.count("cancelled"), "different": results.count("different"),
        "bytes_per_generation": slope(memory), "seconds": time.monotonic() - started,
    }  # fmt: skip


@pytest.mark.parametrize("shared", [True, False], ids=["one-pipeline", "one-each"])
def test_eight_threads_make_what_one_makes(engines: Path, shared: bool) -> None:
    found = run(engines, 80, shared)
    assert (found["different"], found["generations"]) == (0, 80)
    assert found["same"]


@pytest.mark.reliability
@pytest.mark.parametrize("shared", [True, False], ids=["one-pipeline", "one-each"])
def test_thousands_of_generations_in_eight_threads(engines: Path, shared: bool, record_property: Record) -> None:
    found = run(engines, 4000, shared)
    record_property("figures", json.dumps(found))
    assert (found["different"], found["generations"]) == (0, 4000)
    assert found["same"] and found["cancelled"]
    assert found["bytes_per_generation"] < MOST_BYTES_EACH
