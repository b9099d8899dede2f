"""Makes the manifest of a build, and reads a folder's build options from its manifest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from infid_engines.manifest import EngineRecord, FileRecord, GraphRecord, Manifest
from infid_engines.registry import PARITY_BACKEND, get_backend
from infid_export import __version__
from infid_export.export.artifact import DETECTOR, RECOGNIZER, weights_file
from infid_export.export.build_options import BuildOptions
from infid_export.export.plan import EngineItem, Plan
from infid_export.export.stored_options import read_options, stored_options
from infid_export.faces.detection import INSIGHTFACE_LICENSE
from infid_export.sampling.samplers import sampler_table


def graph_records(plan: Plan, folder: Path, files: Mapping[str, FileRecord]) -> dict[str, GraphRecord]:
    """Return the records of the graphs that are stored in a folder, by the names of their forms."""
    from infid_export.export.inspection import read_graph

    records = {}
    for form, artifact in plan.graphs.items():
        weights = tuple(weights_file(part) for part in plan.parts(form.graph))
        inputs, outputs = plan.writers.exporter.specs(form, folder)
        file, parameters = files[form.file], read_graph(folder / form.file).parameters
        records[form.name] = GraphRecord(
            form.file, file.sha256, file.key, dict(artifact.key_fields), weights, parameters, inputs, outputs
        )
    return records


def engine_record(item: EngineItem, files: Mapping[str, FileRecord]) -> EngineRecord:
    """Return the record of an engine with an existing file."""
    fields, file = item.artifact.key_fields, files[item.artifact.path]
    return EngineRecord(
        item.graph, item.backend, item.target, item.artifact.path, file.sha256, file.size,
        item.artifact.key, dict(fields), dict(fields["flags"]), dict(fields["versions"]),
    )  # fmt: skip


def parity_engines(graphs: Mapping[str, GraphRecord], files: Mapping[str, FileRecord]) -> tuple[EngineRecord, ...]:
    """Return the records for the parity check before engines exist: the graphs themselves."""
    return tuple(
        EngineRecord(
            name, PARITY_BACKEND, "cpu", record.file, record.sha256, files[record.file].size, "", {}, {}, {}
        )
        for name, record in graphs.items()
    )  # fmt: skip


def comparable(engines: Iterable[EngineRecord]) -> list[EngineRecord]:
    """Return the engines that are compared with the reference themselves, and that this machine can run."""
    return [
        engine for engine in engines
        if get_backend(engine.backend).compares and get_backend(engine.backend).present_target() == engine.target
    ]  # fmt: skip


def sampling_facts(plan: Plan) -> dict[str, dict[str, Any]]:
    """Return the sampling parts of the manifest: `scheduler` and `defaults`."""
    sampling, source = plan.source.architecture.sampling, plan.source
    if not plan.options.guidance:
        sampling = replace(sampling, guidance=1.0)
    if source.config.streams == "one":
        sampling = replace(sampling, style_strength=0.0)  # there is no text stream to take a style from
    table = sampler_table(source.scheduler, sampling.steps, sampling.sampler, sampling.spacing)
    rows = [[float(value) for value in row] for row in table.rows]
    return {
        "scheduler": {**source.scheduler, "table": rows, "initial_scale": table.initial_scale},
        "defaults": {**asdict(sampling), "negative_prompt": None if source.zero_negative else ""},
    }


def make_manifest(
    plan: Plan,
    graphs: Mapping[str, GraphRecord],
    engines: tuple[EngineRecord, ...],
    files: Mapping[str, FileRecord],
    notes: tuple[str, ...],
) -> Manifest:
    """Return the manifest of a build.

    Args:
        plan: plan of the build.
        graphs: records by form.
        engines: records of all engines.
        files: records of all files, by path.
        notes: what was chosen, and why.
    """
    options, sampling = plan.options, sampling_facts(plan)
    return Manifest(
        infid_export=__version__,
        model=dict(plan.model),
        options=stored_options(options),
        precision=options.precision,
        height=plan.height,
        width=plan.width,
        batch=options.batch,
        people=options.people,
        identity_tokens=plan.source.config.tokens,
        graphs=dict(graphs),
        engines=engines,
        files=dict(files),
        scheduler=sampling["scheduler"],
        defaults=sampling["defaults"],
        faces=_faces(plan),
        notes=notes,
        vae_scale_factor=plan.source.architecture.vae_scale_factor,
    )


def _faces(plan: Plan) -> dict[str, Any]:
    """Return what an enrollment reads of a photo, and with which face models; paths that are not needed are empty."""
    options, config = plan.options, plan.source.config
    found = str(options.face_models) if options.detector == "insightface" else DETECTOR
    return {
        "detector": options.detector if config.finds_faces else "",
        "detector_path": found if config.finds_faces else "",
        "recognizer_path": RECOGNIZER if config.reads_face else "",
        "licence": INSIGHTFACE_LICENSE if options.recognizer or options.face_models else "",
        "crop": config.crop,
        "embedding": config.face_embedding,
    }


def options_of(manifest: Manifest, folder: Path) -> BuildOptions:
    """Return the build options of a folder, as far as parity needs them."""
    options = read_options(manifest.options)
    recognizer = None if options.recognizer is None else folder / RECOGNIZER  # the folder has its own copy
    return replace(
        options, output=folder, recognizer=recognizer, backends=(PARITY_BACKEND,), targets=(), refit=False, strip=False,
        optimization_level=None, tuning=None,
    )  # fmt: skip
