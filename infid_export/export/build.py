"""Building an engine folder: weights, graphs, parity, engines, in that order, and only what is not there yet."""

from __future__ import annotations

import gc
import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import chain, groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infid_engines.backends import BuildRequest
from infid_engines.documents import sealed
from infid_engines.errors import EngineFolderError
from infid_engines.folder import FolderTransaction, Written
from infid_engines.manifest import (
    EngineRecord,
    FileRecord,
    GraphRecord,
    Manifest,
    TensorSpec,
    canonical_key,
    differing_fields,
    verify_file,
    write_json,
)
from infid_engines.progress import Reporter, SilentReporter, Stage
from infid_engines.registry import PARITY_BACKEND
from infid_engines.worker import build_in_subprocess
from infid_export import __version__
from infid_export.export.face_models import write_detector, write_random_recognizer, write_shipped
from infid_export.export.inspection import read_graph
from infid_export.export.options import BuildOptions
from infid_export.export.parity import PARITY, ParityReport, ParityRow, stored_parity
from infid_export.export.plan import (
    DETECTOR,
    RECOGNIZER,
    TOKENIZERS,
    VAE_RANGE,
    EngineItem,
    Plan,
    components_of,
    graph_file,
    make_plan,
    plugins_file,
    weights_file,
)
from infid_export.faces.detection import INSIGHTFACE_LICENCE
from infid_export.model.sources import BUILT_IN
from infid_export.scheduler import SDXL_SCHEDULER, ddim_table

if TYPE_CHECKING:
    from infid_export.export.exporter import Exporter

_HASHED_A_SECOND = 1.2e9  # bytes
Writer = Callable[[Path, Stage], Written | None]


@dataclass(frozen=True)
class BuildReport:
    """What a build did.

    Args:
        folder: the engine folder.
        manifest: its manifest.
        parity: all comparisons.
        made: artefacts made now, each with why.
        kept: artefacts that were already there.
        notes: what was chosen and why.
        seconds: of the whole build.
    """

    folder: Path
    manifest: Manifest
    parity: ParityReport
    made: Mapping[str, str]
    kept: tuple[str, ...]
    notes: tuple[str, ...]
    seconds: float


def build(options: BuildOptions, reporter: Reporter | None = None) -> BuildReport:
    """Make an engine folder, or bring it up to date.

    Args:
        options: what to build.
        reporter: shown the progress.

    Returns:
        What was made and what was kept.

    Raises:
        InputError: an option, model or face model cannot be used.
        BackendUnavailableError: an asked-for backend is missing.
        EngineFolderError: the output is not an engine folder.
        BuildError: an engine could not be built.
        DiskFullError: the disk is full; finished parts are kept.
        ParityError: a graph differs from the reference; nothing is kept as valid.
    """
    started = time.monotonic()
    report = reporter or SilentReporter()
    plan = make_plan(options)
    for note in plan.notes:
        report.note(note)
    with FolderTransaction(plan.options.output, report) as transaction:
        reasons = stale(plan, transaction)
        unchanged = _unchanged(plan, transaction, reasons, started)
        if unchanged is not None:
            return unchanged
        return _Builder(plan, transaction, reasons, report).run(started)


def stale(plan: Plan, transaction: FolderTransaction) -> dict[str, str]:
    """Return every artefact that has to be made, with the reason."""
    reasons = {}
    for name, fields in plan.artefacts().items():
        key = canonical_key(fields)
        staged = transaction.staged(name)
        previous = None if transaction.previous is None else transaction.previous.files.get(name)
        if staged is not None and staged.key == key:
            continue
        if previous is None:
            reasons[name] = "new"
        elif previous.key != key:
            reasons[name] = "changed " + "; ".join(differing_fields(previous.key_fields, fields))
        elif transaction.damage(name):
            reasons[name] = transaction.damage(name)
    return reasons


def previous_parity(plan: Plan, transaction: FolderTransaction) -> ParityReport:
    """Return the stored comparisons that are still true: of an interrupted build, else of the old folder."""
    rows: dict[str, tuple[ParityRow, ...]] = {}
    image = None
    for folder in (transaction.staging, transaction.target):
        try:
            stored = stored_parity(folder)
        except EngineFolderError:
            continue
        for graph in plan.graphs:
            found = tuple(row for row in stored.rows if (row.graph, row.key) == (graph, plan.parity_key(graph)))
            if found and all(row.passed for row in found):
                rows.setdefault(graph, found)
        if image is None and stored.image is not None and stored.image.passed and stored.image.key == plan.image_key():
            image = stored.image
    return ParityReport(tuple(chain(*rows.values())), image if plan.image_steps() else None)


def _unchanged(
    plan: Plan, transaction: FolderTransaction, reasons: Mapping[str, str], started: float
) -> BuildReport | None:
    manifest = transaction.previous
    if manifest is None or reasons:
        return None
    parity = previous_parity(plan, transaction)
    engines = {(e.graph, e.backend, e.target, e.key) for e in manifest.engines}
    wanted = {(i.graph, i.backend, i.target, canonical_key(i.fields)) for i in plan.engines}
    complete = {row.graph for row in parity.rows} == set(plan.graphs) and parity.passed
    if engines != wanted or not complete or (plan.image_steps() and parity.image is None):
        return None
    if set(manifest.files) != set(plan.artefacts()):
        return None
    kept = tuple(plan.artefacts())
    return BuildReport(transaction.target, manifest, parity, {}, kept, plan.notes, time.monotonic() - started)


class _Builder:
    """One run of a build: knows the plan, the transaction and what is stale."""

    def __init__(
        self, plan: Plan, transaction: FolderTransaction, reasons: Mapping[str, str], report: Reporter
    ) -> None:
        self.plan, self.transaction, self.reasons, self.report = plan, transaction, reasons, report
        self.files: dict[str, FileRecord] = {}
        self.notes = list(plan.notes)
        self._exporter: Exporter | None = None

    @property
    def exporter(self) -> Exporter:
        """The part that needs torch, imported when something has to be exported."""
        if self._exporter is None:
            from infid_export.export.exporter import Exporter

            self._exporter = Exporter(self.plan)
        return self._exporter

    def run(self, started: float) -> BuildReport:
        parity = previous_parity(self.plan, self.transaction)
        compared = {row.graph for row in parity.rows}
        to_compare = [graph for graph in self.plan.graphs if graph not in compared]
        steps = self.plan.image_steps() if parity.image is None else None
        self.report.plan(self._stages(to_compare, steps))
        for name, fields in self.plan.files.items():
            self._have(name, fields, self._file_writer(name))
        for name, fields in self.plan.weights.items():
            self._have(weights_file(name), fields, self._weights_writer(name))
        for graph, fields in self.plan.graphs.items():
            self._have(graph_file(graph), fields, self._graph_writer(graph))
        graphs = self._graph_records()
        if to_compare or steps:
            self._checked_by_parity()
        manifest = self._manifest(graphs, ())
        if to_compare:
            parity = self._compare(manifest, to_compare, parity)
            self._require(parity)
        if steps:
            parity = replace(parity, image=self._compare_image(manifest, steps))
            self._require(parity)
            self._keep(parity)
        self._exporter = None
        gc.collect()
        manifest = self._manifest(
            graphs, tuple(self._engine(item, graphs[item.onnx].inputs) for item in self.plan.engines)
        )
        order = {graph: index for index, graph in enumerate(self.plan.graphs)}
        parity = replace(parity, rows=tuple(sorted(parity.rows, key=lambda row: order[row.graph])))
        self.transaction.commit(manifest, {PARITY: parity.to_json()})
        kept = tuple(name for name in self.plan.artefacts() if name not in self.reasons)
        return BuildReport(
            self.transaction.target,
            manifest,
            parity,
            dict(self.reasons),
            kept,
            tuple(self.notes),
            time.monotonic() - started,
        )

    def _have(self, name: str, fields: Mapping[str, Any], write: Writer) -> None:
        """Find an artefact or make it."""
        record = self.transaction.find(name, fields)
        if record is None:
            with self.report.stage(name) as stage:
                record = self.transaction.place(name, fields, lambda path: write(path, stage))
        self.files[name] = record

    def _weights_writer(self, component: str) -> Writer:
        return lambda path, stage: Written(
            self.exporter.write_weights(component, self._vae_precision(), path, stage.update)
        )

    def _graph_writer(self, graph: str) -> Writer:
        return lambda path, stage: self.exporter.write_graph(graph, self._vae_precision(), path)

    def _vae_precision(self) -> str:
        """Return the VAE's type: fp32 unless it was proven finite in fp16 on these weights."""
        if VAE_RANGE not in self.files:
            return "fp32"
        found = json.loads((self.transaction.staging / VAE_RANGE).read_text())
        return str(found["precision"])

    def _file_writer(self, name: str) -> Writer:
        def write(path: Path, stage: Stage) -> None:
            if name in TOKENIZERS:
                path.write_text(self.plan.source.tokenizers()[TOKENIZERS.index(name)], encoding="utf-8")
            elif name == DETECTOR:
                write_detector(str(self.plan.options.detector), path)
            elif name == RECOGNIZER and self.plan.options.recognizer is not None:
                shutil.copyfile(self.plan.options.recognizer, path)
            elif name == RECOGNIZER and self.plan.source.name == "demo":
                write_shipped("recognizer", path)
            elif name == RECOGNIZER:
                write_random_recognizer(path, self.plan.source.config.face_width, self.plan.options.seed)
            elif name == VAE_RANGE:
                self.exporter.write_vae_range(path)
            else:
                self.exporter.write_plugins(name, path, stage)

        return write

    def _graph_records(self) -> dict[str, GraphRecord]:
        records = {}
        for graph, fields in self.plan.graphs.items():
            name = graph_file(graph)
            weights = tuple(weights_file(part) for part in components_of(graph).values())
            parameters = read_graph(self.transaction.staging / name).parameters
            inputs, outputs = self.exporter.specs(graph, self.transaction.staging)
            file = self.files[name]
            records[graph] = GraphRecord(
                name, file.sha256, file.key, dict(fields), weights, parameters, inputs, outputs
            )
        return records

    def _checked_by_parity(self) -> None:
        if VAE_RANGE in self.files:
            found = json.loads((self.transaction.staging / VAE_RANGE).read_text())
            note = f"VAE decoder: {found['precision']}, {found['why']}"
            self.notes.append(note)
            self.report.note(note)

    def _compare(self, manifest: Manifest, graphs: list[str], parity: ParityReport) -> ParityReport:
        """Add the comparisons of graphs; after each graph what is known is kept for an interrupted build."""
        with self.report.stage("parity") as stage:
            found = self.exporter.compare(self.transaction.staging, manifest, graphs, stage)
            for _, rows in groupby(found, key=lambda row: row.graph):
                parity = replace(parity, rows=(*parity.rows, *rows))
                self._keep(parity)
        return parity

    def _keep(self, parity: ParityReport) -> None:
        write_json(self.transaction.staging / PARITY, sealed(parity.to_json()))

    def _compare_image(self, manifest: Manifest, steps: int) -> Any:
        manifest.write(self.transaction.staging)
        with self.report.stage("image parity") as stage:
            return self.exporter.compare_image(self.transaction.staging, manifest, steps, stage)

    def _require(self, parity: ParityReport) -> None:
        """Throw the staged work away if a comparison failed: its content is wrong, not unfinished."""
        if not parity.passed:
            failed = self.transaction.target.with_name(f"{self.transaction.target.name}.failed-{PARITY}")
            failed.write_text(json.dumps(parity.to_json(), indent=1))
            self.report.note(f"the comparison was written to {failed}")
            self.transaction.discard()
        parity.require()

    def _engine(self, item: EngineItem, inputs: tuple[TensorSpec, ...]) -> EngineRecord:
        if not item.is_graph:
            self._have(item.file, item.fields, self._engine_writer(item, inputs))
        record = self.files[item.file]
        return EngineRecord(
            item.graph, item.backend, item.target, item.file, record.sha256, record.size,
            canonical_key(item.fields), dict(item.fields),
            dict(item.fields["flags"]), dict(item.fields["versions"]),
        )  # fmt: skip

    def _engine_writer(self, item: EngineItem, inputs: tuple[TensorSpec, ...]) -> Writer:
        def write(path: Path, stage: Stage) -> Written:
            target, options = self.transaction.target, self.plan.options
            request = BuildRequest(
                self.transaction.staging / graph_file(item.onnx),
                path,
                item.target,
                inputs,
                options.refit,
                options.strip,
                options.optimization_level,
                target.with_name(f".{target.name}.timings-{item.backend}-{item.target}"),
                None if item.onnx == item.graph else self.transaction.staging / plugins_file(item.target),
            )
            return Written(peak_bytes=build_in_subprocess(item.backend, request, stage))

        return write

    def _stages(self, to_compare: list[str], steps: int | None) -> dict[str, float]:
        """Return the expected seconds of all stages."""
        large = _is_large(self.plan)
        stages: dict[str, float] = {}
        for name in self.reasons:
            if name.endswith(".safetensors"):
                stages[name] = 45.0 if large else 0.5
            elif name.startswith("onnx/"):
                stages[name] = 45.0 if large else 8.0
            elif name.startswith("engines/"):
                stages[name] = 100.0 if large else 4.0
            else:
                stages[name] = 0.2
        return stages | _parity_stages(self.plan, len(to_compare), steps)

    def _manifest(self, graphs: Mapping[str, GraphRecord], engines: tuple[EngineRecord, ...]) -> Manifest:
        plan, options = self.plan, self.plan.options
        sampling = plan.source.architecture.sampling
        if not engines:  # what parity runs on: the graphs themselves
            engines = tuple(
                EngineRecord(
                    graph,
                    PARITY_BACKEND,
                    "cpu",
                    record.file,
                    record.sha256,
                    self.files[record.file].size,
                    "",
                    {},
                    {},
                    {},
                )
                for graph, record in graphs.items()
            )
        faces = {
            "detector": options.detector,
            "detector_path": str(options.face_models) if options.detector == "insightface" else DETECTOR,
            "recognizer_path": RECOGNIZER,
            "licence": INSIGHTFACE_LICENCE if options.recognizer or options.face_models else "",
        }
        values = asdict(options)
        for name in ("model", "image_encoder"):  # a name, or a path like those below
            if values[name] and values[name] not in BUILT_IN and Path(values[name]).exists():
                values[name] = Path(values[name])
        # absolute: the folder may be verified from another working directory
        plain = {name: str(value.absolute()) if isinstance(value, Path) else value for name, value in values.items()}
        table = [[float(value) for value in row] for row in ddim_table(SDXL_SCHEDULER, sampling.steps)]
        return Manifest(
            infid_export=__version__,
            model=dict(plan.model),
            options={name: list(value) if isinstance(value, tuple) else value for name, value in plain.items()},
            precision=options.precision,
            height=plan.height,
            width=plan.width,
            batch=options.batch,
            people=options.people,
            identity_tokens=plan.source.config.tokens,
            graphs=dict(graphs),
            engines=engines,
            files=dict(self.files),
            scheduler={**SDXL_SCHEDULER, "steps": sampling.steps, "table": table},
            defaults={
                **asdict(sampling),
                "negative_prompt": None if plan.source.zero_negative else "",
            },
            faces=faces,
            notes=tuple(self.notes),
            vae_scale_factor=plan.source.architecture.vae_scale_factor,
        )


def _is_large(plan: Plan) -> bool:
    """Return whether stages take as long as full-size SDXL's; all seconds are what two cores take."""
    return plan.source.name != "demo"


def _parity_stages(plan: Plan, graphs: int, steps: int | None) -> dict[str, float]:
    stages = {"parity": graphs * (90.0 if _is_large(plan) else 1.0)} if graphs else {}
    return stages | ({"image parity": steps * (60.0 if _is_large(plan) else 0.4)} if steps else {})


def verify(folder: Path, reporter: Reporter | None = None) -> ParityReport:
    """Check every file of a folder and repeat its comparisons with the reference.

    Args:
        folder: the engine folder; the model it was made from must still be where it was.
        reporter: shown the progress.

    Returns:
        The comparisons; see `ParityReport.passed`.

    Raises:
        EngineFolderError: a file is missing or has changed.
    """
    report = reporter or SilentReporter()
    manifest = Manifest.load(folder)
    options = _options(manifest, folder)
    plan = make_plan(options)
    steps = plan.image_steps()
    hashes = sum(record.size for record in manifest.files.values()) / _HASHED_A_SECOND
    report.plan({"hashes": hashes, **_parity_stages(plan, len(manifest.graphs), steps)})
    with report.stage("hashes") as stage:
        for index, (name, record) in enumerate(manifest.files.items()):
            verify_file(folder, name, record)
            stage.update((index + 1) / len(manifest.files), name)
    from infid_export.export.exporter import Exporter

    exporter = Exporter(plan)
    with report.stage("parity") as stage:
        rows = tuple(exporter.compare(folder, manifest, list(manifest.graphs), stage))
    result = ParityReport(rows)
    if steps and result.passed:
        with report.stage("image parity") as stage:
            result = replace(result, image=exporter.compare_image(folder, manifest, steps, stage))
    return result


def _options(manifest: Manifest, folder: Path) -> BuildOptions:
    """Return the options a folder was built with, for what parity needs of them."""
    values = dict(manifest.options)
    for name in ("identity", "recognizer", "face_models"):
        values[name] = None if values[name] in (None, "None") else Path(values[name])
    if values["recognizer"] is not None:
        values["recognizer"] = folder / RECOGNIZER  # the folder has its own copy
    for name in ("backends", "targets", "graphs", "height_range", "width_range", "batch_range"):
        values[name] = None if values[name] is None else tuple(values[name])
    for name in ("height", "width"):
        values[name] = None if values[f"{name}_range"] else values[name]
    engines = {"backends": (PARITY_BACKEND,), "targets": (), "refit": False, "strip": False, "optimization_level": None,
               "tuning": None}  # fmt: skip
    return BuildOptions(**{**values, **engines, "output": folder})
