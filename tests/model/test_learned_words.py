"""Words that a checkpoint learned (textual inversion) reach the tokenizer of an engine folder, or are rejected."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from diffusers.loaders.textual_inversion import TextualInversionLoaderMixin
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import CLIPTokenizer, PreTrainedTokenizerFast

from infid_engines.errors import InputError
from infid_export.model.checkpoints.folder import read_checkpoint
from infid_export.model.sources import RandomSource
from infid_export.model.tokenizers import folder_tokenizer_json, read_vocabulary

WORDS = ["<cat-toy>", "<cat-toy>_1", "<cat-toy>_2", "Xyzzy", "<s0>"]
FIRST = 49408
PROMPTS = (
    "a photo of <cat-toy>, oil painting", "a <cat-toy>, and a cat-toy<cat-toy>", "xyzzy XYZZY axyzzyb!",
    "<s0><s1> in the rain", "<cat-toy>_1 alone", "Ünïcode <s0>.", "w " * 80 + "xyzzy",
)  # fmt: skip


@pytest.fixture(scope="module")
def grown(parts: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer folder with added words, as current transformers writes it."""
    folder = tmp_path_factory.mktemp("words") / "tokenizer"
    tokenizer = CLIPTokenizer.from_pretrained(parts["base"].parent / "words/tokenizer_2")
    assert tokenizer.add_tokens(WORDS) == len(WORDS)
    tokenizer.save_pretrained(folder)
    return folder


def as_older_versions(parts: dict[str, Path], folder: Path, place: str) -> Path:
    """The same words in the other places where versions of transformers stored them."""
    shutil.copytree(parts["base"].parent / "words/tokenizer_2", folder)
    if place == "added_tokens.json":
        (folder / place).write_text(json.dumps({word: FIRST + index for index, word in enumerate(WORDS)}))
    else:
        config = json.loads((folder / place).read_text())
        added = {str(FIRST + index): {"content": word, "special": False} for index, word in enumerate(WORDS)}
        special = {"49407": {"content": "<|endoftext|>", "special": True, "normalized": True}}
        (folder / place).write_text(json.dumps({**config, "added_tokens_decoder": special | added}))
    return folder


def expected(grown: Path, prompt: str) -> list[int]:
    tokenizer = CLIPTokenizer.from_pretrained(grown)
    written = TextualInversionLoaderMixin().maybe_convert_prompt(prompt, tokenizer)
    return tokenizer(written, padding="max_length", max_length=77, truncation=True).input_ids


@pytest.mark.parametrize("place", ["tokenizer.json", "added_tokens.json", "tokenizer_config.json"])
def test_added_words_are_tokens_as_in_diffusers(parts, grown, tmp_path, place):
    folder = grown if place == "tokenizer.json" else as_older_versions(parts, tmp_path / "tokenizer", place)
    assert list(read_vocabulary(folder).added) == WORDS
    assert read_vocabulary(folder).size == FIRST + len(WORDS)
    found = Tokenizer.from_str(folder_tokenizer_json(folder))
    for prompt in PROMPTS[:4]:
        assert found.encode(prompt).ids == expected(grown, prompt), prompt


def test_a_word_of_several_vectors_is_written_out_once(grown):
    found = Tokenizer.from_str(folder_tokenizer_json(grown))
    assert found.encode("a <cat-toy> b").ids[2:5] == [FIRST, FIRST + 1, FIRST + 2]
    # diffusers would use only the first vector
    assert found.encode("a <CAT-Toy> b").ids == found.encode("a <cat-toy> b").ids
    assert found.encode("<cat-toy>_2 <cat-toy>_1").ids[1:3] == [FIRST + 2, FIRST + 1]
    # diffusers expands it in the prompt for the reference pipeline's tokenizer
    assert found.encode("a <cat-toy> <cat-toy>_1 <cat-toy>_2 b").ids == found.encode("a <cat-toy> b").ids
    fast = PreTrainedTokenizerFast(tokenizer_object=found, pad_token="!", eos_token="<|endoftext|>")
    written = TextualInversionLoaderMixin().maybe_convert_prompt("a <cat-toy> b", fast)
    assert fast(written).input_ids[:6] == found.encode("a <cat-toy> b").ids[:6]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_other_words_are_tokens_as_in_diffusers(grown, prompt):
    assert Tokenizer.from_str(folder_tokenizer_json(grown)).encode(prompt).ids == expected(grown, prompt)


def checkpoint(parts: dict[str, Path], folder: Path, grown: Path | None, rows: int) -> Path:
    """A checkpoint whose second encoder has `rows` word embeddings."""
    base = shutil.copytree(parts["base"], folder, copy_function=os.link)
    if grown is not None:
        shutil.rmtree(base / "tokenizer_2")
        shutil.copytree(grown, base / "tokenizer_2")
    (weights,) = (base / "text_encoder_2").glob("*.safetensors")
    state = load_file(weights)
    (key,) = (name for name in state if name.endswith("token_embedding.weight"))
    table = torch.cat([state[key], torch.ones(max(0, rows - len(state[key])), state[key].shape[1])])
    weights.unlink()
    save_file({**state, key: table.contiguous()}, weights, metadata={"format": "pt"})
    config = json.loads((base / "text_encoder_2/config.json").read_text())
    (base / "text_encoder_2/config.json").unlink()
    (base / "text_encoder_2/config.json").write_text(json.dumps({**config, "vocab_size": rows}))
    return base


def test_a_grown_checkpoint_is_carried_over(parts, grown, tmp_path):
    base = checkpoint(parts, tmp_path / "base", grown, FIRST + len(WORDS))
    assert not any("learned" in note for note in read_checkpoint(base).notes)
    config = json.loads((base / "text_encoder_2/config.json").read_text())
    (base / "text_encoder_2/config.json").write_text(json.dumps({**config, "eos_token_id": 2}))
    assert "eos_token_id = 2" in " ".join(read_checkpoint(base).notes)


@pytest.mark.parametrize(
    ("with_words", "rows", "numbers"),
    [
        (False, 2, "49410 word embeddings, but its tokenizer_2 has 49408"),
        (True, 0, "49408 word embeddings.* 49413 words"),
    ],
)
def test_words_in_one_of_them_alone_are_rejected(parts, grown, tmp_path, with_words, rows, numbers):
    base = checkpoint(parts, tmp_path / "base", grown if with_words else None, FIRST + rows)
    with pytest.raises(InputError, match=numbers):
        read_checkpoint(base)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"Xyzzy": FIRST + 1}, "several ids"),
        ({"qqzz": FIRST}, "another word has the same id"),
        ({"cat</w>": FIRST + 9}, "several ids"),
        ({"qqzz": FIRST + 99}, "ids before it have gaps"),
        ({"x": None}, "no usable CLIP tokenizer"),
        ([], "no usable CLIP tokenizer"),
        (None, "no usable CLIP tokenizer"),
    ],
)
def test_added_words_that_contradict_are_rejected(grown, tmp_path, content, message):
    folder = shutil.copytree(grown, tmp_path / "tokenizer")
    (folder / "added_tokens.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=message):
        folder_tokenizer_json(folder)


def test_a_vector_of_several_that_ignores_the_normalizer_is_rejected(grown, tmp_path):
    folder = shutil.copytree(grown, tmp_path / "tokenizer")
    whole = json.loads((folder / "tokenizer.json").read_text())
    for entry in whole["added_tokens"]:
        entry["normalized"] = False
    (folder / "tokenizer.json").write_text(json.dumps(whole))
    with pytest.raises(InputError, match="several vectors"):
        folder_tokenizer_json(folder)


BROKEN = {
    "null": lambda whole: None,
    "list": lambda whole: [],
    "no model": lambda whole: {},
    "wordpiece": lambda whole: {**whole, "model": {**whole["model"], "type": "WordPiece"}},
    "vocabulary list": lambda whole: {**whole, "model": {**whole["model"], "vocab": []}},
    "other vocabulary": lambda whole: {**whole, "model": {**whole["model"], "vocab": {"a": 0, "b": 1}}},
    "ids that are words": lambda whole: {**whole, "model": {**whole["model"], "vocab": {"<|startoftext|>": "x"}}},
    "merges of three": lambda whole: {**whole, "model": {**whole["model"], "merges": [["a", "b", "c"]]}},
    "merges of nothing": lambda whole: {**whole, "model": {**whole["model"], "merges": [["qqq", "zzz"]]}},
}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_tokenizer_is_rejected(grown, tmp_path, broken):
    folder = shutil.copytree(grown, tmp_path / "tokenizer")
    whole = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(BROKEN[broken](whole)))
    with pytest.raises(InputError, match="no usable CLIP tokenizer"):
        folder_tokenizer_json(folder)


def test_a_model_without_added_words_is_as_before(source: RandomSource):
    added = json.loads(source.tokenizers()[0])["added_tokens"]
    assert [entry["content"] for entry in added] == ["<|startoftext|>", "<|endoftext|>"]
