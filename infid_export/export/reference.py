"""What parity compares with: the PyTorch modules in fp32, run in the order of a generation, on fixed inputs.

One component is held at a time: for full-size SDXL that is 10 GB instead of 18.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from infid_export.export.graphs import (
    FEATURE_PREFIX,
    Sizes,
    feature_names,
    graph_module,
    input_names,
    output_names,
)
from infid_export.export.plan import components_of
from infid_export.faces.reader import FaceInputs
from infid_export.model.sources import ModelSource
from infid_export.runtime.pipeline import seeded_noise
from infid_export.scheduler import SDXL_SCHEDULER, ddim_table

Array = np.ndarray[Any, Any]
PROMPT = "a portrait photo of a person in the rain, oil painting"
NEGATIVE_PROMPT = "blurry"
SEED = 20240319
_STEPS = 30
_STEP = 10  # of 30: neither noise nor picture
# Away from 0 and 1, so that a graph that ignores an input cannot pass.
_GUIDANCE, _STYLE, _IDENTITY = 5.0, 0.75, 0.875
# c_x and c_ε of the compared update. A real step is nine tenths its own input (1.11 and -0.12 at step 10 of 30), and
# would hide ten times as large an error of the network.
_COEFFICIENTS = np.array([0.25, 1.0], np.float32)


class Reference:
    """Inputs and reference outputs of every graph.

    Args:
        source: the model.
        sizes: shapes of the comparison; its dtype is ignored, the reference is fp32.
        blocks: cross-attention paths and channels of the UNet.
    """

    def __init__(self, source: ModelSource, sizes: Sizes, blocks: Mapping[str, int]) -> None:
        self._source, self._sizes, self._blocks = source, sizes, blocks
        self._values: dict[str, dict[str, Array]] = {}

    def inputs(self, graph: str) -> dict[str, Array]:
        """Return a graph's inputs by flat name, in fp32; upstream graphs run in PyTorch if they have not yet."""
        given = self._given(graph)
        return {name: given[name] for name in input_names(graph, self._blocks)}

    def outputs(self, graphs: Sequence[str]) -> dict[str, dict[str, Array]]:
        """Return the reference outputs of graphs that share their components, by graph and flat name."""
        missing = [graph for graph in graphs if graph not in self._values]
        if missing:
            inputs = {graph: self.inputs(graph) for graph in missing if graph != "identity_step"}
            names = components_of(missing[0]).values()
            parts = {name: self._source.load(name, torch.float32) for name in names}
            for graph in missing:
                given = inputs.get(graph) or self.inputs(graph)
                self._values[graph] = self._run(graph, parts, given)
            del parts
            gc.collect()
        return {graph: self._values[graph] for graph in graphs}

    def _run(self, graph: str, parts: Mapping[str, nn.Module], inputs: Mapping[str, Array]) -> dict[str, Array]:
        module = graph_module(graph, parts, self._source.config)
        tensors: dict[str, Any] = {
            name: torch.from_numpy(array) for name, array in inputs.items() if not name.startswith(FEATURE_PREFIX)
        }
        if graph == "identity_step":
            tensors["text_features"] = [torch.from_numpy(inputs[name]) for name in feature_names(self._blocks)]
        with torch.no_grad():
            result = module(**tensors)
        values = result if isinstance(result, tuple) else (result,)
        names = output_names(graph, self._blocks)
        return {name: value.numpy() for name, value in zip(names, values, strict=True)}

    def _given(self, graph: str) -> dict[str, Array]:
        batch = self._sizes.batch
        if graph in ("text_encoder", "text_encoder_2"):
            return {"input_ids": self._token_ids()[graph]}
        if graph == "identity_encoder":
            face = parity_face(self._source.architecture.image_encoder["image_size"], self._source.config.face_width)
            return {"face_crop": face.face_crop, "face_embedding": face.face_embedding}
        latents = self._source.architecture.latents(self._sizes.height, self._sizes.width)
        noise = seeded_noise([SEED + row for row in range(3 * batch)], latents)
        if graph == "vae_decoder":
            # decoded pictures start from latents of about this size
            return {"latents": noise[2 * batch :] / 1.5}
        first = self.outputs(["text_encoder"])["text_encoder"]
        second = self.outputs(["text_encoder_2"])["text_encoder_2"]
        height, width = self._sizes.height, self._sizes.width
        values = {
            "text_latents": noise[:batch],
            "identity_latents": noise[batch : 2 * batch],
            "timestep": ddim_table(SDXL_SCHEDULER, _STEPS)[_STEP, :1],
            "ddim_coefficients": _COEFFICIENTS,
            "guidance": np.full(batch, _GUIDANCE, np.float32),
            "prompt_embeds": np.concatenate([first["hidden_states"], second["hidden_states"]], -1),
            "pooled_prompt_embeds": second["pooled"],
            "time_ids": np.tile(np.array([height, width, 0, 0, height, width], np.float32), (2 * batch, 1)),
            "style_strength": np.full(batch, _STYLE, np.float32),
            "identity_strength": np.full(batch, _IDENTITY, np.float32),
        }
        if graph != "text_step":
            person = self.outputs(["identity_encoder"])["identity_encoder"]
            for name in ("identity_keys", "identity_values"):
                values[name] = np.tile(np.repeat(person[name], batch, axis=0), (1, self._sizes.people, 1))
        if graph == "identity_step":
            features = self.outputs(["text_step"])["text_step"]
            values |= {name: features[name] for name in feature_names(self._blocks)}
        return values

    def _token_ids(self) -> dict[str, Array]:
        from tokenizers import Tokenizer

        texts = [NEGATIVE_PROMPT] * self._sizes.batch + [PROMPT] * self._sizes.batch
        return {
            name: np.array([item.ids for item in Tokenizer.from_str(text).encode_batch(texts)], np.int32)
            for name, text in zip(("text_encoder", "text_encoder_2"), self._source.tokenizers(), strict=True)
        }


def parity_face(size: int, width: int) -> FaceInputs:
    """Return a fixed stand-in for an aligned face: smooth random colours and a random unit embedding."""
    random = np.random.default_rng(SEED)
    coarse = random.random((1, 3, 8, 8), dtype=np.float32)
    crop = np.repeat(np.repeat(coarse, size // 8, axis=2), size // 8, axis=3)
    embedding = random.standard_normal((1, width)).astype(np.float32)
    return FaceInputs(crop, embedding / np.linalg.norm(embedding))
