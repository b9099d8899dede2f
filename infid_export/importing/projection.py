"""An adapter's image projection: the sizes that its tensors have, as fields of `IdentityConfig`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infid_engines.errors import InputError
from infid_export.importing.weights_file import TensorFacts

_HEAD_WIDTH = 64  # of all their attention; the files do not say it
_NO_FACE = {"face_width": 0, "face_tokens": 0}
_NO_IMAGE = {"clip_layer": "none", "clip_tokens": 0, "clip_width": 0}
Encoders = Mapping[str, Mapping[str, Any]]
_AGAIN = "Download it again, or check that it is for SDXL."


@dataclass(frozen=True)
class Projection:
    """An adapter's tensors `image_proj.…`.

    Args:
        path: the file, for errors.
        tensors: without the prefix.
        encoders: configurations of image encoders by open_clip's name; the adapter reads the one whose width it has.
    """

    path: Path
    tensors: Mapping[str, TensorFacts]
    encoders: Encoders

    def shape(self, name: str, rank: int) -> tuple[int, ...]:
        """Return the shape of a tensor.

        Raises:
            InputError: it is missing, or has another number of dimensions.
        """
        if name not in self.tensors:
            raise InputError(f"{self.path} lacks the tensor image_proj.{name}.", fix=_AGAIN)
        found = self.tensors[name].shape
        if len(found) != rank or 0 in found:
            raise InputError(
                f"{self.path}: image_proj.{name} has shape {list(found)}, not {rank} positive dimensions.", fix=_AGAIN
            )
        return found

    def sizes(self, mapper: str, of_image: bool) -> dict[str, Any]:
        """Return the fields of `IdentityConfig` that the tensors decide.

        Args:
            mapper: kind of the mapper.
            of_image: whether a resampler reads an image; else it reads a face embedding.

        Raises:
            InputError: a tensor that decides one is missing or has an impossible shape, or no image encoder fits.
        """
        if mapper == "linear":
            width, tokens = self.shape("proj.weight", 2)[1], self._tokens("proj.weight")
            return {**self._image(width, pooled=True), **_NO_FACE, "mapper_queries": tokens, **self._dim("norm.weight")}
        if mapper == "mlp":
            return {**_NO_IMAGE, **self._face(), **self._dim("norm.weight")}
        if mapper == "mlp_perceiver":
            start = "perceiver_resampler."
            image = self._image(self.shape(f"{start}proj_in.weight", 2)[1])
            return {**image, **self._face(), **self._perceiver(start), "shortcut": True, **self._dim("norm.weight")}
        width, queries = self.shape("proj_in.weight", 2)[1], self.shape("latents", 3)[1]
        face = {**_NO_IMAGE, "face_width": width, "face_tokens": queries}
        reads = {**self._image(width), **_NO_FACE} if of_image else face
        return {**reads, **self._perceiver(""), "mapper_queries": queries, **self._dim("norm_out.weight")}

    def _dim(self, norm: str) -> dict[str, int]:
        return {"cross_attention_dim": self.shape(norm, 1)[0]}

    def _face(self) -> dict[str, int]:
        return {"face_width": self.shape("proj.0.weight", 2)[1], "face_tokens": self._tokens("proj.2.weight")}

    def _tokens(self, name: str) -> int:
        rows, dim = self.shape(name, 2)[0], self.shape("norm.weight", 1)[0]
        if rows % dim:
            raise InputError(
                f"{self.path}: image_proj.{name} returns {rows} values, which are no whole number of tokens of {dim}.",
                fix=_AGAIN,
            )
        return rows // dim

    def _perceiver(self, start: str) -> dict[str, int]:
        hidden, rows = self.shape(f"{start}proj_in.weight", 2)[0], self.shape(f"{start}layers.0.0.to_q.weight", 2)[0]
        if rows % _HEAD_WIDTH:
            raise InputError(
                f"{self.path}: image_proj.{start}layers.0.0.to_q.weight returns {rows} values, which are no whole "
                f"number of heads of {_HEAD_WIDTH}.",
                fix=_AGAIN,
            )
        layers = {
            name for name in self.tensors if re.fullmatch(rf"{re.escape(start)}layers\.\d+\.0\.to_q\.weight", name)
        }
        return {"mapper_hidden": hidden, "mapper_heads": rows // _HEAD_WIDTH, "mapper_layers": len(layers)}

    def _image(self, width: int, pooled: bool = False) -> dict[str, Any]:
        """Return the fields of the image encoder whose features have this width.

        Raises:
            InputError: there is none.
        """
        widths = {name: config["embed_dim" if pooled else "width"] for name, config in self.encoders.items()}
        name = next((name for name, each in widths.items() if each == width), None)
        if name is None:
            known = ", ".join(f"{each} of {name}" for name, each in widths.items())
            raise InputError(
                f"{self.path} reads {'pooled images' if pooled else 'images'} of width {width}, which no known image "
                f"encoder has ({known}).",
                fix="Use an adapter for one of them, or name another of open_clip's with --image-encoder-name.",
            )
        config = self.encoders[name]
        tokens = 1 if pooled else 1 + (config["image_size"] // config["patch_size"]) ** 2
        layer = "pooled" if pooled else "penultimate"
        return {"image_encoder": name, "clip_layer": layer, "clip_tokens": tokens, "clip_width": width}
