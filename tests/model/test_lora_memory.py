"""A LoRA for full-size SDXL is merged within bounds of memory."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

PROGRAM = """
import json, sys, time
from pathlib import Path
import torch
from safetensors.torch import save_file
from lora_files import kohya, layers_of, matrices, original_names
from infid_engines.memory import peak_memory
from infid_export.model.changes.lora_file import with_loras
from infid_export.model.sources import RandomSource

base, file = RandomSource("random-sdxl"), Path("lora.safetensors")
names, tensors = original_names(base), {}
layers = [layer for layer in layers_of(base, "unet") if ".attn1." in layer or ".attn2." in layer]
for layer, pair in matrices(base, "unet", layers, rank=16).items():
    tensors |= kohya("unet", names[layer], tuple(each.half() for each in pair), alpha=8.0)
save_file(tensors, file)
source, started, parameters = with_loras(base, [f"{file}:0.8"]), time.monotonic(), 0
if sys.argv[1] == "stream":
    for _, value in source.weights("unet", torch.float16):
        parameters += value.numel()
else:
    parameters = sum(value.numel() for value in source.load("unet", torch.float16).parameters())
seconds = round(time.monotonic() - started)
print(json.dumps({"layers": len(layers), "parameters": parameters, "bytes": peak_memory(), "seconds": seconds}))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("way", "most"), [("stream", 4e9), ("load", 14e9)])
def test_a_full_size_lora_is_merged_within_memory(tmp_path, way, most):
    command = [sys.executable, "-c", f"import sys; sys.path[:0] = {sys.path!r}\n{PROGRAM}", way]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout.splitlines()[-1])
    print(way, found)  # noqa: T201 (for the person who runs it)
    assert (found["layers"], found["parameters"]) == (560, 2_567_463_684)
    assert found["bytes"] <= most
