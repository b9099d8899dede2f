"""What a model source is, and random weights of a known architecture as the simplest one.

A source returns components (`text_encoder`, `text_encoder_2`, `unet`, `vae`, `image_encoder`, `identity`), each
as an empty module on the meta device, as a loaded module, or as a stream of weights. Opening a source reads only
configurations and hashes; torch is imported when a component is requested.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from infid_export.model.architectures import DEMO, MEDIUM, SDXL, Architecture, identity_config
from infid_export.model.config import IdentityConfig
from infid_export.sampling.noise_schedule import SDXL_SCHEDULER

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

COMPONENTS = ("text_encoder", "text_encoder_2", "unet", "vae", "image_encoder", "identity")
RANDOM = {"random-sdxl": SDXL, "random-medium": MEDIUM}
BUILT_IN = {"demo": DEMO, **RANDOM}


class ModelSource(Protocol):
    """A model that can run as the reference and be exported."""

    name: str
    architecture: Architecture
    config: IdentityConfig
    zero_negative: bool  # whether a missing negative prompt means zero embeddings, not those of an empty text
    scheduler: Mapping[str, Any]  # the noise schedule it was trained with, fields as in `SDXL_SCHEDULER`
    notes: tuple[str, ...]  # what was chosen if the model leaves a choice, and why
    license: str  # one line on the license of the identity weights; empty if they have none

    def fingerprint(self, component: str) -> str:
        """Return a sha256 that changes when the component's weights or configuration change."""

    def empty(self, component: str) -> nn.Module:
        """Return the component without weights: parameters are on the meta device, buffers are real."""

    def load(self, component: str, dtype: torch.dtype) -> nn.Module:
        """Return the component with its weights, in evaluation mode."""

    def weights(self, component: str, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
        """Yield the component's parameters."""

    def tokenizers(self) -> tuple[str, str]:
        """Return both tokenizers as JSON for the `tokenizers` library."""

    def tokenizer_fingerprint(self) -> str:
        """Return a text that changes when a tokenizer changes."""


class RandomSource:
    """Seeded random weights: the architecture is real, the images are noise.

    Every parameter has its own generator, seeded by its name. So a component can be made in any order, partially, and
    in any dtype, always with the same values.

    Args:
        name: a key of `BUILT_IN`.
        seed: seed of all weights.
        config: the method variant; None is the default.
    """

    notes: tuple[str, ...] = ()
    license = ""
    scheduler = SDXL_SCHEDULER

    def __init__(self, name: str, seed: int = 0, config: IdentityConfig | None = None) -> None:
        self.name = name
        self.seed = seed
        self.architecture = BUILT_IN[name]
        self.config = config or identity_config(self.architecture)
        self.zero_negative = True  # like SDXL base

    def fingerprint(self, component: str) -> str:
        """Return a hash of everything that the weights depend on."""
        sizes = [self.config.tokens, self.config.clip_width, self.config.face_width, self.config.cross_attention_dim]
        facts = ["random", 1, self.seed, component, self.architecture.component(component), sizes]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def empty(self, component: str) -> nn.Module:
        """Return the component with its parameters on the meta device."""
        from infid_export.model.components import build_component

        return build_component(component, self.architecture, self.config)

    def load(self, component: str, dtype: torch.dtype) -> nn.Module:
        """Return the component with its random weights."""
        from infid_export.model.components import cast_module

        module = self.empty(component)
        module.load_state_dict(dict(self.weights(component, dtype)), strict=False, assign=True)
        return cast_module(module, dtype).eval().requires_grad_(False)

    def weights(self, component: str, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
        """Yield random parameters one at a time: unit norms, zero biases, and weights that keep activations near 1."""
        for name, parameter in self.empty(component).named_parameters():
            yield name, self._parameter(f"{component}.{name}", tuple(parameter.shape)).to(dtype)

    def _parameter(self, name: str, shape: tuple[int, ...]) -> Tensor:
        import torch

        if len(shape) < 2:
            return torch.ones(shape) if name.endswith("weight") else torch.zeros(shape)
        digest = hashlib.sha256(f"{self.seed}:{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
        return torch.empty(shape).normal_(0, 1 / math.sqrt(math.prod(shape[1:])), generator=generator)

    def tokenizers(self) -> tuple[str, str]:
        """Return SDXL's two tokenizers."""
        from infid_export.model.tokenizers import sdxl_tokenizers

        return sdxl_tokenizers()

    def tokenizer_fingerprint(self) -> str:
        """Return the vocabulary's name."""
        return "clip"
