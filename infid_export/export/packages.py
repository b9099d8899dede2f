"""Compiles graphs to packages of machine code without weights, by PyTorch's AOTInductor. Needs torch and diffusers.

The modules are compiled for the strides that their weights have in the folder's weights files, so that those files can
be mapped and used in place. The weights' values are not needed, and not read.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from infid_engines.aotinductor_runner import FACTS, PackageFacts, StoredWeight
from infid_engines.atomic_files import is_full
from infid_engines.errors import BuildError, DiskFullError
from infid_engines.progress import Stage
from infid_export.export.artifact import weights_file
from infid_export.export.graph_export import TYPES, GraphExporter
from infid_export.export.graphs import GRAPHS
from infid_export.export.graphs.graph import GraphForm, flat
from infid_export.export.model_choice import source_of
from infid_export.export.stored_options import read_options
from infid_export.export.weights import WeightsLayout
from infid_export.model.components import cast_module

_LARGEST = 4096  # elements of a tensor that is stored in the package itself
# Weights stay outside, including those of up to eight values, which PyTorch would write into the code.
CONFIGURATION = {"aot_inductor.package_constants_in_so": False, "always_keep_tensor_constants": True}
# On a GPU, the C++ code only launches kernels. Optimizing that of a full-size step took about 100 s.
_LAUNCHES_ONLY = {"aot_inductor.compile_wrapper_opt_level": "O0"}


def compile_package(job: dict[str, Any], _: Stage) -> None:
    """Compile a graph in this process, see `Writers.package`."""
    options = read_options(job["options"])
    exporter, form = GraphExporter(source_of(options), options), GraphForm(GRAPHS[job["graph"]])
    write_package(exporter, form, job["precision"], job["device"], Path(job["path"]))


def write_package(exporter: GraphExporter, form: GraphForm, precision: str, device: str, path: Path) -> None:
    """Compile a graph of one size.

    Args:
        exporter: exporter of the build.
        form: the graph.
        precision: `fp16` or `fp32`.
        device: `cpu` or `cuda`.
        path: the package to write, two folders below the engine folder.

    Raises:
        BuildError: PyTorch cannot compile it.
    """
    graph, sizes = form.graph, exporter.sizes()
    parts: dict[str, nn.Module] = {}
    weights: dict[str, StoredWeight] = {}
    constants: dict[str, tuple[str, Any]] = {}
    for prefix, name in graph.used_components(exporter.source.config).items():
        parts[name], stored = _without_values(exporter, name, precision, device)
        file = f"../../{weights_file(name)}"
        weights |= {f"{prefix}{key}": StoredWeight(file, key, transposed) for key, transposed in stored.items()}
        constants |= {f"{prefix}{key}": _plain(key, value) for key, value in parts[name].named_buffers()}
    config = exporter.source.config
    fused = device != "cpu" and precision == "fp16" and "triton" in graph.kernels and config.fits_kernels
    module = graph.module(parts, config, "triton" if fused else form.ops).eval()
    arguments = {name: _placed(each, device) for name, each in graph.arguments(sizes, TYPES[precision]).items()}
    inputs, outputs = list(flat(graph.inputs(sizes))), list(flat(graph.outputs(sizes)))
    facts = PackageFacts(inputs, outputs, weights, constants, device != "cpu")
    configuration = {**CONFIGURATION, "aot_inductor.metadata": {FACTS: facts.to_json()}}
    configuration |= {} if device == "cpu" else _LAUNCHES_ONLY
    with TemporaryDirectory(dir=path.parent) as scratch, torch.no_grad(), _quiet():
        try:
            program = torch.export.export(module, (), arguments, strict=False)
            made = torch._inductor.aoti_compile_and_package(
                program, package_path=str(Path(scratch) / f"{graph.name}.pt2"), inductor_configs=configuration
            )
        except Exception as error:  # PyTorch's compilers raise many types, without a common class
            if _disk_is_full(error):
                raise DiskFullError(
                    f"A disk became full while {form.name} was compiled: that of {path.parent} or PyTorch's cache.",
                    fix="Free some space, also in /tmp, or set TORCHINDUCTOR_CACHE_DIR to another folder, and run "
                    "the command again: finished artifacts are kept.",
                ) from error
            raise BuildError(
                f"PyTorch cannot compile {form.name}: {str(error).strip().splitlines()[0]}",
                fix="It needs a C++ compiler (on Debian: apt install g++). Leave out --backend aotinductor otherwise.",
            ) from error
        literal = sorted(set(program.constants) - set(constants))
        if literal:
            raise RuntimeError(f"the code of {graph.name} makes the tensor {literal[0]}, which the package lacks")
        Path(made).replace(path)


def _disk_is_full(error: BaseException | None) -> bool:
    """Return whether an error or its causes, which may be those of a compiler's process, say so."""
    while error is not None:
        if is_full(error) or os.strerror(errno.ENOSPC) in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence PyTorch's search for a CUDA toolkit, which nothing here needs; it reports that it found none."""
    logger = logging.getLogger("torch.utils.cpp_extension")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _without_values(
    exporter: GraphExporter, component: str, precision: str, device: str
) -> tuple[nn.Module, dict[str, bool]]:
    """Return a component with uninitialized weights, and whether each is stored transposed; buffers have values."""
    empty = cast_module(exporter.source.empty(component), TYPES[precision])
    layout = WeightsLayout.of(empty, TYPES[precision])
    buffers: dict[str, Tensor] = {}
    if any(True for _ in empty.buffers()):
        buffers = dict(exporter.source.load(component, TYPES[precision]).named_buffers())
    module = empty.to_empty(device=device)
    for name, parameter in module.named_parameters():
        if layout.tensors[name].transposed:
            parameter.data = parameter.data.new_empty(*reversed(parameter.shape)).t()
        elif device != "cpu" and parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    for name, buffer in module.named_buffers():
        buffer.copy_(buffers[name])
    return module, {name: stored.transposed for name, stored in layout.tensors.items()}


def _plain(name: str, value: Tensor) -> tuple[str, Any]:
    """Return a small tensor as its dtype and nested lists.

    Raises:
        BuildError: it is too large.
    """
    if value.numel() > _LARGEST:
        raise BuildError(
            f"The buffer {name} has {value.numel()} elements, too many for a package without weights.",
            fix="Leave out --backend aotinductor, and report this with the model's name.",
        )
    return str(value.dtype).removeprefix("torch."), value.tolist()


def _placed(argument: Tensor | list[Tensor], device: str) -> Tensor | list[Tensor]:
    """Return zeros like an argument of the meta device."""
    if isinstance(argument, Tensor):
        return torch.zeros(argument.shape, dtype=argument.dtype, device=device)
    return [torch.zeros(each.shape, dtype=each.dtype, device=device) for each in argument]
