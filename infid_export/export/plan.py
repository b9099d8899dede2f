"""What a build has to make, from what, and what of it is already there. Imports nothing heavy."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from infid_engines.backends import BuildRequest
from infid_engines.errors import BackendUnavailableError, InputError
from infid_engines.manifest import canonical_key, sha256_file
from infid_engines.registry import BACKENDS, PARITY_BACKEND, fastest_first, get_backend
from infid_export.export.face_models import detector_fingerprint
from infid_export.export.kernel_bundle import require_measured
from infid_export.export.options import FUSED, FUSED_ENDING, GRAPHS, BuildOptions
from infid_export.faces.detection import INSIGHTFACE_LICENCE, InsightFaceDetector
from infid_export.faces.recognition import ArcFaceRecognizer
from infid_export.model.encoder_record import encoder_notes
from infid_export.model.shipped import fingerprint
from infid_export.model.sources import BUILT_IN, ModelSource, open_source

# Component prefix within a graph's module -> component. Graphs with the same component share its weights file.
_COMPONENTS_OF: Mapping[str, Mapping[str, str]] = {
    "text_encoder": {"encoder.": "text_encoder"},
    "text_encoder_2": {"encoder.": "text_encoder_2"},
    "identity_encoder": {"image_encoder.": "image_encoder", "identity.": "identity"},
    "denoise_step": {"unet.": "unet"},
    "text_step": {"unet.": "unet"},
    "identity_step": {"unet.": "unet"},
    "vae_decoder": {"vae.": "vae"},
}
# Graphs whose shapes depend on the picture's size.
SIZED = ("denoise_step", "text_step", "identity_step", "vae_decoder")
VAE_RANGE = "onnx/vae_range.json"
RECOGNIZER, DETECTOR = "faces/recognizer.onnx", "faces/detector.onnx"
TOKENIZERS = ("tokenizer/tokenizer.json", "tokenizer_2/tokenizer.json")
# The code that decides an artefact, by its kind; what else decides it is among the artefact's own fields.
_PARTS = tuple(f"model/{name}.py" for name in ("architectures", "components", "config", "encoders", "identity"))
_REFERENCES = tuple(f"kernels/{name}.py" for name in ("adain", "mixed_attention", "merged_cross_attention"))
_CODE: Mapping[str, tuple[str, ...]] = {
    "weights": (*_PARTS, "model/shipped.py", "model/sources.py", "model/loading.py", "model/checkpoint_files.py",
                "export/weights.py"),
    "graph": (*_PARTS, *_REFERENCES, "model/processors.py", "model/step.py", "export/graphs.py", "export/onnx_graph.py",
              "export/weights.py"),
    "fused": ("export/plugin_nodes.py", "kernels/mean_shift.py"),
    "plugins": ("kernels/*.py", "kernels/configurations.json"),
    "tokenizer": ("model/tokenizers.py",),
    "faces": ("export/face_models.py", "faces/model_files.py", "faces/detection.py", "model/face_networks.py"),
    "vae_range": ("export/exporter.py",),
    "parity": ("export/reference.py", "export/parity.py", "export/tolerances.py", "export/exporter.py"),
}  # fmt: skip
_EXPORTERS = ("torch", "onnxscript", "onnx_ir", "diffusers", "transformers", "open_clip_torch")


@dataclass(frozen=True)
class EngineItem:
    """One engine to have.

    Args:
        graph: what it computes.
        onnx: the graph it is built from: the same, or its form with the fused kernels.
        backend: what it is built by and for.
        target: GPU architecture, or `cpu`.
        fields: all that it is made from.
    """

    graph: str
    onnx: str
    backend: str
    target: str
    fields: Mapping[str, Any]

    @property
    def is_graph(self) -> bool:
        """Whether nothing is built, because the backend takes the graph itself."""
        return get_backend(self.backend).uses_graph_as_engine

    @property
    def file(self) -> str:
        """Path within the folder."""
        if self.is_graph:
            return graph_file(self.graph)
        return f"engines/{self.backend}-{self.target}/{self.graph}.engine"


@dataclass(frozen=True)
class Plan:
    """Everything a build makes, with what each part is made from.

    Args:
        options: with height, width and graphs filled in.
        source: the model.
        model: identity of the model, for the manifest.
        weights: fields by component.
        graphs: fields by graph.
        files: fields by path, for tokenizers, face models and the VAE's range.
        engines: all engines.
        notes: what was chosen and why.
    """

    options: BuildOptions
    source: ModelSource
    model: Mapping[str, Any]
    weights: Mapping[str, Mapping[str, Any]]
    graphs: Mapping[str, Mapping[str, Any]]
    files: Mapping[str, Mapping[str, Any]]
    engines: tuple[EngineItem, ...]
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
        """Height and width at which parity is measured."""
        size = self.options.parity_size
        return (self.height, self.width) if size is None else (size, size)

    @property
    def smallest(self) -> tuple[int, int, int]:
        """Smallest batch, height and width; the usual ones where there is no range."""
        return self._bounds(0)

    @property
    def largest(self) -> tuple[int, int, int]:
        """Largest batch, height and width; the usual ones where there is no range."""
        return self._bounds(2)

    def _bounds(self, end: int) -> tuple[int, int, int]:
        options = self.options
        batch, height, width = options.batch_range, options.height_range, options.width_range
        return (
            batch[end] if batch else options.batch,
            height[end] if height else self.height,
            width[end] if width else self.width,
        )

    def artefacts(self) -> dict[str, Mapping[str, Any]]:
        """Return the fields of every file that the build makes, by path."""
        found = {weights_file(name): fields for name, fields in self.weights.items()}
        found |= {graph_file(name): fields for name, fields in self.graphs.items()}
        found |= dict(self.files)
        found |= {item.file: item.fields for item in self.engines if not item.is_graph}
        return found

    def parity_key(self, graph: str) -> str:
        """Return the key of a graph's comparison."""
        weights = [self.weights[name] for name in components_of(graph).values()]
        return canonical_key(
            {
                "graph": self.graphs[graph],
                "weights": weights,
                "size": self.parity_size,
                "code": code_hash("parity"),
                "runtime": "; ".join(get_backend(PARITY_BACKEND).versions().values()),
            }
        )

    def image_steps(self) -> int | None:
        """Return the steps of the whole-picture comparison, or None where it is not made."""
        wanted = self.options.parity_image
        needed = {"text_encoder", "text_encoder_2", "identity_encoder", "denoise_step", "vae_decoder"}
        if wanted == "off" or (wanted == "auto" and self.source.name != "demo") or not needed <= set(self.graphs):
            return None
        return self.source.architecture.sampling.steps

    def image_key(self) -> str:
        """Return the key of the whole-picture comparison."""
        return canonical_key({graph: self.parity_key(graph) for graph in self.graphs})


def plain(graph: str) -> str:
    """Return the name of a graph without the mark of the fused kernels."""
    return graph.removesuffix(FUSED_ENDING)


def components_of(graph: str) -> Mapping[str, str]:
    """Return a graph's components, by the prefix of their parameters in its module."""
    return _COMPONENTS_OF[plain(graph)]


def plugins_file(target: str) -> str:
    """Return where the kernels lie that a TensorRT build takes as plugins."""
    return f"kernels/plugins-{target}.json"


def graph_file(graph: str) -> str:
    """Return where a graph lies in the folder."""
    return f"onnx/{graph}.onnx"


def weights_file(component: str) -> str:
    """Return where a component's weights lie in the folder."""
    return f"onnx/{component}.safetensors"


def make_plan(options: BuildOptions) -> Plan:
    """Work out what a build has to make.

    Raises:
        InputError: the model, a face model or a target cannot be used.
        BackendUnavailableError: an asked-for backend is missing.
    """
    _check_ranges(options)
    choices = {name: getattr(options, name) for name in ("self_attention", "adain", "cross_adain", "uncond_identity")}
    source = open_source(
        options.model,
        identity=options.identity,
        image_encoder=options.image_encoder,
        seed=options.seed,
        choices=choices,
    )
    size = source.architecture.size
    options = replace(
        options,
        # the usual size of a range is the size of the folder
        height=options.height_range[1] if options.height_range else options.height or size,
        width=options.width_range[1] if options.width_range else options.width or size,
        batch=options.batch_range[1] if options.batch_range else options.batch,
        graphs=tuple(name for name in GRAPHS if name in (options.graphs or GRAPHS)),
        detector=options.detector or ("drawn" if source.name == "demo" else "centerface"),
    )
    backends, why = _backends(options)
    _check_effects(options, source, backends)
    components = sorted({name for graph in options.graphs for name in components_of(graph).values()})
    prints = {name: source.fingerprint(name) for name in components}
    made_by = {"precision": options.precision, "code": code_hash("weights")}
    weights = {name: {"weights": prints[name], **made_by} for name in components}
    graphs = {name: _graph_fields(name, options, source) for name in options.graphs}
    if options.kernels == "triton":
        _check_fused(options, source)
        graphs |= {
            f"{name}{FUSED_ENDING}": {**graphs[name], "kernels": code_hash("fused")} for name in FUSED if name in graphs
        }
    files, notes = _face_fields(options, source)
    tokenizer = {"tokenizer": source.tokenizer_fingerprint(), "code": code_hash("tokenizer")}
    files |= {name: {**tokenizer, "file": name} for name in TOKENIZERS}
    if "vae_decoder" in graphs and options.precision == "fp16":
        files[VAE_RANGE] = {"weights": prints["vae"], "code": code_hash("vae_range")}
    model = {"name": source.name, "files": prints, "config": source.config.to_dict()}
    person = {name: source.fingerprint(name) for name in ("image_encoder", "identity")}
    model["id"] = canonical_key({**person, "precision": options.precision, "recognizer": files[RECOGNIZER]})
    engines = [item for name in backends for item in _engines(name, options, graphs, weights)]
    plugins = {item.target for item in engines if item.onnx != item.graph}
    files |= {plugins_file(target): _plugin_fields(target, options.tuning) for target in sorted(plugins)}
    if options.tuning is not None:
        require_measured(options.tuning, sorted(plugins))
    if options.kernels == "triton" and not plugins:
        takers = _names("takes_plugins")
        why += (f"kernels triton: exported and compared, but built into no engine: none of {takers} is built",)
    return Plan(options, source, model, weights, graphs, files, tuple(engines), (*source.notes, *notes, *why))


def _check_fused(options: BuildOptions, source: ModelSource) -> None:
    """Refuse what the fused kernels do not compute, before anything is made."""
    config = source.config
    if config.self_attention == "mutual" or config.adain != "mean" or config.cross_adain != "kv":
        raise InputError(
            "The Triton kernels compute the method itself: mixed (or plain) self-attention with AdaIN-mean on keys and "
            "values.",
            fix="Use --kernels native for the ablations.",
        )
    if not any(name in options.graphs for name in FUSED):
        raise InputError(f"--kernels triton concerns {' and '.join(FUSED)}, and neither is built.", fix="Leave it out.")


def _check_effects(options: BuildOptions, source: ModelSource, backends: Sequence[str]) -> None:
    """Refuse options that would have no effect."""
    built_in = source.name in BUILT_IN
    takes_flags = any(get_backend(name).takes_flags for name in backends)
    unflagged = f"no engine of {_names('takes_flags')} is built"
    needed = {"text_encoder", "text_encoder_2", "identity_encoder", "denoise_step", "vae_decoder"}
    for given, what, why in (
        (options.identity and source.name == "random-sdxl", "--identity", "the model random-sdxl has random ones"),
        (options.image_encoder and built_in, "--image-encoder", f"the model {source.name} has one of its own"),
        (options.face_models and options.detector != "insightface", "--face-models",
         f"the detector is {options.detector}"),
        (options.refit and not takes_flags, "--refit", unflagged),
        (options.strip and not takes_flags, "--strip", unflagged),
        (options.optimization_level is not None and not takes_flags, "--optimization-level", unflagged),
        (options.parity_image == "on" and not needed <= set(options.graphs), "--parity-image on",
         f"a picture needs the graphs {', '.join(sorted(needed))}"),
    ):  # fmt: skip
        if given:
            raise InputError(f"{what} would have no effect: {why}.", fix=f"Leave out {what}, or change the other.")


def _plugin_fields(target: str, tuning: Path | None) -> dict[str, Any]:
    # one that is missing is refused after this, by `require_measured`
    chosen = sha256_file(tuning) if tuning is not None and tuning.is_file() else ""
    return {"plugins": target, "code": code_hash("plugins"), "triton": _version("triton"), "tuning": chosen}


def _check_ranges(options: BuildOptions) -> None:
    """Refuse a size and a range of the same thing."""
    for name, single in (("height", options.height), ("width", options.width)):
        if getattr(options, f"{name}_range") and single is not None:
            raise InputError(f"--{name} and --{name}-range were both given.", fix=f"Leave --{name} out.")


def _graph_fields(name: str, options: BuildOptions, source: ModelSource) -> dict[str, Any]:
    parts = {part: source.architecture.component(part) for part in components_of(name).values()}
    fields: dict[str, Any] = {
        "graph": name,
        "precision": options.precision,
        "batch": 1 if name == "identity_encoder" else options.batch,
        "architecture": hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest(),
        "code": code_hash("graph"),
        "versions": {package: _version(package) for package in _EXPORTERS},
    }
    if name in SIZED:
        fields |= {"height": options.height, "width": options.width}
        fields |= {"height_range": options.height_range, "width_range": options.width_range}
    if name != "identity_encoder":
        fields |= {"batch_range": options.batch_range}
    if name in ("denoise_step", "identity_step"):
        fields |= {"people": options.people, "method": source.config.to_dict()}
    if name == "vae_decoder":
        fields["vae_weights"] = source.fingerprint("vae")  # its precision depends on their range
    return fields


def _face_fields(options: BuildOptions, source: ModelSource) -> tuple[dict[str, Mapping[str, Any]], tuple[str, ...]]:
    """Check the face models; a broken one must not be found out after an hour of building."""
    files: dict[str, Mapping[str, Any]] = {}
    notes: tuple[str, ...] = ()
    used = ("", "")  # the recognizer's fingerprint and name
    if options.recognizer is not None:
        recognizer = ArcFaceRecognizer(options.recognizer, source.config.face_width)
        used = recognizer.fingerprint, recognizer.name
        files[RECOGNIZER] = {"recognizer": sha256_file(options.recognizer)}
        if recognizer.range != "signed":  # people who were enrolled before this was seen have other embeddings
            files[RECOGNIZER] = {**files[RECOGNIZER], "pixels": recognizer.range}
        notes += (f"face recognizer: {options.recognizer}, pixels {recognizer.range}. {INSIGHTFACE_LICENCE}",)
    elif source.name == "demo":
        used = fingerprint("recognizer"), "the demo model's recognizer"
        files[RECOGNIZER] = {"recognizer": used[0], "code": code_hash("faces")}
        notes += ("face recognizer: the demo model's own, which tells drawn people apart",)
    elif source.name in BUILT_IN:
        files[RECOGNIZER] = {"recognizer": "random", "seed": options.seed, "width": source.config.face_width}
        notes += ("face recognizer: random weights, as the model's; give a real one with --recognizer",)
    else:
        raise InputError(
            "A checkpoint needs the face recognizer its identity weights were trained with.",
            fix=f"Give an ArcFace-type ONNX file with --recognizer. {INSIGHTFACE_LICENCE}",
        )
    notes += encoder_notes(source, options.identity, used, str(options.detector), options.allow_other_encoders)
    if options.detector == "insightface":
        assert options.face_models is not None
        pack = InsightFaceDetector(options.face_models).folder
        notes += (f"face detector: insightface with {pack}. {INSIGHTFACE_LICENCE}",)
    else:
        assert options.detector is not None
        files[DETECTOR] = {"detector": detector_fingerprint(options.detector), "code": code_hash("faces")}
        knows = "drawn people only; take centerface for photos" if options.detector == "drawn" else "photos"
        notes += (f"face detector: {options.detector}, for {knows}",)
    return files, notes


def _backends(options: BuildOptions) -> tuple[list[str], tuple[str, ...]]:
    """Resolve `auto`, and say why."""
    names, notes = [], []
    for name in dict.fromkeys(options.backends):
        if name != "auto":
            get_backend(name).versions()
            names.append(name)
            continue
        names.append(PARITY_BACKEND)
        notes.append(
            f"backend {PARITY_BACKEND}: chosen automatically, it runs everywhere and is what parity is measured on"
        )
        for candidate in fastest_first():
            if candidate.name == PARITY_BACKEND:
                continue
            try:
                candidate.versions()
                targets = candidate.default_targets()
            except BackendUnavailableError as error:
                notes.append(f"backend {candidate.name}: left out. {error.problem}")
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
        takers = _names("takes_targets")
        raise InputError(
            f"Targets {', '.join(options.targets)} were given, but no engine of {takers} is built.",
            fix=f"Add --backend {takers.replace(' or ', ' or --backend ')}.",
        )
    return list(dict.fromkeys(names)), tuple(notes)


def _names(attribute: str) -> str:
    """Return the backends of which an attribute is true, for a message."""
    return " or ".join(name for name, backend in BACKENDS.items() if getattr(backend, attribute))


def _engines(
    name: str, options: BuildOptions, graphs: Mapping[str, Any], weights: Mapping[str, Any]
) -> list[EngineItem]:
    backend = get_backend(name)
    targets = options.targets if backend.takes_targets and options.targets else backend.default_targets()
    flags = BuildRequest(
        Path(), Path(), "", refit=options.refit, strip=options.strip, optimization_level=options.optimization_level
    ).flags
    items = []
    for target in dict.fromkeys(targets):
        backend.check_target(target)
        for graph in options.graphs:
            fused = f"{graph}{FUSED_ENDING}"
            onnx = fused if backend.takes_plugins and fused in graphs else graph
            made_from = {
                "graph": canonical_key(graphs[onnx]),
                "weights": {part: canonical_key(weights[part]) for part in components_of(graph).values()},
                "backend": name,
                "target": target,
                "versions": backend.versions(),
                "flags": flags if backend.takes_flags else {},
                "plugins": "" if onnx == graph else canonical_key(_plugin_fields(target, options.tuning)),
            }
            items.append(EngineItem(graph, onnx, name, target, made_from))
    return items


@cache
def code_hash(kind: str) -> str:
    """Return a hash of the code that decides a kind of artefact (a key of `_CODE`): when it changes, they are stale."""
    kernels = find_spec("infid_kernels")  # found, not imported: that would import torch
    if kernels is None or kernels.origin is None:
        raise RuntimeError("the package infid_kernels is not installed beside infid_export")
    roots = {"kernels": Path(kernels.origin).parent, "": Path(__file__).resolve().parent.parent}
    digest = hashlib.sha256()
    for pattern in _CODE[kind]:
        root, _, rest = pattern.partition("/") if pattern.startswith("kernels/") else ("", "", pattern)
        files = sorted(roots[root].glob(rest))
        if not files:
            raise RuntimeError(f"there is no source file {pattern}")
        for file in files:
            digest.update(file.read_bytes())
    return digest.hexdigest()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"
