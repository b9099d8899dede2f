"""Templates on the demo model's engines, in fp16."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_engines import write_folder

from infid_engines.errors import BusyError, CancelledError, DiskFullError, EngineFolderError, InfidError, InputError
from infid_engines.manifest import Manifest
from infid_engines.progress import SilentReporter
from infid_export.export.build_estimate import estimate, template_bytes
from infid_export.export.build_options import BuildOptions
from infid_export.runtime import job_maker
from infid_export.runtime.denoise import FEATURES
from infid_export.runtime.person import Person
from infid_export.runtime.pipeline import Pipeline
from infid_export.runtime.template import Template, check_template, new_template, template_layout

Array = np.ndarray[Any, Any]
STEPS = 3


def apart(found: Array, expected: Array) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.fixture(scope="module")
def template(pipe: Pipeline) -> Template:
    return pipe.template("a knight", negative_prompt="blurry", seed=3, steps=STEPS)


@pytest.fixture(scope="module")
def stored(template: Template, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("templates") / "knight.safetensors"
    template.save(path)
    return path


def test_an_image_from_a_template_is_the_joint_one(pipe: Pipeline, person: Person) -> None:
    """At the folder's own settings, to fp16's rounding; in fp32 see tests/export/test_ranges.py."""
    joint = pipe.generate("a knight", person, seed=3, output_type="latents")
    made = pipe.template("a knight", seed=3)
    assert apart(pipe.generate(made, person, output_type="latents"), joint) < 1e-3
    weaker = pipe.generate(made, person, style_strength=0.5, output_type="latents")
    assert apart(weaker, joint) > 1e-2  # the strengths are not the template's


def test_several_people_share_a_template(pipe: Pipeline, person: Person, template: Template) -> None:
    other = replace(person, **{name: -getattr(person, name) for name in ("identity_keys", "identity_values")})
    both = pipe.generate(template, [person, other], output_type="latents")
    for index, each in enumerate((person, other)):
        np.testing.assert_array_equal(both[index], pipe.generate(template, each, output_type="latents")[0])
    assert apart(both[1], both[0]) > 1e-3
    seeds = pipe.generate(template, [person, person], seed=[3, 4], output_type="latents")
    np.testing.assert_array_equal(seeds[0], both[0])  # 3 is the template's own
    assert apart(seeds[1], both[0]) > 1e-3


def test_a_dry_run_knows_the_size_of_a_template(template: Template, tmp_path: Path) -> None:
    options = BuildOptions(
        output=tmp_path / "none", precision="fp16", graphs=("identity_step",), backends=("onnxruntime",)
    )
    plan, _ = estimate(options)
    features = sum(each.nbytes for name, each in template.tensors.items() if name.startswith(FEATURES))
    assert template_bytes(plan) * STEPS == features > 0.9 * template.nbytes


def test_a_template_shows_its_own_image(pipe: Pipeline, template: Template) -> None:
    image = pipe.preview(template)
    assert isinstance(image, Image.Image)
    assert image.size == (template.settings.width, template.settings.height)


def test_a_stored_template_gives_the_same_image(
    pipe: Pipeline, person: Person, template: Template, stored: Path
) -> None:
    found = Template.load(stored)
    assert (found.settings, found.model, len(found)) == (template.settings, template.model, STEPS)
    assert all(isinstance(each, np.memmap) and not each.flags.writeable for each in found.tensors.values())
    images = [pipe.generate(each, person, output_type="latents") for each in (found, template)]
    np.testing.assert_array_equal(*images)
    again = stored.with_name("again.safetensors")
    found.save(again)
    assert again.read_bytes() == stored.read_bytes()


def test_the_size_of_a_template_is_known_before_it_is_made(pipe: Pipeline, template: Template, stored: Path) -> None:
    layout = template_layout(pipe.manifest, template.settings)
    assert sum(each.nbytes for each in layout.values()) == template.nbytes
    assert 0 < stored.stat().st_size - template.nbytes < 8192


DAMAGE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "one bit": (lambda content: content[:-5] + bytes([content[-5] ^ 1]) + content[-4:], "its content has changed"),
    "cut off": (lambda content: content[: len(content) // 2], "not an intact template file"),
    "empty": (lambda content: b"", "not an intact template file"),
    "text": (lambda content: b"a template", "not an intact template file"),
    "settings": (lambda content: content.replace(b"a knight", b"a  night"), "its content has changed"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_rejected(stored: Path, tmp_path: Path, damage: str) -> None:
    spoil, message = DAMAGE[damage]
    path = tmp_path / "t.safetensors"
    path.write_bytes(spoil(stored.read_bytes()))
    with pytest.raises(InputError, match=message) as caught:
        Template.load(path)
    assert "infid-export template make" in caught.value.fix


def test_other_files_are_no_templates(tmp_path: Path, person: Person) -> None:
    person.save(tmp_path / "p.safetensors")
    with pytest.raises(InputError, match="is not a template file"):
        Template.load(tmp_path / "p.safetensors")
    with pytest.raises(InputError, match="There is no template file"):
        Template.load(tmp_path / "none.safetensors")


def other_size(template: Template) -> Template:
    return replace(template, settings=replace(template.settings, height=160))


def without_uncond(template: Template) -> Template:
    halved = {name: each[1:] for name, each in template.conditioning.items()}
    return replace(template, tensors={**template.tensors, **halved})


OTHERS: dict[str, tuple[Callable[[Template], Any], str]] = {
    "model": (lambda template: replace(template, model="b" * 64), "was made with the model bbbbbbbbbbbb…"),
    "size": (other_size, "built for a height of 128, not 160"),
    "guidance": (without_uncond, "made without guidance, but these engines were built with"),
    "no template": (lambda template: "knight.safetensors", "must be a Template, not 'knight.safetensors'"),
}


@pytest.mark.parametrize("other", OTHERS)
def test_a_template_of_other_engines_is_one_sentence(pipe: Pipeline, template: Template, other: str) -> None:
    make, message = OTHERS[other]
    with pytest.raises(InputError, match=message) as caught:
        pipe.preview(make(template))
    assert caught.value.fix


@pytest.mark.parametrize(
    ("settings", "name"),
    [({"steps": 4}, "steps"), ({"sampler": "euler"}, "sampler"), ({"guidance": 5.0}, "guidance"),
     ({"negative_prompt": ""}, "negative_prompt"), ({"text_seed": 1}, "text_seed"), ({"height": 128}, "height")],
)  # fmt: skip
def test_what_a_template_decides_cannot_be_given(
    pipe: Pipeline, person: Person, template: Template, settings: dict[str, Any], name: str
) -> None:
    with pytest.raises(InputError, match=f"The template decides {name}"):
        pipe.generate(template, person, **settings)


def test_nobody_and_several_for_a_prompt_are_rejected(pipe: Pipeline, person: Person, template: Template) -> None:
    with pytest.raises(InputError, match="No person was given"):
        pipe.generate(template, [])
    with pytest.raises(InputError, match="2 people were given for 1 prompts"):
        pipe.generate("a knight", [person, person])


def test_a_template_is_cancelled_between_steps(pipe: Pipeline) -> None:
    cancel = threading.Event()

    class Reporter(SilentReporter):
        steps = 0

        def stage(self, name: str) -> Any:
            return self

        def __enter__(self) -> Reporter:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def update(self, fraction: float, text: str = "") -> None:
            self.steps += text.startswith("step")
            if self.steps == 2:
                cancel.set()

    reporter = Reporter()
    with pytest.raises(CancelledError):
        pipe.template("a knight", steps=STEPS, cancel=cancel, reporter=reporter)
    assert reporter.steps == 2


def test_a_folder_without_the_graphs_says_so(demo_folder: Path, template: Template) -> None:
    manifest = Manifest.load(demo_folder)
    graphs = {name: each for name, each in manifest.graphs.items() if name != "identity_step"}
    with pytest.raises((EngineFolderError, InfidError), match="no graph 'identity_step'") as caught:
        check_template(template, replace(manifest, graphs=graphs))
    assert caught.value.fix


def test_a_hand_made_folder_gives_the_joint_image(tiny_pipe: Pipeline, tiny_person: Person) -> None:
    joint = tiny_pipe.generate("a", tiny_person, seed=1, output_type="latents")
    template = tiny_pipe.template("a", seed=1)
    np.testing.assert_allclose(
        tiny_pipe.generate(template, tiny_person, output_type="latents"), joint, rtol=1e-5, atol=1e-6
    )


def test_a_text_stream_that_is_not_finite_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    with (
        Pipeline.load(write_folder(tmp_path / "engines", poison="text_step")) as pipe,
        pytest.raises(EngineFolderError, match=r"returned latents with \d+ non-finite values"),
    ):
        pipe.template("a", seed=1, steps=2, path=path)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["engines"]


def test_one_writer_per_file(tiny_pipe: Pipeline, tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    with new_template(tiny_pipe.manifest, tiny_pipe.template_settings("a", seed=1, steps=2), path):
        with pytest.raises(BusyError, match=r"t\.safetensors is being written by another process or thread"):
            tiny_pipe.template("b", seed=1, steps=2, path=path)
        assert not path.exists()
    assert sorted(each.name for each in tmp_path.iterdir()) == ["t.safetensors"]


UNWRITABLE: dict[str, tuple[str, str]] = {
    "a folder": (".", "it is a folder"),
    "no folder": ("none/t.safetensors", "its folder does not exist"),
    "a long name": ("n" * 300 + ".safetensors", "name too long"),
}


@pytest.mark.parametrize("case", UNWRITABLE)
def test_a_file_that_cannot_be_written_is_one_sentence(tiny_pipe: Pipeline, tmp_path: Path, case: str) -> None:
    name, message = UNWRITABLE[case]
    with pytest.raises(InputError, match=f"(?i){message}") as caught:
        tiny_pipe.template("a", seed=1, steps=1, path=tmp_path / name)
    assert caught.value.fix
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_found_before_the_first_step(
    tiny_pipe: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    monkeypatch.setattr(job_maker, "keep_features", lambda *_: pytest.fail("a step was taken"))
    with pytest.raises(DiskFullError, match=r"The disk with .*t\.safetensors is full"):
        tiny_pipe.template("a", seed=1, steps=1, path=tmp_path / "t.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_other_errors_are_not_blamed_on_the_file(
    tiny_pipe: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(job_maker, "denoise", broken)
    with pytest.raises(BrokenPipeError):
        tiny_pipe.template("a", seed=1, steps=1, path=tmp_path / "t.safetensors")
    assert list(tmp_path.iterdir()) == []
