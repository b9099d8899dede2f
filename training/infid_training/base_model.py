"""What a run starts from: SDXL without identity weights, and the initial identity weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from infid_engines.errors import InputError
from infid_engines.manifest import canonical_key
from infid_export.model.checkpoints.file_kind import checkpoint_file
from infid_export.model.checkpoints.files import local_folder
from infid_export.model.checkpoints.single_file import read_model
from infid_export.model.config import IdentityConfig, read_config
from infid_export.model.identity import IdentityModules
from infid_export.model.opening import open_checkpoint, open_source
from infid_export.model.processors import identity_blocks
from infid_export.model.sources import BUILT_IN, ModelSource

FRESH = "fresh"


def open_base(
    model: str,
    image_encoder: str | None = None,
    initial: str = FRESH,
    seed: int = 0,
    with_text: bool = False,
    center_tokens: bool = False,
) -> ModelSource:
    """Open a model to train on.

    Args:
        model: a built-in model, a checkpoint file or folder, or a hub id; see `open_source`.
        image_encoder: OpenCLIP checkpoint or tag; needed for a checkpoint.
        initial: `fresh`, or an identity file, which then decides the sizes of the identity modules.
        seed: seed of a built-in random model.
        with_text: train with the text cross-attention on (the ablation).
        center_tokens: see `IdentityConfig`; also on if the model or the identity file has it on.

    Raises:
        InputError: the model or the identity file cannot be found or is incomplete.
    """
    stored = None if initial == FRESH else read_config(initial)
    if stored is not None and stored.mapper != "infinite_id":
        raise InputError(
            f"{initial} has {stored.family} weights, which cannot be trained further.",
            fix="Give identity weights that were trained here, or start fresh.",
        )

    def chosen(config: IdentityConfig) -> IdentityConfig:
        return replace(config, trained_with_text=with_text, center_tokens=center_tokens or config.center_tokens)

    if model in BUILT_IN:
        source = open_source(model, seed=seed)
        source.config = chosen(stored or source.config)
        return source
    if checkpoint_file(model) is None:
        local_folder(model)  # reject a wrong path before asking for an image encoder
    if image_encoder is None:
        raise InputError(
            f"The checkpoint {model} needs an image encoder.", fix="Give --image-encoder open_clip_checkpoint."
        )
    if stored is None:
        stored = IdentityConfig(cross_attention_dim=read_model(model).parts["unet"]["cross_attention_dim"])
    # the source never reads the identity file: the configuration is passed in, and the weights come from
    # `initial_identity`
    source = open_checkpoint(model, Path(initial), image_encoder, chosen(stored))
    _check_loss(source)
    return source


def _check_loss(source: ModelSource) -> None:
    """Reject a model that the loss ‖ε − ε_θ‖² is not defined on."""
    prediction = source.scheduler["prediction_type"]
    if prediction != "epsilon":
        raise InputError(
            f"The checkpoint {source.name} has prediction_type = {prediction!r}; training needs a model that predicts "
            "the noise (epsilon).",
            fix="Train on SDXL base or a fine-tune of it; its identity weights can be tried on other models.",
        )


def encoder_fingerprint(source: ModelSource) -> str:
    """Return a key that changes when a network whose outputs are cached changes."""
    texts = ("text_encoder", "text_encoder_2") if source.config.trained_with_text else ()
    parts = [source.fingerprint(name) for name in ("vae", "image_encoder", *texts)]
    return canonical_key({"parts": parts, "tokenizers": source.tokenizer_fingerprint() if texts else ""})


def initial_identity(unet: Any, config: IdentityConfig, initial: str = FRESH, seed: int = 0) -> IdentityModules:
    """Return the identity modules a run starts from.

    Args:
        unet: the model's UNet.
        config: sizes and method variant.
        initial: `fresh`, or an identity file. Warm starts from other files (IP-Adapter's) would go here.
        seed: seed of fresh weights.

    Raises:
        InputError: the file belongs to another model.
    """
    if initial != FRESH:
        modules = IdentityModules.load(initial, identity_blocks(unet))
        modules.config = config
        return modules
    return fresh_identity(unet, config, seed)


def fresh_identity(unet: Any, config: IdentityConfig, seed: int) -> IdentityModules:
    """Return new identity modules: mappers as torch initializes them, K' and V' copies of the text's to_k and to_v.

    Reference: IP-Adapter (Ye et al., arXiv 2308.06721, section 3.2.2) initializes its image projections this way.
    """
    blocks = identity_blocks(unet)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        modules = IdentityModules(config, blocks)
    layers: Sequence[Any] = list(modules.projections.values())
    for path, layer in zip(blocks, layers, strict=True):
        attention = unet.get_submodule(path)
        layer["to_k_id"].weight.data.copy_(attention.to_k.weight)
        layer["to_v_id"].weight.data.copy_(attention.to_v.weight)
    return modules
