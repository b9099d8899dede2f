"""From an IP-Adapter file, a checkpoint in one file and an image encoder to an image, as docs/other-weights.md shows.

The files are small and random, in exactly the layouts in which people have them.
"""

from __future__ import annotations

import json
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from adapter_layouts import Sizes, adapter, write_adapter
from document_blocks import BLOCKS, ROOT
from PIL import Image
from safetensors.torch import save_file
from single_files import original_tensors, small_source, write_file

from infid_engines.manifest import Manifest
from infid_export.cli.main import run
from infid_export.export.parity import stored_parity
from infid_export.model.processors import identity_blocks

ENCODER = "weights-you-have-vit"
(WALK,) = [block for block in BLOCKS if block.detail == "tests/test_weights_you_have.py"]
# What a small model needs beside the arguments of the page.
SMALLER = {
    "import": ["--image-encoder-name", ENCODER],
    "build": ["--height", "128", "--width", "128", "--backend", "onnxruntime"],
    "enroll": [],
    "generate": ["--steps", "2"],
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, astronaut: np.ndarray) -> Path:
    """A folder with the files that the page names."""
    folder = tmp_path_factory.mktemp("weights")
    source = small_source()
    write_file(folder / "checkpoint.safetensors", original_tensors(source))
    vision = {name: value for name, value in source.architecture.image_encoder.items() if name != "embed_dim"}
    text = {"context_length": 77, "vocab_size": 64, "width": 32, "heads": 1, "layers": 1}
    described = {"embed_dim": source.architecture.image_encoder["embed_dim"], "vision_cfg": vision, "text_cfg": text}
    (folder / f"{ENCODER}.json").write_text(json.dumps(described))
    open_clip.add_model_config(folder / f"{ENCODER}.json")
    torch.manual_seed(0)
    clip = open_clip.create_model(ENCODER).state_dict()
    save_file({name: value.contiguous() for name, value in clip.items()}, folder / "open_clip_model.safetensors")
    sizes = Sizes(tuple(identity_blocks(source.empty("unet")).values()))
    plus = adapter("ip-adapter-plus", replace(sizes, width=vision["width"]), torch.float16)
    write_adapter(folder / "ip-adapter-plus_sdxl_vit-h.safetensors", plus)
    Image.fromarray(astronaut).save(folder / "cat.jpg")
    return folder


def test_five_commands_lead_to_an_image(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(files)
    commands = list(WALK.commands())
    assert len(commands) == 5
    assert commands[0][:2] == ["pip", "install"]
    for program, command, *arguments in commands[1:]:
        assert program == "infid-export"
        code = run([command, *arguments, *SMALLER[command]])
        assert code == 0, capsys.readouterr().err
    assert Image.open("cat.png").size == (128, 128)
    assert {"single_step"} <= set(Manifest.load(Path("plus-engines")).graphs)
    assert stored_parity(Path("plus-engines")).passed
    assert "IP-Adapter Plus" in capsys.readouterr().out


def test_the_example_is_the_same_in_python(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = (
        "ip-adapter-plus_sdxl_vit-h.safetensors",
        "checkpoint.safetensors",
        "open_clip_model.safetensors",
        "cat.jpg",
    )
    words = [*(str(files / name) for name in names), "a cat", "-o", str(tmp_path), "--size", "128", "--steps", "2"]
    monkeypatch.setattr(sys, "argv", ["7_weights_you_have.py", *words, "--image-encoder-name", ENCODER])
    runpy.run_path(str(ROOT / "examples/7_weights_you_have.py"), run_name="__main__")
    assert Image.open(tmp_path / "image.png").size == (128, 128)
    assert "License:" in capsys.readouterr().out
