from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from infid_engines.errors import EngineFolderError, InputError
from infid_export.runtime.tokenizer import FILES, PromptTokenizer

PLAIN = [
    "a photo",
    "Hello,   WORLD! it's 2024",
    "",
    "   ",
    "emoji 😀 👩‍👩‍👧 ünïcødé 中文 naïve",
    "don't we'll 3.14 #x@y  a_b",
    "tab\tnew\nline",
    "x" * 400,
    "½ ² Ⅷ ①",
    "e\u0301 combining",
    "İstanbul STRASSE ß",
    "nb\u00a0sp",
    "...!!!???---",
    "a1b22c333",
    "'s 'tis rock'n'roll I'M",
    "(masterpiece:1.2), [x|y]",
    "العربية हिन्दी русский",
    "word " * 200,
]
# text that open_clip cleans first (ftfy, HTML entities), unlike SDXL's own tokenizers
CLEANED = ["<b>&amp;</b>", "ﬁne ligature", "Ａ full-width", "\x00nul", "zero\u200bwidth"]


@pytest.fixture(scope="module")
def tokenizer(tiny_folder: Path) -> PromptTokenizer:
    return PromptTokenizer(tiny_folder)


def test_ids_are_those_of_open_clip(tokenizer: PromptTokenizer) -> None:
    open_clip = pytest.importorskip("open_clip", reason="lacks open_clip")
    # SDXL's second tokenizer removes its padding token "!", unlike open_clip; see the next test
    prompts = [prompt for prompt in PLAIN if "!" not in prompt]
    expected = open_clip.tokenizer.SimpleTokenizer()(prompts).numpy()
    first, second = tokenizer.encode(prompts)
    assert first.dtype == second.dtype == np.int32
    assert first.shape == second.shape == (len(prompts), 77)
    np.testing.assert_array_equal(second, expected)
    ends = expected.argmax(1)  # the first end-of-text; the first tokenizer pads with it
    np.testing.assert_array_equal(first, np.where(np.arange(77) > ends[:, None], 49407, expected))


def test_ids_are_those_of_transformers(tokenizer: PromptTokenizer, tiny_folder: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="lacks transformers")
    model = json.loads((tiny_folder / FILES[0]).read_text(encoding="utf-8"))["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]), encoding="utf-8")
    merges = [item if isinstance(item, str) else " ".join(item) for item in model["merges"]]
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")
    prompts = [*PLAIN, *CLEANED]
    for ids, pad in zip(tokenizer.encode(prompts), ("<|endoftext|>", "!"), strict=True):
        reference = transformers.CLIPTokenizerFast(
            str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"), pad_token=pad
        )
        expected = reference(prompts, padding="max_length", truncation=True, max_length=77)["input_ids"]
        np.testing.assert_array_equal(ids, expected)


@pytest.mark.parametrize(
    ("prompt", "dropped"),
    [
        ("a short prompt", ""),
        ("word " * 75, ""),
        ("word " * 75 + "sunset", "sunset"),
        ("word " * 75 + "a  wonderful\nsunset", "a  wonderful\nsunset"),
        ("word " * 74 + "antidisestablishmentarianism end", "antidisestablishmentarianism end"),
    ],
    ids=["short", "just-fits", "one-word", "several", "cut-within-a-word"],
)
def test_dropped_words_are_told(tokenizer: PromptTokenizer, prompt: str, dropped: str) -> None:
    assert tokenizer.dropped(prompt) == dropped


@pytest.mark.parametrize(
    ("prompt", "first", "second"),
    [
        ("!" * 80 + " a cat", "", "!" * 5 + " a cat"),
        ("wow" + "!" * 74, "", ""),
        ("wow" + "!" * 75, "", "!"),
        ("word " * 70 + "!!!!! a cat", "", "a cat"),
        ("word " * 74 + "!!! a cat", "a cat", "!! a cat"),
        ("word " * 80, "word " * 4 + "word", "word " * 4 + "word"),
        ("word " * 74 + "a,b", "a,b"[1:], "a,b"[1:]),
    ],
    ids=["marks", "fits", "one-mark", "words-behind-marks", "both-differ", "both-equal", "punctuation"],
)
def test_each_encoder_leaves_out_its_own(tokenizer: PromptTokenizer, prompt: str, first: str, second: str) -> None:
    assert tokenizer.dropped_by(prompt) == (first, second)
    assert tokenizer.dropped(prompt) == max(first, second, key=len)
    told = tokenizer.notes(prompt)
    assert len(told) == bool(first) + (second not in ("", first))
    for text in {first, second} - {""}:
        assert any(note.endswith(f": {text}") or note.endswith(f"there: {text}") for note in told)


def test_nothing_is_left_out_that_the_ids_hold(tokenizer: PromptTokenizer) -> None:
    """The reported and the kept part together are the whole prompt; the kept part alone has the same ids."""
    for prompt in ("!" * 90 + " x", "a " * 90, "word " * 74 + "!!! a cat", "rock'n'roll! " * 30):
        for number, dropped in enumerate(tokenizer.dropped_by(prompt)):
            kept = prompt[: len(prompt.rstrip()) - len(dropped)]
            np.testing.assert_array_equal(tokenizer.encode([prompt])[number], tokenizer.encode([kept])[number])


def test_a_control_word_in_a_prompt_is_told(tokenizer: PromptTokenizer) -> None:
    assert tokenizer.notes("a cat <|endoftext|> at night") == [
        "a prompt contains <|endoftext|>; the pooled embedding ignores what follows it"
    ]


def test_without_spaces_the_rest_is_told(tokenizer: PromptTokenizer) -> None:
    prompt = "光" * 200
    dropped = tokenizer.dropped(prompt)
    assert 0 < len(dropped) < 200
    assert prompt.endswith(dropped)


@pytest.mark.parametrize(("prompt", "message"), [(7, "must be a string, not 7"), ("\ud83d", "not valid Unicode")])
def test_what_is_no_text_is_rejected(tokenizer: PromptTokenizer, prompt: object, message: str) -> None:
    for call in (lambda: tokenizer.encode([prompt]), lambda: tokenizer.dropped(prompt)):  # type: ignore[list-item, arg-type]
        with pytest.raises(InputError, match=message):
            call()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["missing", "broken", "no-padding"])
def test_damaged_files_are_rejected(tiny_folder: Path, tmp_path: Path, name: str, damage: str) -> None:
    for file in FILES:
        (tmp_path / file).parent.mkdir()
        shutil.copy(tiny_folder / file, tmp_path / file)
    path = tmp_path / name
    if damage == "missing":
        path.unlink()
    elif damage == "broken":
        path.write_text(path.read_text(encoding="utf-8")[:1000], encoding="utf-8")
    else:
        values = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps({**values, "padding": None}), encoding="utf-8")
    with pytest.raises(
        EngineFolderError, match="neither pads nor truncates" if damage == "no-padding" else "cannot be read"
    ):
        PromptTokenizer(tmp_path)
