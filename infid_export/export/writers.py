"""The writers of the artifacts in an engine folder. Torch is imported only when a writer needs it."""

from __future__ import annotations

import shutil
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from infid_engines.backends import BuildRequest
from infid_engines.folder import Written
from infid_engines.progress import Stage
from infid_engines.worker import Children, build_in_subprocess
from infid_export.export.artifact import Write, plugins_file
from infid_export.export.build_options import BuildOptions
from infid_export.export.face_models import write_detector, write_random_recognizer, write_shipped
from infid_export.export.graphs.graph import GraphForm
from infid_export.export.stored_options import stored_options
from infid_export.export.vae_range import precision_of, write_vae_range
from infid_export.model.sources import ModelSource

if TYPE_CHECKING:
    from infid_export.export.graph_export import GraphExporter


class Writers:
    """Returns the writers for the artifacts of one build, each as an `Artifact.write`.

    Args:
        source: the model.
        options: options of the build, with height, width and detector settled.

    Attributes:
        children: the processes that compile packages.
    """

    def __init__(self, source: ModelSource, options: BuildOptions) -> None:
        self._source, self._options = source, options
        self.children = Children()

    @cached_property
    def exporter(self) -> GraphExporter:
        """The exporter of the graphs; imports torch."""
        from infid_export.export.graph_export import GraphExporter

        return GraphExporter(self._source, self._options)

    def weights(self, component: str) -> Write:
        """Stream a component's weights into their file."""

        def write(folder: Path, path: Path, stage: Stage) -> Written:
            from infid_export.export.graph_export import TYPES
            from infid_export.export.weights import WeightsLayout

            dtype = TYPES[precision_of([component], self._options.precision, folder)]
            layout = WeightsLayout.of(self._source.empty(component), dtype)
            return Written(layout.write(path, self._source.weights(component, dtype), stage.update))

        return write

    def graph(self, form: GraphForm) -> Write:
        """Export a graph."""

        def write(folder: Path, path: Path, _: Stage) -> None:
            components = form.graph.components.values()
            self.exporter.write(form, precision_of(components, self._options.precision, folder), path)

        return write

    def vae_range(self) -> Write:
        """Probe the VAE."""
        return lambda folder, path, stage: write_vae_range(self._source, path)

    def tokenizer(self, index: int) -> Write:
        """Write one of the model's two tokenizers."""

        def write(_: Path, path: Path, __: Stage) -> None:
            path.write_text(self._source.tokenizers()[index], encoding="utf-8")

        return write

    def detector(self) -> Write:
        """Write the face detector."""
        return lambda folder, path, stage: write_detector(str(self._options.detector), path)

    def recognizer(self) -> Write:
        """Copy the user's face recognizer, or write the built-in model's."""

        def write(_: Path, path: Path, __: Stage) -> None:
            if self._options.recognizer is not None:
                shutil.copyfile(self._options.recognizer, path)
            elif self._source.name == "demo":
                write_shipped("recognizer", path)
            else:
                write_random_recognizer(path, self._source.config.face_width, self._options.seed)

        return write

    def plugins(self, target: str) -> Write:
        """Compile the Triton kernels for one GPU architecture."""

        def write(_: Path, path: Path, stage: Stage) -> None:
            from infid_kernels.tuning import loaded
            from infid_kernels.variants import write_plugins

            with loaded(self._options.tuning):
                write_plugins(path, target, self.exporter.head_sizes(), stage.update)

        return write

    def package(self, form: GraphForm, backend: str, device: str) -> Write:
        """Compile a graph's module for `cpu` or `cuda`, in a process of its own."""

        def write(folder: Path, path: Path, stage: Stage) -> Written:
            components = form.graph.components.values()
            job = {
                "options": stored_options(self._options),
                "graph": form.graph.name,
                "precision": precision_of(components, self._options.precision, folder),
                "device": device,
                "path": str(path),
            }
            function = "infid_export.export.packages:compile_package"
            return Written(peak_bytes=self.children.build(backend, form.name, function, job, stage))

        return write

    def engine(self, form: GraphForm, backend: str, target: str) -> Write:
        """Build an engine from an exported graph."""

        def write(folder: Path, path: Path, stage: Stage) -> Written:
            output, options = self._options.output.resolve(), self._options
            request = BuildRequest(
                folder / form.file,
                path,
                target,
                self.exporter.specs(form, folder)[0],
                options.refit,
                options.strip,
                options.optimization_level,
                output.with_name(f".{output.name}.timings-{backend}-{target}"),
                None if form.kernels == "native" else folder / plugins_file(target),
            )
            return Written(peak_bytes=build_in_subprocess(backend, request, stage))

        return write
