"""A template: the text stream of one prompt, computed once, for any number of people.

The text stream does not depend on the person (see docs/method.md), so what the identity stream reads of it can be kept:
the input of each `attn1`, for every step. K_t and V_t would be twice as large and save 6 % of a full-size step's
operations; see docs/performance.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from infid_engines.errors import InputError
from infid_engines.manifest import Manifest, TensorSpec, canonical_key
from infid_engines.validation import path_of, shown
from infid_export.runtime.conditioning import has_guidance
from infid_export.runtime.denoise import FEATURES, image_size, reject_non_finite
from infid_export.runtime.requirements import template_graph
from infid_export.runtime.template_file import TensorLayout, layout_size, read_tensors, views, written_tensors

Array = np.ndarray[Any, Any]
SCALES = "text_scales."  # begins the names of the inputs with the scales of 8-bit features
_CONDITIONING = ("prompt_embeds", "pooled_prompt_embeds", "time_ids")
_TEXT_PARTS = ("text_encoder", "text_encoder_2", "unet")
_LARGEST = 127  # of 8 bits, symmetric


@dataclass(frozen=True)
class TemplateSettings:
    """How a template is made.

    Args:
        prompt: the prompt.
        negative_prompt: the negative prompt; None means zero embeddings.
        seed: of the text stream's noise, for `numpy.random.default_rng(seed)`.
        height: pixels.
        width: pixels.
        steps: number of steps.
        guidance: g of classifier-free guidance.
        sampler: name of the sampler.
        spacing: spacing of its timesteps.
    """

    prompt: str
    negative_prompt: str | None
    seed: int
    height: int
    width: int
    steps: int
    guidance: float
    sampler: str
    spacing: str | None


@dataclass(frozen=True, eq=False)
class Template:
    """The text stream of one prompt, with R rows: 2 with guidance (unconditional, conditional), else 1.

    Args:
        tensors: by name. `text_features.<block>` `[steps, R, N, C]`, float16, float32 or int8; for int8 also
            `text_scales.<block>` `[steps, R, 1, C]` float32, by which they are multiplied, and `snr` `[steps]` float32,
            the signal-to-noise ratio of a step's features in dB. `prompt_embeds` `[R, 77, D]`, `pooled_prompt_embeds`
            `[R, P]` and `time_ids` `[R, 6]`. `rows` `[steps, 8]` float32, the sampler's table; `initial_scale` `[1]`
            float32, the standard deviation of the first latents. `latents` `[1, 4, h, w]` float32, the text stream's
            last latents, which decode to the template's own image.
        settings: how it was made.
        model: of `text_model_id`.
    """

    tensors: Mapping[str, Array]
    settings: TemplateSettings
    model: str

    def __len__(self) -> int:
        """Return the number of steps."""
        return self.settings.steps

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors; almost all are features."""
        return sum(each.nbytes for each in self.tensors.values())

    @property
    def layout(self) -> dict[str, TensorLayout]:
        """Dtypes and shapes of the tensors."""
        return {name: TensorLayout(each.dtype.name, each.shape) for name, each in self.tensors.items()}

    @property
    def guidance(self) -> bool:
        """Whether it has unconditional rows."""
        return len(self.tensors["time_ids"]) == 2

    @property
    def snr(self) -> float | None:
        """Signal-to-noise ratio of the worst step's features in dB; None if they are not quantized."""
        return float(self.tensors["snr"].min()) if "snr" in self.tensors else None

    @property
    def conditioning(self) -> dict[str, Array]:
        """The prompt's inputs of a step."""
        return {name: self.tensors[name] for name in _CONDITIONING}

    def step(self, index: int) -> dict[str, Array]:
        """Return the features of a step as the inputs of `identity_step`."""
        return {name: each[index] for name, each in self.tensors.items() if name.startswith((FEATURES, SCALES))}

    def save(self, path: str | Path) -> None:
        """Write the template atomically as one safetensors file.

        Raises:
            InputError: the file cannot be written.
            DiskFullError: the disk is full.
        """
        with written_tensors(_target(path), self.layout, self.settings, self.model) as tensors:
            for name, values in self.tensors.items():
                tensors[name][...] = values

    @classmethod
    def load(cls, path: str | Path, check: bool = True) -> Template:
        """Open a template file. It is mapped into memory: processes share it, and only what is read takes memory.

        Args:
            path: the file.
            check: whether to read all of it and compare it with its seal.

        Raises:
            InputError: the file is missing, damaged, or not a template.
        """
        path = path_of("The template file", path, "Give a file that Template.save wrote.")
        tensors, settings, model = read_tensors(path, TemplateSettings, check)
        return cls(tensors, settings, model)


def text_model_id(manifest: Manifest) -> str:
    """Return a hash of what a template depends on besides its settings: weights, precision and noise schedule."""
    schedule = {name: each for name, each in manifest.scheduler.items() if name not in ("table", "initial_scale")}
    files = {name: manifest.model["files"].get(name) for name in _TEXT_PARTS}
    return canonical_key({"files": files, "precision": manifest.precision, "scheduler": schedule})


def template_size(manifest: Manifest, settings: TemplateSettings) -> int:
    """Return the bytes of a template, before it is made."""
    return layout_size(template_layout(manifest, settings))


def template_layout(manifest: Manifest, settings: TemplateSettings) -> dict[str, TensorLayout]:
    """Return the layout of a template's tensors, before it is made.

    Raises:
        EngineFolderError: the folder has no graph `identity_step`.
    """
    inputs = {spec.name: spec for spec in template_graph(manifest, "identity_step").inputs}
    area = settings.height * settings.width, manifest.height * manifest.width

    def of(spec: TensorSpec) -> TensorLayout:
        # a dynamic dimension of these is the number of tokens
        extents = (each if isinstance(each, int) else each[1] * area[0] // area[1] for each in spec.shape)
        return TensorLayout(spec.dtype, tuple(extents))

    factor, steps = manifest.vae_scale_factor, settings.steps
    layout = {name: of(inputs[name]) for name in _CONDITIONING}
    layout |= {
        name: TensorLayout(of(spec).dtype, (steps, *of(spec).shape))
        for name, spec in inputs.items()
        if name.startswith((FEATURES, SCALES))
    }
    layout["rows"] = TensorLayout("float32", (steps, 8))
    layout["initial_scale"] = TensorLayout("float32", (1,))
    layout["latents"] = TensorLayout("float32", (1, 4, settings.height // factor, settings.width // factor))
    if any(name.startswith(SCALES) for name in inputs):
        layout["snr"] = TensorLayout("float32", (steps,))
    return layout


@contextmanager
def new_template(manifest: Manifest, settings: TemplateSettings, path: str | Path | None) -> Iterator[Template]:
    """Yield a template to be filled: in memory, or in a file that is complete after the block.

    Raises:
        InputError: it does not fit into memory, or the file cannot be written.
        DiskFullError: the disk is too full for it.
        EngineFolderError: the folder has no graph `identity_step`.
    """
    layout, model = template_layout(manifest, settings), text_model_id(manifest)
    if path is not None:
        with written_tensors(_target(path), layout, settings, model) as tensors:
            yield Template(tensors, settings, model)
        return
    size = layout_size(layout)
    try:
        content = np.empty(size, np.uint8)  # in one block: the system may grant parts that it has not got together
    except MemoryError as error:
        raise InputError(
            f"A template of {settings.steps} steps takes {size:,} bytes, more than the memory holds.",
            fix="Give a path for a file, or fewer steps.",
        ) from error
    yield Template(views(content, layout), settings, model)


def keep_features(tensors: Mapping[str, Array], index: int, features: Mapping[str, Array]) -> None:
    """Write the features of a step, quantized if the template has scales.

    Raises:
        EngineFolderError: quantized features have non-finite values.
    """
    signal = noise = 0.0
    for name, values in features.items():
        kept, scales = tensors[name], tensors.get(f"{SCALES}{name.removeprefix(FEATURES)}")
        if scales is None:
            kept[index] = values
            continue
        exact = values.astype(np.float32)
        kept[index], scales[index] = quantized(exact)
        reject_non_finite(scales[index], "text features")
        signal += float(np.square(exact).sum())
        noise += float(np.square(exact - kept[index] * scales[index]).sum())
    if "snr" in tensors:
        tensors["snr"][index] = 10 * np.log10(signal / noise) if noise else np.inf


def quantized(values: Array) -> tuple[Array, Array]:
    """Return features in 8 bits and the scales of their channels: the product approximates the features.

    The features are the output of a layer norm, whose weights give each channel its own range.

    Args:
        values: `[R, N, C]` float.

    Returns:
        `[R, N, C]` int8 and `[R, 1, C]` float32.
    """
    exact = values.astype(np.float32, copy=False)
    scales = np.abs(exact).max(axis=-2, keepdims=True) / np.float32(_LARGEST)
    with np.errstate(invalid="ignore"):  # not finite: rejected by the caller, by its scale
        steps = np.rint(exact / np.where(scales == 0, np.float32(1), scales))
        return steps.clip(-_LARGEST, _LARGEST).astype(np.int8), scales


def check_template(template: Any, manifest: Manifest) -> None:
    """Reject a template that the engines of a folder cannot use.

    Raises:
        InputError: it is not a template, is of another model or size, or differs in guidance or in its features.
        EngineFolderError: the folder has one stream, or lacks a graph for templates.
    """
    if not isinstance(template, Template):
        raise InputError(f"The template must be a Template, not {shown(template)}.", fix="Use Pipeline.template.")
    own = text_model_id(manifest)
    if template.model != own:
        raise InputError(
            f"The template was made with the model {template.model[:12]}…, but these engines are of {own[:12]}….",
            fix="Make it again with these engines.",
        )
    template_graph(manifest, "identity_step")
    if template.guidance != has_guidance(manifest):
        kinds = {True: "with", False: "without"}
        raise InputError(
            f"The template was made {kinds[template.guidance]} guidance, but these engines were built "
            f"{kinds[not template.guidance]}.",
            fix="Make it again with these engines.",
        )
    image_size(manifest, template.settings.height, template.settings.width)
    layout = template_layout(manifest, template.settings)
    found = template.layout
    if found != layout:
        names = sorted(layout | found, key=lambda name: (not name.startswith(FEATURES), name))
        first = next(name for name in names if found.get(name) != layout.get(name))
        given, expected = (
            "nothing" if each is None else f"{each.dtype} {list(each.shape)}"
            for each in (found.get(first), layout.get(first))
        )
        raise InputError(
            f"The template's {first} is {given}, but these engines take {expected}.",
            fix="Make it again with these engines.",
        )


def _target(path: str | Path) -> Path:
    return path_of("The template file", path, "Give a path that ends in .safetensors.")
