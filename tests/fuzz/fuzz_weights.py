"""Fuzzed safetensors files: people, templates and identity weights."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from fuzz_harness import AcceptedDamageError, Attempt
from mutations import damaged, damaged_json, json_text
from safetensors.torch import load_file

from infid_engines.errors import InfidError
from infid_export.model.config import IdentityConfig, read_config
from infid_export.model.identity import IdentityModules
from infid_export.runtime.person import Person
from infid_export.runtime.template import Template, TemplateSettings

BLOCKS = {"down_blocks.0.attn2": 16, "up_blocks.0.attn2": 8}
SIZES = IdentityConfig(clip_tokens=3, clip_width=8, face_width=8, face_tokens=2, cross_attention_dim=8)
_HUGE = 1 << 40


def people(folder: Path) -> Attempt:
    """Read damaged person files; an accepted one must give exactly the original person."""
    random = np.random.default_rng(0)
    tensors = [random.standard_normal((2, 5, depth)).astype(np.float16) for depth in (6, 8, 8)]
    whole = Person(*tensors, model="a" * 64, name="Eileen Ünïcode")
    path, damaged_path = folder / "whole.safetensors", folder / "person.safetensors"
    whole.save(path)
    content = path.read_bytes()

    def attempt(random: Random) -> None:
        damaged_path.write_bytes(_damaged_file(random, content))
        found = Person.load(damaged_path)
        if (found.model, found.name) != (whole.model, whole.name) or any(
            getattr(found, name).tobytes() != getattr(whole, name).tobytes()
            for name in ("identity_tokens", "identity_keys", "identity_values")
        ):
            raise AcceptedDamageError("another person")

    return attempt


def templates(folder: Path) -> Attempt:
    """Read damaged template files; an accepted one must give exactly the original template."""
    random = np.random.default_rng(0)
    shapes: dict[str, tuple[tuple[int, ...], str]] = {
        "text_features.block": ((2, 2, 5, 3), "int8"), "text_scales.block": ((2, 2, 1, 3), "float32"),
        "snr": ((2,), "float32"), "prompt_embeds": ((2, 7, 4), "float16"), "pooled_prompt_embeds": ((2, 4), "float16"),
        "time_ids": ((2, 6), "float32"), "rows": ((2, 8), "float32"), "initial_scale": ((1,), "float32"),
        "latents": ((1, 4, 2, 2), "float32"),
    }  # fmt: skip
    tensors = {name: (50 * random.standard_normal(shape)).astype(dtype) for name, (shape, dtype) in shapes.items()}
    settings = TemplateSettings("a knight, Ünïcode", None, 3, 16, 16, 2, 5.0, "ddim", "leading")
    whole = Template(tensors, settings, "a" * 64)
    path, damaged_path = folder / "whole.safetensors", folder / "template.safetensors"
    whole.save(path)
    content = path.read_bytes()

    def attempt(random: Random) -> None:
        damaged_path.unlink(missing_ok=True)  # a mapped file must not be cut
        damaged_path.write_bytes(_damaged_file(random, content))
        found = Template.load(damaged_path)
        same = {name: each.tobytes() for name, each in found.tensors.items()}
        if (found.settings, found.model) != (whole.settings, whole.model) or same != {
            name: each.tobytes() for name, each in tensors.items()
        }:
            raise AcceptedDamageError("another template")

    return attempt


def identities(folder: Path) -> Attempt:
    """Read damaged identity weights; an accepted file must give exactly the original weights and configuration."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        modules = IdentityModules(SIZES, BLOCKS)
    path, damaged_path = folder / "whole.safetensors", folder / "identity.safetensors"
    modules.save(path)
    content, tensors = path.read_bytes(), modules.state_dict()

    def attempt(random: Random) -> None:
        damaged_path.write_bytes(_damaged_file(random, content))
        found = IdentityModules.load(damaged_path, BLOCKS)
        same = all(bool((value == tensors[name]).all()) for name, value in found.state_dict().items())
        if not same or found.config != SIZES or read_config(damaged_path) != SIZES:
            raise AcceptedDamageError("other weights")

    return attempt


def unsealed_identities(folder: Path) -> Attempt:
    """Read identity weights from other software, without a seal, with odd headers."""
    identities(folder)  # writes the file
    path = folder / "odd.safetensors"
    tensors, config = load_file(folder / "whole.safetensors"), SIZES.to_dict()

    def attempt(random: Random) -> None:
        header = {"infid_config": json_text(random, damaged_json(random, config)).decode("latin-1")}
        path.write_bytes(_file(header, tensors))
        found = IdentityModules.load(path, BLOCKS)
        if not all(value.isfinite().all() for value in found.state_dict().values()):
            raise InfidError("unreachable", fix="unreachable")

    return attempt


def _file(metadata: dict[str, str], tensors: dict[str, torch.Tensor]) -> bytes:
    header: dict[str, Any] = {"__metadata__": metadata}
    body = b""
    for name, tensor in tensors.items():
        content = tensor.numpy().tobytes()
        header[name] = {
            "dtype": "F32",
            "shape": list(tensor.shape),
            "data_offsets": [len(body), len(body) + len(content)],
        }
        body += content
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def _damaged_file(random: Random, content: bytes) -> bytes:
    """Damage the bytes, or only the header's JSON."""
    if random.random() < 0.5:
        return damaged(random, content)
    length = int.from_bytes(content[:8], "little")
    header, body = json.loads(content[8 : 8 + length]), content[8 + length :]
    text = _header_text(random, header)
    said = random.choice((len(text), len(text), len(text), len(text), length, len(text) + 1, _HUGE, 2**64 - 1))
    return said.to_bytes(8, "little") + text + body


def _header_text(random: Random, header: dict[str, Any]) -> bytes:
    what = random.random()
    if what < 0.4:
        return json_text(random, damaged_json(random, header))
    tensor: dict[str, Any] = header[random.choice([name for name in header if name != "__metadata__"])]
    if what < 0.55:
        tensor["dtype"] = random.choice(("F32", "I32", "F64", "BF16", "F16", "I8", "BOOL", "F8_E4M3", "U64", "X", ""))
    elif what < 0.7:
        shape = tensor["shape"]
        tensor["shape"] = random.choice(
            (shape[::-1], [*shape, 1], [int(np.prod(shape))], [], [_HUGE, _HUGE], [0], [-1, 4])
        )
    elif what < 0.85:
        start, end = tensor["data_offsets"]
        tensor["data_offsets"] = random.choice(
            ([start, end + 4], [end, start], [0, end - start], [0, _HUGE], [-4, 4], [])
        )
    else:
        first, second = random.sample([name for name in header if name != "__metadata__"], 2)
        header[first], header[second] = header[second], header[first]
    return json.dumps(header).encode()
