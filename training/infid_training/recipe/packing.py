"""The trained networks as the package ships them: in fp16, with embeddings only for the tokens that captions use."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from infid_engines.errors import TrainingError
from infid_engines.tensor_seal import SEAL_KEY
from infid_export.model.shipped import ROWS
from infid_training.recipe.contrast import token_ids, tokenizers
from infid_training.recipe.files import read_tensors, write_tensors
from infid_training.recipe.pictures import Pictures

_EMBEDDING = "token_embedding.weight"
_ENCODED_AT_ONCE = 4096


def pack(modules: Mapping[str, nn.Module], identity: Mapping[str, Path], words: Tensor, folder: Path) -> list[Path]:
    """Write one file per network.

    Args:
        modules: networks by the name of their file.
        identity: files of identity weights, by the name of the packed file; their headers are kept.
        words: ids of the tokens that captions use; the embeddings of all others are left out.
        folder: folder to write to.

    Returns:
        The files.

    Raises:
        TrainingError: a weight is too large for fp16.
    """
    folder.mkdir(exist_ok=True)
    files = []
    for name, module in modules.items():
        state = {key: _halved(value, f"{name}.{key}") for key, value in module.state_dict().items()}
        for key in [key for key in state if key.endswith(_EMBEDDING)]:
            state[key], state[f"{key}{ROWS}"] = state[key][words], words.to(torch.int32)
        files.append(folder / f"{name}.safetensors")
        write_tensors(state, files[-1])
    for name, path in identity.items():
        with safe_open(path, framework="pt") as file:
            # without the seal, which is of the fp32 values
            header = {name: value for name, value in file.metadata().items() if name != SEAL_KEY}
        files.append(folder / f"{name}.safetensors")
        write_tensors({key: _halved(value, key) for key, value in read_tensors(path).items()}, files[-1], header)
    return files


def used_words(pictures: Pictures) -> Tensor:
    """Return the ids of all tokens in all captions, in order."""
    used: set[int] = set()
    for tokenizer in tokenizers():
        for described in (False, True):
            for start in range(0, len(pictures), _ENCODED_AT_ONCE):
                batch = range(start, min(start + _ENCODED_AT_ONCE, len(pictures)))
                captions = [pictures.caption(index, described) for index in batch]
                used.update(token_ids(tokenizer, captions).flatten().tolist())
    return torch.tensor(sorted(used))


def _halved(value: Tensor, name: str) -> Tensor:
    if not value.is_floating_point():
        return value.cpu()
    half = value.detach().cpu().half()
    if not bool(half.isfinite().all()):
        raise TrainingError(
            f"{name} reaches {float(value.abs().max()):.3g}, too large for fp16.", fix="Train it again."
        )
    return half
