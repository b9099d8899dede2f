"""Builds an engine folder: weights, graphs, parity, engines, in that order, and only what is missing or stale."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from itertools import chain, groupby
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

from infid_engines.documents import sealed
from infid_engines.errors import EngineFolderError
from infid_engines.folder import FolderTransaction
from infid_engines.gpu import free_memory
from infid_engines.manifest import EngineRecord, FileRecord, Manifest, differing_fields, verify_file, write_json
from infid_engines.memory import available_memory
from infid_engines.progress import Reporter, SilentReporter, SilentStage, Stage
from infid_engines.registry import get_backend
from infid_export.export.artifact import Artifact, Seconds
from infid_export.export.build_options import BuildOptions
from infid_export.export.folder_manifest import (
    comparable,
    engine_record,
    graph_records,
    make_manifest,
    options_of,
    parity_engines,
    sampling_facts,
)
from infid_export.export.graphs import GraphForm
from infid_export.export.parity import PARITY, ParityReport, ParityRow, stored_parity
from infid_export.export.plan import COMPILED, Plan, make_plan
from infid_export.export.stored_options import sources_moved
from infid_export.export.vae_range import VAE_RANGE, range_note
from infid_export.model.changes.updated_source import check_updates

if TYPE_CHECKING:
    from infid_export.export.weights import WeightsLayout

_HASHED_A_SECOND = 1.2e9  # bytes
COMPARED = Seconds(1.0, 90.0)  # per graph
_STEP = Seconds(0.4, 60.0)  # per step of the image, for engine and reference together
_PACKAGES = "packages"  # the stage in which several packages are compiled
_COMPILER_MEMORY = 4e9  # bytes that the compilation of one package needs, besides its weights on a GPU


@dataclass(frozen=True)
class BuildReport:
    """What a build did.

    Args:
        folder: the engine folder.
        manifest: its manifest.
        parity: all comparisons.
        made: artifacts built now, each with the reason.
        kept: artifacts that were reused.
        notes: what was chosen, and why.
        seconds: duration of the build.
    """

    folder: Path
    manifest: Manifest
    parity: ParityReport
    made: Mapping[str, str]
    kept: tuple[str, ...]
    notes: tuple[str, ...]
    seconds: float


def build(options: BuildOptions, reporter: Reporter | None = None) -> BuildReport:
    """Build an engine folder, or bring it up to date.

    Args:
        options: what to build.
        reporter: receives the progress.

    Returns:
        What was built and what was reused.

    Raises:
        InputError: an option, model or face model cannot be used.
        BackendUnavailableError: a requested backend is missing.
        EngineFolderError: the output is not an engine folder.
        BuildError: an engine could not be built, or the disk is full.
        ParityError: a graph differs from the reference; the folder is not written.
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
        check_updates(plan.source)
        return _Builder(plan, transaction, reasons, report).run(started)


def stale(plan: Plan, transaction: FolderTransaction) -> dict[str, str]:
    """Return every artifact that has to be built, with the reason."""
    reasons = {}
    for name, artifact in plan.artifacts().items():
        staged = transaction.staged(name)
        previous = None if transaction.previous is None else transaction.previous.files.get(name)
        if staged is not None and staged.key == artifact.key:
            continue
        if previous is None:
            reasons[name] = "new"
        elif previous.key != artifact.key:
            reasons[name] = "changed " + "; ".join(differing_fields(previous.key_fields, artifact.key_fields))
        elif damage := transaction.damage(name):
            reasons[name] = damage
    return reasons


def previous_parity(plan: Plan, transaction: FolderTransaction) -> ParityReport:
    """Return the stored comparisons that are still valid, from an interrupted build or the old folder."""
    rows: dict[str, tuple[ParityRow, ...]] = {}
    image = None
    for stored in _stored_reports(transaction):
        for form in plan.graphs:
            found = tuple(row for row in stored.rows if (row.graph, row.key) == (form.name, plan.parity_key(form)))
            if found and all(row.passed for row in found):
                rows.setdefault(form.name, found)
        if image is None and stored.image is not None and stored.image.passed and stored.image.key == plan.image_key():
            image = stored.image
    return ParityReport(tuple(chain(*rows.values())), image if plan.image_steps() else None)


def previous_engine_rows(
    plan: Plan, transaction: FolderTransaction, manifest: Manifest
) -> list[tuple[EngineRecord, tuple[ParityRow, ...]]]:
    """Return each engine that is compared itself, with its stored rows if they are still valid, else with none."""
    found = []
    reports = _stored_reports(transaction)
    for engine in comparable(manifest.engines):
        key = plan.engine_parity_key(manifest, engine)
        fitting = [tuple(row for row in report.rows if row.key == key) for report in reports]
        found.append((engine, next((rows for rows in fitting if rows and all(row.passed for row in rows)), ())))
    return found


def _stored_reports(transaction: FolderTransaction) -> list[ParityReport]:
    """Return the comparisons of an interrupted build and of the old folder, as far as they can be read."""
    found = []
    for folder in (transaction.staging, transaction.target):
        with contextlib.suppress(EngineFolderError):
            found.append(stored_parity(folder))
    return found


def _unchanged(
    plan: Plan, transaction: FolderTransaction, reasons: Mapping[str, str], started: float
) -> BuildReport | None:
    manifest = transaction.previous
    if manifest is None or reasons:
        return None
    parity = previous_parity(plan, transaction)
    own = previous_engine_rows(plan, transaction, manifest)
    engines = {(e.graph, e.backend, e.target, e.key) for e in manifest.engines}
    wanted = {(i.graph, i.backend, i.target, i.artifact.key) for i in plan.engines}
    complete = {row.graph for row in parity.rows} == {form.name for form in plan.graphs} and parity.passed
    if (
        engines != wanted
        or not complete
        or not all(rows for _, rows in own)
        or (plan.image_steps() and parity.image is None)
    ):
        return None
    if set(manifest.files) != set(plan.artifacts()) or sources_moved(plan.options, manifest.options):
        return None
    if sampling_facts(plan) != {"scheduler": manifest.scheduler, "defaults": manifest.defaults}:
        return None
    kept = tuple(plan.artifacts())
    parity = replace(parity, rows=(*parity.rows, *chain(*(rows for _, rows in own))))
    return BuildReport(transaction.target, manifest, parity, {}, kept, plan.notes, time.monotonic() - started)


class _Builder:
    """One run of a build: knows the plan, the transaction and what is stale."""

    def __init__(
        self, plan: Plan, transaction: FolderTransaction, reasons: Mapping[str, str], report: Reporter
    ) -> None:
        self.plan, self.transaction, self.reasons, self.report = plan, transaction, reasons, report
        self.files: dict[str, FileRecord] = {}
        self.notes = list(plan.notes)

    def run(self, started: float) -> BuildReport:
        plan = self.plan
        parity = previous_parity(plan, self.transaction)
        compared = {row.graph for row in parity.rows}
        to_compare = [form for form in plan.graphs if form.name not in compared]
        steps = plan.image_steps() if parity.image is None else None
        artifacts = plan.artifacts()
        to_compile = [artifact for artifact in plan.packages if artifact.path in self.reasons]
        one_by_one = self.reasons.keys() - {artifact.path for artifact in to_compile}
        stages = {name: expected_seconds(plan, artifacts[name].seconds) for name in self.reasons if name in one_by_one}
        workers = _compiled_at_once(plan) if to_compile else 1
        compiling = (
            {_PACKAGES: ceil(len(to_compile) / workers) * expected_seconds(plan, COMPILED)} if to_compile else {}
        )
        compiled = sum(get_backend(item.backend).compares for item in plan.engines)
        own = {"engine parity": compiled * expected_seconds(plan, COMPARED)} if compiled else {}
        self.report.plan(stages | _parity_stages(plan, len(to_compare), steps) | compiling | own)
        self._have(plan.exported)
        graphs = graph_records(plan, self.transaction.staging, self.files)
        if VAE_RANGE in self.files:
            self._note(range_note(self.transaction.staging))
        known = make_manifest(plan, graphs, parity_engines(graphs, self.files), self.files, tuple(self.notes))
        if to_compare:
            parity = self._compare(known, to_compare, parity)
        if steps:
            parity = self._compare_image(known, steps, parity)
        gc.collect()  # engines are built in separate processes, which need the memory
        self._have(plan.built)
        self._compile(to_compile, workers)
        self._have(plan.packages)
        engines = tuple(engine_record(item, self.files) for item in plan.engines)
        manifest = make_manifest(plan, graphs, engines, self.files, tuple(self.notes))
        order = {form.name: index for index, form in enumerate(plan.graphs)}
        parity = replace(parity, rows=tuple(sorted(parity.rows, key=lambda row: order[row.graph])))
        parity = self._compare_engines(manifest, parity)
        self.transaction.commit(manifest, {PARITY: parity.to_json()})
        kept = tuple(name for name in artifacts if name not in self.reasons)
        notes, took = tuple(self.notes), time.monotonic() - started
        return BuildReport(self.transaction.target, manifest, parity, dict(self.reasons), kept, notes, took)

    def _have(self, artifacts: Sequence[Artifact]) -> None:
        """Find artifacts, or build them."""
        for artifact in artifacts:
            record = self.transaction.find(artifact.path, artifact.key_fields)
            if record is None:
                record = self._made(artifact)
            self.files[artifact.path] = record

    def _compile(self, artifacts: Sequence[Artifact], workers: int) -> None:
        """Compile packages, several at the same time; after an error, those that are being compiled are finished."""
        if not artifacts:
            return
        with self.report.stage(_PACKAGES) as stage, ThreadPoolExecutor(workers) as pool:
            stage.update(0.0, f"{workers} at the same time")
            waiting = {pool.submit(self._placed, artifact, SilentStage()): artifact for artifact in artifacts}
            try:
                for done, future in enumerate(as_completed(waiting), 1):
                    future.result()
                    stage.update(done / len(artifacts), Path(waiting[future].path).stem)
            except BaseException as error:
                pool.shutdown(wait=False, cancel_futures=True)
                if not isinstance(error, Exception):  # an interrupt
                    self.plan.writers.children.kill()
                raise

    def _made(self, artifact: Artifact) -> FileRecord:
        with self.report.stage(artifact.path) as stage:
            return self._placed(artifact, stage)

    def _placed(self, artifact: Artifact, stage: Stage) -> FileRecord:
        return self.transaction.place(
            artifact.path, artifact.key_fields, lambda path: artifact.write(self.transaction.staging, path, stage)
        )

    def _note(self, note: str) -> None:
        self.notes.append(note)
        self.report.note(note)

    def _compare(self, manifest: Manifest, forms: Sequence[GraphForm], parity: ParityReport) -> ParityReport:
        """Add the comparisons of graphs."""
        from infid_export.export.graph_parity import compare_graphs

        with self.report.stage("parity") as stage:
            found = compare_graphs(self.plan, self.transaction.staging, manifest, forms, stage)
            parity = self._with_rows(parity, found)
        self._require(parity)
        return parity

    def _compare_engines(self, manifest: Manifest, parity: ParityReport) -> ParityReport:
        """Add the comparisons of the engines that are compared themselves, those that are missing."""
        before = previous_engine_rows(self.plan, self.transaction, manifest)
        missing = [engine for engine, rows in before if not rows]
        parity = replace(parity, rows=(*parity.rows, *chain(*(rows for _, rows in before))))
        if not missing:
            return parity
        from infid_export.export.graph_parity import compare_engines

        with self.report.stage("engine parity") as stage:
            found = compare_engines(self.plan, self.transaction.staging, manifest, missing, stage)
            parity = self._with_rows(parity, found)
        self._require(parity)
        return parity

    def _with_rows(self, parity: ParityReport, found: Iterable[ParityRow]) -> ParityReport:
        """Add rows as they are compared, and store them after each graph in case the build is interrupted."""
        for _, rows in groupby(found, key=lambda row: row.graph):
            parity = replace(parity, rows=(*parity.rows, *rows))
            self._keep(parity)
        return parity

    def _compare_image(self, manifest: Manifest, steps: int, parity: ParityReport) -> ParityReport:
        from infid_export.export.image_parity import compare_image

        manifest.write(self.transaction.staging)
        with self.report.stage("image parity") as stage:
            image = compare_image(self.plan, self.transaction.staging, manifest, steps, stage)
        parity = replace(parity, image=image)
        self._require(parity)
        self._keep(parity)
        return parity

    def _keep(self, parity: ParityReport) -> None:
        write_json(self.transaction.staging / PARITY, sealed(parity.to_json()))

    def _require(self, parity: ParityReport) -> None:
        """Discard the staged work if a comparison failed: its content is wrong, not incomplete."""
        if not parity.passed:
            failed = self.transaction.target.with_name(f"{self.transaction.target.name}.failed-{PARITY}")
            failed.write_text(json.dumps(parity.to_json(), indent=1))
            self.report.note(f"the comparison was written to {failed}")
            self.transaction.discard()
        parity.require()


def _compiled_at_once(plan: Plan) -> int:
    """Return how many packages can be compiled at the same time: cores and memory limit them."""
    limits = [(os.cpu_count() or 1) // 2, int(available_memory() // _COMPILER_MEMORY)]
    free = free_memory()
    if free is not None:
        layouts = weights_layouts(plan)
        weights = max(sum(layouts[part].size for part in plan.parts(form.graph)) for form in plan.graphs)
        limits.append(int(free // (weights + _COMPILER_MEMORY)))
    return max(1, min(*limits, len(plan.packages)))


def weights_layouts(plan: Plan) -> dict[str, WeightsLayout]:
    """Return the layout of each component's weights file; imports torch."""
    from infid_export.export.graph_export import TYPES
    from infid_export.export.weights import WeightsLayout

    dtype = TYPES[plan.options.precision]
    return {name: WeightsLayout.of(plan.source.empty(name), dtype) for name in plan.weights}


def expected_seconds(plan: Plan, seconds: Seconds) -> float:
    """Return the expected seconds for this model."""
    return seconds.demo if plan.source.name == "demo" else seconds.full


def _parity_stages(plan: Plan, graphs: int, steps: int | None) -> dict[str, float]:
    stages = {"parity": graphs * expected_seconds(plan, COMPARED)} if graphs else {}
    return stages | ({"image parity": steps * expected_seconds(plan, _STEP)} if steps else {})


def verify(folder: Path, reporter: Reporter | None = None) -> ParityReport:
    """Check every file of a folder, and compare it with the reference again.

    Args:
        folder: the engine folder; its model must still be at the same place.
        reporter: receives the progress.

    Returns:
        The comparisons; see `ParityReport.passed`.

    Raises:
        EngineFolderError: a file is missing or has changed.
    """
    report = reporter or SilentReporter()
    manifest = Manifest.load(folder)
    options = options_of(manifest, folder)
    plan = make_plan(options)
    steps = plan.image_steps()
    hashes = sum(record.size for record in manifest.files.values()) / _HASHED_A_SECOND
    own = comparable(manifest.engines)
    engines = {"engine parity": len(own) * expected_seconds(plan, COMPARED)} if own else {}
    report.plan({"hashes": hashes, **_parity_stages(plan, len(manifest.graphs), steps), **engines})
    with report.stage("hashes") as stage:
        for index, (name, record) in enumerate(manifest.files.items()):
            verify_file(folder, name, record)
            stage.update((index + 1) / len(manifest.files), name)
    from infid_export.export.graph_parity import compare_engines, compare_graphs
    from infid_export.export.image_parity import compare_image

    with report.stage("parity") as stage:
        forms = [form for form in plan.graphs if form.name in manifest.graphs]
        rows = tuple(compare_graphs(plan, folder, manifest, forms, stage))
    if own:
        with report.stage("engine parity") as stage:
            rows += tuple(compare_engines(plan, folder, manifest, own, stage))
    result = ParityReport(rows)
    if steps and result.passed:
        with report.stage("image parity") as stage:
            result = replace(result, image=compare_image(plan, folder, manifest, steps, stage))
    return result
