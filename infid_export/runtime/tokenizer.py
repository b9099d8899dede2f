"""SDXL's two CLIP tokenizers, from JSON files of the `tokenizers` library."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from infid_engines.errors import InputError
from infid_export.runtime.tokenizer_file import open_tokenizer

FILES = ("tokenizer/tokenizer.json", "tokenizer_2/tokenizer.json")


class PromptTokenizer:
    """Turns prompts into the ids of both text encoders.

    Args:
        folder: engine folder with `tokenizer/` and `tokenizer_2/`; padding and truncation are in the files.

    Raises:
        EngineFolderError: a file is missing, broken, or does not give 77 ids.
    """

    def __init__(self, folder: Path) -> None:
        self._tokenizers = [open_tokenizer(folder / name) for name in FILES]

    def encode(self, prompts: Sequence[str]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Return `[n, 77]` int32 ids for each text encoder.

        Raises:
            InputError: a prompt is not a text, or not valid Unicode.
        """
        for prompt in prompts:
            _check(prompt)
        first, second = (
            np.array([item.ids for item in tokenizer.encode_batch(list(prompts))], dtype=np.int32)
            for tokenizer in self._tokenizers
        )
        return first, second

    def dropped(self, prompt: str) -> str:
        """Return the words at the end of a prompt that do not fit into 77 tokens, or an empty string.

        A word that was cut in two is among them.

        Raises:
            InputError: the prompt is not a text, or not valid Unicode.
        """
        _check(prompt)
        encoding = self._tokenizers[0].encode(prompt)
        if not encoding.overflowing:
            return ""
        kept = max((end for _, end in encoding.offsets), default=0)
        if 0 < kept < len(prompt) and not prompt[kept - 1].isspace() and not prompt[kept].isspace():
            # a script without spaces has no word to go back to
            kept = (kept - len(prompt[:kept].split()[-1])) or kept
        return prompt[kept:].strip()


def _check(prompt: str) -> None:
    if not isinstance(prompt, str):
        raise InputError(f"A prompt must be a text, not {prompt!r}.", fix="Give a string.")
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"The prompt {prompt!r} is not valid Unicode ({error.reason}).", fix="Type it anew."
        ) from error
