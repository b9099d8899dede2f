"""The generators of the scored images: engines, or the PyTorch reference with the variants of the method."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from infid_engines.errors import InputError
from infid_engines.manifest import sha256_file
from infid_export.export.face_models import open_detector, recognizer_file
from infid_export.faces.reader import FaceReader
from infid_export.faces.recognition import ArcFaceRecognizer
from infid_export.model.architectures import Sampling
from infid_export.model.encoder_match import differences, encoders_of, trained_with
from infid_export.model.opening import open_source
from infid_export.model.sources import COMPONENTS, RANDOM, ModelSource
from infid_export.runtime.pipeline import Pipeline
from infid_export.sampling.samplers import chosen_sampler

_REFERENCE_BATCH = 4  # prompts per call in PyTorch: on two cores, more are not faster and take more memory


class Generator(Protocol):
    """Generates images of people."""

    batch: int  # images per call

    def enroll(self, photo: Image.Image) -> Any:
        """Return the person of a reference photo.

        Raises:
            InputError: the photo shows no usable face.
        """

    def generate(
        self, person: Any, prompts: Sequence[str], noise_seeds: Sequence[int], stylized: bool
    ) -> list[Image.Image]:
        """Return one image per prompt, each from the noise of its own seed, `numpy.random.default_rng(seed)`.

        Args:
            person: result of `enroll`.
            prompts: at most `batch`.
            noise_seeds: one per prompt.
            stylized: whether these prompts ask for a style.
        """

    def describe(self) -> dict[str, Any]:
        """Return the description of the generator for a document."""


@dataclass(frozen=True)
class PromptSampling:
    """The sampling settings, depending on whether a prompt asks for a style.

    AdaIN-mean is how the method transfers style (Infinite-ID, arXiv 2403.11781), and it costs some of the likeness. So
    by default it is off for the other prompts.

    Args:
        sampling: settings for prompts that ask for a style, and, except for s, for all others.
        plain_style_strength: s for the others.
    """

    sampling: Sampling
    plain_style_strength: float = 0.0

    @classmethod
    def chosen(cls, own: Sampling, settings: Mapping[str, Any] | None) -> PromptSampling:
        """Return a model's sampling settings, replaced by the given settings that are not None."""
        given = {name: value for name, value in (settings or {}).items() if value is not None}
        plain = given.pop("plain_style_strength", 0.0)
        sampler, spacing = chosen_sampler(given.get("sampler"), given.get("spacing"), own.sampler, own.spacing)
        return cls(replace(own, **{**given, "sampler": sampler, "spacing": spacing}), plain)

    def of(self, stylized: bool) -> Sampling:
        """Return the settings for prompts that do, or do not, ask for a style."""
        return self.sampling if stylized else replace(self.sampling, style_strength=self.plain_style_strength)

    def to_json(self) -> dict[str, Any]:
        """Return the settings for a document."""
        return {**asdict(self.sampling), "plain_style_strength": self.plain_style_strength}


class EngineGenerator:
    """The engines of a folder, on any backend; a `Generator`.

    Args:
        pipe: the engines.
        settings: sampling settings, fields of `Sampling` and `plain_style_strength`; the rest is the folder's.
    """

    def __init__(self, pipe: Pipeline, settings: Mapping[str, Any] | None = None) -> None:
        own = Sampling(**{name: pipe.manifest.defaults[name] for name in asdict(Sampling())})
        self._pipe, self._settings = pipe, PromptSampling.chosen(own, settings)
        self.batch = pipe.manifest.batch

    def enroll(self, photo: Image.Image) -> Any:
        """Return the `Person` of a photo."""
        return self._pipe.enroll(photo)

    def generate(
        self, person: Any, prompts: Sequence[str], noise_seeds: Sequence[int], stylized: bool
    ) -> list[Image.Image]:
        """Return one image per prompt."""
        images: list[Image.Image] = self._pipe.generate(
            list(prompts), person, seed=list(noise_seeds), **asdict(self._settings.of(stylized))
        )
        return images

    def describe(self) -> dict[str, Any]:
        """Return backend, device, precision, model and settings."""
        manifest = self._pipe.manifest
        return {
            "kind": "engines",
            "backend": self._pipe.backend,
            "device": self._pipe.device,
            "precision": manifest.precision,
            "size": [manifest.height, manifest.width],
            "model": dict(manifest.model),
            "settings": self._settings.to_json(),
        }


class ReferenceGenerator:
    """The PyTorch reference in fp32; a `Generator`.

    Args:
        source: the model.
        reader: finds and encodes the face of a reference photo.
        settings: sampling settings, fields of `Sampling` and `plain_style_strength`; the rest is the model's.
        choices: fields of `IdentityConfig` that replace the weights' own.
        identity: identity weights from another training of the same model; None uses the source's own.

    Raises:
        InputError: a choice does not exist, or the identity weights do not fit the model.
    """

    batch = _REFERENCE_BATCH

    def __init__(
        self,
        source: ModelSource,
        reader: FaceReader,
        settings: Mapping[str, Any] | None = None,
        choices: Mapping[str, Any] | None = None,
        identity: Path | None = None,
    ) -> None:
        from infid_export.model.config import read_config
        from infid_export.model.identity import IdentityModules
        from infid_export.model.identity_header import lora_tensors
        from infid_export.model.processors import identity_blocks
        from infid_export.model.reference_pipeline import InfiniteIDPipeline

        self._settings = PromptSampling.chosen(source.architecture.sampling, settings)
        # rejected here, before the base model is loaded
        (source.config if identity is None else read_config(identity)).with_choices(**(choices or {}))
        if identity is not None and lora_tensors(identity):
            raise InputError(
                f"{identity} has a LoRA, which changes the base model, so it cannot replace other identity weights.",
                fix="Evaluate it as a model of its own, with --identity.",
            )
        self._reader = reader
        self._pipe: Any = InfiniteIDPipeline.from_source(source)
        self._pipe.set_progress_bar_config(disable=True)
        modules = None if identity is None else IdentityModules.load(identity, identity_blocks(self._pipe.unet))
        self._pipe.use_identity(modules, **(choices or {}))
        weights = {name: source.fingerprint(name) for name in COMPONENTS}
        if identity is not None:
            weights["identity"] = sha256_file(identity)
        self._size = source.architecture.size
        self._described = {
            "kind": "pytorch",
            "backend": "torch",
            "device": "cpu",
            "precision": "fp32",
            "size": [self._size, self._size],
            "model": {"name": source.name, "files": weights, "config": self._pipe.identity_config.to_dict()},
            "settings": self._settings.to_json(),
        }

    def enroll(self, photo: Image.Image) -> Any:
        """Return the keys and values of a photo."""
        return self._pipe.encode_identity(self._reader.read(photo))

    def generate(
        self, person: Any, prompts: Sequence[str], noise_seeds: Sequence[int], stylized: bool
    ) -> list[Image.Image]:
        """Return one image per prompt."""
        images: list[Image.Image] = self._pipe(
            list(prompts),
            person,
            height=self._size,
            width=self._size,
            **self._settings.of(stylized).arguments(),
            generator=[np.random.default_rng(seed) for seed in noise_seeds],
        ).images
        return images

    def describe(self) -> dict[str, Any]:
        """Return model, method variant and settings."""
        return dict(self._described)


def open_reference(
    model: str,
    *,
    settings: Mapping[str, Any] | None = None,
    choices: Mapping[str, str | int | None] | None = None,
    identity: Path | None = None,
    image_encoder: str | None = None,
    seed: int = 0,
    recognizer: Path | None = None,
    face_detector: str = "drawn",
) -> ReferenceGenerator:
    """Open the PyTorch reference of a model.

    Args:
        model: for `open_source`.
        settings: sampling settings.
        choices: method choices that replace the weights' own if they are not None.
        identity: identity weights; for a built-in model they replace its own.
        image_encoder: OpenCLIP checkpoint or tag; needed for a checkpoint.
        seed: seed of random weights.
        recognizer: the ArcFace-type recognizer that the identity weights were trained with; None uses the demo model's.
        face_detector: see `open_detector`.

    Raises:
        InputError: the model is missing or lacks a component, or needs a recognizer.
    """
    source = open_source(model, identity=identity, image_encoder=image_encoder, seed=seed)
    config = source.config
    if recognizer is None and model != "demo" and config.reads_face:
        raise InputError(
            f"The model {model} has no face recognizer of its own.",
            fix="Give an ArcFace-type one with --recognizer FILE.",
        )
    detector = open_detector(face_detector)[0] if config.finds_faces else None
    embedder, used = None, ("", "")
    if config.reads_face:
        with recognizer_file(recognizer) as path:
            embedder = ArcFaceRecognizer(path, config.face_width)
            used = embedder.fingerprint, embedder.name
    given = encoders_of(source, *used, "")
    trained = trained_with(source, identity)
    for clause in () if trained is None else differences(trained, given):
        warnings.warn(f"the identity weights were trained {clause}", stacklevel=2)
    reader = FaceReader(
        detector,
        embedder,
        source.architecture.image_encoder["image_size"] if config.reads_image else None,
        crop=config.crop,
        normalized=config.face_embedding == "normalized",
    )
    chosen = {name: value for name, value in (choices or {}).items() if value is not None}
    # other sources have already read the identity weights
    return ReferenceGenerator(source, reader, settings, chosen, identity if model in RANDOM else None)
