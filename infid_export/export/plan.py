"""The plan of a build: the artifacts that it needs and what each depends on. Imports are light."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from infid_engines.backends import BuildRequest
from infid_engines.device import CPU
from infid_engines.errors import BackendUnavailableError, InputError
from infid_engines.manifest import EngineRecord, Manifest, canonical_key, sha256_file
from infid_engines.registry import PARITY_BACKEND, fastest_first, get_backend
from infid_export.export.artifact import RECOGNIZER, SMALL, TOKENIZERS, Artifact, Seconds, plugins_file, weights_file
from infid_export.export.build_options import BuildOptions
from infid_export.export.bundle_compilation import require_measured
from infid_export.export.code_keys import code_hash
from infid_export.export.face_plan import face_files
from infid_export.export.graphs import GRAPHS, Graph, GraphForm, chosen_graphs, forms_of
from infid_export.export.model_choice import source_of
from infid_export.export.option_checks import backends_with, check_effects, check_fused, check_ranges
from infid_export.export.preset_plan import usual_size, with_guidance
from infid_export.export.vae_range import PROBED, VAE_RANGE
from infid_export.export.writers import Writers
from infid_export.model.changes.updated_source import classes_of
from infid_export.model.sources import COMPONENTS, ModelSource
from infid_export.runtime.requirements import image_graphs

_EXPORTERS = ("torch", "onnxscript", "onnx_ir", "diffusers", "transformers", "open_clip_torch")


_EXPORTED = Seconds(8.0, 45.0)
_STREAMED = Seconds(0.5, 45.0)
_BUILT = Seconds(4.0, 100.0)
COMPILED = Seconds(30.0, 400.0)


@dataclass(frozen=True)
class EngineItem:
    """One engine of the plan.

    Args:
        form: the form of the graph that it is built from.
        backend: the backend that builds and runs it.
        target: GPU architecture, or `cpu`.
        artifact: its file; for ONNX Runtime, the graph itself.
    """

    form: GraphForm
    backend: str
    target: str
    artifact: Artifact

    @property
    def graph(self) -> str:
        """Name of the graph that it computes."""
        return self.form.graph.name

    @property
    def is_graph(self) -> bool:
        """Whether the backend uses the graph itself, so that nothing is built."""
        return get_backend(self.backend).uses_graph_as_engine


@dataclass(frozen=True)
class Plan:
    """Everything that a build writes, and what each part depends on.

    Args:
        options: with height, width and graphs filled in.
        source: the model.
        model: identity of the model, for the manifest.
        files: tokenizers, face models, the VAE's range and plugins, by path.
        weights: artifacts by component.
        graphs: artifacts by form.
        engines: all engines.
        writers: the writers of the artifacts.
        notes: what was chosen, and why.
    """

    options: BuildOptions
    source: ModelSource
    model: Mapping[str, Any]
    files: Mapping[str, Artifact]
    weights: Mapping[str, Artifact]
    graphs: Mapping[GraphForm, Artifact]
    engines: tuple[EngineItem, ...]
    writers: Writers
    notes: tuple[str, ...] = field(default=())

    @property
    def height(self) -> int:
        """Image height in pixels."""
        assert self.options.height is not None
        return self.options.height

    @property
    def width(self) -> int:
        """Image width in pixels."""
        assert self.options.width is not None
        return self.options.width

    @property
    def parity_size(self) -> tuple[int, int]:
        """Height and width of the parity check."""
        size = self.options.parity_size
        return (self.height, self.width) if size is None else (size, size)

    @property
    def exported(self) -> tuple[Artifact, ...]:
        """The artifacts that are built before the comparison, each after its dependencies."""
        return (*self.files.values(), *self.weights.values(), *self.graphs.values())

    @property
    def built(self) -> tuple[Artifact, ...]:
        """The engines that are built from graphs, one after the other."""
        return self._files(compiled=False)

    @property
    def packages(self) -> tuple[Artifact, ...]:
        """The engines that are compiled from modules, several at the same time."""
        return self._files(compiled=True)

    def _files(self, compiled: bool) -> tuple[Artifact, ...]:
        """Return the engines that have their own files."""
        return tuple(
            item.artifact
            for item in self.engines
            if not item.is_graph and get_backend(item.backend).builds_from_modules == compiled
        )

    def artifacts(self) -> dict[str, Artifact]:
        """Return all artifacts by path, in build order."""
        return {artifact.path: artifact for artifact in (*self.exported, *self.built, *self.packages)}

    def _classes(self, graph: Graph) -> tuple[type, ...]:
        """Return the classes whose code decides the weights of a graph."""
        return classes_of(self.source, tuple(graph.components.values()))

    def parity_key(self, form: GraphForm) -> str:
        """Return the key of a graph's comparison."""
        return canonical_key(
            {
                "graph": self.graphs[form].key_fields,
                "weights": [self.weights[name].key_fields for name in self.parts(form.graph)],
                "size": self.parity_size,
                "code": code_hash("parity", type(form.graph), *self._classes(form.graph)),
                "runtime": "; ".join(get_backend(PARITY_BACKEND).versions().values()),
            }
        )

    def engine_parity_key(self, manifest: Manifest, engine: EngineRecord) -> str:
        """Return the key of an engine's own comparison."""
        graph = GRAPHS[engine.graph]
        return canonical_key(
            {
                "engine": engine.key,
                "weights": [manifest.files[weights_file(name)].key for name in self.parts(graph)],
                "size": (manifest.height, manifest.width),
                "code": code_hash("parity", type(graph), *self._classes(graph)),
            }
        )

    def parts(self, graph: Graph) -> Collection[str]:
        """Return the components that a graph uses."""
        return graph.used_components(self.source.config).values()

    def image_steps(self) -> int | None:
        """Return the steps of the whole-image comparison, or None without one."""
        wanted, built = self.options.parity_image, {form.graph.name for form in self.graphs}
        needed = image_graphs(self.source.config.streams)
        if wanted == "off" or (wanted == "auto" and self.source.name != "demo") or not built.issuperset(needed):
            return None
        return self.source.architecture.sampling.steps

    def image_key(self) -> str:
        """Return the key of the whole-image comparison."""
        graphs = {form.name: self.parity_key(form) for form in self.graphs}
        sampling = {"scheduler": dict(self.source.scheduler), "usual": asdict(self.source.architecture.sampling)}
        return canonical_key(
            {"graphs": graphs, **sampling, "code": code_hash("image", *classes_of(self.source, COMPONENTS))}
        )


def make_plan(options: BuildOptions) -> Plan:
    """Plan a build.

    Raises:
        InputError: the model, a face model or a target cannot be used.
        BackendUnavailableError: a requested backend is missing.
    """
    check_ranges(options)
    source = source_of(options)
    size = usual_size(source, options.preset)
    options = replace(
        options,
        # the usual size of a range is the folder's size
        height=options.height_range[1] if options.height_range else options.height or size,
        width=options.width_range[1] if options.width_range else options.width or size,
        batch=options.batch_range[1] if options.batch_range else options.batch,
        graphs=tuple(graph.name for graph in chosen_graphs(options.graphs, source.config.streams)),
        guidance=with_guidance(options.guidance, options.preset),
        detector=options.detector or ("drawn" if source.name == "demo" else "centerface"),
    )
    backends, why = _backends(options)
    check_effects(options, source, backends)
    if options.kernels != "native":
        check_fused(options, source)
    writers = Writers(source, options)
    chosen = tuple(GRAPHS[name] for name in options.graphs)
    parts = sorted({name for graph in chosen for name in graph.used_components(source.config).values()})
    prints = {name: source.fingerprint(name) for name in parts}
    weights = {
        name: Artifact(weights_file(name), fields, writers.weights(name), _STREAMED)
        for name, fields in _weights_fields(prints, options, source).items()
    }
    graphs = {
        form: Artifact(form.file, _graph_fields(form, options, source), writers.graph(form), _EXPORTED)
        for form in forms_of(chosen, options.kernels)
    }
    files, notes = face_files(options, source, writers)
    tokenizer = {"tokenizer": source.tokenizer_fingerprint(), "code": code_hash("tokenizer")}
    files |= {
        name: Artifact(name, {**tokenizer, "file": name}, writers.tokenizer(index), SMALL)
        for index, name in enumerate(TOKENIZERS)
    }
    if PROBED in prints and options.precision == "fp16":
        fields = {"weights": prints[PROBED], "code": code_hash("vae_range", *classes_of(source, (PROBED,)))}
        files[VAE_RANGE] = Artifact(VAE_RANGE, fields, writers.vae_range(), _EXPORTED)
    model = {"name": source.name, "files": prints, "config": source.config.to_dict()}
    if source.license:
        model["license"] = source.license
        why += (f"license of the identity weights: {source.license}",)
    encoders = ("image_encoder", "identity") if source.config.reads_image else ("identity",)
    person = {name: source.fingerprint(name) for name in encoders}
    recognizer = {"recognizer": files[RECOGNIZER].key_fields} if RECOGNIZER in files else {}
    model["id"] = canonical_key({**person, **_chosen_rows(source), "precision": options.precision, **recognizer})
    engines = [item for name in backends for item in _engines(name, options, graphs, weights, writers)]
    targets = sorted({item.target for item in engines if item.form.kernels != "native"})
    for target in targets:
        name = plugins_file(target)
        files[name] = Artifact(name, _plugin_fields(target, options.tuning), writers.plugins(target), SMALL)
    if options.tuning is not None:
        require_measured(options.tuning, targets)
    if options.kernels != "native" and not targets:
        takers = backends_with("takes_plugins")
        why += (
            f"kernels triton: exported and compared, but not used in an engine, since no engine of {takers} is built",
        )
    notes = (*source.notes, *notes, *why)
    return Plan(options, source, model, files, weights, graphs, tuple(engines), writers, notes)


def _package_fields(form: GraphForm, device: str) -> dict[str, Any]:
    """Return what a package depends on: not on the weights, which are not in it."""
    fields: dict[str, Any] = {"weights": {}, "code": code_hash("package")}
    if device == "cuda" and "triton" in form.graph.kernels:
        fields["plugins"] = canonical_key({"code": code_hash("fused"), "triton": _version("triton")})
    return fields


def _plugin_fields(target: str, tuning: Path | None) -> dict[str, Any]:
    # a missing file is rejected later, by `require_measured`
    chosen = sha256_file(tuning) if tuning is not None and tuning.is_file() else ""
    return {"plugins": target, "code": code_hash("plugins"), "triton": _version("triton"), "tuning": chosen}


def _weights_fields(prints: Mapping[str, str], options: BuildOptions, source: ModelSource) -> dict[str, dict[str, Any]]:
    return {
        name: {
            "weights": fingerprint,
            "precision": options.precision,
            "code": code_hash("weights", *classes_of(source, (name,))),
        }
        for name, fingerprint in prints.items()
    }


def _graph_fields(form: GraphForm, options: BuildOptions, source: ModelSource) -> dict[str, Any]:
    graph = form.graph
    parts = {part: source.architecture.component(part) for part in graph.used_components(source.config).values()}
    fields: dict[str, Any] = {
        "graph": graph.name,
        "precision": options.precision,
        "batch": options.batch if "batch" in graph.depends_on else 1,
        "architecture": hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest(),
        "code": code_hash("graph", type(graph)),
        "versions": {package: _version(package) for package in _EXPORTERS},
    }
    if "size" in graph.depends_on:
        fields |= {"height": options.height, "width": options.width}
        fields |= {"height_range": options.height_range, "width_range": options.width_range}
    if "batch" in graph.depends_on:
        fields |= {"batch_range": options.batch_range}
    if "guidance" in graph.depends_on:
        fields |= {"guidance": options.guidance}
    if "people" in graph.depends_on:
        fields |= {"people": options.people}
    if "templates" in graph.depends_on:
        fields |= {"quantize_templates": options.quantize_templates}
    if "method" in graph.depends_on:
        fields |= {"method": source.config.to_dict()}
    if PROBED in graph.components.values():
        fields[f"{PROBED}_weights"] = source.fingerprint(PROBED)  # its precision depends on the range of its values
    if form.kernels != "native":
        fields["kernels"] = code_hash("fused")
    return fields


def _backends(options: BuildOptions) -> tuple[list[str], tuple[str, ...]]:
    """Resolve `auto`, and say why."""
    names, notes = [], []
    for name in dict.fromkeys(options.backends):
        if name != "auto":
            get_backend(name).versions()
            names.append(name)
            continue
        names.append(PARITY_BACKEND)
        notes.append(f"backend {PARITY_BACKEND}: chosen automatically, it runs everywhere and parity is measured on it")
        for candidate in fastest_first():
            if candidate.name == PARITY_BACKEND or not candidate.automatic:
                continue
            try:
                candidate.versions()
                targets = candidate.default_targets()
            except BackendUnavailableError as error:
                notes.append(f"backend {candidate.name}: skipped. {error.problem}")
                continue
            notes.append(
                f"backend {candidate.name}: chosen automatically, it is installed (targets {', '.join(targets)})"
            )
            names.append(candidate.name)
    if PARITY_BACKEND not in names:
        names.insert(0, PARITY_BACKEND)
        notes.append(f"backend {PARITY_BACKEND}: added, parity is measured on it")
    get_backend(PARITY_BACKEND).versions()
    if options.targets and not any(get_backend(name).takes_targets for name in names):
        takers = backends_with("takes_targets")
        raise InputError(
            f"Targets {', '.join(options.targets)} were given, but no engine of {takers} is built.",
            fix=f"Add --backend {takers.replace(' or ', ' or --backend ')}.",
        )
    return list(dict.fromkeys(names)), tuple(notes)


def _engines(
    name: str,
    options: BuildOptions,
    graphs: Mapping[GraphForm, Artifact],
    weights: Mapping[str, Artifact],
    writers: Writers,
) -> list[EngineItem]:
    backend = get_backend(name)
    targets = options.targets if backend.takes_targets and options.targets else backend.default_targets()
    flags = BuildRequest(
        Path(), Path(), "", refit=options.refit, strip=options.strip, optimization_level=options.optimization_level
    ).flags
    items = []
    for target in dict.fromkeys(targets):
        backend.check_target(target)
        for graph in map(GRAPHS.__getitem__, options.graphs):
            fused = GraphForm(graph, options.kernels)
            form = fused if backend.takes_plugins and fused in graphs else GraphForm(graph)
            made_from = {
                "graph": graphs[form].key,
                "weights": {part: weights[part].key for part in graph.components.values() if part in weights},
                "backend": name,
                "target": target,
                "versions": backend.versions(),
                "flags": flags if backend.takes_flags else {},
                "plugins": "" if form.kernels == "native" else canonical_key(_plugin_fields(target, options.tuning)),
            }
            if backend.uses_graph_as_engine:
                artifact = replace(graphs[form], key_fields=made_from)
            else:
                path = f"engines/{name}-{target}/{graph.name}.{backend.suffix}"
                if backend.builds_from_modules:
                    _, device = backend.choose_target(target, (target,))
                    if (device, options.precision) == (CPU, "fp16"):
                        raise InputError(
                            f"{name} computes fp16 in fp16 on a CPU, which is not exact enough for parity.",
                            fix=f"Leave out --fp16, or --backend {name}: ONNX Runtime computes fp16 graphs in fp32.",
                        )
                    made_from |= _package_fields(form, device.kind)
                    artifact = Artifact(path, made_from, writers.package(form, name, device.kind), COMPILED)
                else:
                    artifact = Artifact(path, made_from, writers.engine(form, name, target), _BUILT)
            items.append(EngineItem(form, name, target, artifact))
    return items


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


def _chosen_rows(source: ModelSource) -> dict[str, Any]:
    """Return the choices of a build that change a person's keys and values, unless they are the default."""
    config = source.config
    zeros = {"zero_tokens": config.zero_tokens} if config.zero_tokens else {}
    return zeros | ({"uncond_identity": "zero_image"} if config.uncond_identity == "zero_image" else {})
