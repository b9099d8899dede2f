"""A model source whose weights are updated while they are read. Imports are light."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING

from infid_export.model.changes.replaced_source import ReplacedSource
from infid_export.model.checkpoints.stored_network import StoredNetwork
from infid_export.model.sources import ModelSource

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from infid_export.model.changes.lora_merge import LowRank, WeightUpdates


class UpdatedSource:
    """A model source with low-rank updates of its weights, such as LoRAs; a `ModelSource`.

    Each weight is updated on its own, in fp32, and rounded once.

    Args:
        base: the model.
        updates: what is added to its weights; the order does not matter.
    """

    def __init__(self, base: ModelSource, updates: Sequence[WeightUpdates]) -> None:
        self.base, self.updates = base, tuple(updates)
        self.name, self.architecture, self.config = base.name, base.architecture, base.config
        self.zero_negative, self.scheduler = base.zero_negative, base.scheduler
        self.notes = (*base.notes, *(each.note for each in self.updates))
        self.license = base.license

    def fingerprint(self, component: str) -> str:
        """Return a hash of the base's weights and the updates; the base's own for an unchanged component."""
        prints = [each.fingerprint for each in self.updates if component in each.components]
        base = self.base.fingerprint(component)
        return hashlib.sha256("".join((base, *prints)).encode()).hexdigest() if prints else base

    def empty(self, component: str) -> nn.Module:
        """Return the component with its parameters on the meta device."""
        return self.base.empty(component)

    def load(self, component: str, dtype: torch.dtype) -> nn.Module:
        """Return the component with its updated weights, in evaluation mode.

        Raises:
            InputError: an update does not fit, or a weight is not finite.
        """
        import torch

        from infid_export.model.components import cast_module

        low_ranks = self.low_ranks(component)
        if not low_ranks:
            return self.base.load(component, dtype)
        module = self.base.load(component, torch.float32)
        for name, changes in low_ranks.items():
            parameter = module.get_parameter(name)
            parameter.data = _updated(name, parameter.detach(), changes, dtype)
        return cast_module(module, dtype)

    def weights(self, component: str, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
        """Yield the component's parameters, updated.

        Raises:
            InputError: an update does not fit, or a weight is not finite.
        """
        import torch

        low_ranks = self.low_ranks(component)
        if not low_ranks:
            yield from self.base.weights(component, dtype)
            return
        for name, value in self.base.weights(component, torch.float32):
            yield name, _updated(name, value, low_ranks.get(name, ()), dtype)

    def tokenizers(self) -> tuple[str, str]:
        """Return both tokenizers."""
        return self.base.tokenizers()

    def tokenizer_fingerprint(self) -> str:
        """Return a text that changes when a tokenizer changes."""
        return self.base.tokenizer_fingerprint()

    def low_ranks(self, component: str) -> dict[str, list[LowRank]]:
        """Return the updates of a component by parameter name, after checking that they fit.

        Raises:
            InputError: one does not fit, or is not finite; the message names it.
        """
        from infid_export.model.changes.lora_merge import require_fitting

        found: dict[str, list[LowRank]] = {}
        changing = [each for each in self.updates if component in each.components]
        shapes = {name: each.shape for name, each in self.empty(component).named_parameters()} if changing else {}
        for each in changing:
            for name, low_ranks in each.updates(component).items():
                for low_rank in low_ranks:
                    require_fitting(low_rank, name, shapes.get(name), each.name)
                found.setdefault(name, []).extend(low_ranks)
        return found


def _updated(name: str, value: Tensor, low_ranks: Sequence[LowRank], dtype: torch.dtype) -> Tensor:
    from infid_export.model.changes.lora_merge import merged
    from infid_export.model.finite import require_finite_tensor

    result = merged(value, low_ranks) if low_ranks else value
    require_finite_tensor(result, f"The weight {name}", dtype)
    return result.to(dtype)


def check_updates(source: ModelSource) -> None:
    """Read all updates of a source, if it has any, so that one that does not fit is reported before anything is built.

    Raises:
        InputError: one does not fit, or is not finite.
    """
    if isinstance(source, UpdatedSource):
        for component in sorted({name for each in source.updates for name in each.components}):
            source.low_ranks(component)
    if isinstance(source, UpdatedSource | ReplacedSource):
        check_updates(source.base)


def base_of(source: ModelSource) -> ModelSource:
    """Return the source without its updates and replaced networks."""
    return base_of(source.base) if isinstance(source, UpdatedSource | ReplacedSource) else source


def classes_of(source: ModelSource, components: Collection[str]) -> tuple[type, ...]:
    """Return the classes whose code decides the weights of components: those of a source and of what changes it."""
    if isinstance(source, UpdatedSource):
        kinds: list[type] = [type(each) for each in source.updates if each.components & set(components)]
        found: tuple[type, ...] = (UpdatedSource, *kinds) if kinds else ()
        return tuple(dict.fromkeys((*found, *classes_of(source.base, components))))
    if isinstance(source, ReplacedSource):
        others = set(components) - {source.network.component}
        found = (ReplacedSource, StoredNetwork) if len(others) < len(set(components)) else ()
        return tuple(dict.fromkeys((*found, *(classes_of(source.base, others) if others else ()))))
    return (type(source),)
