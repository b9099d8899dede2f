"""What the suite tells of the kernel that it timed."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from suite_parts import MIXED

import gpu_items
from gpu_items import resources
from infid_kernels.sass import MachineCode
from infid_kernels.tuning import Configuration


@pytest.mark.parametrize(("architecture", "at_once"), [("sm_90", 3), ("sm_89", None)])
def test_tiles_at_once_are_told_of_hopper_alone(
    monkeypatch: pytest.MonkeyPatch, architecture: str, at_once: int | None
) -> None:
    compiled = SimpleNamespace(asm={"cubin": b""}, metadata=SimpleNamespace(shared=74752))
    asked = []
    monkeypatch.setattr(gpu_items, "architecture_of", lambda device: architecture)
    monkeypatch.setattr(gpu_items, "compile_code", lambda *given: asked.append(given) or compiled)
    monkeypatch.setattr(gpu_items, "read_machine_code", lambda cubin: MachineCode(147, 0, {}))
    form = Configuration(64, 128, 4, 2, descriptors=True)
    used = resources(MIXED, form, True, "bfloat16", torch.device("cuda"))
    assert asked == [("mixed_attention", architecture, 64, form, "bfloat16", True)]
    assert (used["registers"], used["shared_bytes"], used.get("tiles_at_once")) == (147, 74752, at_once)
