"""SDXL's two CLIP tokenizers, from JSON files of the `tokenizers` library."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from infid_engines.validation import text_of
from infid_export.runtime.tokenizer_file import LENGTH, open_tokenizer

_END = "<|endoftext|>"
FILES = ("tokenizer/tokenizer.json", "tokenizer_2/tokenizer.json")


class PromptTokenizer:
    """Turns prompts into token ids for both text encoders.

    Args:
        folder: engine folder with `tokenizer/` and `tokenizer_2/`; the files define padding and truncation.

    Raises:
        EngineFolderError: a file is missing, broken, or does not return 77 ids.
    """

    def __init__(self, folder: Path) -> None:
        self._tokenizers = [open_tokenizer(folder / name) for name in FILES]
        self._pads = [str((tokenizer.padding or {})["pad_token"]) for tokenizer in self._tokenizers]

    def encode(self, prompts: Sequence[str]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Return `[n, 77]` int32 ids for each text encoder.

        Raises:
            InputError: a prompt is not a text, or not valid Unicode.
        """
        checked = [text_of("A prompt", prompt) for prompt in prompts]
        first, second = (
            np.array([item.ids for item in tokenizer.encode_batch(checked)], dtype=np.int32)
            for tokenizer in self._tokenizers
        )
        return first, second

    def count(self, prompt: str) -> int:
        """Return how many of its 77 tokens the first text encoder takes for a prompt.

        Raises:
            InputError: the prompt is not a text, or not valid Unicode.
        """
        return sum(self._tokenizers[0].encode(text_of("A prompt", prompt)).attention_mask)

    def dropped(self, prompt: str) -> str:
        """Return the end of a prompt that not both text encoders read, or an empty string.

        Raises:
            InputError: the prompt is not a text, or not valid Unicode.
        """
        return max(self.dropped_by(prompt), key=len)

    def dropped_by(self, prompt: str) -> tuple[str, str]:
        """Return the words at the end of a prompt that do not fit into the 77 tokens of each text encoder.

        The two count differently: the second encoder's padding token is "!", and each one in a prompt is a token of
        its own. A row of them therefore pushes words out of the second encoder alone. A word that was cut in two
        counts as one that does not fit.

        Raises:
            InputError: the prompt is not a text, or not valid Unicode.
        """
        text_of("A prompt", prompt)
        first, second = (_beyond(tokenizer.encode(prompt), prompt) for tokenizer in self._tokenizers)
        return first, second

    def notes(self, prompt: str) -> list[str]:
        """Return what the user should know about how a prompt is read, one sentence each.

        Raises:
            InputError: the prompt is not a text, or not valid Unicode.
        """
        first, second = self.dropped_by(prompt)
        found = []
        if first:
            found.append(f"a prompt is longer than {LENGTH} tokens; dropped: {first}")
        if second and second != first:
            pad = self._pads[1]
            why = f', where each "{pad}" counts as one' if pad in prompt else ""
            found.append(
                f"a prompt is longer than {LENGTH} tokens of the second text encoder{why}; dropped there: {second}"
            )
        if _END in prompt:
            found.append(f"a prompt contains {_END}; the pooled embedding ignores what follows it")
        return found


def _beyond(encoding: Any, prompt: str) -> str:
    """Return the part of a prompt that is in the overflow of its encoding."""
    if not encoding.overflowing:
        return ""
    rest = encoding.overflowing[0]
    start, word = next(
        (span[0], word) for span, word in zip(rest.offsets, rest.word_ids, strict=True) if span[1] > span[0]
    )
    if word is not None and word in encoding.word_ids:
        # in a script without spaces, the whole text is one word
        start = encoding.offsets[encoding.word_ids.index(word)][0] or start
    return prompt[start:].strip()
