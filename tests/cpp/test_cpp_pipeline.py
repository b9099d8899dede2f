"""The C++ library's images are those of `Pipeline`, bit for bit, with the same ONNX Runtime."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from both import cpp_sentences, python_sentences
from cpp_library import ONNXRUNTIME, Probe, program, tiny_person
from PIL import Image
from tiny_engines import SIDE, write_folder

from infid_engines.manifest import Manifest
from infid_export.runtime.person import Person
from infid_export.runtime.pipeline import Pipeline

PROMPTS = (
    ("a portrait in the rain", 7, {}),
    ("an oil painting of a person wearing a blue suit", 0, {"sampler": "euler_a", "steps": 6}),
    ("“naïve” café, 日本語, ＦＵＬＬ width, İstanbul 🙂", 123456789, {"steps": 4, "negative_prompt": "blurry"}),
    ("a flat poster of a person", 2**63, {"sampler": "dpmpp_2m", "spacing": "karras", "steps": 5, "guidance": 1.5}),
    ("word " * 90, 3, {"style_strength": 0.25, "identity_strength": 1.3, "steps": 3}),
)


@pytest.fixture(scope="module")
def person_files(pipe: Pipeline, person: Person, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The drawn person, and somebody whose tokens are in the opposite order."""
    folder = tmp_path_factory.mktemp("people")
    other = Person(
        np.flip(person.identity_tokens, 1).copy(), np.flip(person.identity_keys, 1).copy(),
        np.flip(person.identity_values, 1).copy(), person.model, "b",
    )  # fmt: skip
    files = [folder / "a.safetensors", folder / "b.safetensors"]
    for each, path in zip((person, other), files, strict=True):
        each.save(path)
    return files


@pytest.mark.filterwarnings("ignore:a prompt is longer")
@pytest.mark.parametrize("case", range(len(PROMPTS)))
def test_images_are_equal(
    cpp_release: Path, pipe: Pipeline, person_files: list[Path], tmp_path: Path, case: int
) -> None:
    prompt, seed, settings = PROMPTS[case]
    file = person_files[case % 2]
    flags = [word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", value)]
    words = "--prompt", prompt, "--seed", seed, "--person", file, *flags
    run = program(cpp_release, pipe.folder, "--onnxruntime", ONNXRUNTIME, "-o", tmp_path / "out.png", *words)
    assert run.returncode == 0, run.stderr
    assert run.stdout == f"{tmp_path / 'out.png'}\n"
    (expected,) = pipe.generate(prompt, Person.load(file), seed=seed, **settings)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out.png")), np.asarray(expected))
    if "word" in prompt:
        assert "note: a prompt is longer than 77 tokens; dropped: word word" in run.stderr


def test_images_from_a_template_are_equal(
    cpp_release: Path, pipe: Pipeline, person_files: list[Path], tmp_path: Path
) -> None:
    made = pipe.template("a portrait in the rain", seed=5, steps=4, sampler="euler_a", path=tmp_path / "t.safetensors")
    words = "--template", tmp_path / "t.safetensors", "--person", *person_files
    run = program(cpp_release, pipe.folder, "--onnxruntime", ONNXRUNTIME, "-o", tmp_path / "out.png", *words)
    assert run.returncode == 0, run.stderr
    expected = pipe.generate(made, [Person.load(file) for file in person_files])
    for number, image in enumerate(expected):
        assert np.array_equal(np.asarray(Image.open(tmp_path / f"out-{number}.png")), np.asarray(image))


@pytest.mark.parametrize(
    "request_of",
    [
        {"seeds": [4]},
        {"seeds": [1, 2, 3], "text_seeds": [9], "sampler": "euler_a", "steps": 3},
        {"seeds": [2**64 - 4], "negative_prompt": "blurry", "guidance": 1.5, "style_strength": 0.5},
    ],
)
def test_batches_are_equal(cpp_probe: Probe, tiny: Path, tmp_path: Path, request_of: dict[str, Any]) -> None:
    """Three prompts on engines with a batch of two: the last batch is padded."""
    people = [tiny_person(number) for number in range(3)]
    files = [tmp_path / f"{number}.safetensors" for number in range(3)]
    for each, path in zip(people, files, strict=True):
        each.save(path)
    prompts = ["a", "b c", "d"]
    asked = {"prompts": prompts, "people": list(map(str, files)), **request_of}
    run = cpp_probe("generate", tiny, ONNXRUNTIME, json.dumps(asked), tmp_path / "raw")
    assert run.returncode == 0, run.stderr
    pipe = Pipeline.load(tiny)
    settings = {name: value for name, value in request_of.items() if not name.endswith("seeds")}
    for name in ("seeds", "text_seeds"):
        if seeds := request_of.get(name):
            settings[name[:-1]] = seeds if len(seeds) > 1 else seeds[0]
    expected = b"".join(image.tobytes() for image in pipe.generate(prompts, people, **settings))
    assert (tmp_path / "raw").read_bytes() == expected
    assert len(expected) == 3 * 3 * SIDE * SIDE


def test_a_preset_with_exact_timesteps_is_followed(cpp_probe: Probe, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "engines", guidance=False)
    manifest = Manifest.load(folder)
    usual = {"preset": "dmd2-4", "sampler": "lcm", "spacing": None, "steps": 4, "guidance": 1.0}
    schedule = {**manifest.scheduler, "distilled_timesteps": [999, 749, 499, 249]}
    replace(manifest, defaults={**manifest.defaults, **usual}, scheduler=schedule).write(folder)
    tiny_person().save(tmp_path / "a.safetensors")
    asked = {"prompts": ["a"], "people": [str(tmp_path / "a.safetensors")], "seeds": [4]}
    for changes in ({}, {"sampler": "euler", "spacing": "trailing", "steps": 3}):
        run = cpp_probe("generate", folder, ONNXRUNTIME, json.dumps({**asked, **changes}), tmp_path / "raw")
        assert run.returncode == 0, run.stderr
        with Pipeline.load(folder) as pipe, warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            (image,) = pipe.generate("a", tiny_person(), seed=4, **changes)
        assert (tmp_path / "raw").read_bytes() == image.tobytes()
        assert run.stderr.splitlines() == [f"note: {each.message}" for each in caught]
        assert len(caught) == len(changes) // 3
    run = cpp_probe("generate", folder, ONNXRUNTIME, json.dumps({**asked, "steps": 20}), tmp_path / "raw")
    with Pipeline.load(folder) as pipe:
        expected = python_sentences(lambda: pipe.generate("a", tiny_person(), seed=4, steps=20))
    assert cpp_sentences(run) == expected


def test_threads_take_turns_and_are_cancelled(cpp_probe: Probe, tiny: Path, tmp_path: Path) -> None:
    tiny_person().save(tmp_path / "a.safetensors")
    run = cpp_probe("threads", tiny, ONNXRUNTIME, tmp_path / "a.safetensors")
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) == {"even": 1, "odd": 1, "same": False, "cancelled": [6, 6]}
