from __future__ import annotations

from typing import Any

import pytest

from infid_export.bench.machine import where


@pytest.mark.parametrize(
    ("device", "expected"),
    [("cpu", "a processor"), ("cuda", "L4, H100"), ("cuda:1", "cuda:1 of L4, H100")],
)
def test_a_document_says_what_it_was_measured_on(device: str, expected: str) -> None:
    document: dict[str, Any] = {"machine": {"processor": "a processor", "gpus": ["L4", "H100"]}, "device": device}
    assert where(document) == expected
