"""LoRA files: reads and checks names, shapes and scales, and returns the updates of a model's weights.

The file is mapped into memory. Opening it reads its header and hash only; imports are light.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infid_engines.errors import InputError
from infid_engines.hashes import remembered_sha256
from infid_export.model.changes.lora_names import Role, TensorName, layer_paths, other_base, other_method, parse_name
from infid_export.model.changes.updated_source import UpdatedSource
from infid_export.model.checkpoints.files import describe_tensors, read_json
from infid_export.model.checkpoints.tensor_file import TensorFile
from infid_export.model.sources import ModelSource

if TYPE_CHECKING:
    from torch import Tensor, nn

    from infid_export.model.changes.lora_merge import LowRank

_FOR_SDXL = "Use a LoRA for SDXL in the format of kohya's trainer, diffusers or PEFT."
# diffusers stores the settings of its adapters here, as JSON with `unet.` and the like before each name.
_SETTINGS = "lora_adapter_metadata"
_PEFT, _PEFT_SETTINGS = "base_model.model.", "adapter_config.json"
# Settings with which a LoRA is not W + s·U·D of the base model's own W.
_UNSUPPORTED = {
    "use_dora": lambda value: bool(value),
    "lora_bias": lambda value: bool(value),
    "init_lora_weights": lambda value: isinstance(value, str) and value.split("_")[0] in ("pissa", "olora", "corda"),
}


def lora_choice(text: str) -> tuple[Path, float]:
    """Return the file and the strength of a LoRA from `FILE[:STRENGTH]`.

    Raises:
        InputError: there is no such file, or the strength is not a finite number other than 0.
    """
    if Path(text).is_file():
        return Path(text), 1.0
    name, _, stated = text.rpartition(":")
    if not Path(name).is_file():
        missing = name if name and _number(stated) is not None else text
        raise InputError(
            f"There is no LoRA file {missing!r}.",
            fix="Give a safetensors file, with a strength if it is not 1: style.safetensors:0.8.",
        )
    strength = _number(stated)
    if strength is None or not math.isfinite(strength) or strength == 0:
        raise InputError(
            f"The strength of the LoRA {name} must be a finite number other than 0, not {stated!r}.",
            fix=f"For example: {name}:0.8.",
        )
    return Path(name), strength


def with_loras(source: ModelSource, choices: Sequence[str]) -> ModelSource:
    """Return a source with LoRAs in its weights.

    Args:
        source: the model.
        choices: `FILE[:STRENGTH]` of each LoRA.

    Raises:
        InputError: a file cannot be used, or is given twice.
    """
    loras = [Lora(*lora_choice(each), source) for each in choices]
    for index, lora in enumerate(loras):
        for other in loras[:index]:
            if lora.sha256 == other.sha256:
                raise InputError(
                    f"The LoRAs {other.path} and {lora.path} are the same.",
                    fix=f"Give it once, with the strength {other.strength + lora.strength:g}.",
                )
    return UpdatedSource(source, loras) if loras else source


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


@dataclass(frozen=True)
class _Layer:
    """The tensors of one layer: their names in the file."""

    down: str
    up: str
    alpha: str | None


class Lora:
    """The updates that a LoRA file makes to a model; `WeightUpdates`.

    Args:
        path: safetensors file.
        strength: factor of all its updates.
        source: the model.

    Raises:
        InputError: the file is missing or damaged, is no plain LoRA, or was trained for another base model.
    """

    def __init__(self, path: Path, strength: float, source: ModelSource) -> None:
        self.path, self.strength, self._source = path, strength, source
        self.name = f"The LoRA {path}"
        self._file = _opened(path, source.architecture.unet["cross_attention_dim"])
        self._layers = _layers(self._file, self.name)
        self.components = frozenset(component for component, _ in self._layers)
        self._settings, stored = _settings(self._file, self.components)
        self.sha256 = remembered_sha256(path)
        self.fingerprint = hashlib.sha256(json.dumps([self.sha256, stored, strength]).encode()).hexdigest()
        self.note = self._described()

    def _described(self) -> str:
        of_unet = sum(component == "unet" for component, _ in self._layers)
        counts = {"UNet": of_unet, "text encoders": len(self._layers) - of_unet}
        changed = ", ".join(
            f"{count} layer{'s' * (count > 1)} of the {what}" for what, count in counts.items() if count
        )
        assumed = any(names.alpha is None and place[0] not in self._settings for place, names in self._layers.items())
        alpha = "; it has no alpha, so alpha is the rank" if assumed else ""
        return f"LoRA {self.path.name}: {changed}, strength {self.strength:g}{alpha}; the text stream changes too"

    def updates(self, component: str) -> dict[str, list[LowRank]]:
        """Return the updates of a component by parameter name; their tensors are mapped from the file.

        Raises:
            InputError: a layer does not exist, or is named twice.
        """
        layers = {layer: names for (kind, layer), names in self._layers.items() if kind == component}
        paths = layer_paths(component, _updatable(self._source.empty(component)))
        self._require_known(component, layers, paths)
        named: dict[str, str] = {}
        found = {}
        with self._file.mapped() as read:
            for layer, names in layers.items():
                path = paths[layer]
                if other := named.get(path):
                    raise InputError(
                        f"{self.name} has two names for the layer {path}: {other} and {names.down}.",
                        fix="Keep only one of them.",
                    )
                named[path] = names.down
                found[f"{path}.weight"] = [self._low_rank(component, path, names, read)]
        return found

    def _require_known(self, component: str, layers: Mapping[str, _Layer], paths: Collection[str]) -> None:
        unknown = [names.down for layer, names in layers.items() if layer not in paths]
        if unknown:
            raise InputError(
                f"{self.name} changes layers that the {component} of {self._source.name} lacks: {_listed(unknown)}.",
                fix=_FOR_SDXL,
            )

    def _low_rank(self, component: str, path: str, names: _Layer, read: Callable[[str], Tensor]) -> LowRank:
        from infid_export.model.changes.lora_merge import LowRank

        down, up = read(names.down), read(names.up)
        rank = down.shape[0]
        if names.alpha is not None:
            scale = float(read(names.alpha)) / rank
        else:
            scale = _scale(self._settings[component], path, rank) if component in self._settings else 1.0
        if not math.isfinite(scale):
            raise InputError(f"{self.name} has an alpha for {path} that is not finite.", fix="Use an intact file.")
        return LowRank(down, up, self.strength * scale)


def _opened(path: Path, width: int) -> TensorFile:
    """Read a file's header, and reject what is no LoRA for this base model.

    Raises:
        InputError: it is not a plain LoRA for SDXL; the message names what it is.
    """
    file = TensorFile.open(path)
    if not file.shapes:
        raise InputError(f"The LoRA {path} has no tensors.", fix="Copy or download it again.")
    kind = describe_tensors(list(file.shapes))
    if kind == "an IP-Adapter":  # some have a LoRA among their tensors
        raise InputError(f"{path} is {kind}, not a LoRA.", fix="Convert it with `infid-export import`.")
    if not any(map(parse_name, file.shapes)) and kind not in ("", "a LoRA"):
        raise InputError(f"{path} is {kind}, not a LoRA.", fix=_FOR_SDXL)
    if base := other_base(file.shapes, width):
        raise InputError(f"The LoRA {path} was trained for {base}.", fix=_FOR_SDXL)
    if other := other_method(file.shapes):
        raise InputError(
            f"{path} has {other[0]} (such as {other[1]}), which cannot be merged; only plain LoRAs can.",
            fix="Use a plain LoRA, or merge this file into the checkpoint with the software that made it.",
        )
    return file


def _layers(file: TensorFile, what: str) -> dict[tuple[str, str], _Layer]:
    """Return the layers of a file by component and path.

    Raises:
        InputError: a tensor belongs to no layer, is not floating-point, or a layer is incomplete.
    """
    parsed = {name: parse_name(name) for name in file.shapes}
    unknown = [name for name, found in parsed.items() if found is None]
    if unknown:
        raise InputError(f"{what} has tensors that belong to no layer: {_listed(unknown)}.", fix=_FOR_SDXL)
    parts: defaultdict[tuple[str, str], dict[Role, str]] = defaultdict(dict)
    for name, found in parsed.items():
        assert found is not None
        _check_tensor(file, name, found, what)
        roles = parts[found.component, found.layer]
        if found.role in roles:
            raise InputError(
                f"{what} has two names for one tensor: {roles[found.role]} and {name}.", fix="Keep only one of them."
            )
        roles[found.role] = name
    halves = [next(iter(roles.values())) for roles in parts.values() if not {"down", "up"} <= roles.keys()]
    if halves:
        raise InputError(
            f"{what} lacks one of the two matrices of a layer: {_listed(halves)}.",
            fix="Copy or download it again.",
        )
    return {place: _Layer(roles["down"], roles["up"], roles.get("alpha")) for place, roles in parts.items()}


def _check_tensor(file: TensorFile, name: str, found: TensorName, what: str) -> None:
    shape, kind = file.shapes[name], file.types[name]
    if found.role == "alpha":
        if math.prod(shape) != 1:
            raise InputError(f"{what}: {name} has the shape {list(shape)}, not one value.", fix=_FOR_SDXL)
    elif not kind.startswith(("F", "BF")):
        raise InputError(f"{what}: {name} is of type {kind}, not floating-point.", fix="Use one that is not quantized.")
    elif len(shape) not in (2, 4) or 0 in shape:
        raise InputError(f"{what}: {name} has the shape {list(shape)}, not that of a matrix.", fix=_FOR_SDXL)


def _settings(file: TensorFile, components: Collection[str]) -> tuple[dict[str, dict[str, Any]], str]:
    """Return PEFT's settings by component, where a file has them, and everything that they were read from.

    Raises:
        InputError: they cannot be read, or are of another method than plain LoRA.
    """
    stored, beside = file.metadata.get(_SETTINGS, ""), file.path.with_name(_PEFT_SETTINGS)
    found: dict[str, dict[str, Any]] = {}
    if stored:
        values = _json(stored, f"{_SETTINGS} in {file.path}")
        for component in components:
            own = {key.removeprefix(f"{component}."): value for key, value in values.items()
                   if key.startswith(f"{component}.")}  # fmt: skip
            found |= {component: own} if own else {}
    elif any(name.startswith(_PEFT) for name in file.shapes) and beside.is_file():
        values = read_json(beside)
        found, stored = dict.fromkeys(components, values), json.dumps(values, sort_keys=True)
    for values in found.values():
        _check_settings(values, str(file.path))
    return found, stored


def _json(text: str, what: str) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{what} cannot be read ({error}).", fix="Copy or download it again.") from error
    if not isinstance(values, dict):
        raise InputError(f"{what} is not a JSON object.", fix="Copy or download it again.")
    return values


def _check_settings(values: Mapping[str, Any], where: str) -> None:
    alphas = values.get("alpha_pattern") or {}
    numbers = [values.get("lora_alpha"), *(alphas.values() if isinstance(alphas, dict) else [None])]
    if not all(isinstance(each, int | float) for each in numbers) or not all(map(_is_pattern, alphas)):
        raise InputError(f"The settings of {where} have no usable lora_alpha.", fix="Copy or download it again.")
    for name, matters in _UNSUPPORTED.items():
        if matters(values.get(name)):
            raise InputError(
                f"{where} was trained with {name} = {values[name]!r}, which cannot be merged; only plain LoRAs can.",
                fix="Merge it into the checkpoint with the software that made it.",
            )


def _is_pattern(text: str) -> bool:
    try:
        re.compile(text)
    except re.error:
        return False
    return True


def _scale(values: Mapping[str, Any], path: str, rank: int) -> float:
    """Return alpha/r as PEFT does: `alpha_pattern` has ends of paths, and `use_rslora` divides by √r."""
    patterns = values.get("alpha_pattern") or {}
    own = (alpha for end, alpha in patterns.items() if re.fullmatch(rf"(.*\.)?({end})", path))
    return float(next(own, values["lora_alpha"])) / (math.sqrt(rank) if values.get("use_rslora") else rank)


def _updatable(module: nn.Module) -> list[str]:
    """Return the paths of a network's linear layers and convolutions."""
    from torch import nn

    return [path for path, layer in module.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
