from __future__ import annotations

import json
import os
import random
import sys
import unicodedata
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tokenizers import normalizers

from infid_engines.errors import EngineFolderError, InputError
from infid_engines.validation import shown
from infid_export.model.tokenizers import AddedWord, _tokenizer_json, sdxl_tokenizers
from infid_export.runtime.tokenizer import FILES, PromptTokenizer

if TYPE_CHECKING:
    from cpp_library import Probe

PROMPTS = [
    "", " ", "\n", "a photo", "Hello,   WORLD! it's 2024", "don't we'll 3.14 #x@y  a_b", "'s 'tis rock'n'roll I'M",
    "tab\tnew\nline\u2028x\x85y\x1cz", "½ ² Ⅷ ① ٣", "e\u0301 \u0301e a\u0327\u0301 a\u0301\u0327", "İ I\u0307 ı",
    "ΟΔΟΣ Σ σς", "각 \u1100\u1161\u11a8", "Å \u212b ﬁ \ufb2a \u0958", "nb\u00a0sp\u3000x", "“quotes” – — …",
    "👩\u200d👩\u200d👧 😀 🇩🇪 ☺️", "１２ Ａ ａ カ゛", "العربية हिन्दी русский ไทย", "\0nul \x7f", "zero\u200bwidth\ufeff",
    "<|startoftext|><|ENDOFTEXT|> a<|endoftext|>b!c!!", "光" * 200, "word " * 75, "word " * 75 + "sunset",
    "word " * 74 + "antidisestablishmentarianism end", "x" * 400, "!" * 80 + " a cat", "word " * 74 + "!!! a cat",
    "é" * 300, "e\u0301" * 300, "가" * 120, "  " + "a, " * 60, "\x1c" * 5 + "b\x1d " * 90 + "c\x1f",
    "word " * 74 + "İİİİ x", "word " * 73 + "e\u0301te\u0301 naïve cafe\u0301 x", "Ω" * 100 + "\u2126" * 3,
    "<|endoftext|>" * 90,
]  # fmt: skip
SCRIPTS = [
    (0x20, 0x7F), (0xA0, 0x250), (0x300, 0x370), (0x370, 0x530), (0x590, 0x700), (0x900, 0xE80), (0x1100, 0x1200),
    (0x1E00, 0x2070), (0x2100, 0x2C00), (0x3040, 0x3400), (0x4E00, 0x4F00), (0xAC00, 0xAC80), (0xF900, 0xFB50),
    (0xFE00, 0x10000), (0x1D160, 0x1D800), (0x1F100, 0x1FA00), (0, 0x110000),
]  # fmt: skip
WORDS = [
    "a",
    "Photo",
    " ",
    "  ",
    "'s",
    "'LL",
    "!",
    "<|endoftext|>",
    "<|startoftext|>",
    "2024",
    "\n",
    "é",
    "İ",
    "Σ",
    ",",
]


@cache
def is_known(character: str) -> bool:
    """Whether all Unicode data in use agree on a character.

    utf8proc may be as old as Unicode 14, as is Python 3.11's data. What is not assigned there is left out, and the
    marks of Unicode 10 and later, which the tokenizers library does not reorder: its composition knows Unicode 9.
    """
    if unicodedata.category(character) in ("Cn", "Cs"):
        return False
    decomposed = unicodedata.normalize("NFD", character)
    if decomposed == character and not unicodedata.category(character).startswith("M"):
        return True
    compose: Callable[[str], str] = normalizers.NFC().normalize_str
    texts = [f"a{character}\u0301", f"a{character}\u0327", f"a{character}\u0345", f"a\u0345{character}", decomposed]
    return all(compose(text) == unicodedata.normalize("NFC", text) for text in texts)


def random_prompt(generator: random.Random, most: int) -> str:
    parts = []
    for _ in range(generator.randint(1, most)):
        if generator.random() < 0.4:
            parts.append(generator.choice(WORDS))
        else:
            first, end = generator.choice(SCRIPTS)
            parts.append(chr(generator.randrange(first, end)))
    return "".join(part for part in parts if len(part) > 1 or is_known(part))


def written(folder: Path, texts: Iterable[str]) -> Path:
    for name, text in zip(FILES, texts, strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def contents() -> tuple[str, str]:
    pytest.importorskip("open_clip", reason="lacks open_clip")
    return sdxl_tokenizers()


@pytest.fixture(scope="module")
def folder(contents: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("tokenizers"), contents)


def differences(cpp_probe: Probe, folder: Path, prompts: list[str], notes: bool = False) -> list[str]:
    """Return the first prompts whose ids or notes are not Python's."""
    lines = "".join(json.dumps(prompt) + "\n" for prompt in prompts)
    found = cpp_probe("tokens", folder, *["notes"] * notes, input=lines)
    assert found.returncode == 0, found.stderr
    answers = [json.loads(line) for line in found.stdout.split("\n")[:-1]]
    tokenizer = PromptTokenizer(folder)
    first, second = (ids.tolist() for ids in tokenizer.encode(prompts))
    extra = [[tokenizer.notes(prompt)] if notes else [] for prompt in prompts]
    expected = [[*ids, *noted] for *ids, noted in zip(first, second, extra, strict=True)]
    triples = zip(prompts, answers, expected, strict=True)
    return [f"{prompt!r}: {answer}, not {wanted}" for prompt, answer, wanted in triples if answer != wanted][:5]


def test_prompts_have_the_ids_and_notes_of_python(cpp_probe: Probe, folder: Path) -> None:
    assert differences(cpp_probe, folder, PROMPTS, notes=True) == []


def test_random_prompts_have_the_ids_of_python(cpp_probe: Probe, folder: Path) -> None:
    generator = random.Random(0)
    assert differences(cpp_probe, folder, [random_prompt(generator, 12) for _ in range(20_000)]) == []


def test_random_long_prompts_have_the_notes_of_python(cpp_probe: Probe, folder: Path) -> None:
    """Composed before, so that every character is where both libraries say; PROMPTS has others."""
    generator = random.Random(3)
    prompts = [unicodedata.normalize("NFC", random_prompt(generator, 30) * 3) for _ in range(300)]
    assert differences(cpp_probe, folder, prompts, notes=True) == []


def test_every_character_has_the_ids_of_python(cpp_probe: Probe, folder: Path) -> None:
    """Each one between two letters."""
    known = [
        chr(code) for code in range(sys.maxunicode + 1) if not 0x3400 < code < 0x9FFF and not 0xAC00 < code < 0xF900
    ]
    known = [each for each in known if each < "\U00017000" or "\U0001b000" < each < "\U00020010"]
    known = [each for each in known if is_known(each)]
    prompts = [" ".join(f"x{each}y" for each in known[i : i + 12]) for i in range(0, len(known), 12)]
    assert differences(cpp_probe, folder, prompts) == []


ADDED = {
    "<cat>": AddedWord(49408), "<cat>_1": AddedWord(49409), "<cat>_2": AddedWord(49410),
    "Sks": AddedWord(49411, single_word=True), "<L>": AddedWord(49412, lstrip=True, rstrip=True, normalized=False),
    "my word": AddedWord(49413, special=True), "<n>": AddedWord(49414, lstrip=True, rstrip=True),
    "s k": AddedWord(49415), "s k s": AddedWord(49416, normalized=False), "a.b* ]é": AddedWord(49417),
    "a.b* ]é_1": AddedWord(49418),
}  # fmt: skip


def test_added_words_have_the_ids_of_python(cpp_probe: Probe, contents: tuple[str, str], tmp_path: Path) -> None:
    """Words of textual inversion with all flags, and with several vectors."""
    model = json.loads(contents[0])["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    texts = [_tokenizer_json(model["vocab"], merges, pad, ADDED) for pad in ("<|endoftext|>", "!")]
    parts = [
        *ADDED,
        *map(str.upper, ADDED),
        "<cat>_0",
        "_2",
        "_10",
        "_",
        " ",
        "  ",
        "s",
        "k",
        "x",
        "é",
        "!",
        "🐈",
        "a.b*",
    ]
    generator = random.Random(1)
    prompts = ["".join(generator.choices(parts, k=generator.randint(1, 12))) for _ in range(1000)]
    prompts += ["".join(generator.choices([*parts, " a"], k=90)) for _ in range(100)]
    folder = written(tmp_path, texts)
    assert differences(cpp_probe, folder, prompts, notes=True) == []


def test_long_prompts_take_no_time(cpp_probe: Probe, folder: Path) -> None:
    """A quadratic algorithm would take very long."""
    starts = ["a", "ab", "e\u0301\u0327", "\u0327\u0301", "!", "光", "  ", "<", "가", "'s"]
    assert differences(cpp_probe, folder, [start * (20_000 // len(start)) for start in starts]) == []


def test_texts_in_messages_are_those_of_python(cpp_probe: Probe) -> None:
    generator = random.Random(2)
    alphabet = [
        "a",
        "'",
        '"',
        "\\",
        "\n",
        "\t",
        "\r",
        "\0",
        "\x7f",
        "\x85",
        "\xa0",
        "\xad",
        "é",
        "\u2028",
        "\u200b",
        "光",
        "😀",
        "\ue000",
    ]
    texts = ["".join(generator.choices(alphabet, k=generator.randint(0, 120))) for _ in range(500)]
    texts += ["a" * 40, "a" * 41, "光" * 78, "光" * 79, "a" * 80, "a" * 81]
    found = cpp_probe("texts", input="".join(json.dumps(text) + "\n" for text in texts)).stdout.split("\n")[:-1]
    assert found[::2] == [repr(text if len(text) <= 40 else f"{text[:39]}…") for text in texts]
    assert found[1::2] == [shown(text) for text in texts]


def changed(document: Any, place: str, value: Any) -> Any:
    """Return a copy of a document in which the entry at a place such as `padding.strategy` is changed."""
    name, _, rest = place.partition(".")
    key: Any = int(name) if isinstance(document, list) else name
    new = changed(document[key], rest, value) if rest else value
    if isinstance(document, list):
        return [*document[:key], new, *document[key + 1 :]]
    return {**document, key: new}


SAME_SENTENCE = {
    "no-padding": ("padding", None),
    "text-as-padding": ("padding", "x"),
    "no-truncation": ("truncation", None),
    "no-stride": ("truncation", {"max_length": 77}),
    "longest": ("padding.strategy", "BatchLongest"),
    "huge": ("padding.strategy", {"Fixed": 2**40}),
    "short": ("truncation.max_length", 10),
    "float": ("truncation.max_length", 76.5),
    "overlap": ("truncation.stride", 5),
    "no-post": ("post_processor", None),
    "no-single": ("post_processor", {"type": "TemplateProcessing", "pair": [], "special_tokens": {}}),
    "undefined": (
        "post_processor.special_tokens",
        {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [1], "tokens": ["x"]}},
    ),
}
REJECTED: dict[str, tuple[str, Any]] = {
    "no-model": ("model", None),
    "no-words": ("model.vocab", {}),
    "negative-id": ("model.vocab", {"a": -1}),
    "large-id": ("model.vocab", {"a": 2**40}),
    "unknown-merge": ("model.merges", [["q", "no"]]),
    "merge-of-one": ("model.merges", [["q"]]),
    "merge-of-numbers": ("model.merges", [[1, 2]]),
    "word-piece": ("model.type", "WordPiece"),
    "other-normalizer": ("normalizer", {"type": "NFD"}),
    "other-pattern": ("pre_tokenizer.pretokenizers.0.pattern", {"Regex": ".+"}),
    "left": ("padding.direction", "Left"),
    "pad-id": ("padding.pad_id", "x"),
    "list": ("added_tokens", [[]]),
    "two-texts": ("post_processor.single", [{"Sequence": {"id": "A", "type_id": 0}}] * 2),
}


@pytest.fixture(scope="module")
def small_contents() -> tuple[str, str]:
    """Tokenizers of a few words, which are read at once."""
    pytest.importorskip("transformers", reason="lacks transformers")
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    symbols = list(bytes_to_unicode().values())
    words = [*symbols, *(f"{symbol}</w>" for symbol in symbols), "ab", "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: index for index, word in enumerate(words)}
    first, second = (_tokenizer_json(vocabulary, [("a", "b")], pad) for pad in ("<|endoftext|>", "!"))
    return first, second


def rejection(cpp_probe: Probe, folder: Path) -> list[str]:
    found = cpp_probe("tokens", folder, input="")
    assert found.returncode == 1
    lines: list[str] = found.stderr.split("\n")[:-1]
    return lines


@pytest.mark.parametrize("content", [b"a\xff", b"\xc3", b"\xed\xa0\x80 b", b"\xf8\x88" * 60, b"x" * 90 + b"'\xff\n"])
def test_what_is_not_unicode_is_rejected_as_in_a_command(
    cpp_probe: Probe, small_contents: tuple[str, str], tmp_path: Path, content: bytes
) -> None:
    folder = written(tmp_path, small_contents)
    with pytest.raises(InputError) as caught:
        PromptTokenizer(folder).encode([os.fsdecode(content)])
    found = cpp_probe("prompt", folder, os.fsdecode(content))
    assert (found.returncode, found.stderr) == (1, f"{caught.value.problem}\n{caught.value.fix}\n")


@pytest.mark.parametrize("damage", SAME_SENTENCE)
def test_damaged_files_are_rejected_with_the_sentence_of_python(
    cpp_probe: Probe, small_contents: tuple[str, str], tmp_path: Path, damage: str
) -> None:
    broken = json.dumps(changed(json.loads(small_contents[1]), *SAME_SENTENCE[damage]))
    folder = written(tmp_path, (small_contents[0], broken))
    with pytest.raises(EngineFolderError) as caught:
        PromptTokenizer(folder)
    assert rejection(cpp_probe, folder) == [caught.value.problem, caught.value.fix]


@pytest.mark.parametrize("damage", REJECTED)
def test_other_tokenizers_are_rejected(
    cpp_probe: Probe, small_contents: tuple[str, str], tmp_path: Path, damage: str
) -> None:
    broken = json.dumps(changed(json.loads(small_contents[1]), *REJECTED[damage]))
    folder = written(tmp_path, (small_contents[0], broken))
    problem, fix = rejection(cpp_probe, folder)
    assert problem.startswith(f"{folder / FILES[1]} cannot be read (")
    assert fix == "Build the engine folder again."


@pytest.mark.parametrize("content", ["", "{", "[]", "7", '{"padding": NaN}', "[" * 5000, None], ids=str)
def test_what_is_no_tokenizer_is_rejected(
    cpp_probe: Probe, small_contents: tuple[str, str], tmp_path: Path, content: str | None
) -> None:
    folder = written(tmp_path, (small_contents[0], content or ""))
    if content is None:
        (folder / FILES[1]).unlink()
    with pytest.raises(EngineFolderError) as caught:
        PromptTokenizer(folder)
    assert rejection(cpp_probe, folder) == [caught.value.problem, caught.value.fix]
