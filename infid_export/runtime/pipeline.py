"""`Pipeline`: enroll people and generate images from an engine folder."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from infid_engines.errors import EngineFolderError, InputError
from infid_engines.manifest import Manifest, stored_engines
from infid_engines.progress import Reporter, SilentReporter
from infid_engines.registry import get_backend
from infid_engines.validation import path_of, require_methods, shown, text_of, whole_number
from infid_export.faces.photos import Photo
from infid_export.faces.reader import FaceInputs
from infid_export.faces.reference import Reference
from infid_export.runtime.arguments import Arguments
from infid_export.runtime.async_calls import CallThread
from infid_export.runtime.denoise import image_size, random_seed, seeded_noise
from infid_export.runtime.engine_set import EngineSet, choose_backend, choose_target
from infid_export.runtime.enrollment import Enroller
from infid_export.runtime.job import REPORTER, Callback, JobRunner, Previews, Watch, pil_images, turn
from infid_export.runtime.job_maker import JobMaker
from infid_export.runtime.person import Person
from infid_export.runtime.requirements import require_usable, template_graph
from infid_export.runtime.template import Template, TemplateSettings, check_template
from infid_export.runtime.tokenizer import FILES, PromptTokenizer

__all__ = ["Pipeline", "seeded_noise"]

Array = np.ndarray[Any, Any]


class Pipeline:
    """Generates images of a person with exported engines. Made by `Pipeline.load`; calls from threads take turns.

    Args:
        folder: the engine folder.
        manifest: its manifest.
        engines: its engines.
        backend: name of the backend that runs them.
        device: what they run on: `cpu`, `cuda`, or `cuda:1` for the second of several GPUs.
        choice: one sentence that says which backend was chosen, and why.

    Attributes:
        tokenizer: reads prompts for both text encoders.
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
        self._arguments = Arguments(manifest)
        self._lock = threading.RLock()
        self._enroller = Enroller(manifest, engines, self._lock)
        self._calls = CallThread()
        self._runner = JobRunner(manifest, engines, self._lock)
        for name in FILES:
            engines.verify(name)
        self.tokenizer = PromptTokenizer(folder)
        self._jobs = JobMaker(manifest, engines, self.tokenizer, self._runner)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        backend: str = "auto",
        device: str = "auto",
        reporter: Reporter | None = None,
        threads: int | None = None,
    ) -> Pipeline:
        """Open an engine folder. Each engine is verified and loaded on first use.

        Args:
            folder: written by `infid-export build`.
            backend: a name in `infid_engines.registry.BACKENDS`, or `auto`: the fastest backend that the folder has
                engines for and this machine can run. `choice` says what was chosen, and why.
            device: `auto`, `cpu` or `cuda` for onnxruntime (`auto` is the CPU); `auto`, `cuda` or one of the folder's
                GPU architectures, such as `sm_89`, for TensorRT. Of several GPUs, `cuda` is the first, `cuda:1` the
                second, and so on.
            reporter: receives a note on what was chosen, and why.
            threads: CPU threads of onnxruntime; None is one per core.

        Raises:
            EngineFolderError: the folder is missing, damaged, or has no engines for the backend.
            BackendUnavailableError: the backend cannot run on this machine, or there is no such GPU.
            InputError: there is no such backend or device.
        """
        path = path_of("The engine folder", folder, "Give a folder that `infid-export build` wrote.")
        text_of("The backend", backend, "Give its name, or auto.")
        text_of("The device", device, "Give auto, cpu, cuda or cuda:1.")
        require_methods("The reporter", reporter, REPORTER, "Leave it out.")
        if threads is not None:
            threads = whole_number("The number of threads", threads, "Give 1 or more, or leave it out.", least=1)
        manifest = Manifest.load(path)
        require_usable(manifest)
        if backend == "auto":
            backend, choice = choose_backend(manifest, device)
        else:
            get_backend(backend).versions()
            choice = f"{backend}: requested"
        if not stored_engines(manifest, backend):
            raise EngineFolderError(
                f"{path} has no {backend} engines.", fix=f"infid-export build --backend {backend} -o {path}"
            )
        if threads is not None and not get_backend(backend).takes_threads:
            raise InputError(f"{backend} does not take a number of threads.", fix="Leave it out.")
        target, place = choose_target(manifest, backend, device)
        choice = f"{choice} (on {place}, {target})" if target and place.index else f"{choice} (on {target or place})"
        engines = EngineSet(path, manifest, backend, target, place, threads)
        pipe = cls(path, manifest, engines, backend, str(place), choice)
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
        """Free all engines, after the calls of coroutines. They are loaded again on the next use."""
        self._calls.close()
        self._enroller.close()
        with self._lock:
            self._engines.close()

    def turn(self, cancel: threading.Event | None = None) -> AbstractContextManager[None]:
        """Hold the engines for several calls: those of other threads wait until the block ends.

        Not around an `await` of `generate_async` or `enroll_async`, which run on another thread.

        Raises:
            CancelledError: `cancel` was set before this thread got its turn.
        """
        return turn(self._lock, cancel)

    def enroll(
        self,
        photo: Photo | Sequence[Photo],
        face_index: int | None = None,
        *,
        name: str = "",
        reference: Reference | None = None,
    ) -> Person:
        """Turn one photo, or several of one person, into a `Person`.

        Args:
            photo: path, bytes, PIL image or `[H, W, 3]` uint8 array. Several photos are averaged.
            face_index: which face of each photo to use. Faces with a score near the best one come first, from large
                to small, then the others. None is 0.
            name: the person's name.
            reference: what of each photo is read: its `face`, the `whole` image without searching a face, or a box
                (left, top, width, height in pixels). None is the face, or the whole image if the folder's identity
                weights are of whole images.

        Returns:
            The person. Its `faces` say how many faces each photo has, which one was used, and its score. A warning
            says if the folder's detector is for drawn people.

        Raises:
            InputError: a photo cannot be read, or shows no usable face. With several photos, its number is given.
                Or the folder's identity weights cannot read such a reference.
            EngineFolderError: the folder cannot enroll, or is damaged.
        """
        return self.encode(self.read_faces(photo, face_index, reference), name=name)

    async def enroll_async(
        self,
        photo: Photo | Sequence[Photo],
        face_index: int | None = None,
        *,
        name: str = "",
        reference: Reference | None = None,
    ) -> Person:
        """`enroll` for coroutines, see `generate_async`. Photos that are being read are read to their end."""
        return await self._calls.run(lambda _: self.enroll(photo, face_index, name=name, reference=reference))

    def read_faces(
        self, photo: Photo | Sequence[Photo], face_index: int | None = None, reference: Reference | None = None
    ) -> list[FaceInputs]:
        """Find, align and recognize the face of each photo, or scale it: the part of `enroll` that needs no engine.

        It runs on the CPU, also while another thread generates.

        Args:
            photo: as in `enroll`.
            face_index: likewise.
            reference: likewise.

        Returns:
            One per photo, for `encode`.

        Raises:
            InputError: as in `enroll`.
            EngineFolderError: likewise.
        """
        return self._enroller.read(photo, face_index, reference)

    def encode(self, face: FaceInputs | Sequence[FaceInputs], *, name: str = "") -> Person:
        """Turn aligned faces of one person, with their embeddings, into a `Person`. For photos, use `enroll`.

        Args:
            face: one, or several that are averaged.
            name: the person's name.

        Raises:
            InputError: an argument does not fit.
            EngineFolderError: the engine returns non-finite values.
        """
        return self._enroller.encode(face, name)

    def generate(
        self,
        prompt: str | Sequence[str] | Template,
        person: Person | Sequence[Person],
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
        previews: Previews | None = None,
        output_type: Literal["pil", "np", "latents"] = "pil",
    ) -> Any:
        """Generate one image per prompt, or one image per person from a template.

        Args:
            prompt: one or several. Each text encoder reads 77 tokens; the rest is dropped, with a warning or a
                note to the reporter. Or a `Template`: then only the identity stream runs, and what the template decides
                cannot be given here: negative prompt, text seed and noise, size, steps, guidance and sampler.
            person: the person that the images show; enrolled with the same model. Or several: one per prompt, or any
                number for a template.
            negative_prompt: what to avoid; None is the folder's default, zero embeddings for SDXL.
            seed: seed of the initial noise, for `numpy.random.default_rng(seed)`, and of the noise that a stochastic
                sampler adds; one, or one per prompt. A single seed for several prompts counts up. None picks a
                random one; with a template, its own seed for everybody.
            text_seed: likewise for the text stream alone; None uses the same noise. Not for engines of one stream.
            height: pixels; None is the folder's default. Other values need a folder built with `--height-range`.
            width: likewise, with `--width-range`.
            steps: number of steps. This and the next three default to the folder's values.
            guidance: g of classifier-free guidance u + g·(c − u). 1 is the conditional prediction alone, which is what
                diffusers means by 0 for few-step models; 0 is the negative prompt alone. Engines that were built
                without guidance take 1 only.
            style_strength: s of AdaIN-mean; 1 is the paper's value, 0 turns it off, and engines of one stream take 0.
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
            previews: called after each step with its index and a copy of the batch's data prediction `[B, 4, h, w]`:
                the latents that the image would have if this step were the last, without noise.
            output_type: `pil` images, `np` `[n, H, W, 3]` float32 in [0, 1], or `latents` `[n, 4, h, w]`.

        Returns:
            A list of PIL images, or an array.

        Raises:
            InputError: an argument does not fit.
            CancelledError: `cancel` was set.
            EngineFolderError: the folder is damaged, or its engines return non-finite values.
        """
        if not isinstance(output_type, str) or output_type not in ("pil", "np", "latents"):
            raise InputError(f"There is no output type {shown(output_type)}.", fix="Use pil, np or latents.")
        strengths = self._arguments.strengths(style_strength=style_strength, identity_strength=identity_strength)
        watch = Watch(callback, cancel, reporter, previews)
        watch.check()
        if isinstance(prompt, Template):
            given = {
                "negative_prompt": negative_prompt, "text_seed": text_seed, "text_noise": text_noise, "height": height,
                "width": width, "steps": steps, "guidance": guidance, "sampler": sampler, "spacing": spacing,
            }  # fmt: skip
            decided = [name for name, value in given.items() if value is not None]
            if decided:
                raise InputError(f"The template decides {decided[0]}.", fix="Leave it out, or make another template.")
            check_template(prompt, self.manifest)
            job = self._jobs.of_template(prompt, self._arguments.people(person), strengths, seed, noise)
            return self._runner.run(job, watch, output_type)
        prompts, negative = self._arguments.texts(prompt, negative_prompt)
        table = self._arguments.table(sampler, spacing, steps)
        self._tell([*self._dropped([*prompts, negative or ""]), *self._arguments.notes(len(table))], reporter)
        guide = self._arguments.guidance(guidance)
        pixels = image_size(self.manifest, height, width)
        streams = self._jobs.streams(len(prompts), pixels, table, seed, noise, text_seed, text_noise)
        people = self._arguments.people(person, len(prompts))
        job = self._jobs.images(prompts, negative, people, strengths, guide, pixels, table, streams)
        return self._runner.run(job, watch, output_type)

    async def generate_async(
        self, prompt: str | Sequence[str] | Template, person: Person | Sequence[Person], **settings: Any
    ) -> Any:
        """`generate` for coroutines: the event loop goes on while the image is made.

        Calls run one at a time, on a thread of this pipeline; callback and reporter are called there. When the awaiting
        task is cancelled, for example by `asyncio.wait_for`, a call that waits for others is dropped at once. One that
        runs stops after its current step, and only then does the task end, so nothing goes on in the background.

        Args:
            prompt: as in `generate`.
            person: as in `generate`.
            settings: the other arguments of `generate`, except `cancel`: cancel the task instead.

        Returns:
            As `generate`.

        Raises:
            asyncio.CancelledError: the task was cancelled.
            InfidError: as `generate`.
        """
        return await self._calls.run(lambda cancel: self.generate(prompt, person, **settings, cancel=cancel))

    def template(
        self,
        prompt: str,
        *,
        negative_prompt: str | None = None,
        seed: int | None = None,
        height: int | None = None,
        width: int | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        sampler: str | None = None,
        spacing: str | None = None,
        path: str | Path | None = None,
        cancel: threading.Event | None = None,
        reporter: Reporter | None = None,
    ) -> Template:
        """Run the text stream of a prompt once, for any number of people.

        `generate(template, person)` gives the image of `generate(prompt, person)` with the same seed and settings.

        Args:
            prompt: the prompt; other arguments as in `generate`.
            negative_prompt: likewise.
            seed: likewise.
            height: likewise.
            width: likewise.
            steps: likewise.
            guidance: likewise.
            sampler: likewise.
            spacing: likewise.
            path: a template file to write. It is filled step by step, so that the template is never in memory as a
                whole, and the result is mapped from it. None keeps the template in memory.
            cancel: likewise.
            reporter: likewise.

        Raises:
            InputError: an argument does not fit, or the file cannot be written.
            DiskFullError: the disk is too full for the template.
            CancelledError: `cancel` was set.
            EngineFolderError: the folder has one stream, has no graph `text_step` or `identity_step`, is damaged, or
                its engines return non-finite values.
        """
        watch = Watch(None, cancel, reporter)
        watch.check()
        settings = self.template_settings(
            prompt, negative_prompt=negative_prompt, seed=seed, height=height, width=width, steps=steps,
            guidance=guidance, sampler=sampler, spacing=spacing,
        )  # fmt: skip
        template_graph(self.manifest, "text_step")
        dropped = self._dropped([settings.prompt, settings.negative_prompt or ""])
        self._tell([*dropped, *self._arguments.notes(settings.steps)], reporter)
        return self._jobs.make_template(settings, path, watch)

    def template_settings(
        self,
        prompt: str,
        *,
        negative_prompt: str | None = None,
        seed: int | None = None,
        height: int | None = None,
        width: int | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        sampler: str | None = None,
        spacing: str | None = None,
    ) -> TemplateSettings:
        """Return the settings of a template, completed by the folder's; arguments as in `template`.

        Raises:
            InputError: an argument does not fit.
        """
        text_of("The prompt of a template", prompt, "Give one string.")
        _, negative = self._arguments.texts(prompt, negative_prompt)
        name, spaced = self._arguments.sampler(sampler, spacing)
        return TemplateSettings(
            prompt,
            negative,
            whole_number("A seed", random_seed() if seed is None else seed, "Give one from 0 up.", least=0),
            *image_size(self.manifest, height, width),
            len(self._arguments.table(sampler, spacing, steps)),
            self._arguments.guidance(guidance),
            name,
            spaced,
        )

    def preview(self, template: Template) -> Image.Image:
        """Return the template's own image, that of its text stream: nobody is in it.

        Raises:
            InputError: the template is of other engines.
        """
        check_template(template, self.manifest)
        batch = np.repeat(template.tensors["latents"], self.manifest.batch, axis=0)
        with self._lock:
            return pil_images(self._runner.decode([batch], SilentReporter())[:1])[0]

    def _dropped(self, texts: Sequence[str]) -> list[str]:
        return [sentence for text in texts for sentence in self.tokenizer.notes(text)]

    def _tell(self, sentences: Sequence[str], reporter: Reporter | None) -> None:
        for sentence in sentences:
            if reporter is None:
                warnings.warn(sentence, stacklevel=3)
            else:
                reporter.note(sentence)
