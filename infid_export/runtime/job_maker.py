"""Makes jobs from the checked arguments of a generation, and runs the text stream of a template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from infid_engines.errors import InputError
from infid_engines.manifest import Manifest
from infid_export.runtime.conditioning import has_guidance, identity_inputs, text_inputs
from infid_export.runtime.denoise import FEATURES, Noise, denoise, open_noise
from infid_export.runtime.engine_set import EngineSet
from infid_export.runtime.job import Job, JobRunner, Read, Watch
from infid_export.runtime.person import Person
from infid_export.runtime.requirements import TEXT, latent_graphs, step_name, streams_of
from infid_export.runtime.template import Template, TemplateSettings, keep_features, new_template
from infid_export.runtime.tokenizer import PromptTokenizer
from infid_export.sampling.samplers import SamplerTable, sampler_table

Array = np.ndarray[Any, Any]


class JobMaker:
    """Makes the jobs and the templates of a pipeline.

    Args:
        manifest: of the engine folder.
        engines: of the folder.
        tokenizer: of the folder.
        runner: runs the text stream.
    """

    def __init__(self, manifest: Manifest, engines: EngineSet, tokenizer: PromptTokenizer, runner: JobRunner) -> None:
        self._manifest, self._engines, self._tokenizer, self._runner = manifest, engines, tokenizer, runner

    def streams(
        self,
        count: int,
        pixels: tuple[int, int],
        table: SamplerTable,
        seed: Any,
        noise: Any,
        text_seed: Any,
        text_noise: Any,
    ) -> dict[str, Noise]:
        """Return the noise of each stream for some images; seeds and noise as in `Pipeline.generate`.

        Raises:
            InputError: an argument does not fit.
        """
        shape = self._latents(count, pixels)
        own = open_noise("noise", noise, seed, shape, table.stochastic)
        apart = text_noise is not None or text_seed is not None
        if streams_of(self._manifest) == "two":
            text = open_noise("text_noise", text_noise, text_seed, shape, table.stochastic) if apart else own
            return {"text": text, "identity": own}
        if apart:
            raise InputError(
                f"{'text_seed' if text_noise is None else 'text_noise'} has no effect: these engines have no text "
                "stream.",
                fix="Leave it out, or build with --streams two.",
            )
        return {"identity": own}

    def images(
        self,
        prompts: Sequence[str],
        negative: str | None,
        people: Sequence[Person],
        strengths: Mapping[str, float],
        guidance: float,
        pixels: tuple[int, int],
        table: SamplerTable,
        streams: Mapping[str, Noise],
    ) -> Job:
        """Return the job of one image per prompt and person."""

        def fixed(batch: list[int]) -> dict[str, Array]:
            texts = [prompts[row] for row in batch]
            return {
                **text_inputs(self._engines, self._tokenizer, texts, negative, self._guided, pixels),
                **identity_inputs([people[row] for row in batch], strengths, self._guided),
                **self._guidance_input(guidance, len(batch)),
            }

        return Job(step_name(self._manifest), latent_graphs(self._manifest), table, streams, fixed)

    def of_template(
        self, template: Template, people: Sequence[Person], strengths: Mapping[str, float], seed: Any, noise: Any
    ) -> Job:
        """Return the job of one image per person from a template; without noise, its own seed is for everybody.

        Raises:
            InputError: the seed or the noise does not fit.
        """
        table = SamplerTable(template.tensors["rows"], float(template.tensors["initial_scale"][0]))
        if noise is None and seed is None:
            seed = [template.settings.seed] * len(people)
        own = open_noise("noise", noise, seed, (len(people), *template.tensors["latents"].shape[1:]), table.stochastic)

        def fixed(batch: list[int]) -> dict[str, Array]:
            return {
                **template.conditioning,
                **identity_inputs([people[row] for row in batch], strengths, self._guided),
                **self._guidance_input(template.settings.guidance, len(batch)),
            }

        return Job("identity_step", ("identity_step",), table, {"identity": own}, fixed, template.step)

    def make_template(self, settings: TemplateSettings, path: str | Path | None, watch: Watch) -> Template:
        """Run the text stream, step by step into a file or into memory; see `Pipeline.template`."""
        table = sampler_table(self._manifest.scheduler, settings.steps, settings.sampler, settings.spacing)
        pixels = settings.height, settings.width
        noise = open_noise("noise", None, settings.seed, self._latents(1, pixels), table.stochastic)
        work = {"denoising": float(len(table))}
        with self._runner.prepared(TEXT, work, watch) as report, new_template(self._manifest, settings, path) as made:
            texts = text_inputs(
                self._engines, self._tokenizer, [settings.prompt] * self._manifest.batch, settings.negative_prompt,
                self._guided, pixels,
            )  # fmt: skip
            conditioning = {name: each[:: self._manifest.batch] for name, each in texts.items()}
            engine = self._engines["text_step"]
            names = [name for name in engine.outputs if name.startswith(FEATURES)]
            with report.stage("denoising") as stage:

                def on_step(index: int, _: float, read: Read) -> None:
                    keep_features(made.tensors, index, {name: read(name) for name in names})
                    stage.update((index + 1) / len(table), f"step {index + 1}")

                latents = denoise(
                    engine,
                    {**conditioning, **self._guidance_input(settings.guidance, 1)},
                    {"text": noise},
                    [0],
                    table,
                    lambda index: {},
                    on_step=on_step,
                    cancel=watch.cancel,
                    stream="text",
                )
            others = {"rows": table.rows, "initial_scale": np.float32(table.initial_scale), "latents": latents}
            for name, values in {**conditioning, **others}.items():
                made.tensors[name][...] = values
        return made if path is None else Template.load(path, check=False)

    def _latents(self, count: int, pixels: tuple[int, int]) -> tuple[int, int, int, int]:
        factor = self._manifest.vae_scale_factor
        return count, 4, pixels[0] // factor, pixels[1] // factor

    @property
    def _guided(self) -> bool:
        return has_guidance(self._manifest)  # not known before a step is needed: a folder for enrolling has none

    def _guidance_input(self, guidance: float, count: int) -> dict[str, Array]:
        return {"guidance": np.full(count, guidance, np.float32)} if self._guided else {}
