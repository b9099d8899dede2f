from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks import package_choices
from benchmarks.package_choices import CHOICES, Choice, compiled


def shifted(module: nn.Module, arguments: Any, choice: Choice, path: Path) -> Callable[[], list[torch.Tensor]]:
    """A compiler whose package is the module, a tenth too large if its weights are frozen."""
    path.write_bytes(bytes(2_000_000 if choice.frozen else 1000))
    return lambda: [module(**arguments) * (1.1 if choice.frozen else 1.0)]


def test_the_document_has_each_choice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = nn.Linear(4, 4).eval()
    monkeypatch.setattr(package_choices, "compiled", shifted)
    monkeypatch.setattr(package_choices, "case", lambda graph, model: (module, {"input": torch.ones(2, 4)}))
    monkeypatch.setattr(package_choices, "_PRODUCT", (8, 16))
    monkeypatch.setattr(package_choices, "RESULTS", tmp_path)
    assert package_choices.main(["--rounds", "2", "--machine", "words"]) == 0
    found = json.loads((tmp_path / "package-choices.json").read_text())
    for graph in ("vae_decoder of demo", "text_step of random-medium"):
        rows = found["graphs"][graph]
        assert list(rows) == ["PyTorch", *CHOICES]
        assert rows["as built"]["package_bytes"] == 1000
        assert rows["as built"]["relative_rms"] == 0
        assert rows["frozen"]["relative_rms"] == pytest.approx(0.1, rel=1e-5)
        assert all(row["median_ms"] >= 0 for row in rows.values())
    printed = capsys.readouterr().out
    assert "| frozen | " in printed
    assert "2.0 MB" in printed
    assert "(8 × 16). Medians of 2 rounds on words." in printed


@pytest.mark.slow
@pytest.mark.parametrize("name", CHOICES)
def test_a_choice_computes_the_same(name: str, tmp_path: Path) -> None:
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.SiLU(), nn.Conv2d(8, 4, 1)).eval()
    arguments = {"input": torch.randn(1, 3, 16, 16)}
    with torch.no_grad():
        call = compiled(module, arguments, CHOICES[name], tmp_path / "x.pt2")
        torch.testing.assert_close(call()[0], module(**arguments), rtol=1e-5, atol=1e-5)


def test_the_cases_are_graphs_of_the_product() -> None:
    module, arguments = package_choices.case("vae_decoder", "demo")
    with torch.no_grad():
        image = module(**arguments)
    assert image.shape == (1, 3, 128, 128)
