from __future__ import annotations

import random
from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    from cpp_library import Probe

# In each of the last three, one of the first 20,000 values is on the edge of a layer of the ziggurat.
SEEDS = [0, 1, 7, 12345, 2**31, 2**32 - 1, 2**32, 2**32 + 1, 2**53, 2**63, 2**64 - 1, 913, 1495, 4583]


def bits(text: str) -> np.ndarray[tuple[int], np.dtype[np.uint32]]:
    return np.frombuffer(bytes.fromhex(text), ">u4").astype(np.uint32)


@pytest.mark.parametrize("seed", SEEDS)
def test_normal_values_are_those_of_numpy(cpp_probe: Probe, seed: int) -> None:
    count = 200_000  # about 50 of them are in the ziggurat's tail
    found = bits(cpp_probe("normal", seed, count).stdout)
    expected = np.random.default_rng(seed).standard_normal(count, np.float32)
    np.testing.assert_array_equal(found, expected.view(np.uint32))


def test_a_call_goes_on_where_the_last_one_stopped(cpp_probe: Probe) -> None:
    generator = np.random.default_rng(3)
    parts = [generator.standard_normal(count, np.float32) for count in (333, 667)]
    found = bits(cpp_probe("normal", 3, 1000, 333).stdout)
    np.testing.assert_array_equal(found, np.concatenate(parts).view(np.uint32))


def test_numbers_are_written_as_in_python(cpp_probe: Probe) -> None:
    generator = random.Random(0)
    values = [0.0, -0.0, 1.0, 0.1, 1e-5, 1e-4, 0.00085, 1e15, 1e16, 1.5e16, 123456789012345680.0, 5e-324, 1e300, 7.5]
    values += [generator.uniform(-1, 1) * 10.0 ** generator.randint(-30, 30) for _ in range(2000)]
    values += [float("inf"), float("-inf"), float("nan")]
    found = cpp_probe("numbers", input="".join(f"{value!r}\n" for value in values)).stdout.split("\n")[:-1]
    assert found == [str(value) for value in values]
