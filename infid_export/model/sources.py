"""Where a model comes from: the package, random weights of a known architecture, or a checkpoint of diffusers' format.

A source hands out components (`text_encoder`, `text_encoder_2`, `unet`, `vae`, `image_encoder`, `identity`), each
as an empty module on the meta device, as a loaded module, or as a stream of weights. Opening one reads
configurations and hashes only; torch is imported when a component is asked for.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from infid_engines.documents import read_json
from infid_engines.errors import InputError
from infid_engines.manifest import sha256_file, write_json
from infid_export.model.architectures import DEMO, SDXL, Architecture, identity_config
from infid_export.model.config import IdentityConfig, read_config
from infid_export.model.shipped import ShippedSource
from infid_export.scheduler import SDXL_SCHEDULER

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

COMPONENTS = ("text_encoder", "text_encoder_2", "unet", "vae", "image_encoder", "identity")
BUILT_IN = {"demo": DEMO, "random-sdxl": SDXL}


class ModelSource(Protocol):
    """A model that can be run as a reference and exported."""

    name: str
    architecture: Architecture
    config: IdentityConfig
    zero_negative: bool  # whether no negative prompt means zero embeddings instead of those of an empty text

    def fingerprint(self, component: str) -> str:
        """Return a sha256 that changes when the component's weights or configuration change."""

    def empty(self, component: str) -> nn.Module:
        """Return the component without weights: parameters on the meta device, buffers real."""

    def load(self, component: str, dtype: torch.dtype) -> nn.Module:
        """Return the component with its weights, in evaluation mode."""

    def weights(self, component: str, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
        """Yield the component's parameters."""

    def tokenizers(self) -> tuple[str, str]:
        """Return both tokenizers as JSON texts of the `tokenizers` library."""

    def tokenizer_fingerprint(self) -> str:
        """Return what changes when a tokenizer changes."""


class RandomSource:
    """Seeded random weights: the architecture is true, the pictures are noise.

    Every parameter has a generator of its own, seeded by its name, so that a component can be made in any
    order, in part, and in any type, always with the same values.

    Args:
        name: a key of `BUILT_IN`.
        seed: seed of all weights.
        config: the method variant; None is the default one.
    """

    def __init__(self, name: str, seed: int = 0, config: IdentityConfig | None = None) -> None:
        self.name = name
        self.seed = seed
        self.architecture = BUILT_IN[name]
        self.config = config or identity_config(self.architecture)
        self.zero_negative = True  # as SDXL base

    def fingerprint(self, component: str) -> str:
        """Return a hash of all that decides the weights."""
        sizes = [self.config.tokens, self.config.clip_width, self.config.face_width, self.config.cross_attention_dim]
        facts = ["random", 1, self.seed, component, self.architecture.component(component), sizes]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def empty(self, component: str) -> nn.Module:
        """Return the component with its parameters on the meta device."""
        from infid_export.model.components import build_component

        return build_component(component, self.architecture, self.config)

    def load(self, component: str, dtype: torch.dtype) -> nn.Module:
        """Return the component with its random weights."""
        from infid_export.model.components import brought

        module = self.empty(component)
        module.load_state_dict(dict(self.weights(component, dtype)), strict=False, assign=True)
        return brought(module, dtype).eval().requires_grad_(False)

    def weights(self, component: str, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
        """Yield random parameters one at a time: unit norms, zero biases, weights that keep activations near 1."""
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
        image_encoder: OpenCLIP ViT-H-14 checkpoint file, or a pretrained tag that open_clip can fetch.
        config: the method variant; None is the identity file's own.

    Raises:
        InputError: a part is missing or not SDXL's.
    """

    def __init__(self, folder: Path, identity: Path, image_encoder: str, config: IdentityConfig | None = None) -> None:
        self.name = str(folder)
        self.folder, self.identity, self.image_encoder = folder, identity, image_encoder
        self.config = config or read_config(identity)
        parts: dict[str, Any] = {
            name: _read_config(folder, name) for name in ("unet", "vae", "text_encoder", "text_encoder_2")
        }
        if parts["unet"].get("addition_embed_type") != "text_time":
            raise InputError(f"{folder} is not an SDXL checkpoint.", fix="Use SDXL base or a fine-tune of it.")
        channels = parts["unet"].get("in_channels")
        if channels != 4:
            raise InputError(
                f"The UNet of {folder} takes {channels} channels, not 4 (an inpainting model?).",
                fix="Use a text-to-image checkpoint.",
            )
        _check_schedule(folder)
        self.zero_negative = bool(_read_json(folder / "model_index.json").get("force_zeros_for_empty_prompt", True))
        self.architecture = Architecture(image_encoder=_vision(self.config.image_encoder), **parts)

    def fingerprint(self, component: str) -> str:
        """Return a hash of the component's files."""
        if component == "image_encoder" and not Path(self.image_encoder).is_file():
            return hashlib.sha256(f"open_clip:{self.config.image_encoder}:{self.image_encoder}".encode()).hexdigest()
        if component in ("image_encoder", "identity"):
            return remembered_sha256(Path(self.image_encoder if component == "image_encoder" else self.identity))
        files = [self.folder / component / "config.json", *self._weight_files(component)]
        return hashlib.sha256("".join(remembered_sha256(file) for file in files).encode()).hexdigest()

    def _weight_files(self, component: str) -> list[Path]:
        files = sorted((self.folder / component).glob("*.safetensors"))
        plain = [file for file in files if ".fp16." not in file.name]
        if not files:
            raise InputError(
                f"{self.folder / component} has no .safetensors weights.",
                fix="Download or convert the checkpoint in safetensors format.",
            )
        return plain or files

    def empty(self, component: str) -> nn.Module:
        """Return the component with its parameters on the meta device."""
        from infid_export.model.components import build_component

        return build_component(component, self.architecture, self.config)

    def load(self, component: str, dtype: torch.dtype) -> nn.Module:
        """Load the component through its library's own loader.

        Raises:
            InputError: the weights are cut off or do not fit the configuration.
        """
        from infid_export.model.components import brought

        try:
            return brought(self._load(component, dtype), dtype).eval().requires_grad_(False)
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise InputError(
                f"The {component} weights of {self.name} cannot be loaded ({error}).",
                fix="Copy or download them again.",
            ) from error

    def _load(self, component: str, dtype: torch.dtype) -> nn.Module:
        if component == "identity":
            from infid_export.model.identity import IdentityModules
            from infid_export.model.processors import identity_blocks

            modules = IdentityModules.load(self.identity, identity_blocks(self.empty("unet")), dtype)
            modules.config = self.config  # the caller's choices go before the file's
            return modules
        if component == "image_encoder":
            import open_clip

            from infid_export.model.encoders import ImageEncoder

            model = open_clip.create_model(self.config.image_encoder, pretrained=self.image_encoder)
            return ImageEncoder(model.visual)
        variant = "fp16" if all(".fp16." in file.name for file in self._weight_files(component)) else None
        options: dict[str, Any] = {"subfolder": component, "torch_dtype": dtype, "variant": variant}
        if component in ("unet", "vae"):
            import diffusers

            kind = diffusers.UNet2DConditionModel if component == "unet" else diffusers.AutoencoderKL
        else:
            import transformers

            kind = (
                transformers.CLIPTextModel if component == "text_encoder" else transformers.CLIPTextModelWithProjection
            )
        return kind.from_pretrained(self.folder, use_safetensors=True, **options)

    def weights(self, component: str, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
        """Yield the loaded component's parameters."""
        for name, parameter in self.load(component, dtype).named_parameters():
            yield name, parameter.detach()

    def tokenizers(self) -> tuple[str, str]:
        """Read both tokenizer folders."""
        from infid_export.model.tokenizers import folder_tokenizer_json

        return folder_tokenizer_json(self.folder / "tokenizer"), folder_tokenizer_json(self.folder / "tokenizer_2")

    def tokenizer_fingerprint(self) -> str:
        """Return a hash of the files of both tokenizer folders."""
        files = sorted(file for name in ("tokenizer", "tokenizer_2") for file in (self.folder / name).glob("*.*"))
        return hashlib.sha256("".join(f"{file.name}{remembered_sha256(file)}" for file in files).encode()).hexdigest()


def open_source(
    model: str,
    *,
    identity: Path | None = None,
    image_encoder: str | None = None,
    seed: int = 0,
    choices: dict[str, str | None] | None = None,
) -> ModelSource:
    """Open a model by name.

    Args:
        model: `demo`, `random-sdxl`, a folder in diffusers' format, or a hub id.
        identity: identity weights; needed for a checkpoint, and in the place of the demo model's own.
        image_encoder: OpenCLIP checkpoint or tag; needed for a checkpoint.
        seed: of `random-sdxl`'s weights.
        choices: method choices that replace the stored ones where they are not None.

    Raises:
        InputError: the model cannot be found or lacks a part, or has weights and a seed was given for them.
    """
    chosen = choices or {}
    if seed and model != "random-sdxl":
        raise InputError(f"A seed of random weights has no effect: {model} has trained ones.", fix="Leave it out.")
    if model == "demo":
        return ShippedSource(chosen, identity)
    if model in BUILT_IN:
        return RandomSource(model, seed, identity_config(BUILT_IN[model]).with_choices(**chosen))
    if identity is None or image_encoder is None:
        raise InputError(
            f"The checkpoint {model} needs identity weights and an image encoder.",
            fix="Give --identity weights.safetensors and --image-encoder open_clip_checkpoint.",
        )
    return CheckpointSource(
        checkpoint_folder(model), identity, image_encoder, read_config(identity).with_choices(**chosen)
    )


def checkpoint_folder(model: str) -> Path:
    """Return a checkpoint's folder: the one named, or a hub id's, fetched through huggingface_hub or from its cache.

    Raises:
        InputError: there is neither.
    """
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import snapshot_download

    try:
        patterns = ["*.json", "*.txt", "*/*.safetensors"]
        return Path(snapshot_download(model, allow_patterns=patterns))
    except Exception as error:  # the hub's errors have no common public base
        raise InputError(
            f"{model} is neither a built-in model, nor a folder, nor a hub id that can be reached "
            f"({type(error).__name__}).",
            fix=f"Use one of {', '.join(BUILT_IN)}, or the path of a checkpoint folder in diffusers' format.",
        ) from error


def remembered_sha256(path: Path) -> str:
    """Return a file's sha256, hashing it only if its size or modification time has changed since the last time.

    Hashing the 10 GB of a checkpoint takes longer than an unchanged rebuild may. What is remembered lies in the
    user's cache folder and can be deleted at any time.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "infid-export" / "hashes.json"
    status = path.stat()
    key = f"{path.resolve()}:{status.st_size}:{status.st_mtime_ns}"
    try:
        known: dict[str, str] = json.loads(cache.read_text())
    except (OSError, ValueError):
        known = {}
    if key not in known:
        known[key] = sha256_file(path)
        cache.parent.mkdir(parents=True, exist_ok=True)
        write_json(cache, known)
    return known[key]


def _vision(name: str) -> dict[str, Any]:
    """Return the configuration of an image encoder; only an unusual one has to be asked of open_clip."""
    if name == IdentityConfig.image_encoder:
        return SDXL.image_encoder
    import open_clip

    config = open_clip.get_model_config(name)
    if config is None:
        raise InputError(f"open_clip has no model named {name}.", fix="Register it with open_clip.add_model_config.")
    return {**config["vision_cfg"], "embed_dim": config["embed_dim"]}


def _check_schedule(folder: Path) -> None:
    """Refuse a model that was trained on another noise schedule, or to predict something else than the noise.

    How the timesteps of a generation are spaced is the sampler's choice, and the same here for every model.
    """
    path = folder / "scheduler" / "scheduler_config.json"
    found = _read_json(path)
    trained = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "prediction_type")
    wanted = {name: SDXL_SCHEDULER[name] for name in trained} | {"rescale_betas_zero_snr": False}
    for name, value in wanted.items():
        if found.get(name, value) != value:
            raise InputError(
                f"{path} has {name} = {found[name]!r}; only SDXL's {value!r} is supported.",
                fix="Use a checkpoint that was trained with SDXL's schedule.",
            )


def _read_config(folder: Path, component: str) -> dict[str, Any]:
    return _read_json(folder / component / "config.json")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = read_json(path)
        if not isinstance(values, dict):
            raise ValueError("it is no object")
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}).", fix="Use a checkpoint in diffusers' format.") from error
    return values
