"""The LoRA inside an identity file, such as FaceID's: low-rank updates of the UNet's attention layers.

The identity weights were trained with it, so it is merged whenever they are used: W + s·U·D. Imports are light.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from infid_engines.errors import InputError
from infid_engines.hashes import remembered_sha256
from infid_export.model.config import IdentityConfig
from infid_export.model.identity_header import LORA, lora_tensors

if TYPE_CHECKING:
    from torch import nn

    from infid_export.model.changes.lora_merge import LowRank

_DOWN, _UP = ".down.weight", ".up.weight"
_AGAIN = "Import the weights again with `infid-export import`."


class IdentityLora:
    """The LoRA of an identity file; a `WeightUpdates`.

    Args:
        path: the identity file.
        scale: s.

    Raises:
        InputError: it cannot be read, or has one half of a pair only.
    """

    components = frozenset({"unet"})

    def __init__(self, path: Path, scale: float) -> None:
        self.path, self.scale = path, scale
        names = lora_tensors(path)
        downs, ups = ({name.removesuffix(end) for name in names if name.endswith(end)} for end in (_DOWN, _UP))
        unpaired = sorted((downs ^ ups) | {name for name in names if not name.endswith((_DOWN, _UP))})
        if unpaired:
            raise InputError(f"{path} has an incomplete LoRA: {', '.join(unpaired[:3])}.", fix=_AGAIN)
        self.layers = tuple(sorted(name.removeprefix(LORA) for name in downs))
        self.name = f"The LoRA of {path}"
        self.note = (
            f"LoRA of {path}: merged into {len(self.layers)} attention weights of the UNet at strength {scale:g}"
        )
        self.fingerprint = hashlib.sha256(f"{remembered_sha256(path)} {scale!r}".encode()).hexdigest()

    def updates(self, component: str) -> Mapping[str, Sequence[LowRank]]:
        """Return the updates of the UNet's parameters by name."""
        from safetensors import safe_open

        from infid_export.model.changes.lora_merge import LowRank

        if component not in self.components:
            return {}
        with safe_open(self.path, framework="pt") as file:
            return {
                f"{layer}.weight": [
                    LowRank(
                        file.get_tensor(f"{LORA}{layer}{_DOWN}"), file.get_tensor(f"{LORA}{layer}{_UP}"), self.scale
                    )
                ]
                for layer in self.layers
            }


def identity_lora(path: Path, config: IdentityConfig) -> IdentityLora | None:
    """Return the LoRA of an identity file; None if it has none, or its strength is 0."""
    return IdentityLora(path, config.lora_scale) if config.lora_scale and lora_tensors(path) else None


def merge_identity_lora(unet: nn.Module, path: Path, config: IdentityConfig) -> None:
    """Merge the LoRA of an identity file, if it has one, into a loaded UNet.

    Raises:
        InputError: it does not fit the UNet, or is not finite.
    """
    lora = identity_lora(path, config)
    if lora is None:
        return
    from infid_export.model.changes.lora_merge import merged, require_fitting

    parameters = dict(unet.named_parameters())
    for name, low_ranks in lora.updates("unet").items():
        parameter = parameters.get(name)
        for each in low_ranks:
            require_fitting(each, name, None if parameter is None else parameter.shape, lora.name)
        assert parameter is not None
        parameter.data = merged(parameter.detach(), low_ranks).to(parameter.dtype)
