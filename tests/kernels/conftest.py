from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import triton.language as tl
from triton.runtime import interpreter


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where the kernels run: the GPU, or Triton's interpreter (see tests/conftest.py)."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(scope="session", autouse=True)
def bf16_products_in_the_interpreter() -> Iterator[None]:
    """Multiply bf16 tiles by value.

    Numpy has no bf16, so Triton's interpreter (3.9) stores the bits in uint16, and multiplies those integers.
    Every bf16 is an fp32, so converting the operands first gives the exact products.
    """
    builder: Any = interpreter.InterpreterBuilder
    original = builder.create_dot

    def create_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        wide = [self.cast_impl(x, tl.float32) if x.dtype.scalar == tl.bfloat16 else x for x in (a, b)]
        return original(self, *wide, *rest)

    builder.create_dot = create_dot
    yield
    builder.create_dot = original
