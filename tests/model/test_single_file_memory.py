"""A single file of full size is read with bounded memory."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
from single_files import NETWORKS

from infid_export.model.architectures import SDXL, identity_config
from infid_export.model.checkpoints.original_layout import PREFIXES, original_places
from infid_export.model.components import build_component

GIGABYTE = 10**9
STREAM = """
import json, resource, sys
from pathlib import Path
import torch
from infid_export.export.weights import WeightsLayout
from infid_export.model.architectures import SDXL, identity_config
from infid_export.model.components import build_component
from infid_export.model.checkpoints.single_file import read_single_file
from infid_export.model.checkpoints.stored_network import find_network
from infid_export.model.checkpoints.tensor_file import TensorFile

file = TensorFile.open(Path(sys.argv[1]))
checkpoint = read_single_file(file)
network = find_network("unet", checkpoint.parts["unet"], [file], "The unet weights")
module = network.fitted(build_component("unet", SDXL, identity_config(SDXL)))
anonymous = 0

def watched(weights):
    global anonymous
    for each in weights:
        lines = Path("/proc/self/status").read_text().splitlines()
        anonymous = max(anonymous, *(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon")))
        yield each

layout = WeightsLayout.of(module, torch.float16)
layout.write(Path(sys.argv[2]), watched(network.weights(module, torch.float16)))
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
print(json.dumps({"peak": peak, "anonymous": anonymous, "is_sdxl": checkpoint.parts["unet"] == SDXL.unet}))
"""


def original_shapes() -> dict[str, tuple[int, ...]]:
    """Return the shapes of all tensors of SDXL's original layout."""
    found: dict[str, tuple[int, ...]] = {}
    for network in NETWORKS:
        places = original_places(network, SDXL.component(network))
        for name, parameter in build_component(network, SDXL, identity_config(SDXL)).named_parameters():
            place, shape = places[name.removeprefix("text_model.")], tuple(parameter.shape)
            if place.third is not None:
                shape = (3 * shape[0], *shape[1:])
            found[PREFIXES[network] + place.key] = shape[::-1] if place.transposed else shape
    return found


def write_random(path: Path) -> None:
    """Write a file of fp16 tensors piece by piece."""
    header, position = {}, 0
    for name, shape in original_shapes().items():
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [position, position + size]}
        position += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    piece = np.random.default_rng(0).normal(0, 0.02, 1 << 23).astype(np.float16).tobytes()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        while position > 0:
            position -= file.write(piece[:position])


@pytest.mark.slow
def test_the_unet_of_a_full_size_file_is_streamed(tmp_path: Path) -> None:
    if psutil.virtual_memory().available < 14 * GIGABYTE or shutil.disk_usage(tmp_path).free < 20 * GIGABYTE:
        pytest.skip("needs 14 GB of memory and 20 GB of disk")
    file, written = tmp_path / "sdxl.safetensors", tmp_path / "unet.safetensors"
    try:
        write_random(file)
        assert 6.9 < file.stat().st_size / GIGABYTE < 7.0
        run = subprocess.run(
            [sys.executable, "-c", STREAM, str(file), str(written)], capture_output=True, text=True, check=True
        )
        found = json.loads(run.stdout)
        print(found)  # noqa: T201 - shown with -s: the measured peaks
        assert found["is_sdxl"]
        assert found["peak"] < 8 * GIGABYTE
        assert found["anonymous"] < 2 * GIGABYTE
        assert written.stat().st_size > 5.1 * GIGABYTE
    finally:
        for path in (file, written):
            path.unlink(missing_ok=True)
