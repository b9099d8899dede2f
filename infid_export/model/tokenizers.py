"""CLIP's tokenizer as a JSON file of the `tokenizers` library, from transformers' or open_clip's vocabulary."""

from __future__ import annotations

import gzip
import importlib.util
from pathlib import Path
from typing import Any

from infid_engines.documents import read_json
from infid_engines.errors import InputError

LENGTH = 77
_START, _END = "<|startoftext|>", "<|endoftext|>"
_MOST_WORDS = 1 << 20  # numbers of words; the tokenizers library makes a table up to the largest
_MERGES = 49152 - 256 - 2  # merges that CLIP uses of the file; see open_clip's SimpleTokenizer


def clip_tokenizer_json(pad: str) -> str:
    """Rebuild CLIP's tokenizer from the vocabulary that the open_clip package carries.

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
    """Return SDXL's two tokenizers, which differ in what they pad with; see `clip_tokenizer_json`."""
    return clip_tokenizer_json(pad=_END), clip_tokenizer_json(pad="!")


def folder_tokenizer_json(folder: Path) -> str:
    """Read a tokenizer folder of an SDXL checkpoint.

    It holds either `vocab.json`, `merges.txt` and `special_tokens_map.json`, or what newer versions of transformers
    write instead: `tokenizer.json` and `tokenizer_config.json`.

    Raises:
        InputError: a file is missing or broken.
    """
    try:
        if (folder / "vocab.json").is_file():
            vocabulary = _json(folder / "vocab.json")
            lines = (folder / "merges.txt").read_text(encoding="utf-8").strip().split("\n")
            merges = [tuple(line.split()) for line in lines if not line.startswith("#version")]
            pad = _json(folder / "special_tokens_map.json")["pad_token"]
        else:
            model = _json(folder / "tokenizer.json")["model"]
            vocabulary = model["vocab"]
            merges = [tuple(pair.split()) if isinstance(pair, str) else tuple(pair) for pair in model["merges"]]
            pad = _json(folder / "tokenizer_config.json")["pad_token"]
        return _tokenizer_json(vocabulary, [(left, right) for left, right in merges], _text(pad))
    except BaseException as error:
        # the tokenizers library raises bare Exception, and where its Rust code panics a BaseException
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise InputError(
            f"{folder} has no usable CLIP tokenizer ({error}).",
            fix="It needs vocab.json, merges.txt and special_tokens_map.json, or tokenizer.json and "
            "tokenizer_config.json.",
        ) from error


def _json(path: Path) -> Any:
    return read_json(path)


def _text(token: str | dict[str, str]) -> str:
    return token if isinstance(token, str) else token["content"]


def _tokenizer_json(vocabulary: dict[str, int], merges: list[tuple[str, str]], pad: str) -> str:
    ids = list(vocabulary.values()) if isinstance(vocabulary, dict) else [None]
    if not all(type(each) is int and 0 <= each < _MOST_WORDS for each in ids) or len(set(ids)) != len(ids):
        raise ValueError(f"its words have no different numbers from 0 to {_MOST_WORDS}")
    from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers, processors
    from tokenizers.models import BPE

    tokenizer = Tokenizer(
        BPE(vocabulary, merges, continuing_subword_prefix="", end_of_word_suffix="</w>", unk_token=_END)
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip(), normalizers.Lowercase()]
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
    # Special tokens are cut out of a prompt wherever they stand. With SDXL's second tokenizer that is "!" as well,
    # its padding token: transformers does so, and the pictures depend on it.
    tokenizer.add_special_tokens([_START, _END, pad])
    tokenizer.enable_truncation(LENGTH)
    tokenizer.enable_padding(length=LENGTH, pad_id=vocabulary[pad], pad_token=pad)
    return str(tokenizer.to_str())
