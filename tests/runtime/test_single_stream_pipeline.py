"""A folder of one stream: no text stream, so no style strength, text noise or templates."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_engines import BATCH, write_folder

from infid_engines.errors import EngineFolderError, InputError
from infid_engines.manifest import Manifest
from infid_export.runtime.person import Person
from infid_export.runtime.pipeline import Pipeline, seeded_noise
from infid_export.runtime.requirements import latent_graphs, step_name, streams_of
from infid_export.runtime.template import check_template, template_size

Array = np.ndarray[Any, Any]


@pytest.fixture(scope="module")
def single_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("single") / "engines", streams="one")


@pytest.fixture(scope="module")
def single(single_folder: Path) -> Iterator[Pipeline]:
    with Pipeline.load(single_folder, backend="onnxruntime") as pipe:
        yield pipe


def test_the_folder_says_what_a_step_is(single: Pipeline, tiny_pipe: Pipeline) -> None:
    assert (streams_of(single.manifest), step_name(single.manifest)) == ("one", "single_step")
    assert (streams_of(tiny_pipe.manifest), step_name(tiny_pipe.manifest)) == ("two", "denoise_step")
    assert latent_graphs(single.manifest) == ("text_encoder", "text_encoder_2", "single_step")


@pytest.mark.parametrize("sampler", ["ddim", "euler_a"])
def test_it_steps_one_stream(single: Pipeline, tiny_person: Person, sampler: str) -> None:
    """Each step is the engine's, on the state of the identity stream alone."""
    seen: list[dict[str, Array]] = []
    engine = single._engines["single_step"]
    loop = engine.loop

    def watched(constant: Any, carried: Any, state: Any, steps: Any) -> Any:
        assert carried == {f"identity_{part}": f"next_identity_{part}" for part in ("latents", "denoised")}
        seen.append({**constant, **state})
        return loop(constant, carried, state, steps)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "loop", watched)
        found = single.generate("a knight", tiny_person, seed=3, steps=4, sampler=sampler, output_type="latents")
    (first,) = seen
    assert not any(name.startswith("text_") or name == "style_strength" for name in first)
    assert found.shape == (1, 4, 8, 8)
    assert np.isfinite(found).all()


def test_the_person_the_prompt_and_the_strength_count(single: Pipeline, tiny_person: Person) -> None:
    def latents(prompt: str = "a knight", person: Person = tiny_person, **settings: Any) -> Array:
        found: Array = single.generate(prompt, person, seed=3, output_type="latents", **settings)
        return found

    usual = latents()
    np.testing.assert_array_equal(latents(), usual)
    np.testing.assert_array_equal(latents(style_strength=0.0), usual)
    other = replace(tiny_person, identity_values=-tiny_person.identity_values)
    changed = (latents("a pirate of the sea"), latents(person=other), latents(identity_strength=0.3), latents(steps=3))
    assert all(np.abs(each - usual).max() > 1e-3 for each in changed)


def test_batches_noise_callbacks_and_previews(single: Pipeline, tiny_person: Person) -> None:
    prompts, noise = ["a", "b", "c"], seeded_noise([3, 4, 5], (4, 8, 8))
    steps: list[tuple[int, tuple[int, ...]]] = []
    shown: list[tuple[int, ...]] = []
    together = single.generate(
        prompts, tiny_person, noise=noise, steps=2, output_type="latents",
        callback=lambda index, _, latents: steps.append((index, latents.shape)),
        previews=lambda index, latents: shown.append(latents.shape),
    )  # fmt: skip
    assert steps == [(0, (BATCH, 4, 8, 8)), (1, (BATCH, 4, 8, 8))] * 2
    assert shown == [(BATCH, 4, 8, 8)] * 4
    for row, prompt in enumerate(prompts):
        alone = single.generate(prompt, tiny_person, seed=3 + row, steps=2, output_type="latents")
        np.testing.assert_allclose(together[row], alone[0], rtol=1e-6, atol=1e-6)


def test_an_image_is_decoded(single: Pipeline, tiny_person: Person) -> None:
    (image,) = single.generate("a knight", tiny_person, seed=3)
    assert image.size == (64, 64)


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"style_strength": 0.5}, "The style strength has no effect: these engines have no text stream"),
        ({"text_seed": 1}, "text_seed has no effect: these engines have no text stream"),
        ({"text_noise": np.zeros((1, 4, 8, 8))}, "text_noise has no effect: these engines have no text stream"),
        ({"height": 128}, "The engines were built for a height of 64, not 128"),
    ],
)
def test_what_would_have_no_effect_is_rejected(
    single: Pipeline, tiny_person: Person, given: dict[str, Any], problem: str
) -> None:
    with pytest.raises(InputError, match=problem) as caught:
        single.generate("a knight", tiny_person, **given)
    assert "--streams two" in caught.value.fix or "height" in given


def test_templates_are_rejected(single: Pipeline, tiny_pipe: Pipeline, tiny_person: Person) -> None:
    template = tiny_pipe.template("a knight", seed=1, steps=2)
    one_stream = r"A template is a text stream, but these engines have one stream, the identity's\."
    settings = single.template_settings("a knight", seed=1)
    for use in (
        lambda: single.template("a knight"),
        lambda: single.generate(template, tiny_person),
        lambda: check_template(template, single.manifest),
        lambda: template_size(single.manifest, settings),
    ):
        with pytest.raises(EngineFolderError, match=one_stream) as caught:
            use()
        wanted = "--streams two --graph default --graph text_step --graph identity_step"
        assert wanted in caught.value.fix


def test_engines_without_guidance_take_half_the_rows(tmp_path: Path, tiny_person: Person) -> None:
    folder = write_folder(tmp_path / "engines", streams="one", guidance=False)
    with Pipeline.load(folder, backend="onnxruntime") as pipe:
        assert pipe.generate("a knight", tiny_person, seed=1, output_type="latents").shape == (1, 4, 8, 8)
        with pytest.raises(InputError, match="built without guidance"):
            pipe.generate("a knight", tiny_person, guidance=3.0)


def test_latents_of_a_wrong_rank_are_rejected(single_folder: Path, tmp_path: Path) -> None:
    manifest = Manifest.load(single_folder)
    step = manifest.graphs["single_step"]
    inputs = tuple(replace(spec, shape=(1,)) if spec.name == "identity_latents" else spec for spec in step.inputs)
    replace(manifest, graphs={**manifest.graphs, "single_step": replace(step, inputs=inputs)}).write(tmp_path)
    with pytest.raises(EngineFolderError, match="single_step has no four-dimensional input identity_latents"):
        Pipeline.load(tmp_path)
