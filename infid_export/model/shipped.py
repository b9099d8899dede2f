"""The demo model in this package: trained on drawn people, and small enough for two CPU cores.

Its weights are fp16 safetensors in `demo/` next to this file; `demo/MODEL_CARD.md` describes their training.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from infid_engines.errors import InputError
from infid_engines.manifest import sha256_file
from infid_export.model.architectures import DEMO
from infid_export.model.config import read_config
from infid_export.model.identity_header import stored_license
from infid_export.model.tokenizers import sdxl_tokenizers
from infid_export.sampling.noise_schedule import SDXL_SCHEDULER

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

FILES = Path(__file__).parent / "demo"
# If only some rows of a tensor are stored, `<name>.rows` has their indices. The other rows are zero.
ROWS = ".rows"


class ShippedSource:
    """The demo model; a `ModelSource`.

    Args:
        choices: method choices that replace those of the identity weights, see `with_choices`.
        identity: identity weights that were trained on this model; None uses its own.

    Raises:
        InputError: this installation lacks the weights, or the identity file is broken.
    """

    name = "demo"
    architecture = DEMO
    zero_negative = True
    scheduler = SDXL_SCHEDULER

    def __init__(self, choices: Mapping[str, str | int | None] | None = None, identity: Path | None = None) -> None:
        self.identity = identity or shipped_file("identity")
        stored = read_config(self.identity)
        self.config = stored.with_choices(**(choices or {}))
        self.notes = stored.untrained_notes(self.config)
        self.license = stored_license(self.identity)

    def fingerprint(self, component: str) -> str:
        """Return a hash of the component's file and configuration."""
        if component == "identity":
            return sha256_file(self.identity)
        return fingerprint(component, self.architecture.component(component))

    def empty(self, component: str) -> nn.Module:
        """Return the component with its parameters on the meta device."""
        from infid_export.model.components import build_component

        return build_component(component, self.architecture, self.config)

    def load(self, component: str, dtype: torch.dtype) -> nn.Module:
        """Return the component with its weights, in evaluation mode."""
        from infid_export.model.components import cast_module

        if component == "identity":
            from infid_export.model.identity import IdentityModules
            from infid_export.model.processors import identity_blocks

            modules = IdentityModules.load(self.identity, identity_blocks(self.empty("unet")), dtype)
            modules.config = self.config  # the caller's choices override the file's
            return modules
        return cast_module(load_shipped(self.empty(component), component), dtype)

    def weights(self, component: str, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
        """Yield the component's parameters."""
        for name, parameter in self.load(component, dtype).named_parameters():
            yield name, parameter.detach()

    def tokenizers(self) -> tuple[str, str]:
        """Return SDXL's two tokenizers."""
        return sdxl_tokenizers()

    def tokenizer_fingerprint(self) -> str:
        """Return the vocabulary's name."""
        return "clip"


def shipped_file(name: str) -> Path:
    """Return the file of a network of the demo model: a component, `recognizer`, `facenet` or `detector`.

    Raises:
        InputError: this installation lacks it.
    """
    path = FILES / f"{name}.safetensors"
    if not path.is_file():
        raise InputError(f"This installation lacks {path}.", fix="Reinstall infid-export.")
    return path


def fingerprint(name: str, configuration: object = None) -> str:
    """Return a hash of a shipped network's weights and configuration."""
    facts = json.dumps(configuration, sort_keys=True).encode()
    return hashlib.sha256(shipped_file(name).read_bytes() + facts).hexdigest()


def load_shipped(module: nn.Module, name: str) -> nn.Module:
    """Load the shipped weights into a module in fp32 (it may be on the meta device); return it in evaluation mode."""
    import torch
    from safetensors.torch import load_file

    stored = load_file(shipped_file(name))
    state = {}
    for key, tensor in stored.items():
        if key.endswith(ROWS):
            continue
        values = tensor.float() if tensor.is_floating_point() else tensor
        if f"{key}{ROWS}" in stored:
            whole = torch.zeros(module.get_parameter(key).shape)
            whole[stored[f"{key}{ROWS}"].long()] = values
            values = whole
        state[key] = values
    module.load_state_dict(state, assign=True)
    return module.eval().requires_grad_(False)
