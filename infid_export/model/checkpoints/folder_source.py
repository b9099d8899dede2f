"""A checkpoint folder in diffusers' format as a model source. Imports are light."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infid_engines.hashes import remembered_sha256
from infid_export.model.architectures import Architecture, Sampling
from infid_export.model.checkpoints.files import (
    image_encoder_file,
    weight_files,
)
from infid_export.model.checkpoints.folder import Checkpoint, check_identity, image_encoder_config, read_checkpoint
from infid_export.model.checkpoints.prediction import AS_STORED, GivenPrediction, folder_sampling
from infid_export.model.checkpoints.tensor_file import TensorFile
from infid_export.model.config import IdentityConfig, read_config
from infid_export.model.vision_layout import check_size, require_image_encoder, size_of
from infid_export.sampling.scheduler_config import ModelSampling

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


class CheckpointSource:
    """An SDXL checkpoint folder in diffusers' format, with identity weights and an OpenCLIP image encoder.

    Args:
        folder: has `unet/`, `vae/`, `text_encoder/`, `text_encoder_2/`, `tokenizer/` and `tokenizer_2/`.
        identity: identity weights, see `IdentityModules.save`.
        image_encoder: checkpoint of the image encoder, a file or folder in OpenCLIP's or transformers' layout, or a
            pretrained tag that open_clip can download; None if the identity weights read no image.
        config: the method variant; None is the identity file's.
        prediction: what the user says about the checkpoint.

    Raises:
        InputError: a component is missing or not SDXL's.
    """

    def __init__(
        self,
        folder: Path,
        identity: Path,
        image_encoder: str | None,
        config: IdentityConfig | None = None,
        prediction: GivenPrediction = AS_STORED,
    ) -> None:
        checkpoint = read_checkpoint(folder)
        sampling, note = folder_sampling(checkpoint.sampling, prediction)
        notes = (*checkpoint.notes, note) if note else checkpoint.notes
        self.folder = folder
        self._take(str(folder), replace(checkpoint, sampling=sampling, notes=notes), identity, image_encoder, config)

    def _take(
        self,
        name: str,
        checkpoint: Checkpoint,
        identity: Path,
        image_encoder: str | None,
        config: IdentityConfig | None,
    ) -> None:
        """Set the attributes of a model source; the last three arguments are those of the class."""
        self.name, self.identity, self.image_encoder = name, identity, image_encoder
        self.config, self.license = config or read_config(identity), ""
        self.zero_negative, self.notes = checkpoint.zero_negative, checkpoint.notes
        vision = image_encoder_config(self.config.image_encoder)
        self.architecture = Architecture(
            checkpoint.parts["unet"],
            checkpoint.parts["vae"],
            checkpoint.parts["text_encoder"],
            checkpoint.parts["text_encoder_2"],
            vision,
            _sampling(checkpoint.sampling),
        )
        self.scheduler = checkpoint.sampling.schedule
        check_identity(self.config, vision, self.architecture.unet["cross_attention_dim"], self.name)
        self.image_encoder_file = None if image_encoder is None else image_encoder_file(image_encoder)
        if self.config.reads_image and self.image_encoder_file is not None:
            _check_header(self.image_encoder_file, self.config.image_encoder, vision)

    def fingerprint(self, component: str) -> str:
        """Return a hash of the component's files."""
        if component == "image_encoder" and self.image_encoder_file is None:
            return hashlib.sha256(f"open_clip:{self.config.image_encoder}:{self.image_encoder}".encode()).hexdigest()
        if component in ("image_encoder", "identity"):
            file = self.image_encoder_file if component == "image_encoder" else self.identity
            assert file is not None
            return remembered_sha256(file)
        files = [self.folder / component / "config.json", *weight_files(self.folder / component).all]
        return hashlib.sha256("".join(remembered_sha256(file) for file in files).encode()).hexdigest()

    def empty(self, component: str) -> nn.Module:
        """Return the component with its parameters on the meta device.

        Raises:
            InputError: its library cannot build a network from the configuration.
        """
        from infid_export.model.checkpoints.loading import explained
        from infid_export.model.components import build_component

        with explained(f"The {component} of {self.name}", fix="Use SDXL base or a fine-tune of it."):
            return build_component(component, self.architecture, self.config)

    def load(self, component: str, dtype: torch.dtype) -> nn.Module:
        """Load the component through its library's own loader.

        Raises:
            InputError: the weights are damaged, incomplete, not finite, or do not fit the configuration.
        """
        from infid_export.model.components import cast_module

        return cast_module(self._load(component, dtype), dtype).eval().requires_grad_(False)

    def _load(self, component: str, dtype: torch.dtype) -> nn.Module:
        from infid_export.model.checkpoints.loading import load_image_encoder, load_network
        from infid_export.model.finite import require_finite

        if component == "identity":
            from infid_export.model.identity import IdentityModules
            from infid_export.model.processors import identity_blocks

            modules = IdentityModules.load(self.identity, identity_blocks(self.empty("unet")), dtype)
            modules.config = self.config  # the caller's choices override the file's
            return modules
        if component == "image_encoder":
            assert self.image_encoder is not None
            encoder = load_image_encoder(self.empty(component), self.config.image_encoder, self.image_encoder)
            return require_finite(encoder, f"The image encoder {self.image_encoder}", dtype)
        return load_network(self.folder, component, dtype)

    def weights(self, component: str, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
        """Yield the loaded component's parameters."""
        for name, parameter in self.load(component, dtype).named_parameters():
            yield name, parameter.detach()

    def tokenizers(self) -> tuple[str, str]:
        """Return both tokenizers, including added words."""
        from infid_export.model.tokenizers import folder_tokenizer_json

        return folder_tokenizer_json(self.folder / "tokenizer"), folder_tokenizer_json(self.folder / "tokenizer_2")

    def tokenizer_fingerprint(self) -> str:
        """Return a hash of the files of both tokenizer folders."""
        files = sorted(file for name in ("tokenizer", "tokenizer_2") for file in (self.folder / name).glob("*.*"))
        facts = (f"{file.name}{remembered_sha256(file)}" for file in files if file.is_file())
        return hashlib.sha256("".join(facts).encode()).hexdigest()


def _check_header(file: Path, name: str, vision: Mapping[str, Any]) -> None:
    """Check an image encoder by its header, if it has one: now, not after an hour of building.

    Raises:
        InputError: it is something else, or of another architecture than `vision`.
    """
    if file.suffix == ".safetensors":
        shapes = TensorFile.open(file).shapes
        require_image_encoder(file, shapes)
        check_size(file, size_of(shapes), name, (vision["layers"], vision["width"]))


def _sampling(asked: ModelSampling) -> Sampling:
    """Return the defaults for a checkpoint; a few-step model needs few steps and no guidance."""
    usual = Sampling(sampler=asked.sampler, spacing=asked.spacing)
    return replace(usual, steps=4, guidance=1.0) if asked.distilled else usual
