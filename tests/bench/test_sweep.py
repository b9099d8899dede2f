"""Images with fewer steps, and of folders that differ in one property."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from infid_engines.errors import InputError
from infid_export.bench import sweep
from infid_export.bench.sweep import Sweep
from infid_export.bench.timing import Times


def pipeline(name: str, **facts: Any) -> Any:
    usual = {"model": {"name": "m"}, "precision": "fp16", "height": 64, "width": 64, "batch": 2, "people": 1}
    manifest = SimpleNamespace(**{**usual, "graphs": ("denoise_step",), "scheduler": {}, **facts})
    return SimpleNamespace(folder=Path(name), manifest=manifest)


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "has_guidance", lambda manifest: getattr(manifest, "guidance", True))
    monkeypatch.setattr(sweep, "prompt_call", lambda pipe, steps, person: f"{pipe.folder} {steps}")
    monkeypatch.setattr(sweep, "image_calls", lambda pipe, steps: {"joint": pipe.folder, "template": pipe.folder})


def times(**medians: float) -> dict[str, Times]:
    return {name.replace("_", " "): Times(each, each, each, 1) for name, each in medians.items()}


def test_every_property_has_its_points() -> None:
    others = [
        pipeline("two", people=2),
        pipeline("large", height=128),
        pipeline("one", batch=1),
        pipeline("four", batch=4),
    ]
    found = Sweep(pipeline("main"), 10, object(), others)  # type: ignore[arg-type]
    assert list(found.calls) == [
        "joint, 2 steps", "joint, 5 steps", "two, joint", "two, template", "large, joint", "large, template",
        "one, joint", "one, template", "four, joint", "four, template",
    ]  # fmt: skip
    assert found.calls["joint, 5 steps"] == "main 5"
    medians = {
        "joint": 40.0, "template": 20.0, "joint, 2 steps": 10.0, "joint, 5 steps": 22.0, "two, joint": 50.0,
        "two, template": 30.0, "large, joint": 160.0, "large, template": 80.0, "one, joint": 25.0,
        "one, template": 12.0, "four, joint": 60.0, "four, template": 32.0,
    }  # fmt: skip
    assert found.scaling({name: Times(each, each, each, 1) for name, each in medians.items()}) == {
        "steps": {"joint": [[2, 5.0], [5, 11.0], [10, 20.0]]},
        "people": {"joint": [[1, 20.0], [2, 25.0]], "template": [[1, 10.0], [2, 15.0]]},
        "pixels": {"joint": [[4096, 20.0], [8192, 80.0]], "template": [[4096, 10.0], [8192, 40.0]]},
        "batch": {
            "joint": [[1, 25.0], [2, 20.0], [4, 15.0]], "template": [[1, 12.0], [2, 10.0], [4, 8.0]],
        },
    }  # fmt: skip


@pytest.mark.parametrize(
    ("steps", "fewer"), [(1, []), (2, ["joint, 1 steps"]), (5, ["joint, 1 steps", "joint, 2 steps"])]
)
def test_few_steps_have_few_points(steps: int, fewer: list[str]) -> None:
    assert list(Sweep(pipeline("main"), steps, object()).calls) == fewer  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "facts",
    [
        {},
        {"batch": 4, "people": 2},
        {"batch": 4, "precision": "fp32"},
        {"batch": 4, "model": {"name": "n"}},
        {"batch": 4, "guidance": False},
        {"batch": 4, "graphs": ("single_step",)},
    ],
)
def test_another_folder_must_differ_in_one_property(facts: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="other must differ from main in exactly one of batch, size and people"):
        Sweep(pipeline("main"), 10, object(), [pipeline("other", **facts)])  # type: ignore[arg-type]


def test_a_folder_without_templates_has_joint_images_only() -> None:
    found = Sweep(pipeline("main"), 1, object(), [pipeline("one", batch=1)])  # type: ignore[arg-type]
    assert found.scaling(times(joint=4.0) | {"one, joint": Times(3.0, 3.0, 3.0, 1)}) == {
        "steps": {"joint": [[1, 2.0]]}, "batch": {"joint": [[1, 3.0], [2, 2.0]]},
    }  # fmt: skip
