"""Configuration of the identity method: every choice that the sources leave open, and the paper's ablations."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

from infid_engines.errors import InputError
from infid_export.model.identity_header import open_header

CONFIG_KEY = "infid_config"  # key in an identity file's header
# The fields of the configuration that a build may choose anew.
METHOD_FIELDS = ("streams", "self_attention", "adain", "cross_adain", "cross_merge", "uncond_identity", "zero_tokens")
_LARGEST = 1 << 16  # tokens or channels; SDXL has at most 2048 of either

CrossAdaIN = Literal["kv", "output", "off"]
UncondIdentity = Literal["zeros", "zero_image", "off"]
SelfAttention = Literal["mixed", "mutual", "plain"]
AdaIN = Literal["mean", "standard", "off"]
CrossMerge = Literal["sum", "orthogonal", "orthogonal_v2"]
Mapper = Literal["infinite_id", "linear", "resampler", "mlp", "mlp_perceiver"]
ClipLayer = Literal["last", "penultimate", "pooled", "none"]
FaceEmbedding = Literal["normalized", "raw"]
Crop = Literal["portrait", "whole", "aligned"]
StreamCount = Literal["two", "one"]

# What each mapper reads of the image encoder, whether it reads a face embedding, and the sizes that it has.
_SIZES = ("mapper_hidden", "mapper_layers", "mapper_heads", "mapper_queries")
_READS: Mapping[str, tuple[tuple[str, bool], ...]] = {
    "infinite_id": (("last", True),),
    "linear": (("pooled", False),),
    "resampler": (("penultimate", False), ("none", True)),
    "mlp": (("none", True),),
    "mlp_perceiver": (("penultimate", True),),
}
_SIZED: Mapping[str, tuple[str, ...]] = {
    "infinite_id": (),
    "linear": ("mapper_queries",),
    "resampler": _SIZES,
    "mlp": (),
    "mlp_perceiver": _SIZES[:3],
}
_CORRECT = "Choose another value; if it is the identity file's own, save or import the weights again."
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
        clip_tokens: tokens that the mapper reads of the image encoder, class token included (257 for ViT-H/14 at
            224 px); 1 for `pooled`, 0 if the mapper reads no image.
        clip_width: their width (1280 for ViT-H/14; for `pooled`, that of its projection).
        face_width: length of the face embedding (512 for ArcFace); 0 if the mapper reads none.
        face_tokens: identity tokens per face embedding; 0 if the mapper reads none.
        cross_attention_dim: width of the identity tokens; the UNet's cross-attention width.
        self_attention: self-attention of the identity rows. `mixed` is the method; `mutual` attends only to the text
            rows' K_t, V_t (ablation), like MasaCtrl's mutual self-attention (Cao et al., arXiv 2304.08465); `plain`
            attends only to K_id, V_id (ablation).
        adain: `mean` is the method; `standard` also matches the deviation (ablation); `off` shifts nothing.
        cross_adain: where AdaIN acts in cross-attention: on keys and values, on the output, or nowhere.
        cross_merge: how the person's output joins the text's in cross-attention: `sum` is the method; `orthogonal` adds
            only what is orthogonal to the text's output over the tokens of each channel, and `orthogonal_v2` keeps
            as much of the rest as a token attends to the person (PuLID's `ortho` and `ortho_v2`, arXiv 2404.16022).
        uncond_identity: `zeros` maps zero encoder features for the unconditional rows; `zero_image` maps what the
            image encoder makes of an image that is zero after normalization; `off` gives them no identity term at all.
        center_tokens: whether a person's tokens are centered to mean 0. The projections have no bias, so the keys and
            values then have mean 0 too, and AdaIN-mean in cross-attention adds the text's mean without taking
            anything from the person.
        zero_tokens: zero rows after a person's keys and values. A token may then attend to nobody, which leaves the
            prompt more room (PuLID's `num_zero`).
        trained_with_text: whether text cross-attention was active in training (ablation). It only describes the
            weights, and has no effect on inference.
        mapper: the network from features to identity tokens: `infinite_id`, or that of another method, see
            `infid_export.model.mappers`.
        clip_layer: what the mapper reads of the image encoder: the `last` hidden state, the `penultimate` one, the
            `pooled` and projected class token, or `none`.
        face_embedding: whether the mapper reads the recognizer's embedding `normalized` to length 1, or `raw`.
        mapper_hidden: width inside `resampler` and `mlp_perceiver`. This and the next three are 0 if the mapper has no
            such size.
        mapper_layers: their layers.
        mapper_heads: heads of their attention.
        mapper_queries: identity tokens that `linear` and `resampler` return.
        shortcut: whether `mlp_perceiver` adds its result to the face tokens instead of replacing them.
        perceiver_scale: factor of that result, with `shortcut`.
        crop: what the image encoder sees: a `portrait` around the aligned face, the `whole` image, or the `aligned`
            face alone, as the recognizer sees it.
        family: name of the method that the weights come from, for messages.
        lora_scale: strength of the identity file's LoRA for the UNet, if it has one; 0 leaves it out.
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
    cross_merge: CrossMerge = "sum"
    uncond_identity: UncondIdentity = "zeros"
    center_tokens: bool = False
    zero_tokens: int = 0
    trained_with_text: bool = False
    mapper: Mapper = "infinite_id"
    clip_layer: ClipLayer = "last"
    face_embedding: FaceEmbedding = "normalized"
    mapper_hidden: int = 0
    mapper_layers: int = 0
    mapper_heads: int = 0
    mapper_queries: int = 0
    shortcut: bool = False
    perceiver_scale: float = 1.0
    crop: Crop = "portrait"
    family: str = "infinite-id"
    lora_scale: float = 1.0
    streams: StreamCount = "two"

    def __post_init__(self) -> None:
        """Reject values outside the documented choices, and choices that do not go together."""
        hints = get_type_hints(type(self))
        for field in fields(self):
            _check_value(field.name, getattr(self, field.name), hints[field.name])
        _check_mapper(self)
        _check_streams(self)

    @property
    def fits_kernels(self) -> bool:
        """Whether the fused kernels compute this variant: mixed or plain attention, AdaIN-mean on keys and values."""
        kept = self.adain == "mean" and self.cross_adain == "kv" and self.cross_merge == "sum"
        return kept and self.self_attention != "mutual"

    @property
    def tokens(self) -> int:
        """Identity tokens of one person; those of `infinite_id` are image tokens, then face tokens. Zeros are last."""
        if self.mapper == "infinite_id":
            return self.clip_tokens + self.face_tokens + self.zero_tokens
        return (self.mapper_queries or self.face_tokens) + self.zero_tokens

    @property
    def reads_image(self) -> bool:
        """Whether the mapper reads an image encoder."""
        return self.clip_layer != "none"

    @property
    def reads_face(self) -> bool:
        """Whether the mapper reads a face embedding."""
        return self.face_width > 0

    @property
    def encoder_inputs(self) -> tuple[str, ...]:
        """Names of the identity encoder's inputs."""
        return ("face_crop",) * self.reads_image + ("face_embedding",) * self.reads_face

    @property
    def finds_faces(self) -> bool:
        """Whether an enrollment needs a face in the photo, unless something else is chosen as its reference."""
        return self.reads_face or self.crop != "whole"

    def with_choices(self, **choices: str | int | None) -> IdentityConfig:
        """Return a copy in which the choices that are not None replace the stored ones.

        Another number of streams than the stored one also changes what is not chosen: two streams get the method's own
        mixed attention and AdaIN-mean, one stream gets plain attention.

        Raises:
            InputError: there is no such choice, or one stream was chosen together with attention to a second one.
        """
        given = {name: value for name, value in choices.items() if value is not None}
        if given.get("streams", self.streams) != self.streams:
            given = {**_ATTENTION.get(str(given["streams"]), {}), **given}
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
    with open_header(Path(path)) as file:
        metadata = file.metadata() or {}
    if CONFIG_KEY not in metadata:
        raise InputError(
            f"{path} has no '{CONFIG_KEY}' in its header, so it is not an Infinite-ID identity file.",
            fix="Save it with IdentityModules.save; convert weights of another method with `infid-export import`.",
        )
    return IdentityConfig.from_json(metadata[CONFIG_KEY])


def _check_value(name: str, value: Any, hint: Any) -> None:
    allowed = get_args(hint)
    if allowed:
        if value not in allowed:
            raise InputError(
                f"{name} must be one of {', '.join(allowed)}, not {value!r}.", fix=f"Choose one of them for {name}."
            )
        return
    kinds: dict[Any, tuple[str, bool]] = {
        str: ("a name", type(value) is str),
        bool: ("true or false", type(value) is bool),
        float: ("a finite number", type(value) in (int, float) and math.isfinite(value)),
        int: (f"a whole number from 0 to {_LARGEST}", type(value) is int and 0 <= value <= _LARGEST),
    }
    wanted, fits = kinds[hint]
    if not fits:
        raise InputError(f"{name} must be {wanted}, not {value!r}.", fix=_CORRECT)


def _check_streams(config: IdentityConfig) -> None:
    """Reject attention to a text stream that does not exist."""
    if config.streams == "two":
        return
    for name, needed in _ATTENTION["one"].items():
        if getattr(config, name) != needed:
            raise InputError(
                f"With one stream, {name} must be {needed}, not {getattr(config, name)}: there are no text rows.",
                fix=f"Leave out {name}, or choose two streams.",
            )


def _check_mapper(config: IdentityConfig) -> None:
    """Reject sizes and choices that the mapper does not have, or lacks."""
    mapper = config.mapper
    if (config.clip_layer, config.reads_face) not in _READS[mapper]:
        ways = " or ".join(
            f"clip_layer = {layer} with{'' if face else 'out'} a face embedding" for layer, face in _READS[mapper]
        )
        given = f"clip_layer = {config.clip_layer} and face_width = {config.face_width}"
        raise InputError(f"The mapper {mapper} takes {ways}, not {given}.", fix=_CORRECT)
    sized = {
        "cross_attention_dim": True,
        "clip_tokens": config.reads_image,
        "clip_width": config.reads_image,
        "face_tokens": config.reads_face,
        **{name: name in _SIZED[mapper] for name in _SIZES},
    }
    for name, needed in sized.items():
        value = getattr(config, name)
        if (value > 0) != needed:
            raise InputError(
                f"{name} must be {'positive' if needed else '0'} for the mapper {mapper} with clip_layer = "
                f"{config.clip_layer}, not {value}.",
                fix=_CORRECT,
            )
    perceives = mapper == "mlp_perceiver"
    for fits, problem in (
        (config.clip_layer != "pooled" or config.clip_tokens == 1,
         "A pooled image is 1 token, so clip_tokens must be 1"),
        (not config.mapper_heads or not config.mapper_hidden % config.mapper_heads,
         "mapper_hidden must be a multiple of mapper_heads"),
        (not perceives or config.mapper_hidden == config.cross_attention_dim,
         "mapper_hidden must be cross_attention_dim for mlp_perceiver, whose queries are the face tokens"),
        (mapper != "resampler" or config.face_tokens in (0, config.mapper_queries),
         "A resampler returns mapper_queries tokens of a face, so face_tokens must be that"),
        (perceives or not config.shortcut, "Only mlp_perceiver has a shortcut"),
        (config.shortcut or config.perceiver_scale == 1, "perceiver_scale has no effect without shortcut"),
        (config.reads_image or config.uncond_identity != "zero_image",
         "uncond_identity = zero_image needs a mapper that reads an image"),
    ):  # fmt: skip
        if not fits:
            raise InputError(f"{problem}.", fix=_CORRECT)
