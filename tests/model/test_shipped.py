from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from tokenizers import Tokenizer
from torch.nn.functional import normalize

from infid_engines.errors import InputError
from infid_export.faces.alignment import ARCFACE_TEMPLATE
from infid_export.model import shipped
from infid_export.model.face_networks import FACE_NETWORKS
from infid_export.model.opening import open_source
from infid_export.model.shipped import FILES, ROWS, ShippedSource, load_shipped
from infid_export.model.sources import COMPONENTS
from infid_training.recipe.crops import aligned
from infid_training.world.drawing import landmarks, render
from infid_training.world.people import FIRST_HELD_OUT, person
from infid_training.world.scenes import portrait, scene

LARGEST = 25e6  # bytes of all files together
EMBEDDING = {"text_encoder": "embeddings.token_embedding", "text_encoder_2": "text_model.embeddings.token_embedding"}


def test_everything_is_there_in_fp16_and_small() -> None:
    files = sorted(FILES.glob("*.safetensors"))
    assert {file.stem for file in files} == {*COMPONENTS, *FACE_NETWORKS}
    assert sum(file.stat().st_size for file in files) < LARGEST
    for file in files:
        with safe_open(file, framework="pt") as stored:
            types = {stored.get_slice(key).get_dtype() for key in stored.keys()}  # noqa: SIM118, no dictionary
        assert types <= {"F16", "I32", "I64"}


@pytest.mark.parametrize("component", COMPONENTS)
def test_every_component_has_all_its_weights(component: str) -> None:
    source = ShippedSource()
    module = source.load(component, torch.float32)
    assert not any(parameter.is_meta or parameter.requires_grad for parameter in module.parameters())
    assert all(bool(parameter.isfinite().all()) for parameter in module.parameters())
    streamed = dict(source.weights(component, torch.float16))
    assert set(streamed) == {name for name, _ in module.named_parameters()}
    assert {tensor.dtype for tensor in streamed.values()} == {torch.float16}


@pytest.mark.parametrize("name", EMBEDDING)
def test_words_that_captions_use_have_an_embedding_and_no_others(name: str) -> None:
    source = ShippedSource()
    table = source.load(name, torch.float32).get_parameter(f"{EMBEDDING[name]}.weight")
    tokenizer = Tokenizer.from_str(source.tokenizers()[name == "text_encoder_2"])
    known = table.abs().sum(1) > 0
    for number in range(FIRST_HELD_OUT, FIRST_HELD_OUT + 200):
        for held_out in (False, True):
            caption = scene(number, held_out).caption(person(number).describe())
            assert bool(known[tokenizer.encode(caption).ids].all()), caption
    assert not bool(known[tokenizer.encode("spaceship").ids[1]])


@pytest.mark.parametrize("name", ["recognizer", "facenet"])
def test_the_recognizers_know_people_they_were_not_taught(name: str) -> None:
    numbers = range(FIRST_HELD_OUT, FIRST_HELD_OUT + 40)
    network = load_shipped(FACE_NETWORKS[name](), name).float().eval()
    embeddings = []
    for scenes in ([portrait(number) for number in numbers], [scene(number, held_out=True) for number in numbers]):
        people = [person(number) for number in numbers]
        pictures = np.stack([np.asarray(render(*pair, 128)) for pair in zip(people, scenes, strict=True)])
        marks = np.stack([landmarks(*pair) for pair in zip(people, scenes, strict=True)])
        with torch.no_grad():
            embeddings.append(normalize(network(2 * aligned(pictures, marks, ARCFACE_TEMPLATE, 112) - 1), dim=-1))
    nearest = (embeddings[1] @ embeddings[0].T).argmax(1)
    assert float((nearest == torch.arange(len(numbers))).float().mean()) > 0.9  # in any style


def test_another_file_is_another_fingerprint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = ShippedSource()
    before = source.fingerprint("vae")
    (tmp_path / "vae.safetensors").write_bytes((FILES / "vae.safetensors").read_bytes()[:-1] + b"x")
    monkeypatch.setattr(shipped, "FILES", tmp_path)
    assert source.fingerprint("vae") != before
    with pytest.raises(InputError, match=r"lacks .*unet\.safetensors"):
        source.fingerprint("unet")


def test_rows_that_are_not_stored_are_zero(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors.torch import save_file

    stored = {"weight": torch.tensor([[1.0, 2.0]]).half(), f"weight{ROWS}": torch.tensor([2], dtype=torch.int32)}
    save_file(stored, tmp_path / "words.safetensors")
    monkeypatch.setattr(shipped, "FILES", tmp_path)
    table = load_shipped(torch.nn.Embedding(4, 2), "words")
    assert table.weight.tolist() == [[0, 0], [0, 0], [1, 2], [0, 0]]


def test_choices_go_before_what_was_trained_and_a_seed_is_rejected() -> None:
    source = open_source("demo", choices={"adain": "off"})
    assert source.config.adain == "off"
    assert source.load("identity", torch.float32).config.adain == "off"
    with pytest.raises(InputError, match="has no effect: demo"):
        open_source("demo", seed=1)
