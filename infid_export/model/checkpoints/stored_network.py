"""One network in safetensors files, with the names of diffusers or of SDXL's original code; read one by one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from infid_engines.errors import InputError
from infid_engines.hashes import remembered_sha256
from infid_export.model.checkpoints.original_layout import PREFIXES, Place, original_places
from infid_export.model.checkpoints.tensor_file import TensorFile
from infid_export.model.checkpoints.weight_names import WITHOUT_EFFECT, require_all

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

_FLOATS = ("F16", "BF16", "F32", "F64")
_TRANSFORMERS = "text_model."  # prefix of a text encoder's parameters, in some versions of transformers
# Names of attention in the VAEs of older versions of diffusers.
_OLDER = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
# Starts of tensors of a network that no result depends on, beside `WITHOUT_EFFECT`: keys that say what it predicts, the
# VAE's training loss, a projection that SDXL does not read, and a mask that is the same in every model.
_UNREAD: Mapping[str, tuple[str, ...]] = {
    "unet": ("v_pred", "ztsnr"),
    "vae": ("loss.",),
    "text_encoder": ("text_projection",),
    "text_encoder_2": ("attn_mask",),
}


@dataclass(frozen=True)
class StoredNetwork:
    """A UNet, VAE or text encoder in safetensors files.

    Args:
        component: `unet`, `vae`, `text_encoder` or `text_encoder_2`.
        configuration: its configuration, in its library's format.
        what: its name for errors, such as "The vae of model.safetensors".
        files: the files.
        places: where each parameter is, by name, without `text_model.`.
    """

    component: str
    configuration: Mapping[str, Any]
    what: str
    files: Sequence[TensorFile]
    places: Mapping[str, Place]

    def fingerprint(self) -> str:
        """Return a hash of the files, and of what is read from them."""
        facts = [self.component, self.configuration, [remembered_sha256(file.path) for file in self.files]]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def fitted(self, module: nn.Module) -> nn.Module:
        """Return a module without weights, if the files' tensors have the shapes of its parameters.

        Raises:
            InputError: they have others.
        """
        shapes = {name: shape for file in self.files for name, shape in file.shapes.items()}
        require_all(
            self.what,
            mismatched=[
                place.key
                for name, parameter in module.named_parameters()
                if not _fits(shapes[(place := self._place(name)).key], place, tuple(parameter.shape))
            ],
        )
        return module

    def weights(self, module: nn.Module, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
        """Yield the parameters of a `fitted` module, each read when it is asked for.

        Raises:
            InputError: a value is not finite in the dtype.
        """
        from infid_export.model.finite import require_finite_tensor

        with ExitStack() as stack:
            readers: dict[str, Callable[[str], Tensor]] = {}
            for file in self.files:
                readers |= dict.fromkeys(file.shapes, stack.enter_context(file.mapped()))
            for name, parameter in module.named_parameters():
                place = self._place(name)
                stored = _part(readers[place.key](place.key), place).reshape(parameter.shape)
                value = stored.to(dtype).contiguous()
                if not bool(value.isfinite().all()):
                    require_finite_tensor(stored.float(), f"{self.what}: {place.key}", dtype)
                yield name, value

    def load(self, module: nn.Module, dtype: torch.dtype) -> nn.Module:
        """Put the weights into a `fitted` module on the meta device; return it in evaluation mode."""
        module.load_state_dict(dict(self.weights(module, dtype)), strict=False, assign=True)
        return module.eval().requires_grad_(False)

    def _place(self, name: str) -> Place:
        return self.places[name.removeprefix(_TRANSFORMERS)]


def find_network(
    component: str, configuration: Mapping[str, Any], files: Sequence[TensorFile], what: str
) -> StoredNetwork:
    """Find a network's parameters in files.

    Args:
        component: `unet`, `vae`, `text_encoder` or `text_encoder_2`.
        configuration: its configuration.
        files: one file, or shards. Their names are the original code's, with or without the prefix that they have in
            a file with all networks, or diffusers'.
        what: see `StoredNetwork`.

    Raises:
        InputError: a parameter is missing, a tensor of the network has no parameter, or a type is not supported.
    """
    types = {name: kind for file in files for name, kind in file.types.items()}
    prefix, places = _nearest(component, configuration, types)
    wanted = {place.key for place in places.values()}
    unread = tuple(f"{prefix}{start}" for start in _UNREAD[component])
    left = [name for name in types.keys() - wanted if name.startswith(prefix) and not name.startswith(unread)]
    require_all(
        what,
        missing=wanted - types.keys(),
        unexpected=[name for name in left if not name.endswith(WITHOUT_EFFECT)],
    )
    for name in sorted(wanted):
        if types[name] not in _FLOATS:
            raise InputError(
                f"{what} has weights of type {types[name]} ({name}), which cannot be computed with.",
                fix="Use the file in fp16, bf16 or fp32.",
            )
    return StoredNetwork(component, configuration, what, files, places)


def _nearest(
    component: str, configuration: Mapping[str, Any], names: Mapping[str, str]
) -> tuple[str, dict[str, Place]]:
    """Return the layout that most of the names are from: its prefix, and the places of all parameters."""
    original = original_places(component, configuration)
    candidates = [
        (prefix, {name: Place(prefix + place.key, place.third, place.transposed) for name, place in original.items()})
        for prefix in (PREFIXES[component], "")
    ]
    candidates.append(("", {name: Place(name) for name in original}))
    if component == "vae":
        candidates.append(("", {name: Place(_older(name)) for name in original}))
    return max(candidates, key=lambda each: sum(place.key in names for place in each[1].values()))


def _older(name: str) -> str:
    """Return a VAE parameter's name in older versions of diffusers."""
    for new, old in _OLDER.items():
        if f".attentions.0.{new}." in name:
            return name.replace(f".{new}.", f".{old}.")
    return name


def _fits(stored: tuple[int, ...], place: Place, wanted: tuple[int, ...]) -> bool:
    """Return whether a tensor has a parameter's shape; a 1 × 1 convolution can be stored for a linear layer."""
    shape = tuple(reversed(stored)) if place.transposed else stored
    if place.third is not None:
        shape = (shape[0] // 3, *shape[1:]) if shape[0] % 3 == 0 else ()
    return shape in (wanted, (*wanted, 1, 1))


def _part(stored: Tensor, place: Place) -> Tensor:
    if place.third is not None:
        return stored.chunk(3)[place.third]
    return stored.T if place.transposed else stored
