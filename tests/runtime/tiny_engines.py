"""A hand-made engine folder: simple ONNX arithmetic with the inputs and outputs of the real graphs."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import small_face_models
from onnx import TensorProto, helper, numpy_helper

from infid_engines.manifest import (
    EngineRecord,
    FileRecord,
    GraphRecord,
    Manifest,
    TensorSpec,
    canonical_key,
    sha256_file,
)
from infid_export.model.tokenizers import clip_tokenizer_json
from infid_export.sampling.noise_schedule import SDXL_SCHEDULER

BATCH, PEOPLE, TOKENS, SIDE = 2, 2, 3, 64  # images per call, slots, tokens per person, pixels
LATENT = SIDE // 8
DEPTH_1, DEPTH_2, DEPTH_K, DEPTH_T = 3, 4, 5, 6
MODEL = "a" * 64
VEC_1 = np.array([1.0, -2.0, 0.5], np.float32)
VEC_2 = np.array([0.3, 0.7, -0.1, 0.2], np.float32)
PROJECT_K = np.random.default_rng(0).standard_normal((DEPTH_T, DEPTH_K)).astype(np.float32)
PROJECT_V = np.random.default_rng(1).standard_normal((DEPTH_T, DEPTH_K)).astype(np.float32)
FLOAT = TensorProto.FLOAT
SINGLE = "single_step"
STEPS = {
    "two": {"denoise_step": ("text", "identity"), "text_step": ("text",), "identity_step": ("identity",)},
    "one": {SINGLE: ("identity",)},
}
FEATURE = "text_features.block"


class Graph:
    """Collects nodes; calling an operator returns the name of its output."""

    def __init__(self, name: str, inputs: dict[str, tuple[str, tuple[int, ...]]]) -> None:
        self.name, self.inputs = name, inputs
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def constant(self, value: Any, dtype: Any = np.float32) -> str:
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def __call__(self, kind: str, *inputs: str, name: str | None = None, **attributes: Any) -> str:
        output = name or f"value_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [output], **attributes))
        return output

    def save(self, path: Path, outputs: dict[str, tuple[int, ...]]) -> GraphRecord:
        def info(name: str, dtype: str, shape: tuple[int, ...]) -> Any:
            return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape)

        graph = helper.make_graph(
            self.nodes,
            self.name,
            [info(name, *spec) for name, spec in self.inputs.items()],
            [info(name, "float32", shape) for name, shape in outputs.items()],
            self.constants,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        onnx.checker.check_model(model)
        path.parent.mkdir(parents=True, exist_ok=True)
        onnx.save(model, str(path))
        fields = {"graph": self.name}
        return GraphRecord(
            f"onnx/{path.name}",
            sha256_file(path),
            canonical_key(fields),
            fields,
            (),
            0,
            tuple(TensorSpec(name, dtype, shape) for name, (dtype, shape) in self.inputs.items()),
            tuple(TensorSpec(name, "float32", shape) for name, shape in outputs.items()),
        )


def _text_encoder(path: Path, vector: np.ndarray, pooled: bool, guidance: bool) -> GraphRecord:
    rows, depth = (2 if guidance else 1) * BATCH, len(vector)
    graph = Graph(path.stem, {"input_ids": ("int32", (rows, 77))})
    scaled = graph("Div", graph("Cast", "input_ids", to=FLOAT), graph.constant(49407))
    column = graph("Unsqueeze", scaled, graph.constant([2], np.int64))
    graph("Mul", column, graph.constant(vector), name="hidden_states")
    outputs: dict[str, tuple[int, ...]] = {"hidden_states": (rows, 77, depth)}
    if pooled:
        graph("ReduceMean", "hidden_states", name="pooled", axes=[1], keepdims=0)
        outputs["pooled"] = (rows, depth)
    return graph.save(path, outputs)


def _identity_encoder(path: Path, reads_face: bool) -> GraphRecord:
    inputs = {"face_crop": ("float32", (1, 3, 224, 224)), "face_embedding": ("float32", (1, 512))}
    graph = Graph(path.stem, inputs if reads_face else {"face_crop": inputs["face_crop"]})
    brightness = graph("ReduceMean", "face_crop", axes=[1, 2, 3], keepdims=0)  # [1]
    first = graph(
        "Slice",
        "face_embedding" if reads_face else graph.constant(np.ones((1, 512))),
        graph.constant([0], np.int64),
        graph.constant([TOKENS * DEPTH_T], np.int64),
        graph.constant([1], np.int64),
    )
    tokens = graph("Reshape", first, graph.constant([1, TOKENS, DEPTH_T], np.int64))
    cond = graph("Add", tokens, brightness)
    uncond = graph("Mul", cond, graph.constant(0.25))
    graph("Concat", uncond, cond, name="identity_tokens", axis=0)
    graph("MatMul", "identity_tokens", graph.constant(PROJECT_K), name="identity_keys")
    graph("MatMul", "identity_tokens", graph.constant(PROJECT_V), name="identity_values")
    wide = (2, TOKENS, DEPTH_K)
    return graph.save(path, {"identity_tokens": (2, TOKENS, DEPTH_T), "identity_keys": wide, "identity_values": wide})


def _step(path: Path, streams: tuple[str, ...], poison: bool, guidance: bool) -> GraphRecord:
    """A step of both streams, or of one; `identity_step` reads the features of one prompt's text stream."""
    copies, single = 2 if guidance else 1, path.stem == SINGLE
    shared = len(streams) == 1 and not single  # one prompt for all images
    prompts, samples = 1 if shared else BATCH, 1 if streams == ("text",) else BATCH
    rows, latents = copies * prompts, (samples, 4, LATENT, LATENT)
    wide = ("float32", (copies * BATCH, PEOPLE * TOKENS, DEPTH_K))
    per_image = ("float32", (samples,))
    identity: dict[str, tuple[str, tuple[int, ...]]] = {
        "identity_keys": wide,
        "identity_values": wide,
        **({} if single else {"style_strength": per_image}),
        "identity_strength": per_image,
    }
    features = (copies, LATENT * LATENT, 4)
    if shared:
        identity[FEATURE] = ("float32", features)
    graph = Graph(
        path.stem,
        {
            **{
                f"{stream}_{part}": ("float32", latents)
                for stream in streams
                for part in ("latents", "denoised", "noise")
            },
            "timestep": ("float32", (1,)),
            "coefficients": ("float32", (7,)),
            **({"guidance": per_image} if guidance else {}),
            "prompt_embeds": ("float32", (rows, 77, DEPTH_1 + DEPTH_2)),
            "pooled_prompt_embeds": ("float32", (rows, DEPTH_2)),
            "time_ids": ("float32", (rows, 6)),
            **(identity if "identity" in streams else {}),
        },
    )

    def mean(name: str, axes: list[int]) -> str:
        return graph("ReduceMean", name, axes=axes, keepdims=0)

    def guided(name: str, count: int) -> str:
        """Uncond + guidance · (cond − uncond), `[B]`."""
        if not guidance:
            return name
        parts = ([graph.constant([value], np.int64) for value in (start, start + count, 0)] for start in (0, count))
        uncond, cond = (graph("Slice", name, *bounds) for bounds in parts)
        return graph("Add", uncond, graph("Mul", "guidance", graph("Sub", cond, uncond)))

    def column(name: str) -> str:
        return graph("Unsqueeze", name, graph.constant([1, 2, 3], np.int64))

    thousandth = graph.constant(1e-3)
    time = graph("Mul", graph("Add", mean("time_ids", [1]), "timestep"), thousandth)
    text = graph("Add", graph("Add", mean("prompt_embeds", [1, 2]), mean("pooled_prompt_embeds", [1])), time)
    text_noise = guided(text, prompts)
    half, tenth = graph.constant(0.5), graph.constant(0.1)
    c_in = graph("Split", "coefficients", name="c_in", axis=0)
    factors = ["c_x", "c_e", "c_d", "c_n", "k_x", "k_e"]
    graph.nodes[-1].output.extend(factors)
    seen = {stream: graph("Mul", f"{stream}_latents", c_in) for stream in streams}
    predicted = {}
    if "text" in streams:
        predicted["text"] = graph("Add", graph("Mul", seen["text"], half), column(text_noise))
    if "identity" in streams:
        keys, strength = mean("identity_keys", [1, 2]), graph("Concat", *["identity_strength"] * copies, axis=0)
        if not single:
            keys = graph("Mul", keys, graph("Concat", *["style_strength"] * copies, axis=0))
        values = graph("Mul", mean("identity_values", [1, 2]), strength)
        identity_noise = graph("Add", text_noise, guided(graph("Add", keys, values), BATCH))
        if shared:
            each = graph("Reshape", FEATURE, graph.constant([copies, 4, LATENT, LATENT], np.int64))
            seen["text"] = graph("ReduceMean", each, axes=[0], keepdims=1)
        plain = graph("Mul", seen["identity"], half)
        if not single:
            plain = graph("Add", plain, graph("Mul", seen["text"], tenth))
        predicted["identity"] = graph("Add", plain, column(identity_noise))
    if poison:
        last = streams[-1]
        predicted[last] = graph("Log", graph("Sub", predicted[last], graph.constant(1e6)))
    for stream in streams:
        terms = {"latents": f"{stream}_latents", "e": predicted[stream], "denoised": f"{stream}_denoised",
                 "noise": f"{stream}_noise"}  # fmt: skip
        parts = [graph("Mul", *pair) for pair in zip(terms.values(), factors[:4], strict=True)]
        graph("Sum", *parts, name=f"next_{stream}_latents")
        parts = [graph("Mul", f"{stream}_latents", "k_x"), graph("Mul", predicted[stream], "k_e")]
        graph("Sum", *parts, name=f"next_{stream}_denoised")
    outputs: dict[str, tuple[int, ...]] = {
        f"next_{stream}_{part}": latents for stream in streams for part in ("latents", "denoised")
    }
    if streams == ("text",):
        both = graph("Concat", *[seen["text"]] * copies, axis=0)
        graph("Reshape", both, graph.constant(features, np.int64), name=FEATURE)
        outputs[FEATURE] = features
    return graph.save(path, outputs)


def _vae_decoder(path: Path, poison: bool) -> GraphRecord:
    graph = Graph(path.stem, {"latents": ("float32", (BATCH, 4, LATENT, LATENT))})
    bounds = [graph.constant([value], np.int64) for value in (0, 3, 1)]
    colors = graph("Slice", "latents", *bounds)
    large = graph("Resize", colors, "", graph.constant([1, 1, 8, 8]), mode="nearest")
    if poison:
        large = graph("Log", graph("Sub", large, graph.constant(1e6)))
    graph("Sigmoid", large, name="image")
    return graph.save(path, {"image": (BATCH, 3, SIDE, SIDE)})


def write_folder(
    folder: Path,
    poison: str = "",
    guidance: bool = True,
    streams: Literal["two", "one"] = "two",
    reads_face: bool = True,
    **changes: Any,
) -> Path:
    """Write a complete engine folder.

    Args:
        folder: where to write it.
        poison: a graph that returns NaN.
        guidance: whether the step has unconditional rows.
        streams: of the model.
        reads_face: whether the identity encoder reads a face embedding besides an image.
        changes: fields of the manifest to change.
    """
    onnx_folder = folder / "onnx"
    graphs = {
        "text_encoder": _text_encoder(onnx_folder / "text_encoder.onnx", VEC_1, pooled=False, guidance=guidance),
        "text_encoder_2": _text_encoder(onnx_folder / "text_encoder_2.onnx", VEC_2, pooled=True, guidance=guidance),
        "identity_encoder": _identity_encoder(onnx_folder / "identity_encoder.onnx", reads_face),
        **{
            name: _step(onnx_folder / f"{name}.onnx", run, poison == name, guidance)
            for name, run in STEPS[streams].items()
        },
        "vae_decoder": _vae_decoder(onnx_folder / "vae_decoder.onnx", poison == "vae_decoder"),
    }
    for name, pad in (("tokenizer", "<|endoftext|>"), ("tokenizer_2", "!")):
        (folder / name).mkdir()
        (folder / name / "tokenizer.json").write_text(clip_tokenizer_json(pad), encoding="utf-8")
    (folder / "faces").mkdir()
    small_face_models.write_dot_detector(folder / "faces" / "detector.onnx")
    small_face_models.write_recognizer(folder / "faces" / "recognizer.onnx")
    files = {
        str(path.relative_to(folder)): FileRecord(sha256_file(path), path.stat().st_size)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    engines = tuple(
        EngineRecord(name, "onnxruntime", "cpu", record.file, record.sha256, files[record.file].size, "", {}, {}, {})
        for name, record in graphs.items()
    )
    values: dict[str, Any] = {
        "infid_export": "0.1.0",
        "model": {"name": "tiny", "id": MODEL, "files": {}, "config": {}},
        "options": {},
        "precision": "fp32",
        "height": SIDE,
        "width": SIDE,
        "batch": BATCH,
        "people": PEOPLE,
        "identity_tokens": TOKENS,
        "graphs": graphs,
        "engines": engines,
        "files": files,
        "scheduler": dict(SDXL_SCHEDULER),
        "defaults": {
            "steps": 5,
            "guidance": 5.0 if guidance else 1.0,
            "style_strength": 1.0 if streams == "two" else 0.0,
            "identity_strength": 1.0,
            "negative_prompt": "ugly",
            "sampler": "ddim",
            "spacing": "leading",
        },
        "faces": {
            "detector": "centerface",
            "detector_path": "faces/detector.onnx",
            "recognizer_path": "faces/recognizer.onnx",
            "template": "arcface",
            "licence": "",
        },
    }
    Manifest(**{**values, **changes}).write(folder)
    return folder


# What the folder of a few-step model with fixed timesteps has instead.
FEW_STEPS: dict[str, Any] = {
    "scheduler": {**SDXL_SCHEDULER, "distilled_timesteps": [999, 749, 499, 249]},
    "defaults": {
        "steps": 4,
        "guidance": 5.0,
        "style_strength": 1.0,
        "identity_strength": 1.0,
        "negative_prompt": None,
        "sampler": "lcm",
        "spacing": None,
        "preset": "dmd2-4",
    },
}
WHOLE = {"detector": "", "detector_path": "", "recognizer_path": "", "crop": "whole", "embedding": "normalized"}


def records(folder: Path) -> dict[str, Any]:
    """Return the manifest's fields, to write a changed manifest."""
    return {name: getattr(Manifest.load(folder), name) for name in asdict(Manifest.load(folder))}
