"""Compares a whole image: the runtime on a folder's graphs with the reference pipeline, from the same noise."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from infid_engines.manifest import Manifest
from infid_engines.progress import Stage
from infid_engines.registry import PARITY_BACKEND
from infid_export.export.parity import ImageParity, psnr
from infid_export.export.parity_case import NEGATIVE_PROMPT, PROMPT, SEED, model_face
from infid_export.export.plan import Plan
from infid_export.export.tolerances import PSNR_DB
from infid_export.model.reference_pipeline import InfiniteIDPipeline
from infid_export.runtime.pipeline import Pipeline


def compare_image(plan: Plan, folder: Path, manifest: Manifest, steps: int, stage: Stage) -> ImageParity:
    """Generate one image with the engines and with the reference, and compare them.

    Args:
        plan: plan of the folder.
        folder: the engine folder, including its manifest.
        manifest: its manifest.
        steps: number of sampling steps.
        stage: receives the progress.
    """
    architecture = plan.source.architecture
    face = model_face(architecture, plan.source.config)
    threshold = PSNR_DB[manifest.precision]
    with Pipeline.load(folder, backend=PARITY_BACKEND) as runtime:
        person = runtime.encode(face)
        found = runtime.generate(
            PROMPT,
            person,
            negative_prompt=NEGATIVE_PROMPT,
            steps=steps,
            seed=SEED,
            callback=lambda index, *_: stage.update((index + 1) / steps / 2, f"engine step {index + 1}"),
            output_type="np",
        )

    def advance(_: Any, index: int, __: Any, values: dict[str, Any]) -> dict[str, Any]:
        stage.update(0.5 + (index + 1) / steps / 2, f"reference step {index + 1}")
        return values

    pipe = InfiniteIDPipeline.from_source(plan.source)
    pipe.set_progress_bar_config(disable=True)
    expected = pipe(
        PROMPT,
        pipe.encode_identity(face),
        negative_prompt=NEGATIVE_PROMPT,
        height=plan.height,
        width=plan.width,
        **replace(architecture.sampling, steps=steps, guidance=manifest.defaults["guidance"]).arguments(),
        generator=np.random.default_rng(SEED),
        callback_on_step_end=advance,
        output_type="np",
    ).images
    value = psnr(expected, found)
    return ImageParity(manifest.precision, value, threshold, steps, value >= threshold, plan.image_key())
