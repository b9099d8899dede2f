"""Folders of one stream: the same images and sentences in C++ and Python."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from both import Sentences, cpp_sentences, printed, python_sentences
from cpp_library import ONNXRUNTIME, Probe, tiny_person
from tiny_engines import SIDE, write_folder

from infid_engines.documents import sealed
from infid_engines.manifest import Manifest
from infid_export.runtime.pipeline import Pipeline
from infid_export.runtime.requirements import require_usable
from infid_export.runtime.template import Template

Request = dict[str, Any]
NO_TEXT = "these engines have no text stream"


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("single") / "engines", streams="one")


def cpp_run(cpp_probe: Probe, folder: Path, place: Path, request_of: Request, count: int) -> Any:
    """Generate images of as many people with the C++ library; the images are in `place / raw`."""
    files = [place / f"{number}.safetensors" for number in range(count)]
    for number, path in enumerate(files):
        tiny_person(number).save(path)
    asked = {"people": list(map(str, files)), **request_of}
    return cpp_probe("generate", folder, ONNXRUNTIME, json.dumps(asked), place / "raw")


@pytest.mark.parametrize(
    "request_of",
    [
        {"seeds": [4]},
        {"seeds": [1, 2, 3], "sampler": "euler_a", "steps": 3, "identity_strength": 0.4},
        {"seeds": [9], "style_strength": 0.0, "guidance": 1.5},
    ],
)
def test_images_are_equal(cpp_probe: Probe, single: Path, tmp_path: Path, request_of: Request) -> None:
    """Three prompts on engines with a batch of two: the last batch is padded."""
    prompts = ["a", "b c", "d"]
    run = cpp_run(cpp_probe, single, tmp_path, {"prompts": prompts, **request_of}, 3)
    assert run.returncode == 0, run.stderr
    settings = {name: value for name, value in request_of.items() if name != "seeds"}
    seeds = request_of["seeds"]
    with Pipeline.load(single) as pipe:
        people = [tiny_person(number) for number in range(3)]
        images = pipe.generate(prompts, people, seed=seeds if len(seeds) > 1 else seeds[0], **settings)
    expected = b"".join(image.tobytes() for image in images)
    assert (tmp_path / "raw").read_bytes() == expected
    assert len(expected) == 3 * 3 * SIDE * SIDE


@pytest.mark.parametrize(
    ("cpp", "python", "problem"),
    [
        ({"style_strength": 0.5}, {"style_strength": 0.5}, f"The style strength has no effect: {NO_TEXT}"),
        ({"text_seeds": [1]}, {"text_seed": 1}, f"text_seed has no effect: {NO_TEXT}"),
        ({"height": 128}, {"height": 128}, "The engines were built for a height of 64, not 128"),
    ],
)
def test_what_would_have_no_effect_has_the_same_sentences(
    cpp_probe: Probe, single: Path, tmp_path: Path, cpp: Request, python: Request, problem: str
) -> None:
    found = cpp_sentences(cpp_run(cpp_probe, single, tmp_path, {"prompts": ["a"], "seeds": [1], **cpp}, 1))
    with Pipeline.load(single) as pipe:
        assert found == python_sentences(lambda: pipe.generate("a", tiny_person(0), seed=1, **python))
    assert found is not None
    assert found[0].startswith(problem)


def test_templates_have_the_same_sentences(cpp_probe: Probe, single: Path, tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    with Pipeline.load(tiny) as joint:
        joint.template("a", seed=1, steps=2, path=path)
    found: Sentences | None = cpp_sentences(cpp_run(cpp_probe, single, tmp_path, {"template": str(path)}, 1))
    with Pipeline.load(single) as pipe:
        assert found == python_sentences(lambda: pipe.generate(Template.load(path), tiny_person(0)))
    assert found is not None
    assert "one stream" in found[0]


def test_the_manifest_is_read_and_checked_alike(cpp_probe: Probe, single: Path, tmp_path: Path) -> None:
    assert printed(cpp_probe("manifest", single))["defaults"][2] == 0.0
    text = (single / "manifest.json").read_text()
    document = json.loads(text)
    latents = next(each for each in document["graphs"]["single_step"]["inputs"] if each["name"] == "identity_latents")
    latents["shape"] = [1]
    (tmp_path / "manifest.json").write_text(json.dumps(sealed(document)))
    expected = python_sentences(lambda: require_usable(Manifest.load(tmp_path)))
    assert expected is not None
    assert "graphs.single_step has no four-dimensional input identity_latents" in expected[0]
    assert cpp_sentences(cpp_probe("manifest", tmp_path)) == expected
