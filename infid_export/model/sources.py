"""The sources of models: the package, random weights of a known architecture, or a checkpoint.

A source returns components (`text_encoder`, `text_encoder_2`, `unet`, `vae`, `image_encoder`, `identity`), each
as an empty module on the meta device, as a loaded module, or as a stream of weights. Opening a source reads only
configurations and hashes; torch is imported when a component is requested.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from infid_engines.errors import InputError
from infid_engines.hashes import remembered_sha256
from infid_export.model.architectures import DEMO, MEDIUM, SDXL, Architecture, Sampling, identity_config
from infid_export.model.checkpoints.file_kind import checkpoint_file
from infid_export.model.checkpoints.files import (
    checkpoint_folder,
    image_encoder_file,
    local_folder,
    weight_files,
)
from infid_export.model.checkpoints.folder import Checkpoint, check_identity, image_encoder_config, read_checkpoint
from infid_export.model.checkpoints.prediction import GivenPrediction, folder_sampling
from infid_export.model.config import IdentityConfig, read_config
from infid_export.model.identity_header import stored_license
from infid_export.model.identity_lora import identity_lora
from infid_export.model.shipped import ShippedSource
from infid_export.model.vision_layout import check_size, require_image_encoder, size_of
from infid_export.sampling.noise_schedule import SDXL_SCHEDULER
from infid_export.sampling.scheduler_config import ModelSampling

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

COMPONENTS = ("text_encoder", "text_encoder_2", "unet", "vae", "image_encoder", "identity")
RANDOM = {"random-sdxl": SDXL, "random-medium": MEDIUM}
BUILT_IN = {"demo": DEMO, **RANDOM}
_AS_STORED = GivenPrediction()


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
        prediction: GivenPrediction = _AS_STORED,
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


def open_source(
    model: str,
    *,
    identity: Path | None = None,
    image_encoder: str | None = None,
    seed: int = 0,
    choices: Mapping[str, str | int | None] | None = None,
    prediction: GivenPrediction = _AS_STORED,
    without: Collection[str] = (),
) -> ModelSource:
    """Open a model by name.

    Args:
        model: `demo`, `random-sdxl`, `random-medium`, a safetensors file in SDXL's original layout, a folder in
            diffusers' format, or a hub id.
        identity: identity weights; needed for a checkpoint, and replace the demo model's own.
        image_encoder: checkpoint of the image encoder, or tag; needed for a checkpoint, unless the identity weights
            read no image.
        seed: seed of random weights.
        choices: method choices that replace the stored ones if they are not None.
        prediction: what a checkpoint's UNet predicts.
        without: networks that a single file may lack, since others replace them: `vae`, `unet`.

    Raises:
        InputError: the model is missing or lacks a component, or a seed was given for trained weights.
    """
    chosen = choices or {}
    if seed and model not in RANDOM:
        raise InputError(f"A seed for random weights has no effect: {model} has trained weights.", fix="Leave it out.")
    if model == "demo":
        shipped = ShippedSource(chosen, identity)
        return _with_lora(shipped, shipped.identity)
    if model in BUILT_IN:
        return RandomSource(model, seed, identity_config(BUILT_IN[model]).with_choices(**chosen))
    if checkpoint_file(model, without) is None:
        local_folder(model)  # an unusable path is reported before missing identity weights
    stored = None if identity is None else read_config(identity)
    if identity is None or stored is None or (image_encoder is None and stored.reads_image):
        raise InputError(
            f"The checkpoint {model} needs identity weights and an image encoder.",
            fix="Give --identity weights.safetensors and --image-encoder open_clip_checkpoint.",
        )
    config = stored.with_choices(**chosen)
    source = open_checkpoint(model, identity, image_encoder, config, prediction, without)
    source.notes, source.license = (*source.notes, *stored.untrained_notes(config)), stored_license(identity)
    return _with_lora(source, identity)


def _with_lora(source: ModelSource, identity: Path) -> ModelSource:
    """Return the source with the identity file's LoRA merged into its weights, if it has one."""
    from infid_export.model.changes.updated_source import UpdatedSource

    lora = identity_lora(identity, source.config)
    return source if lora is None else UpdatedSource(source, (lora,))


def open_checkpoint(
    model: str,
    identity: Path,
    image_encoder: str | None,
    config: IdentityConfig,
    prediction: GivenPrediction = _AS_STORED,
    without: Collection[str] = (),
) -> CheckpointSource:
    """Open a checkpoint: a single file, a folder in diffusers' format, or a hub id.

    Its class has the same arguments, except for `without` of a folder, which has all networks.

    Raises:
        InputError: it is missing, or is not SDXL.
    """
    from infid_export.model.checkpoints.single_file import SingleFileSource  # which is a `CheckpointSource`

    if (file := checkpoint_file(model, without)) is not None:
        return SingleFileSource(file, identity, image_encoder, config, prediction, without)
    return CheckpointSource(checkpoint_folder(model), identity, image_encoder, config, prediction)
