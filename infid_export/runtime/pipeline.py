"""`Pipeline`: enroll people and generate images from an engine folder."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from infid_engines.errors import EngineFolderError, InputError
from infid_engines.manifest import Manifest, stored_engines
from infid_engines.progress import Reporter, SilentReporter
from infid_engines.registry import get_backend
from infid_engines.validation import path_of, require_callable, require_methods, shown, text_of, texts_of, whole_number
from infid_export.faces.photos import Photo
from infid_export.faces.reader import FaceInputs, FaceReader
from infid_export.runtime.denoise import (
    batches,
    denoise,
    image_size,
    open_noise,
    reject_cancelled,
    reject_non_finite,
    scalar,
    seeded_noise,
)
from infid_export.runtime.engine_set import EngineSet, choose_backend, choose_target
from infid_export.runtime.enrollment import open_face_reader
from infid_export.runtime.person import Person, mix
from infid_export.runtime.requirements import GENERATE, require_usable
from infid_export.runtime.tokenizer import FILES, PromptTokenizer
from infid_export.sampling.samplers import SamplerTable, sampler_table

__all__ = ["Pipeline", "seeded_noise"]

Array = np.ndarray[Any, Any]
Callback = Callable[[int, float, Array], None]
_REPORTER = ("plan", "stage", "note")
_LOOKS_EVERY = 0.05  # seconds between two checks of `cancel` while another generation runs
_READ_SPEED = 5e8  # bytes per second, to estimate the loading time; hashing alone runs at about 1e9


class Pipeline:
    """Generates images of a person with exported engines. Made by `Pipeline.load`; calls from threads take turns.

    Args:
        folder: the engine folder.
        manifest: its manifest.
        engines: its engines.
        backend: name of the backend that runs them.
        device: what they run on: `cpu` or `cuda`.
        choice: one sentence that says which backend was chosen, and why.
    """

    def __init__(
        self, folder: Path, manifest: Manifest, engines: EngineSet, backend: str, device: str, choice: str
    ) -> None:
        self.folder = folder
        self.manifest = manifest
        self.backend = backend
        self.device = device
        self.choice = choice
        self._engines = engines
        self._faces: FaceReader | None = None
        self._lock = threading.RLock()
        for name in FILES:
            engines.verify(name)
        self._tokenizer = PromptTokenizer(folder)

    @classmethod
    def load(
        cls, folder: str | Path, backend: str = "auto", device: str = "auto", reporter: Reporter | None = None
    ) -> Pipeline:
        """Open an engine folder. Each engine is verified and loaded on first use.

        Args:
            folder: written by `infid-export build`.
            backend: a name in `infid_engines.registry.BACKENDS`, or `auto`: the fastest backend that the folder has
                engines for and this machine can run. `choice` says what was chosen, and why.
            device: `auto`, `cpu` or `cuda` for onnxruntime (`auto` is the CPU); `auto` or one of the folder's GPU
                architectures, such as `sm_89`, for TensorRT.
            reporter: receives a note on what was chosen, and why.

        Raises:
            EngineFolderError: the folder is missing, damaged, or has no engines for the backend.
            BackendUnavailableError: the backend cannot run on this machine.
            InputError: there is no such backend or device.
        """
        path = path_of("The engine folder", folder, "Give a folder that `infid-export build` wrote.")
        text_of("The backend", backend, "Give its name, or auto.")
        text_of("The device", device, "Give auto, cpu or cuda.")
        require_methods("The reporter", reporter, _REPORTER, "Leave it out.")
        manifest = Manifest.load(path)
        require_usable(manifest)
        if backend == "auto":
            backend, choice = choose_backend(manifest)
        else:
            get_backend(backend).versions()
            choice = f"{backend}: requested"
        if not stored_engines(manifest, backend):
            raise EngineFolderError(
                f"{path} has no {backend} engines.", fix=f"infid-export build --backend {backend} -o {path}"
            )
        target, kind = choose_target(manifest, backend, device)
        choice = f"{choice} (on {target or kind})"
        pipe = cls(path, manifest, EngineSet(path, manifest, backend, target, kind), backend, kind, choice)
        if reporter is not None:
            reporter.note(f"backend {choice}")
        return pipe

    def __enter__(self) -> Pipeline:
        """Return the pipeline."""
        return self

    def __exit__(self, *_: object) -> None:
        """Free the engines."""
        self.close()

    def close(self) -> None:
        """Free all engines. They are loaded again on the next use."""
        with self._lock:
            self._engines.close()
            self._faces = None

    def enroll(self, photo: Photo | Sequence[Photo], face_index: int | None = None, *, name: str = "") -> Person:
        """Turn one photo, or several of one person, into a `Person`.

        Args:
            photo: path, bytes, PIL image or `[H, W, 3]` uint8 array. Several photos are averaged.
            face_index: which face of each photo to use. Faces with a score near the best one come first, from large
                to small, then the others. None is 0.
            name: the person's name.

        Returns:
            The person. Its `faces` say how many faces each photo has, which one was used, and its score. A warning
            says if the folder's detector is for drawn people.

        Raises:
            InputError: a photo cannot be read, or shows no usable face. With several photos, its number is given.
            EngineFolderError: the folder cannot enroll, or is damaged.
        """
        photos: list[Any] = list(photo) if isinstance(photo, list | tuple) else [photo]
        if not photos:
            raise InputError("No photo was given.", fix="Give at least one.")
        if face_index is not None:
            face_index = whole_number("The face index", face_index, "Give 0 for the largest face, or leave it out.")
        text_of("The name", name)
        people = []
        with self._lock:
            self._faces = self._faces or open_face_reader(self.manifest, self._engines)
            if self._faces.limits:
                warnings.warn(self._faces.limits, stacklevel=2)
            for number, one in enumerate(photos):
                try:
                    people.append(self.encode(self._faces.read(one, face_index), name=name))
                except InputError as error:
                    if len(photos) == 1:
                        raise
                    raise InputError(f"Photo {number + 1} of {len(photos)}: {error.problem}", fix=error.fix) from error
        if len(people) == 1:
            return people[0]
        faces = tuple(face for person in people for face in person.faces)
        return replace(mix([(person, 1.0) for person in people], name), faces=faces)

    def encode(self, face: FaceInputs, *, name: str = "") -> Person:
        """Turn an aligned face and its embedding into a `Person`. For photos, use `enroll`.

        Raises:
            InputError: an argument does not fit.
            EngineFolderError: the engine returns non-finite values.
        """
        if not isinstance(face, FaceInputs):
            raise InputError(f"The face must be FaceInputs, not {shown(face)}.", fix="Use Pipeline.enroll for photos.")
        text_of("The name", name)
        with self._lock:
            outputs = self._engines["identity_encoder"].run(
                {"face_crop": face.face_crop, "face_embedding": face.face_embedding}
            )
        for output, values in outputs.items():
            reject_non_finite(values, output)
        tensors: dict[str, Any] = dict(outputs)
        taken = () if face.taken is None else (face.taken,)
        return Person(**tensors, model=str(self.manifest.model["id"]), name=name, faces=taken)

    def generate(
        self,
        prompt: str | Sequence[str],
        person: Person,
        *,
        negative_prompt: str | None = None,
        seed: int | Sequence[int] | None = None,
        text_seed: int | Sequence[int] | None = None,
        height: int | None = None,
        width: int | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        style_strength: float | None = None,
        identity_strength: float | None = None,
        sampler: str | None = None,
        spacing: str | None = None,
        noise: Array | None = None,
        text_noise: Array | None = None,
        callback: Callback | None = None,
        cancel: threading.Event | None = None,
        reporter: Reporter | None = None,
        output_type: Literal["pil", "np", "latents"] = "pil",
    ) -> Any:
        """Generate one image per prompt.

        Args:
            prompt: one or several. Each text encoder reads 77 tokens; the rest is dropped, with a warning or a
                note to the reporter.
            person: the person that the images show; enrolled with the same model.
            negative_prompt: what to avoid; None is the folder's default, zero embeddings for SDXL.
            seed: seed of the initial noise, for `numpy.random.default_rng(seed)`, and of the noise that a stochastic
                sampler adds; one, or one per prompt. A single seed for several prompts counts up. None picks a
                random one.
            text_seed: likewise for the text stream alone; None uses the same noise.
            height: pixels; None is the folder's default. Other values need a folder built with `--height-range`.
            width: likewise, with `--width-range`.
            steps: number of steps. This and the next three default to the folder's values.
            guidance: g of classifier-free guidance u + g·(c − u). 1 is the conditional prediction alone, which is what
                diffusers means by 0 for few-step models; 0 is the negative prompt alone. Engines that were built
                without guidance take 1 only.
            style_strength: s of AdaIN-mean; 1 is the paper's value, 0 turns it off.
            identity_strength: λ; 1 is the paper's value.
            sampler: one of `infid_export.sampling.SAMPLERS`; None is the folder's.
            spacing: spacing of the sampler's timesteps, one of `SPACINGS`; None is the folder's. `lcm` and `tcd` have
                none.
            noise: `[n, 4, h, w]` initial noise instead of a seed; not for a stochastic sampler.
            text_noise: likewise for the text stream alone.
            callback: called after each step with its index, the timestep and a copy of the batch's identity latents
                `[B, 4, h, w]`; writing to the copy has no effect. Prompts beyond the engines' batch size run in
                several batches, and the last one is padded.
            cancel: set it from another thread to stop after the current step, or immediately while another
                generation runs.
            reporter: receives the progress.
            output_type: `pil` images, `np` `[n, H, W, 3]` float32 in [0, 1], or `latents` `[n, 4, h, w]`.

        Returns:
            A list of PIL images, or an array.

        Raises:
            InputError: an argument does not fit.
            CancelledError: `cancel` was set.
            EngineFolderError: the folder is damaged, or its engines return non-finite values.
        """
        prompts = texts_of("A prompt", prompt, "Give a string, or a list of strings.")
        if not prompts:
            raise InputError("No prompt was given.", fix="Give at least one.")
        if negative_prompt is not None:
            text_of("The negative prompt", negative_prompt, "Give one string, which goes with every prompt.")
        if not isinstance(output_type, str) or output_type not in ("pil", "np", "latents"):
            raise InputError(f"There is no output type {shown(output_type)}.", fix="Use pil, np or latents.")
        require_callable("The callback", callback, "Give a function of index, timestep and latents.")
        require_methods("cancel", cancel, ("is_set",), "Give a threading.Event.")
        require_methods("The reporter", reporter, _REPORTER, "Leave it out.")
        defaults, manifest, count = self.manifest.defaults, self.manifest, len(prompts)
        strengths = {"guidance": guidance, "style_strength": style_strength, "identity_strength": identity_strength}
        scalars = {key: scalar(key, value, float(defaults[key])) for key, value in strengths.items()}
        table = self._table(sampler, spacing, steps)
        pixels = image_size(manifest, height, width)
        factor = manifest.vae_scale_factor
        shape = (count, 4, pixels[0] // factor, pixels[1] // factor)
        own = open_noise("noise", noise, seed, shape, table.stochastic)
        apart = text_noise is not None or text_seed is not None
        streams = {
            "text": open_noise("text_noise", text_noise, text_seed, shape, table.stochastic) if apart else own,
            "identity": own,
        }
        fixed = self._identity_inputs(person, scalars)
        negative = defaults["negative_prompt"] if negative_prompt is None else negative_prompt
        self._tell_dropped([*prompts, negative or ""], reporter)
        rows = batches(count, manifest.batch)
        report = reporter or SilentReporter()
        graphs = GENERATE if output_type == "latents" else (*GENERATE, "vae_decoder")
        with self._turn(cancel):
            loading = {"loading": self._engines.unread_bytes(graphs) / _READ_SPEED}
            decoding = {"decoding": float(len(rows))} if output_type != "latents" else {}
            report.plan({**loading, "denoising": float(len(table) * len(rows)), **decoding})
            self._engines.prepare(graphs, report, lambda: reject_cancelled(cancel))
            finished = []
            with report.stage("denoising") as stage:
                for number, batch in enumerate(rows):

                    def on_step(index: int, timestep: float, read: Callable[[], Array], number: int = number) -> None:
                        done = number * len(table) + index + 1
                        stage.update(done / (len(table) * len(rows)), f"step {index + 1}")
                        if callback is not None:
                            callback(index, timestep, read().copy())

                    def fresh(batch: list[int] = batch) -> dict[str, Array]:
                        drawn = {each: each.fresh(batch) for each in dict.fromkeys(streams.values())}
                        return {stream: drawn[each] for stream, each in streams.items()}

                    texts = self._text_inputs(negative, [prompts[row] for row in batch], pixels)
                    finished.append(
                        denoise(
                            self._engines["denoise_step"],
                            {**fixed, **texts},
                            {stream: each.first[batch] for stream, each in streams.items()},
                            table,
                            fresh,
                            on_step=on_step,
                            cancel=cancel,
                        )
                    )
            if output_type == "latents":
                return np.concatenate(finished)[:count]
            images = self._decode(finished, report)[:count]
        if output_type == "np":
            return images
        return [Image.fromarray((image * 255).round().clip(0, 255).astype(np.uint8)) for image in images]

    @contextmanager
    def _turn(self, cancel: threading.Event | None) -> Iterator[None]:
        """Hold the engines while the block runs.

        Raises:
            CancelledError: `cancel` was set before this thread got its turn.
        """
        reject_cancelled(cancel)
        while not self._lock.acquire(timeout=-1 if cancel is None else _LOOKS_EVERY):
            reject_cancelled(cancel)
        try:
            reject_cancelled(cancel)
            yield
        finally:
            self._lock.release()

    def _decode(self, latents: Sequence[Array], report: Reporter) -> Array:
        """Return `[n, H, W, 3]` images, decoded from batches of latents."""
        images = []
        with report.stage("decoding") as stage:
            for number, batch in enumerate(latents):
                image = self._engines["vae_decoder"].run({"latents": batch})["image"]
                reject_non_finite(image, "an image")
                images.append(image.transpose(0, 2, 3, 1))
                stage.update((number + 1) / len(latents))
        return np.concatenate(images)

    def _identity_inputs(self, person: Person, scalars: dict[str, float]) -> dict[str, Array]:
        """Return the inputs of a step that depend on neither prompt nor seed."""
        if not isinstance(person, Person):
            raise InputError(f"The person must be a Person, not {type(person).__name__}.", fix="Use Pipeline.enroll.")
        if person.model != self.manifest.model["id"]:
            raise InputError(
                f"The person was enrolled with the model {person.model[:12]}…, but these engines are of "
                f"{str(self.manifest.model['id'])[:12]}….",
                fix="Enroll the photo again with `infid-export enroll`.",
            )
        batch, fitted = self.manifest.batch, person.fit(self.manifest.people, self.manifest.identity_tokens)
        copies = 2 if self._guided else 1  # row 0 of a person is unconditional
        if not self._guided and scalars.pop("guidance") != 1:
            raise InputError(
                "These engines were built without guidance: they take a guidance of 1 only.",
                fix="Leave the guidance out, or build the folder again without --no-guidance.",
            )
        return {
            "identity_keys": np.repeat(fitted.identity_keys[-copies:], batch, axis=0),
            "identity_values": np.repeat(fitted.identity_values[-copies:], batch, axis=0),
            **{name: np.full(batch, value, dtype=np.float32) for name, value in scalars.items()},
        }

    @property
    def _guided(self) -> bool:
        """Whether the steps have unconditional rows."""
        return any(spec.name == "guidance" for spec in self.manifest.graph("denoise_step").inputs)

    def _table(self, sampler: str | None, spacing: str | None, steps: int | None) -> SamplerTable:
        """Return the table of the asked-for sampler, or of the folder's."""
        defaults = self.manifest.defaults
        if sampler is None:
            sampler, spacing = defaults["sampler"], defaults["spacing"] if spacing is None else spacing
        return sampler_table(self.manifest.scheduler, defaults["steps"] if steps is None else steps, sampler, spacing)

    def _text_inputs(self, negative: str | None, prompts: list[str], pixels: tuple[int, int]) -> dict[str, Array]:
        """Return the text inputs of a step: rows of the negative prompt (zeros for None), then of the prompts."""
        texts = [negative or ""] * len(prompts) + prompts if self._guided else prompts
        first, second = self._tokenizer.encode(texts)
        one = self._engines["text_encoder"].run({"input_ids": first})
        two = self._engines["text_encoder_2"].run({"input_ids": second})
        height, width = pixels
        embeds = np.concatenate([one["hidden_states"], two["hidden_states"]], axis=-1)
        # zeros instead of an empty text: SDXL was trained with them, and diffusers does the same
        keep = np.repeat(np.array([negative is not None, True], embeds.dtype), len(prompts))[-len(texts) :]
        return {
            "prompt_embeds": embeds * keep[:, None, None],
            "pooled_prompt_embeds": two["pooled"] * keep[:, None],
            "time_ids": np.tile(np.array([height, width, 0, 0, height, width], np.float32), (len(texts), 1)),
        }

    def _tell_dropped(self, prompts: Sequence[str], reporter: Reporter | None) -> None:
        for text in prompts:
            for sentence in self._tokenizer.notes(text):
                if reporter is None:
                    warnings.warn(sentence, stacklevel=3)
                else:
                    reporter.note(sentence)
