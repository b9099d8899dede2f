from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from infid_export.export.graphs.denoise_step import DENOISE_STEP
from infid_export.export.graphs.sizes import Sizes
from infid_export.export.reference import Reference
from infid_export.export.tolerances import tolerance
from infid_export.model.opening import open_source
from infid_export.model.processors import identity_blocks

Inputs = dict[str, np.ndarray]
BLOCKS = identity_blocks(open_source("demo").empty("unet"))


@pytest.fixture(scope="module")
def inputs() -> Inputs:
    source = open_source("demo")
    size = source.architecture.size
    return Reference(source, Sizes(source.architecture, source.config, BLOCKS, 1, size, size)).inputs(DENOISE_STEP)


@pytest.fixture(scope="module")
def step() -> Callable[[Inputs], np.ndarray]:
    source = open_source("demo")
    module = DENOISE_STEP.module({"unet": source.load("unet", torch.float32)}, source.config)

    def run(values: Inputs) -> np.ndarray:
        with torch.no_grad():
            return module(**{name: torch.from_numpy(array) for name, array in values.items()})[2].numpy()

    return run


@pytest.fixture(scope="module")
def expected(step: Callable[[Inputs], np.ndarray], inputs: Inputs) -> np.ndarray:
    return step(inputs)


@pytest.mark.parametrize("fault", ["identity_strength", "style_strength", *BLOCKS])
def test_a_fault_of_the_demo_step_is_beyond_the_limit_of_fp16(
    fault: str, step: Callable[[Inputs], np.ndarray], inputs: Inputs, expected: np.ndarray
) -> None:
    """The faults: a strength baked in as 1, and an identity block without effect."""
    spoiled = {name: array.copy() for name, array in inputs.items()}
    if fault in BLOCKS:
        first = sum(channels for path, channels in list(BLOCKS.items())[: list(BLOCKS).index(fault)])
        for name in ("identity_keys", "identity_values"):
            spoiled[name][..., first : first + BLOCKS[fault]] = 0
    else:
        assert not np.any(spoiled[fault] == 1)
        spoiled[fault][:] = 1
    error = np.sqrt(np.mean((step(spoiled) - expected) ** 2) / np.mean(expected**2))
    assert error > tolerance("fp16").rms
