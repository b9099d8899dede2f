"""The trainable identity modules: mappers and one image key/value projection per transformer block.

c_id = Concat(M_clip(E_clip(x)), M_face(E_face(x))); K'_id = c_id W_k, V'_id = c_id W_v (Infinite-ID, arXiv
2403.11781, section 3.2). Other methods have one mapper instead of two, see `infid_export.model.mappers`. They are
stored in one safetensors file with the configuration in its header.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from infid_engines.atomic_files import whole_file
from infid_engines.errors import InputError
from infid_engines.tensor_seal import SEAL_KEY, TensorBytes, sort_header, tensor_seal
from infid_export.model.config import CONFIG_KEY, IdentityConfig, read_config
from infid_export.model.encoder_record import ENCODERS_KEY, EncoderRecord
from infid_export.model.finite import require_finite_tensor
from infid_export.model.identity_header import LORA
from infid_export.model.mappers import MAPPERS

_KEY, _VALUE = "to_k_id", "to_v_id"


class ClipMapper(nn.Sequential):
    """Map image-encoder tokens `[B, N, clip_width]` to identity tokens `[B, N, D]`."""

    def __init__(self, config: IdentityConfig) -> None:
        width = config.cross_attention_dim
        super().__init__(nn.Linear(config.clip_width, width), nn.GELU(), nn.Linear(width, width), nn.LayerNorm(width))


class FaceMapper(nn.Module):
    """Map a face embedding `[B, face_width]` to identity tokens `[B, n, D]`."""

    def __init__(self, config: IdentityConfig) -> None:
        super().__init__()
        self.tokens, width = config.face_tokens, config.cross_attention_dim
        self.proj = nn.Sequential(
            nn.Linear(config.face_width, 2 * width), nn.GELU(), nn.Linear(2 * width, self.tokens * width)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, embedding: Tensor) -> Tensor:
        """Return `[B, n, D]` tokens of `[B, face_width]` embeddings."""
        return self.norm(self.proj(embedding).unflatten(-1, (self.tokens, -1)))


class IdentityModules(nn.Module):
    """Mappers and the stacked image projections of all transformer blocks.

    Args:
        config: sizes and method variant.
        blocks: path of every cross-attention (`attn2`) in the UNet and its channels, in the UNet's order.
            The channels of all blocks, S in total, are concatenated in keys and values.
        encoders: the encoders that the weights are trained with; None if unknown.
    """

    def __init__(
        self, config: IdentityConfig, blocks: Mapping[str, int], encoders: EncoderRecord | None = None
    ) -> None:
        super().__init__()
        self.config = config
        self.encoders = encoders
        self.blocks = dict(blocks)
        if config.mapper == "infinite_id":
            self.clip_mapper = ClipMapper(config)
            self.face_mapper = FaceMapper(config)
        else:
            self.mapper = MAPPERS[config.mapper](config)
        # Module names may not contain dots; the file uses the UNet's dotted path.
        self.projections = nn.ModuleDict(
            {
                path.replace(".", "/"): nn.ModuleDict(
                    {name: nn.Linear(config.cross_attention_dim, channels, bias=False) for name in (_KEY, _VALUE)}
                )
                for path, channels in blocks.items()
            }
        )

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights."""
        return next(self.parameters()).dtype

    def tokens(self, clip_features: Tensor | None, face_embedding: Tensor | None) -> Tensor:
        """Map encoder features to identity tokens.

        Args:
            clip_features: `[B, clip_tokens, clip_width]` of the image encoder; None if the mapper reads none.
            face_embedding: `[B, face_width]`, L2-normalized or raw as configured; None likewise.

        Returns:
            `[B, T, D]`, see `IdentityConfig.tokens`.
        """
        if self.config.mapper == "infinite_id":
            tokens = torch.cat([self.clip_mapper(clip_features), self.face_mapper(face_embedding)], dim=1)
        else:
            tokens = self.mapper(clip_features, face_embedding)
        if self.config.center_tokens:
            tokens = tokens - tokens.mean(1, keepdim=True)
        return nn.functional.pad(tokens, (0, 0, 0, self.config.zero_tokens))

    def project(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Project identity tokens `[B, T, D]` to the keys and values of all blocks, each `[B, T, S]`.

        This is one matrix product for all blocks: the weights are stacked, not the results.
        """
        layers: list[Any] = [self.projections[path.replace(".", "/")] for path in self.blocks]
        keys = torch.cat([layer[_KEY].weight.T for layer in layers], dim=1)
        values = torch.cat([layer[_VALUE].weight.T for layer in layers], dim=1)
        return tokens @ keys, tokens @ values

    def forward(self, clip_features: Tensor | None, face_embedding: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return identity tokens, keys and values of encoder features; see `tokens` and `project`."""
        tokens = self.tokens(clip_features, face_embedding)
        return tokens, *self.project(tokens)

    def save(self, path: str | Path) -> None:
        """Write the modules atomically as one safetensors file."""
        tensors = {_file_key(name): value.detach().contiguous() for name, value in self.state_dict().items()}
        metadata = {} if self.encoders is None else {ENCODERS_KEY: self.encoders.to_json()}
        write_identity_file(Path(path), self.config, tensors, metadata)

    @classmethod
    def load(cls, path: str | Path, blocks: Mapping[str, int], dtype: torch.dtype = torch.float32) -> IdentityModules:
        """Read an identity file for a UNet with the given cross-attention blocks.

        Args:
            path: safetensors file with keys `clip_mapper.*` and `face_mapper.*`, or `mapper.*`, and
                `<attn2 path>.to_k_id.weight` and `<attn2 path>.to_v_id.weight`, and the configuration in the header.
                Keys `lora.*` are no part of these modules, see `infid_export.model.identity_lora`.
            blocks: as in the constructor.
            dtype: dtype of the loaded weights.

        Returns:
            The modules in evaluation mode.

        Raises:
            InputError: the file is missing, damaged, without configuration, for another UNet, or not finite in
                this dtype.
        """
        config = read_config(path)
        _check_seal(path)
        with torch.device("meta"):
            modules = cls(config, blocks, EncoderRecord.read(Path(path)))
        expected = {_file_key(name): (name, tuple(value.shape)) for name, value in modules.state_dict().items()}
        with safe_open(path, framework="pt") as file:
            found = {key for key in file.keys() if not key.startswith(LORA)}  # noqa: SIM118 (no mapping)
            require_tensors(path, expected, found, "Use identity weights trained for this base model.")
            tensors = {}
            for key, (name, shape) in expected.items():
                tensor = file.get_tensor(key)
                if tuple(tensor.shape) != shape:
                    raise InputError(
                        f"{path}: {key} has shape {list(tensor.shape)}, but this model needs {list(shape)}.",
                        fix="Use identity weights trained for this base model.",
                    )
                require_finite_tensor(tensor, f"{path}: {key}", dtype)
                tensors[name] = tensor.to(dtype)
        modules.load_state_dict(tensors, assign=True)
        return modules.eval().requires_grad_(False)


def write_identity_file(
    path: Path, config: IdentityConfig, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    """Write an identity file atomically, with a seal.

    Args:
        path: file to write.
        config: the modules' configuration.
        tensors: contiguous tensors by their names in the file; mapped ones are not read into memory as a whole.
        metadata: the header's further entries.

    Raises:
        DiskFullError: the disk is full.
    """
    described = {CONFIG_KEY: json.dumps(config.to_dict()), **metadata}
    with whole_file(path) as partial:
        save_file(dict(tensors), partial, metadata={**described, SEAL_KEY: _seal(described, tensors)})
        sort_header(partial)


def _file_key(name: str) -> str:
    """Return the name of a parameter in the file: projections have the UNet's own path."""
    return name.removeprefix("projections.").replace("/", ".")


def _seal(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    described = (
        TensorBytes(name, str(tensor.dtype), tensor.shape, tensor.cpu().flatten().view(torch.uint8).numpy())
        for name, tensor in sorted(tensors.items())
    )
    return tensor_seal(metadata, described)


def _check_seal(path: str | Path) -> None:
    """Reject a file that has changed since it was written; files without a seal are older or from other software."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        if SEAL_KEY not in metadata:
            return
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        if _seal(metadata, tensors) != metadata[SEAL_KEY]:
            raise InputError(
                f"{path} is damaged: its content has changed since it was written.", fix="Copy or train it again."
            )


def require_tensors(path: str | Path, wanted: Iterable[str], found: Iterable[str], fix: str) -> None:
    """Check that a file has exactly the tensors that are wanted.

    Raises:
        InputError: one is missing or unexpected; the message has the first names, and `fix`.
    """
    for problem, names in (("lacks", set(wanted) - set(found)), ("has unexpected", set(found) - set(wanted))):
        if names:
            shown = ", ".join(sorted(names)[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            raise InputError(f"{path} {problem} tensors: {shown}.", fix=fix)
