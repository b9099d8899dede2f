"""Other ways to make the same image from the same model: other backends of the folder, our reference, and diffusers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infid_engines.errors import BackendUnavailableError
from infid_engines.manifest import Manifest
from infid_engines.registry import BACKENDS
from infid_export.bench import PROMPT, SEED

if TYPE_CHECKING:
    import torch

    from infid_export.export.plan import Plan

Call = Callable[[], object]
_TOKENS = 4  # image tokens of IP-Adapter


def open_others(names: Sequence[str], folder: Path, steps: int | None) -> dict[str, Call]:
    """Return calls that each make a batch of images with the folder's model, size, steps and guidance.

    Args:
        names: keys of `OTHERS`, or backends that the folder has engines for.
        folder: the engine folder.
        steps: steps per image; None is the folder's.

    Raises:
        BackendUnavailableError: the software is not installed, or the backend cannot run here.
        EngineFolderError: the folder is missing or damaged, or has no engines for a backend.
    """
    found: dict[str, Call] = {}
    software = [name for name in names if name not in BACKENDS]
    packages = ("torch", "diffusers", "transformers", "open_clip") if software else ()
    if any(find_spec(package) is None for package in packages):
        raise BackendUnavailableError(
            f"{', '.join(software)} cannot run: PyTorch, diffusers, transformers or open_clip is not installed.",
            fix='pip install "infid-export[export]"',
        )
    if not names:
        return found
    from infid_export.bench.images import image_calls
    from infid_export.runtime.pipeline import Pipeline

    manifest = Manifest.load(folder)
    chosen = steps or int(manifest.defaults["steps"])
    for name in (each for each in names if each in BACKENDS):
        calls = image_calls(Pipeline.load(folder, backend=name), chosen)
        found |= {f"{name}, {kind}": call for kind, call in calls.items()}
    if software:
        from infid_export.export.folder_manifest import options_of
        from infid_export.export.plan import make_plan

        plan = make_plan(options_of(manifest, folder))
        found |= {name: OTHERS[name](plan, manifest, chosen) for name in software}
    return found


def _arguments(plan: Plan, manifest: Manifest, steps: int) -> dict[str, Any]:
    return {
        "prompt": [PROMPT] * manifest.batch, "height": plan.height, "width": plan.width,
        "num_inference_steps": steps, "guidance_scale": float(manifest.defaults["guidance"]),
    }  # fmt: skip


def _reference(plan: Plan, manifest: Manifest, steps: int) -> Call:
    """Our reference in PyTorch, in fp32 on the CPU and fp16 on a GPU."""
    from infid_export.export.parity_case import model_face
    from infid_export.model.reference_pipeline import InfiniteIDPipeline

    device, dtype = _place()
    pipe: Any = InfiniteIDPipeline.from_source(plan.source, dtype).to(device)
    pipe.set_progress_bar_config(disable=True)
    face = model_face(plan.source.architecture, plan.source.config)
    person = pipe.encode_identity(face)
    given = _arguments(plan, manifest, steps)
    return lambda: pipe(given["prompt"], person, **{name: each for name, each in given.items() if name != "prompt"})


def _diffusers(plan: Plan, manifest: Manifest, steps: int) -> Call:
    """Diffusers' `StableDiffusionXLPipeline`: the same base model, without a person."""
    pipe, given = _sdxl(plan), _arguments(plan, manifest, steps)
    return lambda: pipe(**given)


def _diffusers_compiled(plan: Plan, manifest: Manifest, steps: int) -> Call:
    """The same, with its UNet compiled by `torch.compile`."""
    import torch

    pipe, given = _sdxl(plan), _arguments(plan, manifest, steps)
    pipe.unet = torch.compile(pipe.unet)
    return lambda: pipe(**given)


def _ip_adapter(plan: Plan, manifest: Manifest, steps: int) -> Call:
    """Diffusers' IP-Adapter of 4 tokens on that pipeline, with random weights: the usual way to show a person."""
    import torch

    pipe, given = _sdxl(plan), _arguments(plan, manifest, steps)
    cross = width = pipe.unet.config.cross_attention_dim
    random = torch.Generator().manual_seed(SEED)

    def weight(*shape: int) -> torch.Tensor:
        found: torch.Tensor = torch.randn(shape, generator=random) / shape[-1] ** 0.5
        return found

    layers = [name for name in pipe.unet.attn_processors if name.endswith("attn2.processor")]
    adapter = {}
    for index, name in enumerate(layers):
        attention = pipe.unet.get_submodule(name.removesuffix(".processor"))
        for kind in ("k", "v"):
            adapter[f"{2 * index + 1}.to_{kind}_ip.weight"] = weight(attention.to_k.out_features, cross)
    projection = {
        "proj.weight": weight(_TOKENS * cross, width), "proj.bias": torch.zeros(_TOKENS * cross),
        "norm.weight": torch.ones(cross), "norm.bias": torch.zeros(cross),
    }  # fmt: skip
    pipe.unet._load_ip_adapter_weights([{"image_proj": projection, "ip_adapter": adapter}])
    device, dtype = _place()
    rows = 2 if given["guidance_scale"] > 1 else 1
    embeds = weight(rows, 1, width).to(device, dtype)
    return lambda: pipe(**given, ip_adapter_image_embeds=[embeds])


def _sdxl(plan: Plan) -> Any:
    """Return diffusers' own pipeline with the components of the plan's model."""
    from diffusers import DDIMScheduler, StableDiffusionXLPipeline
    from diffusers.models.attention_processor import AttnProcessor2_0

    from infid_export.model.reference_pipeline import InfiniteIDPipeline

    device, dtype = _place()
    ours: Any = InfiniteIDPipeline.from_source(plan.source, dtype)
    ours.unet.set_attn_processor(AttnProcessor2_0())
    names = ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "unet")
    parts = {name: getattr(ours, name) for name in names}
    scheduler = DDIMScheduler.from_config(ours.scheduler.config)
    pipe: Any = StableDiffusionXLPipeline(**parts, scheduler=scheduler, add_watermarker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


def _place() -> tuple[str, torch.dtype]:
    import torch

    return ("cuda", torch.float16) if torch.cuda.is_available() else ("cpu", torch.float32)


OTHERS: Mapping[str, Callable[[Plan, Manifest, int], Call]] = {
    "reference": _reference,
    "diffusers": _diffusers,
    "diffusers-compiled": _diffusers_compiled,
    "diffusers-ip-adapter": _ip_adapter,
}
