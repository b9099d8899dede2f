"""The stages of the demo model's recipe, in order; each writes a file, and is skipped if that file exists."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from infid_engines.progress import Reporter, Stage
from infid_export.model.architectures import DEMO, identity_config
from infid_export.model.components import construct
from infid_export.model.encoders import ImageEncoder
from infid_export.model.face_networks import DetectorNetwork
from infid_training.base_model import fresh_identity
from infid_training.loop import train
from infid_training.recipe import autoencoder, base, contrast, detector_stage, identity_stage, recognizer_stage
from infid_training.recipe.fitting import Fit, fit
from infid_training.recipe.packing import pack, used_words
from infid_training.recipe.pictures import PEOPLE, Pictures, draw_pictures

WITH_TEXT = "identity-with-text"  # only for the ablation
# Seconds of each stage on two CPU cores, to estimate the time left: measured in one run; the ablation's is a guess.
SECONDS = {
    "pictures": 120.0,
    "vae": 950.0,
    "clip": 1100.0,
    "recognizer": 790.0,
    "facenet": 920.0,
    "detector": 340.0,
    "latents": 590.0,
    "base": 3220.0,
    "photos": 200.0,
    "identity": 1265.0,
    WITH_TEXT: 1500.0,
    "demo": 40.0,
}


@dataclass
class Recipe:
    """One training of the demo model.

    Args:
        work: folder of images and weights, 4 GB.
        device: where to train, as torch names it.
        reporter: shown the progress.
        seed: seed of all initial weights.
        people: number of people, even.
        compiled: whether the UNet is compiled for its training, which is a fifth faster and needs a C++ compiler.
        base_steps: steps of the UNet's training; None means as many as let all stages fit in three hours on two CPU
            cores.
        ablation: whether the identity modules are also trained with text on.
    """

    work: Path
    device: str
    reporter: Reporter
    seed: int = 0
    people: int = PEOPLE
    compiled: bool = True
    base_steps: int | None = None
    ablation: bool = False

    def run(self) -> list[Path]:
        """Run every stage that is not done yet; return the files that the package and its benchmarks ship."""
        trainings = ("identity", WITH_TEXT) if self.ablation else ("identity",)
        seconds = {**SECONDS, "base": SECONDS["base"] * self._base_fit.steps / base.FIT.steps}
        self.reporter.plan({name: each for name, each in seconds.items() if self.ablation or name != WITH_TEXT})
        pictures = self.pictures()
        networks = self.faces(pictures)
        towers = self.towers(pictures)
        vae = self.vae(pictures)
        latents = self.latents(vae, pictures)
        unet = self.base(pictures, towers, latents)
        photos = self.photos(pictures, towers, networks["recognizer"], latents)
        identity = {name: self.identity(unet, photos, towers, name) for name in trainings}
        with self.reporter.stage("demo"):
            return pack(
                {
                    "unet": unet,
                    "vae": vae,
                    "image_encoder": ImageEncoder(towers.image),
                    "text_encoder": towers.text_encoder,
                    "text_encoder_2": towers.text_encoder_2,
                    **networks,
                },
                identity,
                used_words(pictures),
                self.work / "demo",
            )

    def pictures(self) -> Pictures:
        """Draw the images."""
        with self.reporter.stage("pictures") as stage:
            return draw_pictures(self.work, stage, self.people)

    def vae(self, pictures: Pictures) -> Any:
        """Return the trained VAE, with latents of SDXL's deviation."""
        vae = self._new("vae")
        with torch.no_grad():
            # start with a small latent variance, so that the latents carry information
            vae.quant_conv.bias[vae.config.latent_channels :] -= 6
        self._fit("vae", vae, partial(autoencoder.autoencoder_loss, vae, pictures), autoencoder.FIT)
        autoencoder.scale_latents(vae, pictures)
        return vae

    def towers(self, pictures: Pictures) -> contrast.ContrastiveTowers:
        """Return the image tower and the text towers."""
        image, text, text_2 = (self._new(name) for name in ("image_encoder", "text_encoder", "text_encoder_2"))
        towers = contrast.ContrastiveTowers(image.visual, text, text_2).to(self.device)
        loss = partial(contrast.contrastive_loss, towers, contrast.tokenizers(), pictures)
        self._fit("clip", towers, loss, contrast.FIT)
        return towers

    def faces(self, pictures: Pictures) -> dict[str, torch.nn.Module]:
        """Return both recognizers and the detector."""
        torch.manual_seed(self.seed)
        networks: dict[str, torch.nn.Module] = {}
        for seed, (name, taught) in enumerate(recognizer_stage.recognizers(self.people).items()):
            taught.to(self.device).to(memory_format=torch.channels_last)
            loss = partial(recognizer_stage.recognizer_loss, taught, pictures, 10 + seed)
            self._fit(name, taught, loss, recognizer_stage.FIT)
            networks[name] = taught.network
        networks["detector"] = detector = DetectorNetwork().to(self.device)
        detector.to(memory_format=torch.channels_last)
        self._fit("detector", detector, partial(detector_stage.detector_loss, detector, pictures), detector_stage.FIT)
        return networks

    def latents(self, vae: Any, pictures: Pictures) -> Tensor:
        """Return the scaled latents of all images."""
        with self.reporter.stage("latents") as stage:
            return base.encode_pictures(vae, pictures, self.work / "latents.safetensors", stage)

    def base(self, pictures: Pictures, towers: contrast.ContrastiveTowers, latents: Tensor) -> Any:
        """Return the trained UNet."""
        unet = self._new("unet")
        texts = base.Texts(contrast.tokenizers(), towers.text_encoder, towers.text_encoder_2)
        text_mean = base.TextMean(unet)
        # whole images and faces, each with its own graph
        called = torch.compile(unet, dynamic=False) if self.compiled else unet
        self._fit("base", unet, base.BaseLoss(called, texts, latents, pictures, text_mean), self._base_fit)
        text_mean.remove()
        return unet

    def photos(
        self, pictures: Pictures, towers: contrast.ContrastiveTowers, recognizer: torch.nn.Module, latents: Tensor
    ) -> identity_stage.PhotosOfTheWorld:
        """Return what identity-enhanced training reads."""
        with self.reporter.stage("photos") as stage:
            found = identity_stage.encode_faces(
                ImageEncoder(towers.image), recognizer, pictures, self.work / "photos.safetensors", stage
            )
        return identity_stage.PhotosOfTheWorld(
            found["numbers"], latents, found["clip_features"], found["face_embeddings"], pictures
        )

    def identity(
        self, unet: Any, photos: identity_stage.PhotosOfTheWorld, towers: contrast.ContrastiveTowers, name: str
    ) -> Path:
        """Train the identity modules, as the paper does or, for the ablation, with text on; return their file."""
        file = self.work / f"{name}.safetensors"
        if file.is_file():
            return file
        with_text = name == WITH_TEXT
        config = replace(identity_config(DEMO), center_tokens=True, trained_with_text=with_text)
        texts = base.Texts(contrast.tokenizers(), towers.text_encoder, towers.text_encoder_2) if with_text else None
        modules = fresh_identity(unet, config, self.seed)
        shown, seen = _Under(self.reporter, name), replace(photos, texts=texts)
        with sdpa_kernel(SDPBackend.MATH):  # as in `BaseLoss`
            copied = deepcopy(unet)  # since training casts the UNet to its precision
            if self.compiled:
                copied.compile(dynamic=False)
            report = train(copied, modules, seen, identity_stage.OPTIONS, self.work / name, shown)
        report.identity.replace(file)
        return file

    @property
    def _base_fit(self) -> Fit:
        return base.FIT if self.base_steps is None else replace(base.FIT, steps=self.base_steps)

    def _new(self, name: str) -> Any:
        """Return a component of the demo model with its library's initial weights."""
        torch.manual_seed(self.seed)
        module = construct(name, DEMO, identity_config(DEMO))
        return module.to(self.device).to(memory_format=torch.channels_last).requires_grad_(True)

    def _fit(self, name: str, module: torch.nn.Module, loss: Any, how: Any) -> None:
        with self.reporter.stage(name) as stage:
            fit(module, loss, how, self.work, name, stage)


@dataclass
class _Under:
    """Reports work that has stages of its own as one stage of the recipe."""

    reporter: Reporter
    name: str

    def plan(self, stages: dict[str, float]) -> None:
        pass

    @contextmanager
    def stage(self, name: str) -> Iterator[Stage]:
        with self.reporter.stage(self.name) as stage:
            yield stage

    def note(self, text: str) -> None:
        self.reporter.note(text)
