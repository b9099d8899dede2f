"""Build an engine folder from your own SDXL checkpoint.

Usage::

    python examples/2_your_own_checkpoint.py [-o own]

Besides the checkpoint, a build needs three files: identity weights, an OpenCLIP image encoder, and a recognizer. Here
all four are tiny and have random weights, so that this runs in seconds without downloads; their images are noise. With
your own files, the function `build_engines` is all you need.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import open_clip
import torch
from diffusers import UNet2DConditionModel

from infid_export.export.build_options import BuildOptions
from infid_export.export.builder import build
from infid_export.export.face_models import write_random_recognizer
from infid_export.model.architectures import DEMO, identity_config
from infid_export.model.identity import IdentityModules
from infid_export.model.processors import identity_blocks
from infid_export.model.reference_pipeline import InfiniteIDPipeline
from infid_export.model.sources import RandomSource

TINY = {"block_out_channels": [32, 32, 64], "layers_per_block": 1, "transformer_layers_per_block": 1}
ENCODER = "example-tiny-vit"


def write_checkpoint(folder: Path) -> UNet2DConditionModel:
    """Write a tiny SDXL in diffusers' format, and return its UNet."""
    pipe = InfiniteIDPipeline.from_source(RandomSource("demo"))
    pipe.unet = UNet2DConditionModel.from_config({**DEMO.unet, **TINY})
    pipe.save_pretrained(folder)
    return pipe.unet


def write_image_encoder(file: Path) -> None:
    """Write a tiny OpenCLIP checkpoint with an architecture registered here; yours is ViT-H-14."""
    vision = {name: value for name, value in DEMO.image_encoder.items() if name != "embed_dim"}
    text = {"context_length": 77, "vocab_size": 64, "width": 32, "heads": 1, "layers": 1}
    described = {"embed_dim": DEMO.image_encoder["embed_dim"], "vision_cfg": vision, "text_cfg": text}
    configuration = file.with_name(f"{ENCODER}.json")
    configuration.write_text(json.dumps(described))
    open_clip.add_model_config(configuration)
    torch.save(open_clip.create_model(ENCODER).state_dict(), file)


def write_identity(file: Path, unet: UNet2DConditionModel) -> None:
    """Write identity weights that fit the UNet; yours come from `infid-export train`."""
    config = replace(identity_config(DEMO), image_encoder=ENCODER)
    IdentityModules(config, identity_blocks(unet)).save(file)


def build_engines(folder: Path, graphs: tuple[str, ...]) -> None:
    """Build, and print the verdict of every comparison; a failure raises ParityError."""
    report = build(
        BuildOptions(
            output=folder / "infid-engines",
            model=str(folder / "sdxl"),
            identity=folder / "identity.safetensors",
            image_encoder=str(folder / "open_clip.pt"),
            recognizer=folder / "recognizer.onnx",
            backends=("onnxruntime",),
            graphs=graphs,
        )
    )
    for row in report.parity.rows:
        print(f"{'PASSED' if row.passed else 'FAILED'} {row.graph}.{row.output}: RMS error {row.rms_error:.1e}")
    print(f"{report.folder}: {len(report.made)} built, {len(report.kept)} reused")


def main() -> None:
    """Write the four files, and build."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("-o", "--output", type=Path, default=Path("own"))
    parser.add_argument("--graph", action="append", default=[], help="build only this graph; repeatable (all)")
    arguments = parser.parse_args()
    folder: Path = arguments.output
    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)
    unet = write_checkpoint(folder / "sdxl")
    write_image_encoder(folder / "open_clip.pt")
    write_identity(folder / "identity.safetensors", unet)
    write_random_recognizer(folder / "recognizer.onnx", identity_config(DEMO).face_width, seed=0)
    build_engines(folder, tuple(arguments.graph))


if __name__ == "__main__":
    main()
