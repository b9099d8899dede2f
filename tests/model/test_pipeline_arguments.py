from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from adapter_weights import write_identity
from diffusers.utils import logging as diffusers_logging
from safetensors.torch import save_file
from single_files import original_tensors, small_source, write_file

from infid_engines.errors import InputError
from infid_export.export.parity_case import parity_face
from infid_export.model.identity import IdentityModules
from infid_export.model.opening import open_source
from infid_export.model.processors import identity_blocks
from infid_export.model.reference_pipeline import InfiniteIDPipeline
from infid_export.model.sources import RandomSource
from infid_export.model.tokenizers import clip_tokenizer_json
from infid_export.runtime.tokenizer import FILES, PromptTokenizer

NAN = float("nan")
PROMPTS = ["a photo", "wow!!! a cat!", "!" * 90, "", "word " * 90, "a <|endoftext|> b", "emoji 😀 ünï"]


@pytest.fixture(scope="module")
def reference(source: RandomSource) -> InfiniteIDPipeline:
    pipe = InfiniteIDPipeline.from_source(source)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def identity(reference: InfiniteIDPipeline) -> tuple[torch.Tensor, torch.Tensor]:
    return reference.encode_identity(parity_face(224, 512))


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "prompt-none": ({"prompt": None}, "A prompt must be a string, not None"),
    "prompt-bytes": ({"prompt": b"a"}, "A prompt must be a string"),
    "prompt-number": ({"prompt": ["a", 3]}, "A prompt must be a string, not 3"),
    "prompt-empty": ({"prompt": []}, "No prompt was given"),
    "negative-list": ({"negative_prompt": ["a"]}, "The negative prompt must be a string"),
    "height-text": ({"height": "128"}, "height must be a whole number, not '128'"),
    "width-odd": ({"width": 101}, "width must be a multiple of 4, not 101"),
    "width-zero": ({"width": 0}, "width must be at least 4, not 0"),
    "steps-fraction": ({"num_inference_steps": 2.5}, "a whole number from 1 to 999, not 2.5"),
    "generators": ({"generator": [np.random.default_rng(0)] * 2}, "2 generators do not fit 1 prompt"),
    "sampler": ({"sampler": "heun"}, "There is no sampler 'heun'"),
    "spacing": ({"sampler": "lcm", "spacing": "karras"}, "lcm does not support the spacing 'karras'"),
    "steps-zero": ({"num_inference_steps": 0}, "a whole number from 1 to 999, not 0"),
    "steps-many": ({"num_inference_steps": 1000}, "a whole number from 1 to 999, not 1000"),
    "guidance-nan": ({"guidance_scale": NAN}, "guidance_scale must be a finite number"),
    "guidance-text": ({"guidance_scale": "5"}, "guidance_scale must be a number, not '5'"),
    "style-none": ({"style_strength": None}, "style_strength must be a number, not None"),
    "identity-inf": ({"identity_strength": np.inf}, "identity_strength must be a finite number"),
    "generator": ({"generator": 3}, "generator must be a numpy or torch generator, not 3"),
    "latents-array": ({"latents": np.zeros((1, 4, 16, 16), np.float32)}, "latents must be a finite tensor"),
    "latents-shape": ({"latents": torch.zeros(1, 4, 8, 8)}, r"latents must be .* \[1, 4, 32, 32\], not \[1, 4, 8, 8\]"),
    "text-latents-nan": ({"text_latents": torch.full((1, 4, 32, 32), NAN)}, "text_latents must be a finite tensor"),
    "callback": ({"callback_on_step_end": "loud"}, "callback_on_step_end must be a function, not 'loud'"),
    "output-type": ({"output_type": "jpg"}, "no output type 'jpg'"),
    "identity": ({"identity": "anna.safetensors"}, "identity must be keys and values .* not str"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD.values(), ids=BAD)
def test_bad_arguments_are_rejected(
    reference: InfiniteIDPipeline, identity: Any, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        reference(**{"prompt": "a", "identity": identity, "num_inference_steps": 1, **arguments})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"base": None}, "The base model must be a path, not None"),
        ({"base": b"sdxl"}, "The base model must be a path"),
        ({"identity": None}, "The identity weights must be a path, not None"),
    ],
)
def test_bad_arguments_of_from_pretrained(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        InfiniteIDPipeline.from_pretrained(**{"base": "nowhere", "identity": "i.safetensors", **arguments})


def test_a_single_file_is_loaded_as_the_error_of_from_pretrained_says(tmp_path: Path) -> None:
    file = write_file(tmp_path / "sdxl.safetensors", original_tensors(small_source()))
    blocks = identity_blocks(small_source().empty("unet"))
    identity = write_identity(tmp_path / "identity.safetensors", "faceid", blocks)
    with pytest.raises(InputError, match=r"is a single-file checkpoint, but from_pretrained reads folders") as caught:
        InfiniteIDPipeline.from_pretrained(file, identity=identity)
    assert "InfiniteIDPipeline.from_source(open_source(file, identity=…, image_encoder=…))" in caught.value.fix
    source = open_source(str(file), identity=identity)
    pipe = InfiniteIDPipeline.from_source(source)
    expected = dict(source.weights("unet", torch.float32))
    assert torch.equal(pipe.unet.conv_in.weight, expected["conv_in.weight"])


def test_identity_weights_that_read_another_layer_of_the_image_encoder_are_rejected(
    source: RandomSource, tmp_path: Path
) -> None:
    pipe = InfiniteIDPipeline.from_source(source)
    blocks = identity_blocks(pipe.unet)
    plus = IdentityModules.load(write_identity(tmp_path / "plus.safetensors", "ip-adapter-plus", blocks), blocks)
    with pytest.raises(InputError, match="read the image encoder's layer penultimate, but this one returns last"):
        pipe.use_identity(plus)
    pipe.use_identity(IdentityModules.load(write_identity(tmp_path / "f.safetensors", "faceid", blocks), blocks))


def test_a_file_that_is_no_checkpoint_is_named_by_from_pretrained(tmp_path: Path) -> None:
    save_file({"image_proj.x": torch.zeros(1)}, tmp_path / "adapter.safetensors")
    with pytest.raises(InputError, match="is an IP-Adapter, not a checkpoint") as caught:
        InfiniteIDPipeline.from_pretrained(tmp_path / "adapter.safetensors", identity=tmp_path / "i.safetensors")
    assert "convert this file with `infid-export import`" in caught.value.fix


def test_a_callback_that_writes_changes_nothing_and_one_that_returns_does(
    reference: InfiniteIDPipeline, identity: Any
) -> None:
    def run(callback: Any = None) -> torch.Tensor:
        generator = np.random.default_rng(1)
        options = {"num_inference_steps": 2, "output_type": "latent", "height": 64, "width": 64}
        return reference("a", identity, generator=generator, callback_on_step_end=callback, **options).images

    def spoil(pipe: Any, index: int, timestep: torch.Tensor, values: dict[str, torch.Tensor]) -> dict[str, Any]:
        values["latents"].fill_(NAN)
        return {}

    plain = run()
    assert torch.equal(run(spoil), plain)
    assert not torch.equal(run(lambda *values: {"latents": values[3]["latents"] * 0.5}), plain)


@pytest.mark.parametrize("pads", [("<|endoftext|>", "!"), ("<|endoftext|>", "<|endoftext|>"), ("!", "<|endoftext|>")])
def test_the_reference_reads_prompts_as_the_engines_do(
    source: RandomSource, tmp_path: Path, pads: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """This holds whatever the checkpoint's tokenizers pad with."""
    stored = tuple(map(clip_tokenizer_json, pads))
    monkeypatch.setattr(source, "tokenizers", lambda: stored)
    for name, text in zip(FILES, stored, strict=True):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(text, encoding="utf-8")
    pipe = InfiniteIDPipeline.from_source(source)
    for tokenizer, ids in zip(
        (pipe.tokenizer, pipe.tokenizer_2), PromptTokenizer(tmp_path).encode(PROMPTS), strict=True
    ):
        found = tokenizer(PROMPTS, padding="max_length", max_length=77, truncation=True)["input_ids"]
        np.testing.assert_array_equal(found, ids)


def test_the_reference_tells_what_the_second_encoder_drops(
    reference: InfiniteIDPipeline, caplog: pytest.LogCaptureFixture
) -> None:
    shown = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity_warning()  # other tests may have silenced it
    diffusers_logging.enable_propagation()
    try:
        with caplog.at_level(logging.WARNING):
            reference.encode_prompt("a cat" + "!" * 80 + " at night", do_classifier_free_guidance=False)
    finally:
        diffusers_logging.disable_propagation()
        diffusers_logging.set_verbosity(shown)
    assert "night" in caplog.text
