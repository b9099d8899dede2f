from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_engines import BATCH, DEPTH_T, LATENT, MODEL, PROJECT_K, SIDE, TOKENS, VEC_1, VEC_2, WHOLE, write_folder

from infid_engines.errors import CancelledError, EngineFolderError, InputError
from infid_engines.manifest import Manifest
from infid_engines.progress import Stage
from infid_export.runtime.denoise import Noise, denoise
from infid_export.runtime.engine_set import EngineSet
from infid_export.runtime.person import Person, stack
from infid_export.runtime.pipeline import Pipeline, seeded_noise
from infid_export.runtime.tokenizer import PromptTokenizer
from infid_export.sampling.noise_schedule import SDXL_SCHEDULER
from infid_export.sampling.samplers import sampler_table

Array = np.ndarray


class Recorder:
    """A reporter that records its calls."""

    def __init__(self) -> None:
        self.planned: dict[str, float] = {}
        self.entered: list[str] = []
        self.notes: list[str] = []
        self.fractions: dict[str, list[float]] = {}

    def plan(self, stages: dict[str, float]) -> None:
        self.planned = dict(stages)

    @contextmanager
    def stage(self, name: str) -> Iterator[Stage]:
        self.entered.append(name)
        fractions = self.fractions.setdefault(name, [])

        class Recorded:
            def update(self, fraction: float, detail: str = "") -> None:
                fractions.append(fraction)

        yield Recorded()

    def note(self, text: str) -> None:
        self.notes.append(text)


def mirror(
    folder: Path,
    prompts: list[str],
    person: Person,
    noise: Array,
    text_noise: Array | None = None,
    *,
    negative: str = "ugly",
    steps: int = 5,
    guidance: float = 5.0,
    style: float = 1.0,
    identity: float = 1.0,
    sampler: str = "ddim",
    spacing: str | None = None,
    seed: int = 0,
) -> Array:
    """What the tiny engines compute, image by image, in float64; returns the identity latents.

    A stochastic sampler's noise is the second and later of the generators of seeds that count up from `seed`.
    """
    table = sampler_table(SDXL_SCHEDULER, steps, sampler, spacing)
    ids = PromptTokenizer(folder)
    results = []
    for row, prompt in enumerate(prompts):
        first, second = (part.astype(np.float64) / 49407 for part in ids.encode([negative, prompt]))
        one, two = first[..., None] * VEC_1, second[..., None] * VEC_2
        pooled = two.mean(1).mean(1)
        keys, values = (part.astype(np.float64).mean((1, 2)) for part in (person.identity_keys, person.identity_values))
        faces = style * keys + identity * values
        x = noise[row].astype(np.float64)
        text_x = (noise if text_noise is None else text_noise)[row].astype(np.float64)
        x, text_x, d, text_d = x * table.initial_scale, text_x * table.initial_scale, 0 * x, 0 * x
        generator = np.random.default_rng(seed + row)
        generator.standard_normal(x.shape, dtype=np.float32)
        for timestep, c_in, c_x, c_e, c_d, c_n, k_x, k_e in table.rows.astype(np.float64):
            fresh = generator.standard_normal(x.shape, dtype=np.float32)
            time = (np.mean([SIDE, SIDE, 0, 0, SIDE, SIDE]) + timestep) / 1000
            text = np.concatenate([one, two], -1).mean((1, 2)) + pooled + time
            eps_t = text[0] + guidance * (text[1] - text[0])
            eps_i = eps_t + faces[0] + guidance * (faces[1] - faces[0])
            e, text_e = c_in * (0.5 * x + 0.1 * text_x) + eps_i, c_in * 0.5 * text_x + eps_t
            x, d = c_x * x + c_e * e + c_d * d + c_n * fresh, k_x * x + k_e * e
            text_x, text_d = (
                c_x * text_x + c_e * text_e + c_d * text_d + c_n * fresh,
                k_x * text_x + k_e * text_e,
            )
        results.append(x)
    return np.stack(results)


def noise_of(count: int, seed: int = 0) -> Array:
    return seeded_noise(range(seed, seed + count), (4, LATENT, LATENT))


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_latents_are_those_of_the_mirror_for_any_number_of_prompts(
    tiny_pipe: Pipeline, tiny_folder: Path, tiny_person: Person, count: int
) -> None:
    prompts = [f"picture number {index} of a cat" for index in range(count)]
    noise = noise_of(count)
    found = tiny_pipe.generate(prompts, tiny_person, noise=noise, output_type="latents")
    assert found.shape == (count, 4, LATENT, LATENT)
    np.testing.assert_allclose(found, mirror(tiny_folder, prompts, tiny_person, noise), atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize(
    ("sampler", "spacing"),
    [
        ("euler", None),
        ("euler", "karras"),
        ("dpmpp_2m", "trailing"),
        ("euler_a", "linspace"),
        ("lcm", None),
        ("tcd", None),
    ],
)
def test_every_sampler_runs_on_the_same_engines(
    tiny_pipe: Pipeline, tiny_folder: Path, tiny_person: Person, sampler: str, spacing: str | None
) -> None:
    settings: dict[str, Any] = {"sampler": sampler, "spacing": spacing, "steps": 4, "seed": 3}
    prompts = ["a cat", "a dog", "a bird"]  # two batches, the second one filled up
    found = tiny_pipe.generate(prompts, tiny_person, output_type="latents", **settings)
    expected = mirror(tiny_folder, prompts, tiny_person, noise_of(3, 3), **settings)
    np.testing.assert_allclose(found, expected, atol=2e-4 * np.abs(expected).max())


def test_engines_without_guidance_give_the_prediction_of_the_prompt_alone(
    tiny_folder: Path, tiny_person: Person, tmp_path: Path
) -> None:
    with Pipeline.load(write_folder(tmp_path / "engines", guidance=False)) as pipe:
        noise = noise_of(3)
        prompts = ["a cat", "a dog", "a bird"]
        for guidance in (None, 1.0):
            found = pipe.generate(prompts, tiny_person, noise=noise, guidance=guidance, output_type="latents")
            expected = mirror(tiny_folder, prompts, tiny_person, noise, guidance=1.0)
            np.testing.assert_allclose(found, expected, atol=2e-4, rtol=2e-4)
        with pytest.raises(InputError, match="built without guidance") as caught:
            pipe.generate("a cat", tiny_person, guidance=5.0)
    assert "--no-guidance" in caught.value.fix


def test_a_number_of_steps_that_a_preset_is_not_for_is_said(
    tiny_folder: Path, tiny_person: Person, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "engines")
    manifest = Manifest.load(folder)
    replace(manifest, defaults={**manifest.defaults, "preset": "lightning-4", "steps": 4}).write(folder)
    note = "The number of steps is 3, but the preset lightning-4 is for 4: the images may be worse."
    with Pipeline.load(folder) as pipe:
        for steps in (None, 4):
            pipe.generate("a cat", tiny_person, steps=steps, seed=0)
        assert not recwarn.list
        pipe.generate("a cat", tiny_person, steps=3, seed=0)
        pipe.template("a cat", steps=3)
    assert [str(each.message) for each in recwarn.list] == [note, note]


def test_a_stochastic_sampler_needs_a_seed(tiny_pipe: Pipeline, tiny_person: Person) -> None:
    with pytest.raises(InputError, match="draws noise at every step") as caught:
        tiny_pipe.generate("a", tiny_person, sampler="lcm", steps=4, noise=noise_of(1))
    assert caught.value.fix == "Give a seed instead."
    apart = [
        tiny_pipe.generate("a", tiny_person, sampler="lcm", steps=4, seed=1, text_seed=seed, output_type="latents")
        for seed in (1, 1, 2)
    ]
    np.testing.assert_array_equal(apart[0], apart[1])
    assert np.abs(apart[2] - apart[0]).max() > 1e-3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sampler": "heun"}, "There is no sampler 'heun'"),
        ({"sampler": "lcm", "spacing": "karras"}, "lcm does not support the spacing 'karras'"),
        ({"sampler": "lcm", "steps": 51}, "from 1 to 50, not 51"),
        ({"spacing": "quadratic"}, "ddim does not support the spacing 'quadratic'"),
    ],
)
def test_what_a_sampler_does_not_support_is_one_sentence(
    tiny_pipe: Pipeline, tiny_person: Person, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        tiny_pipe.generate("a", tiny_person, seed=1, **settings)


def test_every_argument_reaches_the_engine(tiny_pipe: Pipeline, tiny_folder: Path, tiny_person: Person) -> None:
    noise, text_noise = noise_of(1), noise_of(1, 9)
    changes: dict[str, Any] = {
        "negative_prompt": "blurry, dark",
        "steps": 3,
        "guidance": 2.5,
        "style_strength": 0.25,
        "identity_strength": -0.5,
    }
    names = {"negative_prompt": "negative", "style_strength": "style", "identity_strength": "identity"}
    options = {names.get(name, name): value for name, value in changes.items()}
    found = tiny_pipe.generate(
        "a dog", tiny_person, noise=noise, text_noise=text_noise, output_type="latents", **changes
    )
    expected = mirror(tiny_folder, ["a dog"], tiny_person, noise, text_noise, **options)
    np.testing.assert_allclose(found, expected, atol=2e-4, rtol=2e-4)
    for left_out in changes:
        others = {name: value for name, value in changes.items() if name != left_out}
        other = tiny_pipe.generate(
            "a dog", tiny_person, noise=noise, text_noise=text_noise, output_type="latents", **others
        )
        assert np.abs(other - found).max() > 1e-3, left_out


def test_a_seed_is_numpys_generator_and_counts_up(tiny_pipe: Pipeline, tiny_person: Person) -> None:
    prompts = ["a", "b", "c"]

    def run(**options: Any) -> Array:
        return tiny_pipe.generate(prompts, tiny_person, output_type="latents", steps=2, **options)

    shape = (4, LATENT, LATENT)
    noise = np.stack([np.random.default_rng(seed).standard_normal(shape, dtype=np.float32) for seed in (5, 6, 7)])
    by_noise = run(noise=noise)
    np.testing.assert_array_equal(run(seed=5), by_noise)
    np.testing.assert_array_equal(run(seed=np.int64(5)), by_noise)
    np.testing.assert_array_equal(run(seed=[5, 6, 7]), by_noise)
    np.testing.assert_array_equal(run(seed=5, text_seed=5), by_noise)
    assert np.abs(run(seed=5, text_seed=8) - by_noise).max() > 1e-3
    assert np.abs(run() - run()).max() > 1e-3


def test_output_types_agree(tiny_pipe: Pipeline, tiny_person: Person) -> None:
    options: dict[str, Any] = {"seed": 1, "steps": 2}
    latents = tiny_pipe.generate("a", tiny_person, output_type="latents", **options)
    array = tiny_pipe.generate("a", tiny_person, output_type="np", **options)
    (image,) = tiny_pipe.generate("a", tiny_person, **options)
    assert array.shape == (1, SIDE, SIDE, 3)
    assert isinstance(image, Image.Image)
    assert image.mode == "RGB"
    np.testing.assert_allclose(array[0, ::8, ::8], 1 / (1 + np.exp(-latents[0, :3].transpose(1, 2, 0))), atol=1e-5)
    np.testing.assert_array_equal(np.asarray(image), np.round(array[0] * 255).astype(np.uint8))


def test_one_person_in_several_slots_equals_the_person_stacked_with_itself(
    tiny_pipe: Pipeline, tiny_person: Person
) -> None:
    one = tiny_pipe.generate("a", tiny_person, seed=1, output_type="latents")
    two = tiny_pipe.generate("a", stack([tiny_person, tiny_person]), seed=1, output_type="latents")
    np.testing.assert_array_equal(one, two)


def test_callback_sees_each_step_and_the_last_latents(tiny_pipe: Pipeline, tiny_person: Person) -> None:
    seen: list[tuple[int, float, Array]] = []
    final = tiny_pipe.generate(
        ["a", "b", "c"], tiny_person, seed=1, output_type="latents", callback=lambda *values: seen.append(values)
    )
    table = sampler_table(SDXL_SCHEDULER, 5)
    assert [index for index, _, _ in seen] == [*range(5), *range(5)]
    assert [timestep for _, timestep, _ in seen] == [*table.timesteps, *table.timesteps]
    assert all(latents.shape == (BATCH, 4, LATENT, LATENT) for _, _, latents in seen)
    np.testing.assert_array_equal(seen[4][2], final[:2])
    np.testing.assert_array_equal(seen[9][2][0], final[2])


def test_previews_are_the_data_predictions(tiny_pipe: Pipeline, tiny_person: Person) -> None:
    seen: list[tuple[int, Array]] = []
    final = tiny_pipe.generate(
        ["a", "b", "c"], tiny_person, seed=1, sampler="euler", spacing="leading", output_type="latents",
        previews=lambda *values: seen.append(values),
    )  # fmt: skip
    assert [index for index, _ in seen] == [*range(5), *range(5)]
    assert all(data.shape == (BATCH, 4, LATENT, LATENT) for _, data in seen)
    assert np.abs(seen[0][1] - final[:2]).max() > 0.1
    np.testing.assert_allclose(seen[4][1], final[:2], atol=1e-5)  # Euler's last step goes to the data


def test_people_may_differ_by_prompt(tiny_pipe: Pipeline, tiny_person: Person) -> None:
    other = replace(tiny_person, identity_keys=tiny_person.identity_keys + 1)
    together = tiny_pipe.generate(["a", "b", "c"], [tiny_person, other, other], seed=1, output_type="latents")
    apart = [tiny_pipe.generate(text, who, seed=seed, output_type="latents")[0]
             for text, who, seed in (("a", tiny_person, 1), ("b", other, 2), ("c", other, 3))]  # fmt: skip
    np.testing.assert_array_equal(together, apart)
    with pytest.raises(InputError, match="2 people were given for 3 prompts"):
        tiny_pipe.generate(["a", "b", "c"], [tiny_person] * 2)


def test_faces_are_read_while_the_engines_are_busy(tiny_pipe: Pipeline) -> None:
    whole = tiny_pipe.enroll([dot_photo(), dot_photo(brightness=120)], name="dot")
    with tiny_pipe.turn():  # of this thread
        faces: list[Any] = []
        photos = [dot_photo(), dot_photo(brightness=120)]
        reading = threading.Thread(target=lambda: faces.extend(tiny_pipe.read_faces(photos)))
        reading.start()
        reading.join(10)
        assert len(faces) == 2
    person = tiny_pipe.encode(faces, name="dot")
    np.testing.assert_array_equal(person.identity_keys, whole.identity_keys)
    assert [str(face) for face in person.faces] == [str(face) for face in whole.faces]


def test_a_callback_that_writes_changes_nothing(tiny_pipe: Pipeline, tiny_person: Person) -> None:
    def spoil(index: int, timestep: float, latents: Array) -> None:
        latents[:] = NAN

    plain = tiny_pipe.generate("a", tiny_person, seed=1, output_type="latents")
    spoilt = tiny_pipe.generate("a", tiny_person, seed=1, output_type="latents", callback=spoil)
    np.testing.assert_array_equal(spoilt, plain)


def test_what_the_caller_gave_is_not_changed(tiny_pipe: Pipeline, tiny_person: Person) -> None:
    noise = noise_of(1)
    before = noise.copy(), tiny_person.identity_keys.copy()
    tiny_pipe.generate("a", tiny_person, noise=noise)[0].putpixel((0, 0), (0, 0, 0))
    np.testing.assert_array_equal(noise, before[0])
    np.testing.assert_array_equal(tiny_person.identity_keys, before[1])


def test_a_waiting_generation_is_cancelled_while_the_other_goes_on(tiny_pipe: Pipeline, tiny_person: Person) -> None:
    first_runs, waits_no_longer, cancel = threading.Event(), threading.Event(), threading.Event()
    ends: list[str] = []

    def first_step(index: int, *_: Any) -> None:
        if index == 0:
            first_runs.set()
            assert waits_no_longer.wait(600), "the other generation waited for this one to end"

    def first() -> None:
        tiny_pipe.generate("a", tiny_person, seed=1, callback=first_step)
        ends.append("first")

    def second() -> None:
        with pytest.raises(CancelledError):
            tiny_pipe.generate("a", tiny_person, seed=1, cancel=cancel)
        ends.append("second")
        waits_no_longer.set()

    one, two = threading.Thread(target=first), threading.Thread(target=second)
    one.start()
    assert first_runs.wait(600)
    two.start()
    cancel.set()
    one.join()
    two.join()
    assert ends == ["second", "first"]


def test_cancelling_stops_the_loading(tiny_folder: Path, tiny_person: Person, monkeypatch: pytest.MonkeyPatch) -> None:
    cancel, read = threading.Event(), EngineSet.__getitem__
    loaded: list[str] = []

    def cancelled_meanwhile(self: EngineSet, graph: str) -> Any:
        loaded.append(graph)
        cancel.set()
        return read(self, graph)

    monkeypatch.setattr(EngineSet, "__getitem__", cancelled_meanwhile)
    with Pipeline.load(tiny_folder) as pipe, pytest.raises(CancelledError):
        pipe.generate("a", tiny_person, seed=1, cancel=cancel)
    assert loaded == ["text_encoder"]


def test_progress_is_announced_and_reaches_the_end(tiny_folder: Path, tiny_person: Person) -> None:
    reporter = Recorder()
    with Pipeline.load(tiny_folder, reporter=reporter) as pipe:
        assert reporter.notes == [f"backend {pipe.choice}"]
        pipe.generate(["a", "b", "c"], tiny_person, seed=1, reporter=reporter)
    assert reporter.entered == list(reporter.planned) == ["loading", "denoising", "decoding"]
    for fractions in reporter.fractions.values():
        assert fractions == sorted(fractions)
        assert fractions[-1] == 1.0


@pytest.mark.parametrize("when", ["before", "step", "last step"])
def test_cancel_stops_at_once(tiny_pipe: Pipeline, tiny_person: Person, when: str) -> None:
    cancel, steps = threading.Event(), []
    if when == "before":
        cancel.set()

    def callback(index: int, *_: Any) -> None:
        steps.append(index)
        if index == {"before": -1, "step": 1, "last step": 4}[when]:
            cancel.set()

    with pytest.raises(CancelledError, match="cancelled"):
        tiny_pipe.generate("a", tiny_person, seed=1, cancel=cancel, callback=callback)
    assert steps == {"before": [], "step": [0, 1], "last step": [0, 1, 2, 3, 4]}[when]
    cancel.clear()
    assert len(tiny_pipe.generate("a", tiny_person, seed=1, cancel=cancel)) == 1


NAN = float("nan")
FACES = {
    "detector": "centerface",
    "detector_path": "faces/detector.onnx",
    "recognizer_path": "faces/recognizer.onnx",
    "licence": "",
}
GOOD_NOISE = np.zeros((1, 4, LATENT, LATENT), np.float32)
BAD_ARGUMENTS: dict[str, tuple[dict[str, Any], str]] = {
    "no-prompt": ({"prompt": []}, "No prompt was given"),
    "prompt-number": ({"prompt": [3]}, "A prompt must be a string, not 3"),
    "prompt-surrogate": ({"prompt": "\ud800"}, "not valid Unicode"),
    "negative-number": ({"negative_prompt": "\udfff"}, "not valid Unicode"),
    "prompt-none": ({"prompt": None}, "A prompt must be a string, not None"),
    "prompt-bytes": ({"prompt": b"a"}, "A prompt must be a string, not b'a'"),
    "prompt-dict": ({"prompt": {"a": 1}}, "A prompt must be a string, not {'a': 1}"),
    "negative-list": ({"negative_prompt": ["a"]}, r"The negative prompt must be a string, not \['a'\]"),
    "negative-path": ({"negative_prompt": Path("a")}, "The negative prompt must be a string"),
    "output-type-list": ({"output_type": ["pil"]}, r"no output type \['pil'\]"),
    "height-text": ({"height": "64"}, "height must be a whole number, not '64'"),
    "width-fraction": ({"width": 64.0}, "width must be a whole number, not 64.0"),
    "height-bool": ({"height": True}, "height must be a whole number, not True"),
    "height-huge": ({"height": 10**30}, "engines were built for a height of 64"),
    "steps-text": ({"steps": "3"}, "whole number from 1 to 999, not '3'"),
    "steps-bool": ({"steps": True}, "whole number from 1 to 999, not True"),
    "guidance-digits": ({"guidance": "5"}, "guidance must be a number, not '5'"),
    "guidance-bool": ({"guidance": True}, "guidance must be a number, not True"),
    "guidance-list": ({"guidance": [5.0]}, r"guidance must be a number, not \[5.0\]"),
    "guidance-huge": ({"guidance": 10**400}, "guidance must be a finite number"),
    "seed-bool": ({"seed": True}, "A seed must be a whole number, not True"),
    "seed-array": ({"seed": np.array([1])}, "A seed must be a whole number"),
    "text-seed-text": ({"text_seed": "a"}, "A seed must be a whole number, not 'a'"),
    "noise-ragged": ({"noise": [[1], [1, 2]]}, "noise cannot be read as an array"),
    "noise-object": ({"noise": object()}, "noise must be finite numbers"),
    "callback": ({"callback": 3}, "The callback must be a function, not 3"),
    "cancel": ({"cancel": True}, "cancel must have is_set, which True lacks"),
    "reporter": ({"reporter": print}, "The reporter must have plan, stage, note"),
    "person-none": ({"person": None}, "must be a Person, not NoneType"),
    "output-type": ({"output_type": "jpg"}, "no output type 'jpg'"),
    "steps-zero": ({"steps": 0}, "whole number from 1 to 999, not 0"),
    "steps-too-many": ({"steps": 1000}, "whole number from 1 to 999, not 1000"),
    "steps-fraction": ({"steps": 2.5}, "whole number from 1 to 999, not 2.5"),
    "guidance-nan": ({"guidance": NAN}, "guidance must be a finite number, not nan"),
    "guidance-text": ({"guidance": "high"}, "guidance must be a number, not 'high'"),
    "style-inf": ({"style_strength": float("inf")}, "style_strength must be a finite number"),
    "identity-nan": ({"identity_strength": NAN}, "identity_strength must be a finite number"),
    "seed-negative": ({"seed": -1}, r"seeds \[-1\] do not fit"),
    "seed-fraction": ({"seed": 1.5}, "whole number, not 1.5"),
    "seed-text": ({"seed": "1"}, "whole number, not '1'"),
    "seeds-too-many": ({"seed": [1, 2]}, r"seeds \[1, 2\] do not fit 1 prompt"),
    "seed-and-noise": ({"seed": 1, "noise": GOOD_NOISE}, "Both a seed and noise"),
    "noise-shape": ({"noise": GOOD_NOISE[0]}, r"noise must be finite numbers \[1, 4, 8, 8\], not float32 \[4, 8, 8\]"),
    "noise-nan": ({"noise": GOOD_NOISE + NAN}, "with non-finite values"),
    "noise-text": ({"noise": "noise"}, "noise must be finite numbers"),
    "text-noise-shape": ({"text_noise": np.zeros(3)}, "text_noise must be finite numbers"),
    "person": ({"person": "eileen.safetensors"}, "must be a Person, not str"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD_ARGUMENTS.values(), ids=BAD_ARGUMENTS)
def test_bad_arguments_are_rejected(
    tiny_pipe: Pipeline, tiny_person: Person, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        tiny_pipe.generate(**{"prompt": "a", "person": tiny_person, **arguments})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"folder": None}, "The engine folder must be a path, not None"),
        ({"folder": b"engines"}, "The engine folder must be a path"),
        ({"backend": None}, "The backend must be a string, not None"),
        ({"backend": ["auto"]}, "The backend must be a string"),
        ({"device": 0}, "The device must be a string, not 0"),
        ({"reporter": "loud"}, "The reporter must have plan, stage, note"),
    ],
)
def test_bad_arguments_of_load(tiny_folder: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Pipeline.load(**{"folder": tiny_folder, **arguments})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"photo": None}, "A photo must be a path"),
        ({"photo": {"a": 1}}, "A photo must be a path"),
        ({"photo": [3]}, "A photo must be a path"),
        ({"face_index": "0"}, "The face index must be a whole number, not '0'"),
        ({"face_index": True}, "The face index must be a whole number, not True"),
        ({"face_index": 1.0}, "The face index must be a whole number, not 1.0"),
        ({"name": None}, "The name must be a string, not None"),
        ({"name": "\ud800"}, "not valid Unicode"),
    ],
)
def test_bad_arguments_of_enroll(tiny_pipe: Pipeline, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        tiny_pipe.enroll(**{"photo": dot_photo(), **arguments})


def test_bad_arguments_of_encode(tiny_pipe: Pipeline) -> None:
    with pytest.raises(InputError, match=r"The face must be FaceInputs, not 'a\.jpg'"):
        tiny_pipe.encode("a.jpg")  # type: ignore[arg-type]


def test_a_person_of_another_model_is_told_to_enroll_again(tiny_pipe: Pipeline, tiny_person: Person) -> None:
    other = Person(tiny_person.identity_tokens, tiny_person.identity_keys, tiny_person.identity_values, "b" * 64)
    with pytest.raises(InputError, match=r"enrolled with the model bbbbbbbbbbbb….*Enroll the photo again"):
        tiny_pipe.generate("a", other)


def test_too_many_people_are_rejected(tiny_pipe: Pipeline, tiny_person: Person) -> None:
    with pytest.raises(InputError, match=r"3 people were stacked.*2 slot\(s\).*--people 3"):
        tiny_pipe.generate("a", stack([tiny_person] * 3))


@pytest.mark.parametrize("poison", ["denoise_step", "vae_decoder"])
def test_non_finite_values_are_an_error_and_never_a_picture(tmp_path: Path, tiny_person: Person, poison: str) -> None:
    with (
        Pipeline.load(write_folder(tmp_path / "engines", poison=poison)) as pipe,
        pytest.raises(EngineFolderError, match=r"non-finite values out of \d+.*--precision fp32"),
    ):
        pipe.generate("a", tiny_person, seed=1, steps=1)


def test_non_finite_latents_are_an_error_too(tmp_path: Path, tiny_person: Person) -> None:
    with (
        Pipeline.load(write_folder(tmp_path / "engines", poison="denoise_step")) as pipe,
        pytest.raises(EngineFolderError, match=r"returned latents with \d+ non-finite values"),
    ):
        pipe.generate("a", tiny_person, seed=1, steps=1, output_type="latents")


@pytest.mark.parametrize("end", ["finished", "cancelled", "failed", "not-finite"])
def test_the_loop_is_closed_however_it_ends(end: str) -> None:
    class Loop:
        closed = 0

        def step(self) -> None:
            if end == "failed":
                raise RuntimeError("CUDA error")

        def read(self, name: str) -> np.ndarray:
            return GOOD_NOISE + (NAN if end == "not-finite" else 0)

        def close(self) -> None:
            self.closed += 1

    loop, cancel = Loop(), threading.Event()
    engine: Any = SimpleNamespace(loop=lambda *_: loop)
    expected = {"cancelled": CancelledError, "failed": RuntimeError, "not-finite": EngineFolderError}
    with pytest.raises(expected[end]) if end in expected else nullcontext():
        denoise(
            engine, {}, {"identity": Noise(GOOD_NOISE, None)}, [0], sampler_table(SDXL_SCHEDULER, 2), lambda index: {},
            on_step=lambda *_: cancel.set() if end == "cancelled" else None, cancel=cancel,
        )  # fmt: skip
    assert loop.closed == 1


def test_a_long_prompt_warns_with_what_is_left_out(tiny_pipe: Pipeline, tiny_person: Person) -> None:
    prompt = "word " * 75 + "wonderful sunset"
    with pytest.warns(UserWarning, match="longer than 77 tokens; dropped: wonderful sunset"):
        tiny_pipe.generate(prompt, tiny_person, seed=1, steps=1)
    reporter = Recorder()
    tiny_pipe.generate("a", tiny_person, negative_prompt=prompt, seed=1, steps=1, reporter=reporter)
    assert any("dropped: wonderful sunset" in note for note in reporter.notes)


def test_what_either_encoder_leaves_out_is_told(tiny_pipe: Pipeline, tiny_person: Person) -> None:
    reporter = Recorder()
    tiny_pipe.generate("a cat" + "!" * 80 + " at night", tiny_person, seed=1, steps=1, reporter=reporter)
    (told,) = (note for note in reporter.notes if "dropped there" in note)
    assert 'second text encoder, where each "!" counts as one' in told
    assert told.endswith("! at night")


def dot_photo(x: int = 200, brightness: int = 60) -> Array:
    photo = np.full((320, 400, 3), brightness, np.uint8)
    photo[160:164, x : x + 4] = 255
    return photo


def test_enroll_runs_the_identity_encoder_on_the_face(tiny_pipe: Pipeline) -> None:
    person = tiny_pipe.enroll(dot_photo(), name="dot")
    assert person.model == MODEL
    assert person.name == "dot"
    assert person.identity_tokens.shape == (2, TOKENS, DEPTH_T)
    np.testing.assert_allclose(person.identity_keys, person.identity_tokens @ PROJECT_K, atol=1e-5)
    assert len(tiny_pipe.generate("a", person, seed=1, steps=1)) == 1


def test_the_person_says_which_face_was_taken(tiny_pipe: Pipeline, tmp_path: Path) -> None:
    photo = dot_photo()
    photo[160:164, 60:64] = 255  # a second face
    Image.fromarray(photo).save(tmp_path / "two.png")
    (taken,) = tiny_pipe.enroll(tmp_path / "two.png", face_index=1).faces
    assert (taken.index, len(taken.faces), taken.face.score) == (1, 2, 1.0)
    assert str(taken).startswith(f"{tmp_path / 'two.png'}: 2 faces found, used 1 at (")
    several = tiny_pipe.enroll([dot_photo(), dot_photo(brightness=120)])
    assert [str(face) for face in several.faces] == [
        "the image: 1 face found, score 1.00, 20 pixels between the eyes"
    ] * 2
    several.save(tmp_path / "p.safetensors")
    assert Person.load(tmp_path / "p.safetensors").faces == ()


def test_a_detector_for_drawn_people_is_said_at_enrollment(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "engines", faces={**FACES, "detector": "drawn"})
    with Pipeline.load(folder) as pipe:
        with pytest.warns(UserWarning, match="knows drawn people only; for photos, build .* --detector centerface"):
            pipe.enroll(dot_photo())
        with (
            pytest.warns(UserWarning, match="drawn people only"),
            pytest.raises(InputError, match=r"No face was found .* knows drawn people only; for photos, build"),
        ):
            pipe.enroll(np.zeros((64, 64, 3), np.uint8))


@pytest.mark.filterwarnings("error")
def test_a_whole_image_is_enrolled_without_a_face(tmp_path: Path) -> None:
    """Also with a detector for drawn people, of which nothing is said since it is not used."""
    folder = write_folder(tmp_path / "engines", faces={**FACES, "detector": "drawn"})
    blank = np.zeros((64, 80, 3), np.uint8)
    with Pipeline.load(folder) as pipe:
        (inputs,) = pipe.read_faces(blank, reference="whole")
        assert not inputs.face_embedding.any()
        assert np.array_equal(
            pipe.enroll(blank, reference="whole").identity_tokens, pipe.encode(inputs).identity_tokens
        )
        with pytest.raises(InputError, match=r"Photo 2 of 2: The box 0 0 70 10 is not inside the photo \(64 × 64\)"):
            pipe.enroll([blank, blank[:, :64]], reference=(0, 0, 70, 10))
        with pytest.raises(InputError, match="There is no reference 'head'"):
            pipe.enroll(blank, reference="head")  # type: ignore[arg-type]


@pytest.mark.filterwarnings("error")
def test_a_folder_for_whole_images_needs_no_face_models(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "engines", reads_face=False, faces=WHOLE)
    for path in ("faces/detector.onnx", "faces/recognizer.onnx"):
        (folder / path).unlink()
    light, dark = np.full((64, 80, 3), 200, np.uint8), np.zeros((64, 80, 3), np.uint8)
    with Pipeline.load(folder) as pipe:
        first, second = pipe.enroll(light), pipe.enroll(dark, reference=(0, 0, 40, 40))
        assert first.faces == ()
        np.testing.assert_allclose(first.identity_tokens[1] - second.identity_tokens[1], 200 / 255, atol=1e-3)
        with pytest.raises(InputError, match="read whole images, and no face is searched"):
            pipe.enroll(light, reference="face")
    other = write_folder(tmp_path / "other", reads_face=False, faces={**WHOLE, "crop": "portrait"})
    with Pipeline.load(other) as pipe, pytest.raises(EngineFolderError, match="has no face detector or recognizer"):
        pipe.enroll(light)


def test_the_manifest_says_what_is_read_of_a_face(tmp_path: Path) -> None:
    made = {}
    for name, facts in {"usual": {}, "raw": {"embedding": "raw"}, "aligned": {"crop": "aligned"}}.items():
        folder = write_folder(tmp_path / name, faces={**FACES, **facts})
        with Pipeline.load(folder) as pipe:
            (made[name],) = pipe.read_faces(dot_photo())
    assert np.array_equal(made["usual"].face_crop, made["raw"].face_crop)
    assert np.linalg.norm(made["raw"].face_embedding) != pytest.approx(1, abs=0.01)
    assert np.array_equal(made["usual"].face_embedding, made["aligned"].face_embedding)
    assert not np.array_equal(made["usual"].face_crop, made["aligned"].face_crop)


@pytest.mark.filterwarnings("error")
def test_a_detector_for_photos_says_nothing(tiny_pipe: Pipeline) -> None:
    tiny_pipe.enroll(dot_photo())


def test_several_photos_are_averaged(tiny_pipe: Pipeline) -> None:
    photos = [dot_photo(), dot_photo(brightness=120)]
    one, two = (tiny_pipe.enroll(photo) for photo in photos)
    both = tiny_pipe.enroll(photos)
    assert np.abs(one.identity_keys - two.identity_keys).max() > 1e-3
    np.testing.assert_allclose(both.identity_keys, (one.identity_keys + two.identity_keys) / 2, atol=1e-6)


def test_bad_photos_are_rejected_by_number(tiny_pipe: Pipeline, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No photo was given"):
        tiny_pipe.enroll([])
    with pytest.raises(InputError, match="Photo 2 of 2: No face was found"):
        tiny_pipe.enroll([dot_photo(), np.zeros((64, 64, 3), np.uint8)])
    with pytest.raises(InputError, match=r"^There is no photo at"):
        tiny_pipe.enroll(tmp_path / "missing.jpg")
    with pytest.raises(InputError, match="there is no face 1"):
        tiny_pipe.enroll(dot_photo(), face_index=1)


@pytest.mark.parametrize("missing", ["recognizer_path", "detector_path"])
def test_a_folder_without_face_models_says_so(tmp_path: Path, missing: str) -> None:
    faces = {
        "detector": "centerface",
        "detector_path": "faces/detector.onnx",
        "recognizer_path": "faces/recognizer.onnx",
    }
    folder = write_folder(tmp_path / "engines", faces={**faces, missing: ""})
    with Pipeline.load(folder) as pipe, pytest.raises(EngineFolderError, match="cannot enroll photos"):
        pipe.enroll(dot_photo())


def test_a_closed_pipeline_loads_again(tiny_pipe: Pipeline, tiny_person: Person) -> None:
    first = tiny_pipe.generate("a", tiny_person, seed=1, steps=1, output_type="np")
    tiny_pipe.close()
    np.testing.assert_array_equal(tiny_pipe.generate("a", tiny_person, seed=1, steps=1, output_type="np"), first)


def test_threads_take_turns(tiny_pipe: Pipeline, tiny_person: Person) -> None:
    expected = [tiny_pipe.generate("a", tiny_person, seed=seed, output_type="latents") for seed in range(4)]
    found: dict[int, Array] = {}

    def work(seed: int) -> None:
        found[seed] = tiny_pipe.generate("a", tiny_person, seed=seed, output_type="latents")

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in range(4):
        np.testing.assert_array_equal(found[seed], expected[seed])
