"""A template: the text stream of one prompt, computed once, for any number of people.

The text stream does not depend on the person (see docs/method.md), so what the identity stream reads of it can be kept:
the input of each `attn1`, for every step. A file is safetensors with a seal; it is mapped into memory, so processes
share it and only what is read takes memory.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from infid_engines.atomic_files import whole_file
from infid_engines.documents import record
from infid_engines.errors import InputError
from infid_engines.manifest import Manifest, canonical_key
from infid_engines.tensor_seal import SEAL_KEY, array_seal, sort_header
from infid_engines.validation import path_of, shown
from infid_export.runtime.conditioning import has_guidance
from infid_export.runtime.denoise import FEATURES, image_size

Array = np.ndarray[Any, Any]
_SETTINGS_KEY, _MODEL_KEY = "infid_template", "infid_model"
_CONDITIONING = ("prompt_embeds", "pooled_prompt_embeds", "time_ids")
_OTHERS = (*_CONDITIONING, "rows", "latents")
_TEXT_PARTS = ("text_encoder", "text_encoder_2", "unet")
_AGAIN = "Make the template again with `infid-export template make`."


@dataclass(frozen=True)
class TemplateSettings:
    """How a template was made.

    Args:
        prompt: the prompt.
        negative_prompt: the negative prompt; None means zero embeddings.
        seed: of the text stream's noise, for `numpy.random.default_rng(seed)`.
        height: pixels.
        width: pixels.
        guidance: g of classifier-free guidance.
        sampler: name of the sampler.
        spacing: spacing of its timesteps.
        initial_scale: standard deviation of the first latents.
    """

    prompt: str
    negative_prompt: str | None
    seed: int
    height: int
    width: int
    guidance: float
    sampler: str
    spacing: str | None
    initial_scale: float


@dataclass(frozen=True, eq=False)
class Template:
    """The text stream of one prompt, with R rows: 2 with guidance (unconditional, conditional), else 1.

    Args:
        features: by path of the transformer block, `[steps, R, N, C]` float16 or float32.
        conditioning: `prompt_embeds` `[R, 77, D]`, `pooled_prompt_embeds` `[R, P]` and `time_ids` `[R, 6]`.
        rows: `[steps, 8]` float32, the sampler's table.
        latents: `[1, 4, h, w]` float32, the text stream's last latents, which decode to the template's own image.
        settings: how it was made.
        model: of `text_model_id`.
    """

    features: Mapping[str, Array]
    conditioning: Mapping[str, Array]
    rows: Array
    latents: Array
    settings: TemplateSettings
    model: str

    def __len__(self) -> int:
        """Return the number of steps."""
        return len(self.rows)

    @property
    def nbytes(self) -> int:
        """Bytes of the features, almost all of a template."""
        return sum(each.nbytes for each in self.features.values())

    @property
    def guidance(self) -> bool:
        """Whether it has unconditional rows."""
        return len(self.conditioning["time_ids"]) == 2

    def step(self, index: int) -> dict[str, Array]:
        """Return the features of a step as the inputs of `identity_step`."""
        return {f"{FEATURES}{path}": each[index] for path, each in self.features.items()}

    def save(self, path: str | Path) -> None:
        """Write the template atomically as one safetensors file.

        Raises:
            InputError: the file cannot be written.
        """
        target = path_of("The template file", path, "Give a path that ends in .safetensors.")
        tensors = {f"{FEATURES}{name}": each for name, each in self.features.items()}
        tensors |= {**self.conditioning, "rows": self.rows, "latents": self.latents}
        tensors = {name: np.ascontiguousarray(each) for name, each in tensors.items()}
        metadata = {_MODEL_KEY: self.model, _SETTINGS_KEY: json.dumps(asdict(self.settings), sort_keys=True)}
        try:
            with whole_file(target) as partial:
                save_file(tensors, partial, metadata={**metadata, SEAL_KEY: array_seal(metadata, tensors)})
                sort_header(partial)
        except OSError as error:
            raise InputError(
                f"The template cannot be written to {target} ({error.strerror}).",
                fix=f"Choose a file in an existing folder with {self.nbytes / 1e9:.2f} GB of free space.",
            ) from error

    @classmethod
    def load(cls, path: str | Path, check: bool = True) -> Template:
        """Open a template file; its content stays in the file until it is read.

        Args:
            path: the file.
            check: whether to read all of it and compare it with its seal.

        Raises:
            InputError: the file is missing, damaged, or not a template.
        """
        path = path_of("The template file", path, "Give a file that Template.save wrote.")
        if not path.is_file():
            raise InputError(f"There is no template file at {path}.", fix=_AGAIN)
        try:
            metadata, tensors = _mapped(path)
            names = {name for name in tensors if name.startswith(FEATURES)}
            if not names or set(tensors) - names != set(_OTHERS):
                raise InputError(f"{path} is not a template file.", fix=_AGAIN)
            if check and metadata.get(SEAL_KEY) != array_seal(metadata, tensors):
                raise ValueError("its content has changed")
            settings = record(TemplateSettings, json.loads(metadata[_SETTINGS_KEY]), _SETTINGS_KEY)
            model = metadata[_MODEL_KEY]
        except (SafetensorError, OSError, TypeError, KeyError, ValueError) as error:
            raise InputError(f"{path} is not an intact template file ({error}).", fix=_AGAIN) from error
        features = {name.removeprefix(FEATURES): tensors[name] for name in sorted(names)}
        conditioning = {name: tensors[name] for name in _CONDITIONING}
        return cls(features, conditioning, tensors["rows"], tensors["latents"], settings, model)


def text_model_id(manifest: Manifest) -> str:
    """Return a hash of what a template depends on besides its settings: weights, precision and noise schedule."""
    schedule = {name: each for name, each in manifest.scheduler.items() if name not in ("table", "initial_scale")}
    files = {name: manifest.model["files"].get(name) for name in _TEXT_PARTS}
    return canonical_key({"files": files, "precision": manifest.precision, "scheduler": schedule})


def check_template(template: Any, manifest: Manifest) -> None:
    """Reject a template that the engines of a folder cannot use.

    Raises:
        InputError: it is not a template, is of another model or size, or differs in guidance.
        EngineFolderError: the folder has no graph `identity_step`.
    """
    if not isinstance(template, Template):
        raise InputError(f"The template must be a Template, not {shown(template)}.", fix="Use Pipeline.template.")
    own = text_model_id(manifest)
    if template.model != own:
        raise InputError(
            f"The template was made with the model {template.model[:12]}…, but these engines are of {own[:12]}….",
            fix="Make it again with these engines.",
        )
    manifest.graph("identity_step")
    if template.guidance != has_guidance(manifest):
        kinds = {True: "with", False: "without"}
        raise InputError(
            f"The template was made {kinds[template.guidance]} guidance, but these engines were built "
            f"{kinds[not template.guidance]}.",
            fix="Make it again with these engines.",
        )
    image_size(manifest, template.settings.height, template.settings.width)


def _mapped(path: Path) -> tuple[dict[str, str], dict[str, Array]]:
    """Return the metadata and the tensors of a safetensors file, the tensors as read-only views of the mapped file."""
    with safe_open(path, framework="numpy") as file:  # checks the header and the size
        metadata = dict(file.metadata() or {})
    content = np.memmap(path, np.uint8, "r")
    start = 8 + int.from_bytes(content[:8].tobytes(), "little")
    header = json.loads(content[8:start].tobytes())
    tensors = {}
    for name, facts in header.items():
        if name != "__metadata__":
            first, last = (start + offset for offset in facts["data_offsets"])
            dtype = {"F16": np.float16, "F32": np.float32}[facts["dtype"]]
            tensors[name] = content[first:last].view(dtype).reshape(facts["shape"])
    return metadata, tensors
