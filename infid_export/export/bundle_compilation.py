"""Compiles the fused kernels into a bundle, without a GPU."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infid_engines.errors import BackendUnavailableError, InputError
from infid_engines.kernel_bundle import require_bundle_or_nothing, write_bundle
from infid_engines.progress import Reporter, SilentReporter

if TYPE_CHECKING:
    from infid_kernels.compile import CompiledKernel

# Seconds to compile all forms of an operation for sm_90 and a head size of 64, on one CPU core of two.
_SECONDS: Mapping[str, float] = {
    "mean_shift": 2.3, "value_shift": 2.0, "mixed_attention": 23.3, "merged_cross_attention": 24.0,
}  # fmt: skip
_FORMS = 4  # usual number of forms of an operation: full blocks or any length, tuned or small


def compile_bundle(
    folder: Path,
    targets: Sequence[str],
    dtypes: Sequence[str] = ("float16",),
    head_sizes: Sequence[int] = (64,),
    reporter: Reporter | None = None,
    tuning: Path | None = None,
) -> dict[str, Mapping[str, Any]]:
    """Compile every form of every operation, and write the bundle atomically.

    Args:
        folder: folder of the bundle; an older bundle is replaced.
        targets: architectures, such as `sm_90`.
        dtypes: dtypes of queries, keys and values: `float16`, `bfloat16`.
        head_sizes: channels per head, d.
        reporter: receives the progress.
        tuning: a file from `infid-export tune`; its choices are preferred to the built-in table.

    Returns:
        Every kernel's launch description by name, with the registers and spilled bytes per thread.

    Raises:
        BackendUnavailableError: Triton is missing.
        EngineFolderError: the folder is not a bundle.
        InputError: an architecture, dtype or head size is unknown, TRITON_INTERPRET is set, or the tuning file
            cannot be used.
    """
    require_bundle_or_nothing(folder)
    _require_compiler()
    from infid_kernels.targets import ARCHITECTURES, DTYPES, HEAD_SIZES
    from infid_kernels.tuning import loaded

    _check("target", targets, ARCHITECTURES)
    _check("dtype", dtypes, tuple(DTYPES))
    _check("head size", head_sizes, HEAD_SIZES)
    if tuning is not None:
        require_measured(tuning, targets)
    cases = list(
        itertools.product(dict.fromkeys(targets), dict.fromkeys(dtypes), dict.fromkeys(head_sizes), tuple(_SECONDS))
    )
    reporter = reporter or SilentReporter()
    reporter.plan({_stage(*case): _SECONDS[case[-1]] for case in cases})
    with loaded(tuning):
        return write_bundle(folder, _compiled(cases, reporter))


def require_measured(tuning: Path, targets: Iterable[str]) -> None:
    """Reject a tuning file that has no entry for any of the targets.

    Raises:
        InputError: it is missing, has another format, or was measured on other architectures.
    """
    from infid_kernels.tuning import nearest, read

    try:
        measured = {entry.architecture for entry in read(tuning)}
    except ValueError as error:
        raise InputError(
            f"{tuning} contains no kernel configurations ({error.__cause__}).", fix="Write it with `infid-export tune`."
        ) from error
    if not measured & {nearest(target) for target in targets}:
        raise InputError(
            f"--tuning would have no effect: {tuning} was measured on {', '.join(sorted(measured)) or 'nothing'}, but "
            f"kernels are compiled for {', '.join(targets) or 'nothing'}.",
            fix="Measure with `infid-export tune` on such a GPU, or leave --tuning out.",
        )


def _compiled(cases: Sequence[tuple[str, str, int, str]], reporter: Reporter) -> Iterator[CompiledKernel]:
    from infid_kernels.sass import read_machine_code
    from infid_kernels.variants import compile_variants

    for target, dtype, head_size, op in cases:
        with reporter.stage(_stage(target, dtype, head_size, op)) as stage:
            for index, kernel in enumerate(compile_variants(op, target, head_size, dtype)):
                code = read_machine_code(kernel.cubin)
                resources = {"registers": code.registers, "stack_bytes": code.stack_bytes}
                yield replace(kernel, launch={**kernel.launch, **resources})
                stage.update((index + 1) / _FORMS)


def _stage(target: str, dtype: str, head_size: int, op: str) -> str:
    return f"{op} {target} {dtype} d{head_size}"


def _require_compiler() -> None:
    """Require a Triton that can compile.

    Raises:
        BackendUnavailableError: it is missing.
        InputError: TRITON_INTERPRET is set, which Triton reads when the kernels are imported.
    """
    try:
        import triton
    except ImportError as error:
        raise BackendUnavailableError(
            f"Compiling kernels needs Triton, which cannot be imported ({error}).",
            fix='pip install "infid-export[export]"',
        ) from error
    from infid_kernels.compile import KERNELS

    if not all(isinstance(spec.kernel, triton.JITFunction) for spec in KERNELS.values()):
        raise InputError(
            "TRITON_INTERPRET is set, so Triton interprets kernels instead of compiling them.",
            fix="Run the command again with `env -u TRITON_INTERPRET`.",
        )


def _check(what: str, given: Sequence[Any], known: Sequence[Any]) -> None:
    for value in given:
        if value not in known:
            raise InputError(
                f"There are no kernels for the {what} {value}.", fix=f"Choose from {', '.join(map(str, known))}."
            )
