"""CLIP's tokenizer as JSON for the `tokenizers` library, from transformers' or open_clip's vocabulary."""

from __future__ import annotations

import gzip
import importlib.util
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infid_engines.documents import read_json
from infid_engines.errors import InputError

LENGTH = 77
_START, _END = "<|startoftext|>", "<|endoftext|>"
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
_MOST_WORDS = 1 << 20  # limit for the ids of words; the tokenizers library allocates a table up to the largest
_MERGES = 49152 - 256 - 2  # merges in the file that CLIP uses; see open_clip's SimpleTokenizer


def clip_tokenizer_json(pad: str) -> str:
    """Rebuild CLIP's tokenizer from the vocabulary in the open_clip package.

    Args:
        pad: padding token: `<|endoftext|>` for SDXL's first tokenizer, `!` for its second.

    Returns:
        JSON text of a `tokenizers.Tokenizer` that pads and truncates to 77 ids.
    """
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    spec = importlib.util.find_spec("open_clip")
    if spec is None or spec.origin is None:
        raise InputError("open_clip is not installed.", fix='pip install "infid-export[export]"')
    with gzip.open(Path(spec.origin).parent / "bpe_simple_vocab_16e6.txt.gz", "rt", encoding="utf-8") as file:
        lines = file.read().split("\n")[1 : 1 + _MERGES]
    merges = [(left, right) for left, right in (line.split() for line in lines)]
    symbols = list(bytes_to_unicode().values())
    words = [*symbols, *(symbol + "</w>" for symbol in symbols), *(left + right for left, right in merges)]
    return _tokenizer_json({word: index for index, word in enumerate([*words, _START, _END])}, merges, pad)


def sdxl_tokenizers() -> tuple[str, str]:
    """Return SDXL's two tokenizers, which differ in their padding token; see `clip_tokenizer_json`."""
    return clip_tokenizer_json(pad=_END), clip_tokenizer_json(pad="!")


@dataclass(frozen=True)
class Vocabulary:
    """The content of a checkpoint's tokenizer folder.

    Args:
        words: token ids by symbol.
        merges: merges of the byte-pair encoding, in order.
        pad: the padding token.
        added: words that were added later, for example by textual inversion, with their flags, in the order of their
            ids; without the special tokens.
    """

    words: Mapping[str, int]
    merges: Sequence[tuple[str, str]]
    pad: str
    added: Mapping[str, AddedWord]

    @property
    def size(self) -> int:
        """Number of rows that a text encoder's embedding needs."""
        return 1 + max((*self.words.values(), *(word.id for word in self.added.values())))

    @property
    def end(self) -> int:
        """Id of the end token."""
        return self.words[_END]


@dataclass(frozen=True)
class AddedWord:
    """A word that was added to a vocabulary, with the flags of `tokenizers.AddedToken`."""

    id: int
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = True
    special: bool = False


def read_vocabulary(folder: Path) -> Vocabulary:
    """Read a tokenizer folder of an SDXL checkpoint.

    It contains either `vocab.json`, `merges.txt` and `special_tokens_map.json`, or, from newer versions of
    transformers, `tokenizer.json` and `tokenizer_config.json`. Added words are in `added_tokens.json`,
    `tokenizer_config.json` or `tokenizer.json`.

    Raises:
        InputError: a file is missing or broken, or the files disagree about a word.
    """
    try:
        whole = _json(folder / "tokenizer.json") if (folder / "tokenizer.json").is_file() else None
        config = _json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
        if (folder / "vocab.json").is_file():
            words = _json(folder / "vocab.json")
            lines = (folder / "merges.txt").read_text(encoding="utf-8-sig").strip().split("\n")
            merges = [tuple(line.split()) for line in lines if not line.startswith("#version")]
            pad = _json(folder / "special_tokens_map.json")["pad_token"]
            if whole is not None and whole["model"]["vocab"] != words:
                raise ValueError("vocab.json and tokenizer.json have different vocabularies")
        elif whole is not None:
            if whole["model"]["type"] != "BPE":
                raise ValueError(f"the tokenizer is of type {whole['model']['type']}, not BPE")
            words = whole["model"]["vocab"]
            merges = [
                tuple(pair.split()) if isinstance(pair, str) else tuple(pair) for pair in whole["model"]["merges"]
            ]
            pad = config["pad_token"]
        else:
            raise ValueError("there is neither vocab.json nor tokenizer.json")
        if not all(type(index) is int and index >= 0 for index in words.values()) or not {_START, _END} <= set(words):
            raise ValueError("the vocabulary is not CLIP's")
        pairs = [(left, right) for left, right in merges]
        added = _added_words(folder, config, whole, words, _text(pad))
        return Vocabulary(words, pairs, _text(pad), added)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{folder} has no usable CLIP tokenizer ({error}).",
            fix="It needs vocab.json, merges.txt and special_tokens_map.json, or tokenizer.json and "
            "tokenizer_config.json.",
        ) from error


def _added_words(
    folder: Path, config: Mapping[str, Any], whole: Mapping[str, Any] | None, words: Mapping[str, int], pad: str
) -> dict[str, AddedWord]:
    """Collect the added words from all three places where versions of transformers store them.

    Raises:
        ValueError: a word has different ids in two places, or two words share an id.
    """
    listed = [] if whole is None else list(whole.get("added_tokens") or [])
    listed += [{**entry, "id": int(index)} for index, entry in (config.get("added_tokens_decoder") or {}).items()]
    if (folder / "added_tokens.json").is_file():
        listed += [{"content": word, "id": index} for word, index in _json(folder / "added_tokens.json").items()]
    found: dict[str, AddedWord] = {}
    for entry in listed:
        word = str(entry["content"])
        flags = {name: entry[name] for name in _FLAGS if name in entry}
        known = found.setdefault(word, AddedWord(int(entry["id"]), **flags))
        if known.id != int(entry["id"]) or words.get(word, known.id) != known.id:
            raise ValueError(f"the word {word!r} has several ids")
    taken = {index: word for word, index in words.items()}
    for word, known in found.items():
        if taken.setdefault(known.id, word) != word:
            raise ValueError(f"another word has the same id as {word!r}")
    found = {word: known for word, known in found.items() if word not in (_START, _END, pad)}
    return dict(sorted(found.items(), key=lambda item: item[1].id))


def folder_tokenizer_json(folder: Path) -> str:
    """Return a tokenizer folder of a checkpoint as JSON text; see `read_vocabulary`.

    Raises:
        InputError: the folder has no CLIP tokenizer, or has added words that cannot be converted.
    """
    vocabulary = read_vocabulary(folder)
    try:
        return _tokenizer_json(vocabulary.words, vocabulary.merges, vocabulary.pad, vocabulary.added)
    except Exception as error:  # the library raises a bare Exception
        raise InputError(
            f"{folder} has no usable CLIP tokenizer ({error}).", fix="Copy or download the tokenizer again."
        ) from error


def _json(path: Path) -> Any:
    return read_json(path)


def _text(token: str | dict[str, str]) -> str:
    return token if isinstance(token, str) else token["content"]


def _tokenizer_json(
    vocabulary: Mapping[str, int],
    merges: Sequence[tuple[str, str]],
    pad: str,
    added: Mapping[str, AddedWord] | None = None,
) -> str:
    ids = list(vocabulary.values()) if isinstance(vocabulary, dict) else [None]
    if not all(type(each) is int and 0 <= each < _MOST_WORDS for each in ids) or len(set(ids)) != len(ids):
        raise ValueError(f"the ids of its words are not distinct numbers from 0 to {_MOST_WORDS}")
    from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers, processors
    from tokenizers.models import BPE

    extra = added or {}
    several = _several_vectors(extra)
    tokenizer = Tokenizer(
        BPE(dict(vocabulary), list(merges), continuing_subword_prefix="", end_of_word_suffix="</w>", unk_token=_END)
    )
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFC(),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Strip(),
            normalizers.Lowercase(),
            *(normalizers.Replace(Regex(pattern), row) for pattern, row in map(_written_out, several.values())),
        ]
    )
    pattern = r"""'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{_START} $A {_END}", special_tokens=[(token, vocabulary[token]) for token in (_START, _END)]
    )
    # Special tokens are split off anywhere in a prompt. For SDXL's second tokenizer this includes "!", its padding
    # token: transformers does the same, and the images depend on it.
    tokenizer.add_special_tokens([_START, _END, pad])
    for word, known in extra.items():
        flags = {name: getattr(known, name) for name in _FLAGS}
        content = f"{word}_0" if word in several else word
        (tokenizer.add_special_tokens if known.special else tokenizer.add_tokens)([AddedToken(content, **flags)])
        if tokenizer.token_to_id(content) != known.id:
            raise ValueError(f"the added word {word!r} cannot have the id {known.id}: the ids before it have gaps")
    tokenizer.enable_truncation(LENGTH)
    tokenizer.enable_padding(length=LENGTH, pad_id=vocabulary[pad], pad_token=pad)
    return str(tokenizer.to_str())


def _several_vectors(added: Mapping[str, AddedWord]) -> dict[str, list[str]]:
    """Return the words with several vectors, each with the words of all its vectors in order.

    Textual inversion stores further vectors of `<word>` as the words `<word>_1`, `<word>_2`, …, and diffusers replaces
    `<word>` in a prompt by all of them.

    Raises:
        ValueError: such a word is split off before it can be replaced.
    """
    found = {}
    for word in added:
        vectors = [word]
        while f"{word}_{len(vectors)}" in added:
            vectors.append(f"{word}_{len(vectors)}")
        if len(vectors) > 1:
            found[word] = vectors
            if not added[word].normalized or f"{word}_0" in added:
                raise ValueError(
                    f"the added word {word!r} has several vectors, and is not normalized or has another _0"
                )
    return found


def _written_out(vectors: Sequence[str]) -> tuple[str, str]:
    """Return the pattern of a word with several vectors in a lowercase text, and its replacement.

    The first vector's token is then called `<word>_0`: a token is matched by its
    normalized content, which has to stay the same. All vectors in a row, as diffusers writes them, are not changed.
    """
    word, *others = (re.escape(vector.lower()) for vector in vectors)
    row = " ".join(others)
    numbers = "|".join(map(str, range(len(vectors))))
    return f"{word}(?!_(?:{numbers})(?![0-9]))(?: {row})?", f"{vectors[0]}_0 {' '.join(vectors[1:])}".lower()
