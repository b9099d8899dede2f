"""Probes whether the VAE's decoder stays finite in fp16 with the given weights; a build stores the result."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from infid_export.model.sources import ModelSource

VAE_RANGE = "onnx/vae_range.json"
PROBED = "vae"  # the component whose precision the probe decides: SDXL's trained VAE overflows in fp16
# A quarter of fp16's largest value: images unlike the probes may reach larger values.
_FP16_SAFE = 65504 / 4
_PROBES, _PROBE_SIZE = 3, 32  # latents of 32 × 32: the range does not depend on the image size


def write_vae_range(source: ModelSource, path: Path) -> None:
    """Decode a few latents in fp32, and write the largest value, the safe precision, and why.

    Args:
        source: the model.
        path: the JSON file to write.
    """
    import torch

    from infid_export.export.graph_export import quiet_diffusers
    from infid_export.runtime.denoise import seeded_noise

    quiet_diffusers()
    vae: Any = source.load(PROBED, torch.float32)
    largest = 0.0

    def watch(_: nn.Module, __: Any, output: Any) -> None:
        nonlocal largest
        if isinstance(output, torch.Tensor):
            largest = max(largest, float(output.abs().max()))

    handles = [module.register_forward_hook(watch) for module in vae.modules()]
    latents = torch.from_numpy(seeded_noise(range(_PROBES), (4, _PROBE_SIZE, _PROBE_SIZE)))
    with torch.no_grad():
        vae.decode(latents / vae.config.scaling_factor)
    for handle in handles:
        handle.remove()
    weight = max(float(parameter.abs().max()) for parameter in vae.parameters())
    safe = largest <= _FP16_SAFE and weight <= torch.finfo(torch.float16).max
    why = f"activations reach {largest:.0f} with these weights, the limit for fp16 is {_FP16_SAFE:.0f}"
    if weight > torch.finfo(torch.float16).max:
        why = f"a weight reaches {weight:.0f}, but fp16 ends at {torch.finfo(torch.float16).max:.0f}"
    path.write_text(json.dumps({"largest": largest, "precision": "fp16" if safe else "fp32", "why": why}))


def precision_of(components: Iterable[str], precision: str, folder: Path) -> str:
    """Return the precision of components in a folder: the folder's, or fp32 if the probe rejected fp16.

    Args:
        components: components of one graph.
        precision: precision of the folder, `fp16` or `fp32`.
        folder: folder with the probe's result.
    """
    return _finding(folder)["precision"] if precision == "fp16" and PROBED in components else precision


def range_note(folder: Path) -> str:
    """Return the probe's result as a sentence for the user."""
    found = _finding(folder)
    return f"VAE decoder: {found['precision']}, {found['why']}"


def _finding(folder: Path) -> dict[str, str]:
    found: dict[str, str] = json.loads((folder / VAE_RANGE).read_text())
    return found
