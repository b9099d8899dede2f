"""From weights that you already have to an image: IP-Adapter Plus, an SDXL checkpoint in one file, an image encoder.

Usage::

    python examples/7_weights_you_have.py ip-adapter-plus_sdxl_vit-h.safetensors checkpoint.safetensors \
        open_clip_model.safetensors cat.jpg "a watercolor of a cat in a garden"

The image encoder is OpenCLIP's ViT-H-14, or the `image_encoder` folder that comes with IP-Adapter. Nothing is
downloaded. A second run reuses the engines.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from infid_export import Pipeline
from infid_export.export.build_options import BuildOptions
from infid_export.export.builder import build
from infid_export.importing.adapter import import_adapter


def make_engines(arguments: argparse.Namespace) -> Path:
    """Import the adapter, and build the engines; return their folder."""
    folder, checkpoint = arguments.output, str(arguments.checkpoint)
    identity = folder / "identity.safetensors"
    imported = import_adapter(arguments.adapter, identity, model=checkpoint, image_encoder=arguments.image_encoder_name)
    print(f"{arguments.adapter}: {imported.found.family.title}. License: {imported.license}")
    report = build(
        BuildOptions(
            output=folder / "engines",
            model=checkpoint,
            identity=identity,
            image_encoder=str(arguments.image_encoder),
            precision="fp16",
            height=arguments.size,
            width=arguments.size,
            backends=("onnxruntime",),
        )
    )
    for note in report.notes:
        print(note)
    return report.folder


def main() -> None:
    """Import, build, enroll, generate."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    for name in ("adapter", "checkpoint", "image_encoder", "photo"):
        parser.add_argument(name, type=Path)
    parser.add_argument("prompt")
    parser.add_argument("-o", "--output", type=Path, default=Path("weights-you-have"))
    parser.add_argument("--size", type=int, default=1024, help="height and width of the image")
    parser.add_argument("--image-encoder-name", help="open_clip's name of an image encoder other than ViT-H-14")
    parser.add_argument("--steps", type=int, help="the engine folder's")
    arguments = parser.parse_args()
    arguments.output.mkdir(exist_ok=True)
    with Pipeline.load(make_engines(arguments)) as pipe:
        subject = pipe.enroll(arguments.photo)
        (image,) = pipe.generate(arguments.prompt, subject, steps=arguments.steps, seed=0)
    image.save(arguments.output / "image.png")
    print(arguments.output / "image.png")


if __name__ == "__main__":
    main()
