"""The part of a build that runs PyTorch: weights, graphs, the VAE's range, and the comparisons."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from torch import nn

from infid_engines.atomic_files import temporary_beside
from infid_engines.manifest import Dimension, Manifest, TensorSpec
from infid_engines.progress import Stage
from infid_engines.registry import PARITY_BACKEND, get_backend
from infid_export.export.graphs import (
    Sizes,
    feature_names,
    graph_inputs,
    graph_module,
    input_names,
    output_names,
)
from infid_export.export.inspection import read_graph
from infid_export.export.onnx_graph import export_onnx
from infid_export.export.parity import ImageParity, ParityRow, compare, psnr
from infid_export.export.plan import VAE_RANGE, Plan, components_of, graph_file, plain, weights_file
from infid_export.export.plugin_nodes import write_runnable
from infid_export.export.reference import NEGATIVE_PROMPT, PROMPT, SEED, Reference, parity_face
from infid_export.export.tolerances import PSNR_DB
from infid_export.export.weights import WeightsLayout
from infid_export.model.components import brought
from infid_export.model.processors import identity_blocks
from infid_export.runtime.pipeline import Pipeline, seeded_noise

_TYPES = {"fp16": torch.float16, "fp32": torch.float32}
# A quarter of fp16's largest value: pictures unlike the probes may reach further than they did.
_FP16_SAFE = 65504 / 4
_PROBES, _PROBE_SIZE = 3, 32  # latents of 32 × 32: the range does not depend on the size of the picture


class Exporter:
    """Exports one plan's graphs and compares them with the reference.

    Args:
        plan: what is built.
    """

    def __init__(self, plan: Plan) -> None:
        logging.getLogger("diffusers").setLevel(logging.ERROR)
        self.plan = plan
        self.source = plan.source
        self.blocks = identity_blocks(self.source.empty("unet"))

    def write_weights(self, component: str, vae_precision: str, path: Path, progress: Callable[[float], None]) -> str:
        """Stream a component's weights into their file; returns its sha256."""
        dtype = self._dtype("vae_decoder" if component == "vae" else component, vae_precision)
        layout = WeightsLayout.of(self.source.empty(component), dtype)
        return layout.write(path, self.source.weights(component, dtype), progress)

    def write_graph(self, graph: str, vae_precision: str, path: Path, size: tuple[int, int] | None = None) -> None:
        """Export a graph, with the plan's size and ranges, or at one other size."""
        dtype = self._dtype(graph, vae_precision)
        traced, dynamic = self.inputs(graph, dtype), None
        if size is not None:
            traced = self.inputs(graph, dtype, (self.plan.options.batch, *size))
        elif self.plan.smallest != self.plan.largest:
            ends = [self.inputs(graph, dtype, end) for end in (self.plan.smallest, self.plan.largest)]
            dynamic = {name: _varying(ends[0][name], ends[1][name]) for name in traced}
            # sizes of 1 would be taken for constants by the tracer
            traced = self.inputs(graph, dtype, (max(2, self.plan.options.batch), self.plan.height, self.plan.width))
            if self.plan.smallest[0] == self.plan.largest[0]:
                traced = self.inputs(graph, dtype)
        components = components_of(graph)
        parts = {name: brought(self.source.empty(name), dtype) for name in components.values()}
        export_onnx(
            graph_module(plain(graph), parts, self.source.config, "torch" if graph == plain(graph) else "triton"),
            traced,
            input_names(plain(graph), self.blocks),
            output_names(plain(graph), self.blocks),
            {
                prefix: (Path(weights_file(name)).name, WeightsLayout.of(parts[name], dtype))
                for prefix, name in components.items()
            },
            path,
            dynamic,
        )

    def write_plugins(self, name: str, path: Path, stage: Stage) -> None:
        """Compile the fused kernels for one GPU architecture; `name` is the file's, which says which."""
        from infid_kernels.tuning import loaded
        from infid_kernels.variants import write_plugins

        unet: Any = self.source.empty("unet")
        attentions = [module for module in unet.modules() if isinstance(module, Attention)]
        head_sizes = sorted({module.to_q.out_features // module.heads for module in attentions})
        with loaded(self.plan.options.tuning):
            write_plugins(path, Path(name).stem.removeprefix("plugins-"), head_sizes, stage.update)

    def specs(self, graph: str, folder: Path) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        """Return a graph's inputs and outputs, with [smallest, usual, largest] where a dimension varies."""
        facts = read_graph(folder / graph_file(graph))
        if all(isinstance(extent, int) for spec in facts.inputs for extent in spec.shape):
            return facts.inputs, facts.outputs
        dtype = torch.float32  # shapes do not depend on it
        ends = (self.plan.smallest, None, self.plan.largest)
        flat = [_flat(self.inputs(graph, dtype, end)) for end in ends]
        inputs = tuple(
            replace(spec, shape=_ranges([tuple(tensors[index].shape) for tensors in flat]))
            for index, spec in enumerate(facts.inputs)
        )
        known = {spec.name: spec.shape for spec in inputs}
        return inputs, tuple(replace(spec, shape=self._output_shape(spec, known)) for spec in facts.outputs)

    def _output_shape(self, spec: TensorSpec, inputs: dict[str, Any]) -> Any:
        """Return an output's shape; the next latents have the latents', a picture as many pixels as they stand for."""
        if spec.name.startswith("next_"):
            return inputs[spec.name.removeprefix("next_")]
        if spec.name == "image":
            batch, _, height, width = inputs["latents"]
            factor = self.source.architecture.vae_scale_factor
            return (batch, 3, *(_times(factor, extent) for extent in (height, width)))
        if spec.name in ("hidden_states", "pooled"):
            return (inputs["input_ids"][0], *spec.shape[1:])
        ends = (self.plan.smallest, None, self.plan.largest)
        features = [_flat(self.inputs("identity_step", torch.float32, end)) for end in ends]
        index = input_names("identity_step", self.blocks).index(spec.name)
        return _ranges([tuple(tensors[index].shape) for tensors in features])

    def inputs(self, graph: str, dtype: torch.dtype, end: tuple[int, int, int] | None = None) -> dict[str, Any]:
        """Return a graph's arguments as meta tensors, at one end of the ranges or at the usual size."""
        batch, height, width = end or (self.plan.options.batch, self.plan.height, self.plan.width)
        sizes = Sizes(batch, height, width, self.plan.options.people, dtype)
        return graph_inputs(plain(graph), sizes, self.source.architecture, self.source.config, self.blocks)

    def write_vae_range(self, path: Path) -> None:
        """Find out whether the VAE's decoder stays finite in fp16 on these weights, and write the finding."""
        vae: Any = self.source.load("vae", torch.float32)
        largest = 0.0

        def watch(_: nn.Module, __: Any, output: Any) -> None:
            nonlocal largest
            if isinstance(output, torch.Tensor):
                largest = max(largest, float(output.abs().max()))

        handles = [module.register_forward_hook(watch) for module in vae.modules()]
        latents = torch.from_numpy(seeded_noise(range(_PROBES), (4, _PROBE_SIZE, _PROBE_SIZE)))
        with torch.no_grad():
            vae.decode(latents / vae.config.scaling_factor)
        for handle in handles:
            handle.remove()
        weight = max(float(parameter.abs().max()) for parameter in vae.parameters())
        safe = largest <= _FP16_SAFE and weight <= torch.finfo(torch.float16).max
        why = f"activations reach {largest:.0f} on these weights, the limit for fp16 is {_FP16_SAFE:.0f}"
        if weight > torch.finfo(torch.float16).max:
            why = f"a weight reaches {weight:.0f}, fp16 ends at {torch.finfo(torch.float16).max:.0f}"
        path.write_text(json.dumps({"largest": largest, "precision": "fp16" if safe else "fp32", "why": why}))

    def compare(self, folder: Path, manifest: Manifest, graphs: list[str], stage: Stage) -> Iterator[ParityRow]:
        """Run graphs in ONNX Runtime and compare them with the reference, one component's graphs at a time.

        Args:
            folder: where graphs and weights lie.
            manifest: their records.
            graphs: which to compare.
            stage: shown the progress.

        Yields:
            One row an output.
        """
        size = self.plan.parity_size
        sizes = Sizes(self.plan.options.batch, *size, self.plan.options.people, torch.float32)
        reference = Reference(self.source, sizes, self.blocks)
        groups: dict[tuple[str, ...], list[str]] = {}
        for graph in graphs:
            groups.setdefault(tuple(components_of(graph).values()), []).append(graph)
        done = 0
        for members in groups.values():
            expected = reference.outputs(list(dict.fromkeys(map(plain, members))))
            for graph in members:
                stage.update(done / len(graphs), graph)
                found = self._run(folder, manifest, graph, reference.inputs(plain(graph)), size)
                yield from compare(
                    graph,
                    expected[plain(graph)],
                    found,
                    precision=self._precision(graph, folder, manifest),
                    key=self.plan.parity_key(graph),
                    size=size,
                    groups={"text_features": feature_names(self.blocks)} if graph == "text_step" else {},
                )
                done += 1

    def _run(
        self, folder: Path, manifest: Manifest, graph: str, inputs: dict[str, Any], size: tuple[int, int]
    ) -> dict[str, Any]:
        """Run one graph in ONNX Runtime; at another size, or with plugin nodes, a twin on the same weights."""
        record = manifest.graphs[graph]
        specs, outputs, path = record.inputs, record.outputs, folder / record.file
        other_size = size != (manifest.height, manifest.width) and "height" in record.key_fields
        with temporary_beside(folder) as scratch:
            twin = Path(scratch) / Path(record.file).name
            if other_size or graph != plain(graph):
                for name in record.weights:
                    os.link(folder / name, Path(scratch) / Path(name).name)
            if other_size:
                dtype = "fp16" if any(spec.dtype == "float16" for spec in specs) else "fp32"
                vae_precision = self._stored_vae_precision(folder, manifest) if graph == "vae_decoder" else dtype
                self.write_graph(graph, vae_precision, twin, size)
                path, facts = twin, read_graph(twin)
                specs, outputs = facts.inputs, facts.outputs
            if graph != plain(graph):
                write_runnable(path, twin)
                path = twin
            engine = get_backend(PARITY_BACKEND).load(path, specs, outputs, "cpu")
            types = {spec.name: spec.dtype for spec in specs}
            found = engine.run({name: array.astype(types[name]) for name, array in inputs.items()})
            engine.close()
        return found

    def _precision(self, graph: str, folder: Path, manifest: Manifest) -> str:
        """Return the type a graph computes in; in an fp16 folder the VAE may have stayed fp32."""
        return self._stored_vae_precision(folder, manifest) if graph == "vae_decoder" else manifest.precision

    def _stored_vae_precision(self, folder: Path, manifest: Manifest) -> str:
        if VAE_RANGE not in manifest.files:
            return "fp32"
        return str(json.loads((folder / VAE_RANGE).read_text())["precision"])

    def compare_image(self, folder: Path, manifest: Manifest, steps: int, stage: Stage) -> ImageParity:
        """Generate one picture with the runtime and with the reference pipeline, from the same noise."""
        from infid_export.model.pipeline import InfiniteIDPipeline

        face = parity_face(self.source.architecture.image_encoder["image_size"], self.source.config.face_width)
        noise = seeded_noise([SEED], self.source.architecture.latents(self.plan.height, self.plan.width))
        threshold = PSNR_DB[manifest.precision]
        with Pipeline.load(folder, backend=PARITY_BACKEND) as runtime:
            person = runtime.encode(face)
            found = runtime.generate(
                PROMPT,
                person,
                negative_prompt=NEGATIVE_PROMPT,
                steps=steps,
                noise=noise,
                callback=lambda index, *_: stage.update((index + 1) / steps / 2, f"engine step {index + 1}"),
                output_type="np",
            )

        def advance(_: Any, index: int, __: Any, values: dict[str, Any]) -> dict[str, Any]:
            stage.update(0.5 + (index + 1) / steps / 2, f"reference step {index + 1}")
            return values

        pipe = InfiniteIDPipeline.from_source(self.source)
        pipe.set_progress_bar_config(disable=True)
        expected = pipe(
            PROMPT,
            pipe.encode_identity(face),
            negative_prompt=NEGATIVE_PROMPT,
            height=self.plan.height,
            width=self.plan.width,
            **replace(self.source.architecture.sampling, steps=steps).arguments(),
            latents=torch.from_numpy(noise),
            callback_on_step_end=advance,
            output_type="np",
        ).images
        value = psnr(expected, found)
        return ImageParity(manifest.precision, value, threshold, steps, value >= threshold, self.plan.image_key())

    def _dtype(self, graph: str, vae_precision: str) -> torch.dtype:
        if graph == "vae_decoder":
            return _TYPES[vae_precision]
        return _TYPES[self.plan.options.precision]


def _varying(first: Any, second: Any) -> Any:
    """Return the indices of the dimensions in which two examples of an argument differ."""
    if isinstance(first, list):
        return [_varying(a, b) for a, b in zip(first, second, strict=True)]
    return {index for index, (a, b) in enumerate(zip(first.shape, second.shape, strict=True)) if a != b}


def _flat(arguments: Mapping[str, Any]) -> list[Any]:
    """Return all tensors of the arguments in order."""
    return [tensor for value in arguments.values() for tensor in (value if isinstance(value, list) else [value])]


def _times(factor: int, extent: Dimension) -> Dimension:
    """Return a latent extent in pixels."""
    return [factor * end for end in extent] if isinstance(extent, list) else factor * extent


def _ranges(shapes: Sequence[tuple[int, ...]]) -> tuple[Dimension, ...]:
    """Join the smallest, usual and largest shape of a tensor."""
    return tuple(ends[0] if len(set(ends)) == 1 else list(ends) for ends in zip(*shapes, strict=True))
