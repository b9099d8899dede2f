"""A LoRA inside an identity file, on a checkpoint folder: every way to load the model merges it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from infid_export.model.config import CONFIG_KEY
from infid_export.model.identity_header import LICENSE_KEY
from infid_export.model.opening import open_source
from infid_export.model.reference_pipeline import InfiniteIDPipeline

LAYER = "mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0"
LICENSE = "for research only"


@pytest.fixture
def identity(parts: dict[str, Path], tmp_path: Path) -> Path:
    """The identity file of the checkpoint, with a LoRA of one layer and a license."""
    with safe_open(parts["identity"], framework="pt") as file:
        metadata = {CONFIG_KEY: file.metadata()[CONFIG_KEY], LICENSE_KEY: LICENSE}
    generator = torch.Generator().manual_seed(0)
    halves = {"down": (2, 128), "up": (128, 2)}
    lora = {f"lora.{LAYER}.{half}.weight": torch.randn(shape, generator=generator) for half, shape in halves.items()}
    save_file({**load_file(parts["identity"]), **lora}, tmp_path / "identity.safetensors", metadata=metadata)
    return tmp_path / "identity.safetensors"


def merged(parts: dict[str, Path], identity: Path) -> Tensor:
    stored = load_file(identity)
    weight = load_file(parts["base"] / "unet/diffusion_pytorch_model.safetensors")[f"{LAYER}.weight"]
    return weight + stored[f"lora.{LAYER}.up.weight"] @ stored[f"lora.{LAYER}.down.weight"]


def test_the_reference_pipeline_merges_it(parts: dict[str, Path], identity: Path) -> None:
    pipe = InfiniteIDPipeline.from_pretrained(parts["base"], identity=identity)
    found = pipe.unet.get_parameter(f"{LAYER}.weight")
    assert (found - merged(parts, identity)).abs().max() <= 1e-5


def test_a_build_merges_it_and_knows_the_license(parts: dict[str, Path], identity: Path) -> None:
    source = open_source(str(parts["base"]), identity=identity, image_encoder=str(parts["encoder"]))
    found = dict(source.weights("unet", torch.float32))[f"{LAYER}.weight"]
    assert (found - merged(parts, identity)).abs().max() <= 1e-5
    assert source.license == LICENSE
    assert any("merged into 1 attention weights of the UNet" in note for note in source.notes)
