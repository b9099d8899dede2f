"""SDXL's two CLIP tokenizers, from JSON files of the `tokenizers` library."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from infid_engines.errors import EngineFolderError

LENGTH = 77
FILES = ("tokenizer/tokenizer.json", "tokenizer_2/tokenizer.json")


class PromptTokenizer:
    """Turns prompts into the ids of both text encoders.

    Args:
        folder: engine folder with `tokenizer/` and `tokenizer_2/`; padding and truncation are in the files.
    """

    def __init__(self, folder: Path) -> None:
        self._tokenizers = []
        for name in FILES:
            try:
                self._tokenizers.append(Tokenizer.from_file(str(folder / name)))
            except Exception as error:  # the library raises bare Exception
                raise EngineFolderError(
                    f"{folder / name} cannot be read ({error}).", fix="Build the engine folder again."
                ) from error

    def encode(self, prompts: Sequence[str]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Return `[n, 77]` int32 ids for each text encoder."""
        first, second = (
            np.array([item.ids for item in tokenizer.encode_batch(list(prompts))], dtype=np.int32)
            for tokenizer in self._tokenizers
        )
        return first, second

    def dropped(self, prompt: str) -> str:
        """Return the end of a prompt that does not fit into 77 tokens, or an empty string."""
        encoding = self._tokenizers[0].encode(prompt)
        if not encoding.overflowing:
            return ""
        kept = max((end for _, end in encoding.offsets), default=0)
        return prompt[kept:].strip()
