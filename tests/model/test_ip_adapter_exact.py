"""Weights of IP-Adapter and its relatives, through diffusers' own loading and through ours."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from adapter_weights import CLIP_TOKENS, CONFIGS, FACE, published, write_identity
from PIL import Image
from test_encoders import MEAN, STD, as_transformers
from torch import Tensor

from infid_engines.errors import InputError
from infid_export.export.artifact import DETECTOR, RECOGNIZER, weights_file
from infid_export.export.build_options import BuildOptions
from infid_export.export.builder import build
from infid_export.faces.reader import FaceInputs
from infid_export.model.encoders import IdentityEncoder
from infid_export.model.identity import IdentityModules
from infid_export.model.processors import Streams, identity_blocks, install_processors
from infid_export.model.shipped import ShippedSource
from infid_export.runtime.pipeline import Pipeline

STRENGTH = 0.7


@dataclass(frozen=True)
class Case:
    """One family's weights on the demo model, and a person as the identity encoder's inputs."""

    family: str
    file: Path
    source: ShippedSource
    inputs: FaceInputs


@pytest.fixture(params=CONFIGS)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    file = write_identity(tmp_path / "identity.safetensors", request.param, _blocks())
    source = ShippedSource(identity=file)
    random = np.random.default_rng(0)
    crop = random.random((1, 3, 224, 224), dtype=np.float32) if source.config.reads_image else None
    embedding = random.standard_normal((1, FACE)).astype(np.float32)
    if source.config.face_embedding == "normalized":
        embedding /= np.linalg.norm(embedding)
    return Case(request.param, file, source, FaceInputs(crop, embedding if source.config.reads_face else None))


def test_an_image_of_the_weights_is_diffusers_own(case: Case):
    """UNet, mapper and projections: the identity rows alone compute what IP-Adapter computes."""
    call = _call()
    with torch.no_grad():
        expected = _diffusers(case, call)
        _, keys, values = _encoder(case)(**_tensors(case))
        unet: Any = case.source.load("unet", torch.float32)
        install_processors(unet, case.source.config)
        streams = Streams(text=False, identity_keys=keys, identity_values=values, style_strength=torch.zeros(2),
                          identity_strength=torch.full((2,), STRENGTH))  # fmt: skip
        found = unet(**call, cross_attention_kwargs={"streams": streams}, return_dict=False)[0]
        without = unet(**call, cross_attention_kwargs={"streams": Streams(text=True)}, return_dict=False)[0]
    assert (found - expected).abs().max() <= 1e-5
    assert (found - without).abs().max() > 1e-3, "the identity has no effect, so nothing was compared"


def test_an_engine_folder_of_the_weights_is_diffusers_own(case: Case, tmp_path: Path, portrait: Image.Image):
    """The exported encoder computes diffusers' tokens, and an enrollment gives it what the family reads."""
    options = {"model": "demo", "identity": case.file, "graphs": ("identity_encoder",), "backends": ("onnxruntime",)}
    folder = build(BuildOptions(output=tmp_path / "engines", **options)).folder
    config = case.source.config
    assert (folder / weights_file("image_encoder")).is_file() == config.reads_image
    assert (folder / RECOGNIZER).is_file() == config.reads_face
    assert (folder / DETECTOR).is_file() == config.finds_faces
    with Pipeline.load(folder) as pipe:
        found = pipe.encode(case.inputs).identity_tokens
        assert np.abs(found - _tokens(case).numpy()).max() <= 1e-5
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the detector knows drawn people only
            enrolled, (read,) = pipe.enroll(portrait), pipe.read_faces(portrait)
        expected = _tokens(replace(case, inputs=read)).numpy()
        assert np.abs(enrolled.identity_tokens - expected).max() <= 1e-5
        assert len(enrolled.faces) == config.finds_faces
        if config.reads_image:
            (whole,) = pipe.read_faces(portrait, reference="whole")
            assert (
                np.abs(pipe.encode(whole).identity_tokens - _tokens(replace(case, inputs=whole)).numpy()).max() <= 1e-5
            )
        else:
            with pytest.raises(InputError, match="read a face only"):
                pipe.enroll(portrait, reference="whole")


def _blocks() -> dict[str, int]:
    return identity_blocks(ShippedSource().empty("unet"))


def _encoder(case: Case) -> IdentityEncoder:
    config = case.source.config
    encoder: Any = case.source.load("image_encoder", torch.float32) if config.reads_image else None
    return IdentityEncoder(encoder, IdentityModules.load(case.file, _blocks()))


def _tensors(case: Case) -> dict[str, Tensor]:
    arrays = case.inputs.arrays(case.source.config.encoder_inputs)
    return {name: torch.from_numpy(each) for name, each in arrays.items()}


def _call() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    unet = ShippedSource.architecture.unet
    pooled = unet["projection_class_embeddings_input_dim"] - 6 * unet["addition_time_embed_dim"]
    return {
        "sample": torch.randn(2, 4, 16, 16, generator=generator),
        "timestep": torch.tensor([601.0]),
        "encoder_hidden_states": torch.randn(2, 77, unet["cross_attention_dim"], generator=generator),
        "added_cond_kwargs": {
            "text_embeds": torch.randn(2, pooled, generator=generator),
            "time_ids": torch.tensor([[128.0, 128, 0, 0, 128, 128]] * 2),
        },
    }


def _clip(case: Case) -> tuple[Tensor, Tensor]:
    """Penultimate states and pooled image of transformers' network: of a zero image, then of the person's."""
    pixels = torch.from_numpy(case.inputs.face_crop)
    image = (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    encoder: Any = case.source.load("image_encoder", torch.float32)
    with torch.no_grad():
        states = as_transformers(encoder, heads=4)(
            torch.cat([torch.zeros_like(image), image]), output_hidden_states=True
        )
    assert states.hidden_states[-2].shape[1] == CLIP_TOKENS
    return states.hidden_states[-2], states.image_embeds


def _diffusers_unet(case: Case) -> tuple[Any, Tensor]:
    """diffusers' UNet with the weights, and the image embeddings that its pipeline would give it."""
    unet: Any = case.source.load("unet", torch.float32)
    unet._load_ip_adapter_weights([published(case.family, _blocks())], low_cpu_mem_usage=False)
    for processor in unet.attn_processors.values():
        if hasattr(processor, "scale"):
            processor.scale = [STRENGTH]
    if case.family == "ip-adapter":
        _, pooled = _clip(case)
        return unet, torch.stack([torch.zeros_like(pooled[1]), pooled[1]])[:, None]
    if case.family == "ip-adapter-plus":
        return unet, _clip(case)[0][:, None]
    embedding = torch.from_numpy(case.inputs.face_embedding)
    both = torch.cat([torch.zeros_like(embedding), embedding])[:, None]
    if case.family == "instantid":
        return unet, both[:, None]
    if case.family != "faceid":
        (layer,) = unet.encoder_hid_proj.image_projection_layers
        layer.clip_embeds = _clip(case)[0][:, None]
        layer.shortcut, layer.shortcut_scale = case.source.config.shortcut, case.source.config.perceiver_scale
    return unet, both


def _diffusers(case: Case, call: dict[str, Any]) -> Tensor:
    unet, embeds = _diffusers_unet(case)
    conditions = {**call["added_cond_kwargs"], "image_embeds": [embeds]}
    return unet(**{**call, "added_cond_kwargs": conditions}, return_dict=False)[0]


def _tokens(case: Case) -> Tensor:
    unet, embeds = _diffusers_unet(case)
    with torch.no_grad():
        return unet.encoder_hid_proj([embeds])[0].flatten(1, 2)
