from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from infid_engines.errors import InputError
from infid_export.cli import main
from infid_export.export.build_options import BuildOptions
from infid_export.export.parity_case import parity_face
from infid_export.export.plan import make_plan
from infid_export.export.preset_plan import with_preset
from infid_export.export.stored_options import read_options, stored_options
from infid_export.model.opening import open_source
from infid_export.model.reference_pipeline import InfiniteIDPipeline
from infid_export.runtime.person import Person
from infid_export.runtime.pipeline import Pipeline
from infid_export.sampling.presets import PRESETS
from infid_export.sampling.samplers import sampler_table


@pytest.fixture(scope="module")
def folder(demo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the demo folder, which the builds of this module change."""
    return shutil.copytree(demo_folder, tmp_path_factory.mktemp("preset") / "engines")


def built(folder: Path, preset: str, capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    """Run the command, and return its JSON; the whole image is compared with the reference's."""
    words = ["build", "--fp16", "--backend", "onnxruntime", "--preset", preset, "-o", str(folder), "--json", "--quiet"]
    assert main.run(words) == 0
    report: dict[str, object] = json.loads(capsys.readouterr().out)
    return report


def test_a_preset_is_what_build_generate_and_parity_use(
    folder: Path, tmp_path: Path, person: Person, capsys: pytest.CaptureFixture[str]
) -> None:
    report = built(folder, "lightning-4", capsys)
    assert report["parity"]["image"]["steps"] == 4  # type: ignore[index]
    assert report["parity"]["passed"] is True  # type: ignore[index]
    assert (
        "preset lightning-4, for SDXL-Lightning: steps 4; sampler euler with trailing spacing, instead of the model's "
        "own; guidance 1; steps without unconditional rows, as with --no-guidance"
    ) in report["notes"]  # type: ignore[operator]
    person.save(tmp_path / "person.safetensors")
    asked = ["generate", "a portrait", "--person", str(tmp_path / "person.safetensors"), "--engines", str(folder)]
    seen: list[int] = []
    with Pipeline.load(folder) as pipe:
        usual = pipe.manifest.defaults
        assert (usual["preset"], usual["steps"], usual["guidance"]) == ("lightning-4", 4, 1.0)
        assert (usual["sampler"], usual["spacing"]) == ("euler", "trailing")
        step = {spec.name: spec.shape for spec in pipe.manifest.graph("denoise_step").inputs}
        assert "guidance" not in step
        assert step["prompt_embeds"][0] == 1
        pipe.generate("a portrait", person, seed=1, callback=lambda index, *_: seen.append(index))
    assert seen == [0, 1, 2, 3]
    assert main.run([*asked, "-o", str(tmp_path / "a.png")]) == 0
    assert "is for 4" not in capsys.readouterr().err
    assert main.run([*asked, "-o", str(tmp_path / "b.png"), "--steps", "2"]) == 0
    assert "The number of steps is 2, but the preset lightning-4 is for 4" in capsys.readouterr().err
    assert main.run([*asked, "-o", str(tmp_path / "c.png"), "--guidance", "5"]) == 1
    assert "built without guidance" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["dmd2-4", "lightning-1"])
def test_exact_timesteps_and_the_prediction_reach_the_engines(
    folder: Path, person: Person, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    report = built(folder, name, capsys)
    assert report["parity"]["passed"] is True  # type: ignore[index]
    preset = PRESETS[name]
    with Pipeline.load(folder) as pipe:
        schedule = pipe.manifest.scheduler
        assert schedule["prediction_type"] == (preset.prediction or "epsilon")
        assert tuple(schedule.get("distilled_timesteps", ())) == preset.timesteps
        if preset.timesteps:
            assert [row[0] for row in schedule["table"]] == list(preset.timesteps)
            with pytest.raises(InputError, match="must be 4, not 20: the model was distilled at t = 999, 749, 499"):
                pipe.generate("a portrait", person, steps=20)
            with pytest.warns(UserWarning, match=f"the preset {name} is for 4"):
                pipe.generate("a portrait", person, steps=2, sampler="ddim")


@pytest.mark.parametrize("name", ["dmd2-4", "lightning-2", "turbo-4"])
def test_the_reference_samples_at_the_timesteps_of_the_preset(name: str) -> None:
    source = with_preset(open_source("demo"), name)
    usual = source.architecture.sampling
    pipe = InfiniteIDPipeline.from_source(source)
    pipe.set_progress_bar_config(disable=True)
    seen: list[float] = []

    def record(_: object, __: int, timestep: torch.Tensor, values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        seen.append(float(timestep))
        return values

    face = parity_face(source.architecture.image_encoder["image_size"], source.config.face_width)
    steps = {"num_inference_steps": usual.steps, "guidance_scale": usual.guidance, "callback_on_step_end": record}
    pipe("a portrait", pipe.encode_identity(face), height=64, width=64, output_type="latent", **steps)
    own = sampler_table(source.scheduler, usual.steps, usual.sampler, usual.spacing)
    assert seen == own.timesteps.tolist()


@pytest.mark.parametrize("name", PRESETS)
def test_guidance_of_a_preset_decides_the_rows(name: str, tmp_path: Path) -> None:
    plan = make_plan(BuildOptions(output=tmp_path, backends=("onnxruntime",), preset=name))
    assert plan.options.guidance == (PRESETS[name].guidance != 1)
    assert plan.options.guidance == name.endswith("-cfg")
    assert plan.source.architecture.sampling.guidance == PRESETS[name].guidance
    assert read_options(stored_options(plan.options)) == plan.options


def test_a_model_that_was_trained_on_small_images_makes_them(tmp_path: Path) -> None:
    options = BuildOptions(output=tmp_path, model="random-sdxl", backends=("onnxruntime",), preset="turbo-1")
    assert (make_plan(options).height, make_plan(options).width) == (512, 512)
    plan = make_plan(replace(options, height=768))
    assert (plan.height, plan.width) == (768, 512)
    assert make_plan(replace(options, preset="lightning-4")).height == 1024
    assert make_plan(replace(options, model="demo")).height == open_source("demo").architecture.size < 512


def test_the_models_strengths_stay_and_the_model_itself_is_unchanged() -> None:
    source = open_source("demo")
    before = source.scheduler, source.architecture, source.notes
    found = with_preset(source, "dmd2-1")
    assert found.architecture.sampling.style_strength == source.architecture.sampling.style_strength
    assert found.fingerprint("unet") == source.fingerprint("unet")
    assert (source.scheduler, source.architecture, source.notes) == before


def test_a_preset_that_cannot_sample_the_model_is_rejected_before_the_build() -> None:
    source = open_source("demo")
    source.scheduler = {**source.scheduler, "prediction_type": "sample"}
    with pytest.raises(InputError, match="euler_a does not support a model that predicts the data"):
        with_preset(source, "turbo-4")


@pytest.mark.parametrize(
    ("own", "said"), [("epsilon", "sample;"), ("v_prediction", "sample, instead of v_prediction;")]
)
def test_a_preset_says_that_it_replaces_what_the_model_predicts(own: str, said: str) -> None:
    source = open_source("demo")
    source.scheduler = {**source.scheduler, "prediction_type": own}
    found = with_preset(source, "lightning-1")
    assert found.scheduler["prediction_type"] == "sample"
    assert f"prediction_type {said}" in found.notes[-1]


def test_options_that_contradict_a_preset_are_one_sentence() -> None:
    with pytest.raises(InputError, match="no preset 'lightning-3'") as unknown:
        BuildOptions(preset="lightning-3")
    assert all(name in unknown.value.fix for name in PRESETS)
    with pytest.raises(InputError, match="hyper-8-cfg has a guidance of 5") as caught:
        BuildOptions(preset="hyper-8-cfg", guidance=False)
    assert "--no-guidance" in caught.value.fix
    for given in ({"prediction": "v"}, {"zero_snr": True}):
        with pytest.raises(InputError, match="lightning-1 is for a model that predicts the data"):
            BuildOptions(preset="lightning-1", **given)


def test_options_of_a_folder_from_before_presets_are_read() -> None:
    stored = stored_options(BuildOptions())
    del stored["preset"]
    assert read_options(stored) == BuildOptions(output=Path("infid-engines").absolute())
