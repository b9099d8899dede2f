"""A checkpoint in one safetensors file of SDXL's original layout, as model-sharing sites offer it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infid_engines.errors import InputError
from infid_export.model.architectures import SDXL
from infid_export.model.checkpoints.file_kind import checkpoint_file, require_checkpoint
from infid_export.model.checkpoints.files import checkpoint_folder
from infid_export.model.checkpoints.folder import NETWORKS, Checkpoint, check_network, read_checkpoint
from infid_export.model.checkpoints.folder_source import CheckpointSource
from infid_export.model.checkpoints.kind import check_widths
from infid_export.model.checkpoints.original_layout import PREFIXES
from infid_export.model.checkpoints.original_sizes import original_configuration
from infid_export.model.checkpoints.prediction import AS_STORED, V_KEY, ZERO_SNR_KEY, GivenPrediction, file_sampling
from infid_export.model.checkpoints.stored_network import StoredNetwork, find_network
from infid_export.model.checkpoints.tensor_file import TensorFile
from infid_export.model.config import IdentityConfig
from infid_export.model.tokenizers import sdxl_tokenizers

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

# Starts of tensors that no network has: the original code's noise schedule, its averages of the UNet's weights, a
# projection of the first text encoder that SDXL does not read, and what the UNet predicts.
_OUTSIDE = (
    "alphas_cumprod", "betas", "denoiser.", "log_one_minus_", "logvar", "lvlb_weights", "model_ema.", "posterior_",
    "sqrt_", "conditioner.embedders.0.transformer.text_projection", V_KEY, ZERO_SNR_KEY,
)  # fmt: skip
_SHOWN = 3  # names in a note
_WORDS = SDXL.text_encoder["vocab_size"]
# Fields with which the libraries save a configuration, and which the checks want to see.
_CLASS: Mapping[str, Mapping[str, Any]] = {
    "unet": {"_class_name": "UNet2DConditionModel"},
    "vae": {"_class_name": "AutoencoderKL"},
    "text_encoder": {"model_type": "clip_text_model"},
    "text_encoder_2": {"model_type": "clip_text_model"},
}


class SingleFileSource(CheckpointSource):
    """An SDXL checkpoint in one file, with identity weights and an OpenCLIP image encoder; a `ModelSource`.

    Each parameter is read from the mapped file when it is asked for.

    Args:
        path: safetensors file in the original layout: UNet, VAE and both text encoders.
        identity: identity weights, see `IdentityModules.save`.
        image_encoder: OpenCLIP checkpoint file, or a pretrained tag that open_clip can download.
        config: the method variant; None is the identity file's.
        prediction: what the user says about the checkpoint.
        without: networks that the file may lack, since others replace them; they have SDXL's configuration.

    Raises:
        InputError: the file is not a whole SDXL checkpoint.
    """

    def __init__(
        self,
        path: Path,
        identity: Path,
        image_encoder: str | None,
        config: IdentityConfig | None = None,
        prediction: GivenPrediction = AS_STORED,
        without: Collection[str] = (),
    ) -> None:
        file = TensorFile.open(path)
        checkpoint = read_single_file(file, prediction, without)
        self._networks: Mapping[str, StoredNetwork] = {
            name: find_network(name, checkpoint.parts[name], [file], f"The {name} weights of {path}")
            for name in NETWORKS
            if _has(file, name)
        }
        self._take(str(path), checkpoint, identity, image_encoder, config)

    def fingerprint(self, component: str) -> str:
        """Return a hash of the file, and of the network's configuration."""
        if component in self._networks:
            return self._networks[component].fingerprint()
        return super().fingerprint(component)

    def empty(self, component: str) -> nn.Module:
        """Return the component with its parameters on the meta device.

        Raises:
            InputError: the file's tensors have other shapes.
        """
        module = super().empty(component)
        return self._networks[component].fitted(module) if component in self._networks else module

    def load(self, component: str, dtype: torch.dtype) -> nn.Module:
        """Return the component with its weights, in evaluation mode.

        Raises:
            InputError: a weight is not finite, or does not fit.
        """
        if component in self._networks:
            return self._networks[component].load(self.empty(component), dtype)
        return super().load(component, dtype)

    def weights(self, component: str, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
        """Yield the component's parameters; those of the file are read one at a time.

        Raises:
            InputError: as in `load`.
        """
        if component in self._networks:
            return self._networks[component].weights(self.empty(component), dtype)
        return super().weights(component, dtype)

    def tokenizers(self) -> tuple[str, str]:
        """Return SDXL's two tokenizers."""
        return sdxl_tokenizers()

    def tokenizer_fingerprint(self) -> str:
        """Return the vocabulary's name."""
        return "clip"


def read_single_file(
    file: TensorFile, prediction: GivenPrediction = AS_STORED, without: Collection[str] = ()
) -> Checkpoint:
    """Return the facts in a checkpoint of the original layout, from its header alone.

    Args:
        file: the file.
        prediction: what the user says about it.
        without: see `SingleFileSource`.

    Raises:
        InputError: it is something else, lacks a network, or is another model's.
    """
    require_checkpoint(file, without)
    where = str(file.path)
    parts = {
        name: original_configuration(name, file.shapes, where) if _has(file, name) else dict(SDXL.component(name))
        for name in NETWORKS
    }
    for name, config in parts.items():
        check_network(name, {**config, **_CLASS[name]}, f"The {name} of {where}")
        if config.get("vocab_size", _WORDS) != _WORDS:
            raise InputError(
                f"The {name} of {where} has {config['vocab_size']} word embeddings, but CLIP's tokenizer has {_WORDS} "
                "words: a single file cannot name learned words.",
                fix="Use the checkpoint in diffusers' format, with its tokenizers.",
            )
    check_widths(parts["unet"], parts["text_encoder"], parts["text_encoder_2"], where)
    sampling, note = file_sampling(file, prediction)
    sampler = f"sampler: {sampling.sampler} with {sampling.spacing} spacing, since a single file names none"
    return Checkpoint(parts, sampling, True, tuple(each for each in (note, sampler, _left_out(file)) if each))


def read_model(model: str) -> Checkpoint:
    """Return the facts in a checkpoint: a single file, a folder in diffusers' format, or a hub id.

    Raises:
        InputError: it is missing, or is not SDXL.
    """
    file = checkpoint_file(model)
    return read_checkpoint(checkpoint_folder(model)) if file is None else read_single_file(TensorFile.open(file))


def _has(file: TensorFile, network: str) -> bool:
    return any(name.startswith(PREFIXES[network]) for name in file.shapes)


def _left_out(file: TensorFile) -> str:
    """Return a note on the tensors that belong to no network of SDXL; an empty string if there are none."""
    known = (*PREFIXES.values(), *_OUTSIDE)
    left = sorted(name for name in file.shapes if not name.startswith(known))
    if not left:
        return ""
    more = f" and {len(left) - _SHOWN} more" if len(left) > _SHOWN else ""
    return f"{file.path} has tensors that SDXL does not have, which are not read: {', '.join(left[:_SHOWN])}{more}"
