"""A model source with one network from elsewhere: another VAE, or a UNet that was distributed alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from infid_export.model.checkpoints.stored_network import StoredNetwork
from infid_export.model.sources import ModelSource

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


class ReplacedSource:
    """A model source whose VAE or UNet is replaced; a `ModelSource`.

    Args:
        base: the model.
        network: the network that replaces the model's.
        note: what replaces what.
    """

    def __init__(self, base: ModelSource, network: StoredNetwork, note: str) -> None:
        self.base, self.network = base, network
        self.name, self.config, self.license = base.name, base.config, base.license
        self.zero_negative, self.scheduler = base.zero_negative, base.scheduler
        changed: dict[str, Any] = {network.component: dict(network.configuration)}
        self.architecture = replace(base.architecture, **changed)
        self.notes = (*base.notes, note)

    def fingerprint(self, component: str) -> str:
        """Return a hash of the component's weights and configuration."""
        return self.network.fingerprint() if self._replaces(component) else self.base.fingerprint(component)

    def empty(self, component: str) -> nn.Module:
        """Return the component with its parameters on the meta device.

        Raises:
            InputError: the weights that replace the model's have other shapes.
        """
        if not self._replaces(component):
            return self.base.empty(component)
        from infid_export.model.components import build_component

        return self.network.fitted(build_component(component, self.architecture, self.config))

    def load(self, component: str, dtype: torch.dtype) -> nn.Module:
        """Return the component with its weights, in evaluation mode.

        Raises:
            InputError: a weight is not finite, or has another shape.
        """
        if self._replaces(component):
            return self.network.load(self.empty(component), dtype)
        return self.base.load(component, dtype)

    def weights(self, component: str, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
        """Yield the component's parameters.

        Raises:
            InputError: as in `load`.
        """
        if self._replaces(component):
            return self.network.weights(self.empty(component), dtype)
        return self.base.weights(component, dtype)

    def tokenizers(self) -> tuple[str, str]:
        """Return both tokenizers."""
        return self.base.tokenizers()

    def tokenizer_fingerprint(self) -> str:
        """Return a text that changes when a tokenizer changes."""
        return self.base.tokenizer_fingerprint()

    def _replaces(self, component: str) -> bool:
        return component == self.network.component
