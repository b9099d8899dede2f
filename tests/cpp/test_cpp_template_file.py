"""Template files: read, and rejected with the same sentences, as in Python."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, astuple, replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from both import cpp_sentences, printed, python_sentences
from cpp_library import Probe
from mutations import damaged
from safetensors.numpy import save_file
from tiny_engines import FEATURE, records, write_folder

from infid_engines.manifest import Manifest, TensorSpec
from infid_engines.tensor_seal import SEAL_KEY, array_seal
from infid_export.runtime.person import Person
from infid_export.runtime.template import Template, TemplateSettings, check_template, template_layout, text_model_id

Array = np.ndarray[Any, Any]
SETTINGS = TemplateSettings("a knight, Ünïcode", None, 2**64 - 1, 64, 64, 3, 5.0, "ddim", "leading")


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("tiny") / "engines")


def template_for(folder: Path, settings: TemplateSettings = SETTINGS, **changes: Any) -> Template:
    random, manifest = np.random.default_rng(0), Manifest.load(folder)
    layout = template_layout(manifest, settings)
    tensors = {name: (50 * random.standard_normal(each.shape)).astype(each.dtype) for name, each in layout.items()}
    return replace(Template(tensors, settings, text_model_id(manifest)), **changes)


@pytest.fixture(scope="module")
def stored(engines: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("templates") / "knight.safetensors"
    template_for(engines).save(path)
    return path


def forged(path: Path, metadata: dict[str, str], tensors: dict[str, Array]) -> Path:
    save_file(tensors, path, metadata={**metadata, SEAL_KEY: array_seal(metadata, tensors)})
    return path


def metadata_of(template: Template, **changes: Any) -> dict[str, str]:
    return {"infid_model": template.model, "infid_template": json.dumps({**asdict(template.settings), **changes})}


def same_sentences(path: Any, cpp_probe: Probe) -> tuple[str, str]:
    expected = python_sentences(lambda: Template.load(path))
    assert expected is not None
    assert cpp_sentences(cpp_probe("template", path)) == expected
    return expected


def test_a_template_is_read_as_in_python(engines: Path, stored: Path, cpp_probe: Probe) -> None:
    template = Template.load(stored)
    check_template(template, Manifest.load(engines))
    expected = {
        "tensors": {name: [each.dtype, list(each.shape)] for name, each in template.layout.items()},
        "model": template.model,
        "settings": list(astuple(template.settings)),
    }
    assert printed(cpp_probe("template", stored, engines)) == expected
    assert printed(cpp_probe("template", stored, engines, "unchecked")) == expected


def test_missing_and_foreign_files_have_the_same_sentences(tmp_path: Path, engines: Path, cpp_probe: Probe) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "text").write_text("a template")
    ones = np.ones((2, 1, 1), np.float32)
    Person(ones, ones, ones, "m").save(tmp_path / "person")
    template = template_for(engines)
    few = {name: each for name, each in template.tensors.items() if name != "rows"}
    forged(tmp_path / "few", metadata_of(template), few)
    for name in ("missing", "empty", "text", "person", "few", "."):
        same_sentences(tmp_path / name, cpp_probe)
    assert same_sentences("", cpp_probe)[0] == "The template file must be a path, not ''."


def test_damaged_files_have_the_same_sentences(tmp_path: Path, stored: Path, cpp_probe: Probe) -> None:
    content = stored.read_bytes()
    cuts = [content[: len(content) * share // 7] for share in range(7)]
    bit = content[:-5] + bytes([content[-5] ^ 1]) + content[-4:]
    for index, case in enumerate([*cuts, bit, content.replace(b"a knight", b"a  night"), content + b"\0"]):
        path = tmp_path / str(index)  # a mapped file must not be cut
        path.write_bytes(case)
        same_sentences(path, cpp_probe)


def test_random_damage_is_never_accepted(tmp_path: Path, stored: Path, cpp_probe: Probe) -> None:
    random, content = Random(7), stored.read_bytes()
    for index in range(15):
        path = tmp_path / str(index)
        path.write_bytes(damaged(random, content))
        found = cpp_sentences(cpp_probe("template", path))
        assert found is not None
        assert found[0].startswith(f"{path} is not ")


WRONG_SETTINGS: list[dict[str, Any]] = [
    {"more": 1}, {"prompt": 3}, {"seed": 1.0}, {"negative_prompt": []}, {"steps": None}, {"guidance": "x"},
    {"spacing": False}, {"sampler": None}, {"height": "64"}, {"width": True},
]  # fmt: skip


def test_wrong_settings_have_the_same_sentences(tmp_path: Path, engines: Path, cpp_probe: Probe) -> None:
    template = template_for(engines)
    tensors = dict(template.tensors)
    for index, changes in enumerate(WRONG_SETTINGS):
        same_sentences(forged(tmp_path / str(index), metadata_of(template, **changes), tensors), cpp_probe)
    for text in ("", "[]", "{", "null", "3"):
        path = forged(tmp_path / "odd", {"infid_model": "m", "infid_template": text}, tensors)
        same_sentences(path, cpp_probe)
        path.unlink()
    without_model = {"infid_template": metadata_of(template)["infid_template"]}
    assert "('infid_model')" in same_sentences(forged(tmp_path / "anonymous", without_model, tensors), cpp_probe)[0]
    numbers = {**tensors, "rows": tensors["rows"].astype(np.int32)}
    assert "('I32')" in same_sentences(forged(tmp_path / "numbers", metadata_of(template), numbers), cpp_probe)[0]
    unsealed = tmp_path / "unsealed"
    save_file(tensors, unsealed, metadata=metadata_of(template))
    assert "content has changed" in same_sentences(unsealed, cpp_probe)[0]


def test_settings_out_of_range_are_rejected(tmp_path: Path, engines: Path, cpp_probe: Probe) -> None:
    template = template_for(engines)
    for index, (name, value) in enumerate((("seed", -1), ("height", 2**31), ("steps", -1), ("width", 10**30))):
        path = forged(tmp_path / str(index), metadata_of(template, **{name: value}), dict(template.tensors))
        found = cpp_sentences(cpp_probe("template", path))
        assert found is not None
        assert f"(infid_template.{name} is {value}, which is out of range)" in found[0]


def without_uncond(template: Template) -> Template:
    halved = {name: each[1:] for name, each in template.conditioning.items()}
    return replace(template, tensors={**template.tensors, **halved})


def of_size(height: int) -> Callable[[Template], Template]:
    return lambda template: replace(template, settings=replace(template.settings, height=height))


def with_tensor(name: str, value: Array | None) -> Callable[[Template], Template]:
    def change(template: Template) -> Template:
        tensors = {**template.tensors, name: value}
        return replace(template, tensors={name: each for name, each in tensors.items() if each is not None})

    return change


OTHERS: dict[str, Callable[[Template], Template]] = {
    "model": lambda template: replace(template, model="é" * 64),
    "empty model": lambda template: replace(template, model=""),
    "size": of_size(96),
    "odd size": of_size(65),
    "no size": of_size(0),
    "guidance": without_uncond,
    "steps": lambda template: replace(template, settings=replace(template.settings, steps=4)),
    "no features": with_tensor("text_features.block", None),
    "other features": with_tensor("text_features.block", np.zeros((3, 2, 64, 5), np.float32)),
    "half features": with_tensor("text_features.block", np.zeros((3, 2, 64, 4), np.float16)),
    "more features": with_tensor("text_features.more", np.zeros(1, np.float32)),
    "more tensors": with_tensor("more", np.zeros((), np.int8)),
    "scales": with_tensor("text_scales.block", np.zeros((3, 2, 1, 4), np.float32)),
    "rows": with_tensor("rows", np.zeros((3, 7), np.float32)),
}


@pytest.mark.parametrize("other", OTHERS)
def test_a_template_of_other_engines_has_the_same_sentence(
    tmp_path: Path, engines: Path, other: str, cpp_probe: Probe
) -> None:
    template, path = OTHERS[other](template_for(engines)), tmp_path / "t"
    template.save(path)
    expected = python_sentences(lambda: check_template(Template.load(path), Manifest.load(engines)))
    assert expected is not None
    assert cpp_sentences(cpp_probe("template", path, engines)) == expected


def test_engines_without_guidance_or_templates_have_the_same_sentence(tmp_path: Path, cpp_probe: Probe) -> None:
    plain = write_folder(tmp_path / "plain", guidance=False)
    template_for(plain, replace(SETTINGS, guidance=1.0)).save(tmp_path / "fits")
    printed(cpp_probe("template", tmp_path / "fits", plain))
    template = template_for(plain)
    twice = {name: np.concatenate([each, each]) for name, each in template.conditioning.items()}
    replace(template, tensors={**template.tensors, **twice}).save(tmp_path / "guided")
    values = records(plain)
    graphs = {name: each for name, each in values["graphs"].items() if name != "identity_step"}
    (tmp_path / "none").mkdir()
    Manifest(**{**values, "graphs": graphs}).write(tmp_path / "none")
    for path, folder in ((tmp_path / "guided", plain), (tmp_path / "fits", tmp_path / "none")):
        manifest = Manifest.load(folder)
        expected = python_sentences(lambda path=path, manifest=manifest: check_template(Template.load(path), manifest))  # type: ignore[misc]
        assert expected is not None
        assert cpp_sentences(cpp_probe("template", path, folder)) == expected


def test_ranges_and_quantized_features_are_those_of_python(tmp_path: Path, cpp_probe: Probe) -> None:
    folder = write_folder(tmp_path / "engines")
    values = records(folder)
    step, joint = values["graphs"]["identity_step"], values["graphs"]["denoise_step"]
    inputs = [replace(spec, dtype="int8", shape=(2, (32, 64, 128), 4)) if spec.name == FEATURE else spec
              for spec in step.inputs]  # fmt: skip
    inputs.append(TensorSpec("text_scales.block", "float32", (2, 1, 4)))
    latents = [replace(spec, shape=(*spec.shape[:2], [4, 8, 16], 8)) if spec.name == "identity_latents" else spec
               for spec in joint.inputs]  # fmt: skip
    graphs = {
        "identity_step": replace(step, inputs=tuple(inputs)),
        "denoise_step": replace(joint, inputs=tuple(latents)),
    }
    Manifest(**{**values, "graphs": {**values["graphs"], **graphs}}).write(folder)
    for height in (32, 64, 96, 128):
        template = template_for(folder, replace(SETTINGS, height=height))
        assert template.layout["text_features.block"] == ("int8", (3, 2, height, 4))
        assert template.layout["snr"] == ("float32", (3,))
        template.save(tmp_path / str(height))
        printed(cpp_probe("template", tmp_path / str(height), folder))
