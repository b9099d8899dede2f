"""`Pipeline`: enroll people and generate pictures from an engine folder."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from infid_engines.backends import Engine, get_backend
from infid_engines.errors import BackendUnavailableError, CancelledError, EngineFolderError, InputError
from infid_engines.manifest import FileRecord, Manifest, stored_engines, verify_file
from infid_engines.progress import Reporter, SilentReporter
from infid_export.faces.detection import CenterFaceDetector, FaceDetector, InsightFaceDetector
from infid_export.faces.photos import Photo
from infid_export.faces.reader import FaceInputs, FaceReader
from infid_export.faces.recognition import ArcFaceRecognizer
from infid_export.runtime.person import Person, mix
from infid_export.runtime.scheduler import ddim_table
from infid_export.runtime.tokenizer import FILES, PromptTokenizer

Array = np.ndarray[Any, Any]
Callback = Callable[[int, float, Array], None]
_GENERATE = ("text_encoder", "text_encoder_2", "denoise_step", "vae_decoder")


class Pipeline:
    """Pictures of a person from exported engines. Made by `Pipeline.load`.

    Args:
        folder: the engine folder.
        manifest: its manifest.
        backend: name of the backend that runs the engines.
        device: `cpu` or `cuda`.
        choice: one sentence on what was chosen and why.
    """

    def __init__(self, folder: Path, manifest: Manifest, backend: str, device: str, choice: str) -> None:
        self.folder = folder
        self.manifest = manifest
        self.backend = backend
        self.device = device
        self.choice = choice
        self._engines: dict[str, Engine] = {}
        self._faces: FaceReader | None = None
        for name in FILES:
            verify_file(folder, name, self._file(name))
        self._tokenizer = PromptTokenizer(folder)

    @classmethod
    def load(cls, folder: str | Path, backend: str = "auto", device: str = "auto") -> Pipeline:
        """Open an engine folder; each engine is verified and loaded when it is first needed.

        Args:
            folder: made by `infid-export build`.
            backend: `onnxruntime`, `tensorrt`, `tensorrt_rtx`, or `auto`: the fastest that the folder holds
                engines for and this machine can run. What was chosen, and why, is in `choice`.
            device: `cpu` or `cuda`, for onnxruntime; `auto` is the CPU there. TensorRT is always CUDA.

        Raises:
            EngineFolderError: the folder is missing, damaged, or has no engines for the backend.
            BackendUnavailableError: the backend cannot run on this machine.
        """
        path = Path(folder)
        manifest = Manifest.load(path)
        if backend == "auto":
            backend, choice = _choose(manifest)
        else:
            get_backend(backend).versions()
            choice = f"{backend}: asked for"
        if not stored_engines(manifest, backend):
            raise EngineFolderError(
                f"{path} has no {backend} engines.", fix=f"infid-export build --backend {backend} -o {path}"
            )
        device = ("cpu" if backend == "onnxruntime" else "cuda") if device == "auto" else device
        return cls(path, manifest, backend, device, choice)

    def __enter__(self) -> Pipeline:
        """Return the pipeline."""
        return self

    def __exit__(self, *_: object) -> None:
        """Free the engines."""
        self.close()

    def close(self) -> None:
        """Free all engines; they are loaded again when needed."""
        for engine in self._engines.values():
            engine.close()
        self._engines.clear()

    def enroll(self, photo: Photo | Sequence[Photo], face_index: int | None = None) -> Person:
        """Turn one photo, or several of one person, into a `Person`.

        Args:
            photo: path, bytes, PIL image or `[H, W, 3]` uint8 array; of several, the average is taken.
            face_index: which face of each photo, 0 being the largest; None is the largest.

        Raises:
            InputError: a photo cannot be read, or shows no usable face.
        """
        photos = list(photo) if isinstance(photo, list | tuple) else [photo]
        if not photos:
            raise InputError("No photo was given.", fix="Give at least one.")
        people = [self.encode(self._face_reader().read(one, face_index)) for one in photos]
        return people[0] if len(people) == 1 else mix([(person, 1.0) for person in people])

    def encode(self, face: FaceInputs) -> Person:
        """Turn an aligned face and its embedding into a `Person`; `enroll` finds them in a photo."""
        inputs = {"face_crop": face.face_crop, "face_embedding": face.face_embedding}
        return Person(**self._engine("identity_encoder").run(inputs), model=str(self.manifest.model["id"]))

    def generate(
        self,
        prompt: str | Sequence[str],
        person: Person,
        *,
        negative_prompt: str | None = None,
        seed: int | Sequence[int] | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        style_strength: float | None = None,
        identity_strength: float | None = None,
        noise: Array | None = None,
        text_noise: Array | None = None,
        callback: Callback | None = None,
        cancel: threading.Event | None = None,
        reporter: Reporter | None = None,
        output_type: Literal["pil", "np", "latents"] = "pil",
    ) -> Any:
        """Generate one picture a prompt.

        Args:
            prompt: one or several.
            person: whom the pictures show; enrolled with the same model.
            negative_prompt: what to avoid.
            seed: of the initial noise, `numpy.random.default_rng(seed)`; several for several prompts; one seed
                for several prompts counts up. None draws one.
            steps: DDIM steps. This and the next three default to the folder's values.
            guidance: classifier-free guidance scale.
            style_strength: s of AdaIN-mean, 1 is the paper's, 0 switches it off.
            identity_strength: λ, 1 is the paper's.
            noise: `[n, 4, h, w]` float32 initial noise instead of a seed.
            text_noise: likewise for the text stream alone; None is the same noise.
            callback: called after each step with its index, the timestep and the identity latents.
            cancel: set it from another thread to stop after the step under way.
            reporter: shown the progress.
            output_type: `pil` images, `np` `[n, H, W, 3]` float32 in [0, 1], or `latents` `[n, 4, h, w]`.

        Returns:
            A list of PIL images, or an array.

        Raises:
            InputError: an argument does not fit.
            CancelledError: `cancel` was set.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        if not prompts or not all(isinstance(text, str) for text in prompts):
            raise InputError("The prompt must be a text or a list of texts.", fix="Give at least one prompt.")
        if output_type not in ("pil", "np", "latents"):
            raise InputError(f"There is no output type '{output_type}'.", fix="Use pil, np or latents.")
        if person.model != self.manifest.model["id"]:
            raise InputError(
                "The person was enrolled with another model than these engines'.",
                fix="Enroll the photo again with `infid-export enroll`.",
            )
        defaults = self.manifest.defaults
        scalars = {
            "guidance": _scalar("guidance", guidance, defaults["guidance"]),
            "style_strength": _scalar("style_strength", style_strength, defaults["style_strength"]),
            "identity_strength": _scalar("identity_strength", identity_strength, defaults["identity_strength"]),
        }
        table = ddim_table(self.manifest.scheduler, defaults["steps"] if steps is None else steps)
        start = self._noise(noise, "noise", len(prompts)) if noise is not None else self._seeded(seed, len(prompts))
        text_start = start if text_noise is None else self._noise(text_noise, "text_noise", len(prompts))
        for text in prompts:
            if dropped := self._tokenizer.dropped(text):
                warnings.warn(f"the prompt is longer than 77 tokens; left out: {dropped}", stacklevel=2)
        fitted = person.fit(self._tokens())
        negative = str(defaults["negative_prompt"]) if negative_prompt is None else negative_prompt
        chunks = _chunks(len(prompts), self.manifest.batch)
        results = []
        report = reporter or SilentReporter()
        report.plan({"denoising": float(len(table) * len(chunks)), "decoding": float(len(chunks))})
        finished = []
        with report.stage("denoising") as stage:
            for number, rows in enumerate(chunks):
                for index, timestep, latents in self._denoise(
                    [prompts[row] for row in rows], negative, fitted, start[rows], text_start[rows], scalars, table
                ):
                    stage.update((number * len(table) + index + 1) / (len(table) * len(chunks)), f"step {index + 1}")
                    if callback:
                        callback(index, timestep, latents())
                    if cancel is not None and cancel.is_set():
                        raise CancelledError("Generation was cancelled.", fix="Run it again to get the picture.")
                    last = latents
                finished.append(last())
        if output_type == "latents":
            return np.concatenate(finished)[: len(prompts)]
        with report.stage("decoding") as stage:
            for number, latents_of_chunk in enumerate(finished):
                results.append(self._engine("vae_decoder").run({"latents": latents_of_chunk})["image"])
                stage.update((number + 1) / len(finished))
        images = np.concatenate(results)[: len(prompts)].transpose(0, 2, 3, 1)
        if not np.isfinite(images).all():
            raise EngineFolderError(
                "The picture has non-finite values.",
                fix="Run `infid-export verify` on the folder, and build it with --precision fp32.",
            )
        if output_type == "np":
            return images
        return [Image.fromarray((image * 255).round().astype(np.uint8)) for image in images]

    def _denoise(
        self,
        prompts: list[str],
        negative: str,
        person: Person,
        start: Array,
        text_start: Array,
        scalars: Mapping[str, float],
        table: Array,
    ) -> Any:
        """Run all steps of one batch; yields index, timestep and a function that reads the latents."""
        batch = len(prompts)
        engine = self._engine("denoise_step")
        fixed = {
            **self._prompt_inputs([negative] * batch + prompts),
            "identity_keys": np.repeat(person.identity_keys, batch, axis=0),
            "identity_values": np.repeat(person.identity_values, batch, axis=0),
            **{name: np.full(batch, value, dtype=np.float32) for name, value in scalars.items()},
        }
        carry = {"text_latents": "next_text_latents", "identity_latents": "next_identity_latents"}
        loop = engine.loop(fixed, carry, {"text_latents": text_start, "identity_latents": start})
        for index, row in enumerate(table):
            loop.step({"timestep": row[:1], "ddim_coefficients": row[1:]})
            yield index, float(row[0]), lambda: loop.read("identity_latents")

    def _prompt_inputs(self, texts: list[str]) -> dict[str, Array]:
        """Encode `[negative…, prompt…]` to the text inputs of a step."""
        first, second = self._tokenizer.encode(texts)
        one = self._engine("text_encoder").run({"input_ids": first})
        two = self._engine("text_encoder_2").run({"input_ids": second})
        height, width = self.manifest.height, self.manifest.width
        return {
            "prompt_embeds": np.concatenate([one["hidden_states"], two["hidden_states"]], axis=-1),
            "pooled_prompt_embeds": two["pooled"],
            "time_ids": np.tile(np.array([height, width, 0, 0, height, width], np.float32), (len(texts), 1)),
        }

    def _tokens(self) -> int:
        return self.manifest.identity_tokens * self.manifest.people

    def _latent_shape(self) -> tuple[int, int, int]:
        return 4, self.manifest.height // 8, self.manifest.width // 8

    def _seeded(self, seed: int | Sequence[int] | None, count: int) -> Array:
        if seed is None:
            seed = int(np.random.SeedSequence().generate_state(1)[0])
        seeds = [seed + index for index in range(count)] if isinstance(seed, int) else list(seed)
        if len(seeds) != count or any(not isinstance(value, int) or value < 0 for value in seeds):
            raise InputError(
                f"The seeds {seeds} do not fit {count} prompt(s).", fix="Give one seed a prompt, from 0 up."
            )
        return seeded_noise(seeds, self._latent_shape())

    def _noise(self, noise: Array, name: str, count: int) -> Array:
        shape = (count, *self._latent_shape())
        if noise.shape != shape or not np.isfinite(noise).all():
            raise InputError(f"{name} must be finite and {list(shape)}, not {list(noise.shape)}.", fix="Draw it anew.")
        return noise.astype(np.float32)

    def _file(self, name: str) -> FileRecord:
        if name not in self.manifest.files:
            raise EngineFolderError(f"{self.folder} has no {name}.", fix="Build the engine folder again.")
        return self.manifest.files[name]

    def _engine(self, graph: str) -> Engine:
        """Return a graph's engine, verified and loaded at first use."""
        if graph not in self._engines:
            record = self.manifest.graph(graph)
            stored = stored_engines(self.manifest, self.backend).get(graph)
            if stored is None:
                raise EngineFolderError(
                    f"{self.folder} has no {self.backend} engine of {graph}.",
                    fix=f"infid-export build --backend {self.backend} -o {self.folder}",
                )
            names = [stored.file, *(record.weights if self.backend == "onnxruntime" else ())]
            for name in names:
                verify_file(self.folder, name, self._file(name))
            backend = get_backend(self.backend)
            self._engines[graph] = backend.load(self.folder / stored.file, record.inputs, record.outputs, self.device)
        return self._engines[graph]

    def _face_reader(self) -> FaceReader:
        if self._faces is None:
            faces = self.manifest.faces
            recognizer = verify_file(self.folder, faces["recognizer"], self._file(faces["recognizer"]))
            detector: FaceDetector
            if faces["detector"] == "insightface":
                detector = InsightFaceDetector(Path(faces["detector_path"]))
            else:
                path = verify_file(self.folder, faces["detector_path"], self._file(faces["detector_path"]))
                detector = CenterFaceDetector(path)
            crop = self.manifest.graph("identity_encoder").inputs[0].shape[-1]
            width = self.manifest.graph("identity_encoder").inputs[1].shape[-1]
            assert isinstance(crop, int) and isinstance(width, int)
            self._faces = FaceReader(detector, ArcFaceRecognizer(recognizer, width), crop)
        return self._faces


def seeded_noise(seeds: Sequence[int], shape: tuple[int, ...]) -> Array:
    """Return `[n, *shape]` float32 standard normal noise, one numpy generator a seed."""
    return np.stack([np.random.default_rng(seed).standard_normal(shape, dtype=np.float32) for seed in seeds])


def _scalar(name: str, value: float | None, default: float) -> float:
    chosen = default if value is None else value
    if not np.isfinite(chosen):
        raise InputError(f"{name} must be a finite number, not {chosen}.", fix="1.0 is usual for strengths.")
    return float(chosen)


def _chunks(count: int, batch: int) -> list[list[int]]:
    """Split rows into batches; the last is filled up by repeating its last row."""
    rows = list(range(count))
    chunks = [rows[start : start + batch] for start in range(0, count, batch)]
    chunks[-1] += [chunks[-1][-1]] * (batch - len(chunks[-1]))
    return chunks


def _choose(manifest: Manifest) -> tuple[str, str]:
    """Choose the fastest backend that is in the folder and runs here; say why the faster ones were not."""
    reasons = []
    for name in ("tensorrt", "tensorrt_rtx"):
        if not stored_engines(manifest, name):
            continue
        try:
            backend = get_backend(name)
            backend.versions()
            backend.check_device()
        except BackendUnavailableError as error:
            reasons.append(f"{name} not used: {error.problem}")
            continue
        return name, f"{name}: the folder has its engines and this machine runs them"
    return "onnxruntime", "; ".join(["onnxruntime: runs on every machine", *reasons])
