"""Configuration of the identity method: every choice that the sources leave open, and the paper's ablations."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

from safetensors import SafetensorError, safe_open

from infid_engines.errors import InputError

CONFIG_KEY = "infid_config"  # key in an identity file's header
_LARGEST = 1 << 16  # tokens or channels; SDXL has at most 2048 of either

CrossAdaIN = Literal["kv", "output", "off"]
UncondIdentity = Literal["zeros", "off"]
SelfAttention = Literal["mixed", "mutual", "plain"]
AdaIN = Literal["mean", "standard", "off"]
StreamCount = Literal["two", "one"]

# The attention of the identity rows for each number of streams. One stream has no text rows to attend to.
_ATTENTION: Mapping[str, Mapping[str, str]] = {
    "two": {"self_attention": "mixed", "adain": "mean", "cross_adain": "kv"},
    "one": {"self_attention": "plain", "adain": "off", "cross_adain": "off"},
}


@dataclass(frozen=True)
class IdentityConfig:
    """Sizes of the identity modules and the variant of the method.

    Args:
        image_encoder: open_clip's name for the image encoder's architecture.
        clip_tokens: tokens of the image encoder, class token included (257 for ViT-H/14 at 224 px).
        clip_width: width of the image encoder (1280 for ViT-H/14).
        face_width: length of the face embedding (512 for ArcFace).
        face_tokens: identity tokens per face embedding.
        cross_attention_dim: width of the identity tokens; the UNet's cross-attention width.
        self_attention: self-attention of the identity rows. `mixed` is the method; `mutual` attends only to the text
            rows' K_t, V_t (ablation), like MasaCtrl's mutual self-attention (Cao et al., arXiv 2304.08465); `plain`
            attends only to K_id, V_id (ablation).
        adain: `mean` is the method; `standard` also matches the deviation (ablation); `off` shifts nothing.
        cross_adain: where AdaIN acts in cross-attention: on keys and values, on the output, or nowhere.
        uncond_identity: `zeros` maps zero encoder features for the unconditional rows; `off` gives them no
            identity term at all.
        center_tokens: whether a person's tokens are centered to mean 0. The projections have no bias, so the keys and
            values then have mean 0 too, and AdaIN-mean in cross-attention adds the text's mean without taking
            anything from the person.
        trained_with_text: whether text cross-attention was active in training (ablation). It only describes the
            weights, and has no effect on inference.
        streams: `two` is the method; `one` has the identity rows alone, which attend to themselves, the prompt and the
            image keys and values. That is what IP-Adapter's weights are trained for. It goes with plain
            `self_attention`, and with `adain` and `cross_adain` off.
    """

    image_encoder: str = "ViT-H-14"
    clip_tokens: int = 257
    clip_width: int = 1280
    face_width: int = 512
    face_tokens: int = 4
    cross_attention_dim: int = 2048
    self_attention: SelfAttention = "mixed"
    adain: AdaIN = "mean"
    cross_adain: CrossAdaIN = "kv"
    uncond_identity: UncondIdentity = "zeros"
    center_tokens: bool = False
    trained_with_text: bool = False
    streams: StreamCount = "two"

    def __post_init__(self) -> None:
        """Reject values outside the documented choices."""
        hints = get_type_hints(type(self))
        for field in fields(self):
            value, allowed = getattr(self, field.name), get_args(hints[field.name])
            if allowed and value not in allowed:
                raise InputError(
                    f"{field.name} must be one of {', '.join(allowed)}, not {value!r}.",
                    fix=f"Choose one of them for {field.name}.",
                )
            if hints[field.name] in (str, bool) and type(value) is not hints[field.name]:
                raise InputError(
                    f"{field.name} must be {'a name' if hints[field.name] is str else 'true or false'}, not {value!r}.",
                    fix="Correct it in the identity file's configuration.",
                )
            if hints[field.name] is int and (type(value) is not int or not 1 <= value <= _LARGEST):
                raise InputError(
                    f"{field.name} must be a positive integer up to {_LARGEST}, not {value!r}.",
                    fix="Correct it in the identity file's configuration.",
                )
        for name, needed in _ATTENTION["one"].items() if self.streams == "one" else ():
            if getattr(self, name) != needed:
                raise InputError(
                    f"With one stream, {name} must be {needed}, not {getattr(self, name)}: there are no text rows.",
                    fix=f"Leave out {name}, or choose two streams.",
                )

    @property
    def fits_kernels(self) -> bool:
        """Whether the fused kernels compute this variant: mixed or plain attention, AdaIN-mean on keys and values."""
        return self.self_attention != "mutual" and self.adain == "mean" and self.cross_adain == "kv"

    @property
    def tokens(self) -> int:
        """Identity tokens of one person: image tokens, then face tokens."""
        return self.clip_tokens + self.face_tokens

    def with_choices(self, **choices: str | None) -> IdentityConfig:
        """Return a copy in which the choices that are not None replace the stored ones.

        Another number of streams than the stored one also changes what is not chosen: two streams get the method's own
        mixed attention and AdaIN-mean, one stream gets plain attention.

        Raises:
            InputError: there is no such choice, or one stream was chosen together with attention to a second one.
        """
        given = {name: value for name, value in choices.items() if value is not None}
        if given.get("streams", self.streams) != self.streams:
            given = {**_ATTENTION.get(given["streams"], {}), **given}
        return replace(self, **given)  # type: ignore[arg-type]

    def untrained_notes(self, chosen: IdentityConfig) -> tuple[str, ...]:
        """Return a note if `chosen` runs weights of this configuration in a way that they were not trained for."""
        if self.streams == chosen.streams:
            return ()
        return (
            f"streams {chosen.streams}: the identity weights are made for {self.streams}, and not trained for "
            f"{chosen.streams}; look at the images before you rely on them",
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the configuration as JSON-ready values."""
        return asdict(self)

    @classmethod
    def from_json(cls, text: str) -> IdentityConfig:
        """Read the configuration of an identity file's header.

        Raises:
            InputError: the text is not JSON, or names an unknown field or choice.
        """
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"The identity configuration is not JSON ({error}).", fix="Export the identity weights again."
            ) from error
        if not isinstance(values, dict):
            raise InputError(
                f"The identity configuration is {text[:40]!r}, not a JSON object.",
                fix="Export the identity weights again.",
            )
        unknown = set(values) - {field.name for field in fields(cls)}
        if unknown:
            raise InputError(
                f"The identity configuration has unknown fields: {', '.join(sorted(unknown))}.",
                fix="Update infid-export, or remove the fields.",
            )
        return cls(**values)


def read_config(path: str | Path) -> IdentityConfig:
    """Read the configuration in an identity file's header without loading a tensor.

    Raises:
        InputError: the file is missing, truncated or not an identity file.
    """
    if not Path(path).is_file():
        raise InputError(f"There is no identity file at {path}.", fix="Give the path of a .safetensors file.")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{path} is not an intact safetensors file ({error}).", fix="Copy or download it again."
        ) from error
    if CONFIG_KEY not in metadata:
        raise InputError(
            f"{path} has no '{CONFIG_KEY}' in its header, so it is not an Infinite-ID identity file.",
            fix="Save it with IdentityModules.save.",
        )
    return IdentityConfig.from_json(metadata[CONFIG_KEY])
