"""Families of adapters with image keys and values: how each is recognized, and its configuration.

The layouts and choices are those of the authors' own code: IP-Adapter (Ye et al., arXiv 2308.06721; its repository's
`ip_adapter.py` and `ip_adapter_faceid.py`) and InstantID (Wang et al., arXiv 2401.07519; its pipeline).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from infid_engines.errors import InputError
from infid_export.importing.projection import Projection
from infid_export.model.config import Crop, FaceEmbedding, IdentityConfig, Mapper, UncondIdentity

_BUFFALO = "InsightFace's buffalo_l"


@dataclass(frozen=True)
class Family:
    """What the tensors do not say about an adapter.

    Args:
        title: its name.
        mapper: the network from features to identity tokens.
        recognizer: whose face embeddings it reads; empty if it reads none.
        uncond_identity: what its unconditional rows see.
        crop: what its image encoder sees; no matter without one.
        face_embedding: form of the embedding.
        lora: whether it has a LoRA for every attention layer.
        missing: what of the method is not imported, as a sentence; empty if nothing.
    """

    title: str
    mapper: Mapper
    recognizer: str = ""
    uncond_identity: UncondIdentity = "zeros"
    crop: Crop = "portrait"
    face_embedding: FaceEmbedding = "normalized"
    lora: bool = False
    missing: str = ""


FAMILIES: Mapping[str, Family] = {
    "ip-adapter": Family("IP-Adapter", "linear", crop="whole"),
    "ip-adapter-plus": Family("IP-Adapter Plus", "resampler", uncond_identity="zero_image", crop="whole"),
    "ip-adapter-plus-face": Family("IP-Adapter Plus-Face", "resampler", uncond_identity="zero_image"),
    "faceid": Family("IP-Adapter FaceID", "mlp", _BUFFALO, lora=True),
    "faceid-plusv2": Family(
        "IP-Adapter FaceID-PlusV2", "mlp_perceiver", _BUFFALO, uncond_identity="zero_image", crop="aligned", lora=True
    ),
    "instantid": Family(
        "InstantID", "resampler", "InsightFace's antelopev2", face_embedding="raw",
        missing="InstantID's ControlNet is not imported: the pose of the reference photo has no effect, only the face",
    ),
}  # fmt: skip
_PLUS = ("ip-adapter-plus", "ip-adapter-plus-face")


@dataclass(frozen=True)
class Recognized:
    """The family of a file, and why.

    Args:
        name: a key of `FAMILIES`.
        reason: what decided it.
    """

    name: str
    reason: str

    @property
    def family(self) -> Family:
        """The family."""
        return FAMILIES[self.name]


def recognize(projection: Projection, asked: str | None) -> Recognized:
    """Return the family of an adapter; the file's name decides between Plus and Plus-Face, which have the same tensors.

    Args:
        projection: its image projection.
        asked: the family that the user names; None decides.

    Raises:
        InputError: it is of no supported family, or of another one than asked.
    """
    found = _by_tensors(projection)
    if asked is None:
        return found
    if asked != found.name and not {asked, found.name} <= set(_PLUS):
        raise InputError(
            f"{projection.path} is not {FAMILIES[asked].title}: its image_proj is that of {found.family.title} "
            f"({found.reason}).",
            fix="Leave out --family.",
        )
    return Recognized(asked, "--family")


def _by_tensors(projection: Projection) -> Recognized:
    if "proj.3.weight" in projection.tensors:
        raise InputError(
            f"{projection.path} is IP-Adapter Full-Face, which exists for Stable Diffusion 1.5 only.",
            fix="Use IP-Adapter Plus-Face for SDXL.",
        )
    if "perceiver_resampler.proj_in.weight" in projection.tensors:
        return Recognized("faceid-plusv2", "it has a perceiver; for SDXL, only version 2 was published")
    if "latents" in projection.tensors:
        width = projection.shape("proj_in.weight", 2)[1]
        if width == IdentityConfig.face_width:
            return Recognized("instantid", f"its resampler reads face embeddings of length {width}")
        is_face = re.search("face", projection.path.name, re.IGNORECASE) is not None
        reason = f'its resampler reads images, and its file\'s name has {"a" if is_face else "no"} "face" in it'
        return Recognized(_PLUS[is_face], reason)
    if "proj.weight" in projection.tensors:
        return Recognized("ip-adapter", "its projection is one linear layer")
    if "proj.0.weight" in projection.tensors:
        return Recognized("faceid", "its projection reads face embeddings alone")
    raise InputError(
        f"{projection.path} has an image_proj of no known layout ({', '.join(sorted(projection.tensors)[:3])}, …).",
        fix=f"Give the weights of {', '.join(each.title for each in FAMILIES.values())} for SDXL.",
    )


def configuration(found: Recognized, projection: Projection) -> IdentityConfig:
    """Return the configuration of an adapter's modules, with the sizes that its tensors have.

    Raises:
        InputError: a tensor that decides a size is missing or has an impossible shape, or no image encoder fits.
    """
    family = found.family
    sizes = projection.sizes(family.mapper, of_image=not family.recognizer)
    try:
        return IdentityConfig(
            **sizes,
            mapper=family.mapper,
            self_attention="plain",
            adain="off",
            cross_adain="off",
            streams="one",
            uncond_identity=family.uncond_identity,
            crop=family.crop,
            face_embedding=family.face_embedding,
            family=found.name,
        )
    except InputError as error:
        raise InputError(
            f"{projection.path} has an image_proj of impossible sizes: {error.problem}",
            fix="Use the weights as they were published.",
        ) from error
