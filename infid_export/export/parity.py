"""Parity: compares exported graphs with the PyTorch reference on the same inputs, and gives a verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from infid_engines.documents import read_json, record, unsealed
from infid_engines.errors import EngineFolderError, ParityError
from infid_engines.registry import PARITY_BACKEND
from infid_export.export.tolerances import VERSION, tolerance

Array = np.ndarray[Any, Any]
PARITY = "parity.json"
_MEASURED = ("max_error", "rms_error", "cosine")
# The fix for a failed comparison, by precision.
_FIXES = {
    "fp16": "Nothing was kept. Build with --precision fp32 to see whether rounding is the cause.",
    "fp32": "Nothing was kept. fp32 rounding cannot explain this, so the graph or its backend is wrong: please "
    "report it with the saved comparison, the model's configuration and the output of `infid-export doctor`.",
}


@dataclass(frozen=True)
class ParityRow:
    """One output compared; errors are relative to the RMS of the reference.

    Args:
        graph: name of the graph's form.
        output: its output; the per-block text features are one row.
        dtype: dtype of the output.
        precision: precision of the graph, `fp16` or `fp32`.
        max_error: largest absolute difference over the reference's RMS.
        rms_error: RMS of the difference over the reference's RMS.
        cosine: one minus the cosine similarity.
        max_tolerance: limit for `max_error`; likewise `rms_tolerance`.
        passed: whether both limits are met and every value is finite.
        key: key of the graph and weights that were compared.
        size: height and width of the comparison.
        backend: the backend that ran it.
    """

    graph: str
    output: str
    dtype: str
    precision: str
    max_error: float
    rms_error: float
    cosine: float
    max_tolerance: float
    rms_tolerance: float
    passed: bool
    key: str
    size: tuple[int, int]
    backend: str = PARITY_BACKEND

    @property
    def name(self) -> str:
        """The graph's name, with the backend unless it is the one that runs every graph."""
        return self.graph if self.backend == PARITY_BACKEND else f"{self.graph} ({self.backend})"

    @property
    def smallest_tolerance(self) -> str:
        """The smallest tolerances that would pass."""
        return f"max {self.max_error:.1e}, rms {self.rms_error:.1e}"


@dataclass(frozen=True)
class ImageParity:
    """The comparison of a whole image, engines against reference; `precision` is the engines'."""

    precision: str
    psnr_db: float
    threshold_db: float
    steps: int
    passed: bool
    key: str


@dataclass(frozen=True)
class ParityReport:
    """All comparisons of an engine folder."""

    rows: tuple[ParityRow, ...] = ()
    image: ImageParity | None = None
    version: int = field(default=VERSION)

    @property
    def passed(self) -> bool:
        """Whether every comparison passed."""
        return all(row.passed for row in self.rows) and (self.image is None or self.image.passed)

    def to_json(self) -> dict[str, Any]:
        """Return the content of parity.json, without its seal."""
        rows = [{**asdict(row), **{name: _json_number(getattr(row, name)) for name in _MEASURED}} for row in self.rows]
        return {**asdict(self), "rows": rows, "passed": self.passed}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ParityReport:
        """Read the content of parity.json, without its seal.

        Raises:
            ValueError: an entry is missing, unknown or of another type.
        """
        rows = values.get("rows")
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise ValueError("it has no list of rows")
        finite = [{**row, **{name: 0.0 for name in _MEASURED if row.get(name, 0.0) is None}} for row in rows]
        verdict = {name: value for name, value in values.items() if name != "passed"}
        report = record(cls, {**verdict, "rows": finite}, "it")
        made = tuple(_measured(row, given) for row, given in zip(report.rows, rows, strict=True))
        return replace(report, rows=made)

    def require(self) -> None:
        """Raise unless everything passed.

        Raises:
            ParityError: a comparison failed; the message names the worst one and the tolerances that would pass.
        """
        failed = [row for row in self.rows if not row.passed]
        if failed:
            worst = max(failed, key=lambda row: row.rms_error if np.isfinite(row.rms_error) else np.inf)
            raise ParityError(
                f"{len(failed)} output(s) differ from the reference, worst {worst.name}.{worst.output}: "
                f"{worst.smallest_tolerance} against max {worst.max_tolerance:.1e}, rms {worst.rms_tolerance:.1e}.",
                fix=_FIXES[worst.precision],
            )
        if self.image is not None and not self.image.passed:
            raise ParityError(
                f"The image differs from the reference: PSNR {self.image.psnr_db:.1f} dB, "
                f"but at least {self.image.threshold_db:.0f} dB is required.",
                fix=_FIXES[self.image.precision],
            )


def _json_number(value: float) -> float | None:
    """Return a JSON number, or None if it is not finite."""
    return value if np.isfinite(value) else None


def _measured(row: ParityRow, given: Mapping[str, Any]) -> ParityRow:
    """Return a row in which measurements that JSON stores as null are infinite again."""
    infinite: dict[str, Any] = {name: np.inf for name in _MEASURED if given[name] is None}
    return replace(row, **infinite)


def compare(
    graph: str,
    expected: Mapping[str, Array],
    found: Mapping[str, Array],
    *,
    precision: str,
    key: str,
    size: tuple[int, int],
    groups: Mapping[str, Sequence[str]],
    backend: str = PARITY_BACKEND,
) -> list[ParityRow]:
    """Compare a graph's outputs.

    Args:
        graph: name of the graph's form.
        expected: the reference's outputs.
        found: the engine's outputs.
        precision: decides the tolerances.
        key: key of the graph and weights that are compared.
        size: height and width of the comparison.
        groups: outputs that share one row, by the row's name; an output in no group has its own row.
        backend: the backend of the engine.

    Returns:
        One row per group, with the worst errors of its outputs.
    """
    grouped = {name for names in groups.values() for name in names}
    rows = []
    for label, names in {**{name: [name] for name in expected if name not in grouped}, **groups}.items():
        measured = [_errors(expected[name], found[name]) for name in names if name in expected]
        if not measured:
            continue
        largest, rms, cosine = (max(values) for values in zip(*measured, strict=True))
        limits = tolerance(precision)
        rows.append(
            ParityRow(
                graph,
                label,
                found[names[0]].dtype.name,
                precision,
                largest,
                rms,
                cosine,
                limits.max,
                limits.rms,
                bool(largest <= limits.max and rms <= limits.rms),
                key,
                size,
                backend,
            )
        )
    return rows


def _errors(expected: Array, found: Array) -> tuple[float, float, float]:
    """Return max and RMS error relative to the reference's RMS, and one minus the cosine; infinite if not finite."""
    x, y = expected.astype(np.float64).ravel(), found.astype(np.float64).ravel()
    if x.shape != y.shape or not np.isfinite(x).all() or not np.isfinite(y).all():
        return np.inf, np.inf, np.inf
    scale = float(np.sqrt(np.mean(x**2))) or 1.0
    difference = y - x
    norms = float(np.linalg.norm(x) * np.linalg.norm(y)) or 1.0
    return (
        float(np.abs(difference).max()) / scale,
        float(np.sqrt(np.mean(difference**2))) / scale,
        max(0.0, 1.0 - float(x @ y) / norms),
    )


def psnr(expected: Array, found: Array) -> float:
    """Return the peak signal-to-noise ratio in dB of two images in [0, 1]; 0 if one is not finite."""
    error = float(np.mean((expected.astype(np.float64) - found.astype(np.float64)) ** 2))
    if not np.isfinite(error):
        return 0.0
    return 200.0 if error == 0 else float(-10 * np.log10(error))


def stored_parity(folder: Path) -> ParityReport:
    """Read a folder's parity.json.

    Raises:
        EngineFolderError: it is missing or damaged.
    """
    path = folder / PARITY
    try:
        return ParityReport.from_json(unsealed(read_json(path)))
    except (OSError, ValueError) as error:
        raise EngineFolderError(
            f"{path} cannot be read ({error}).", fix="Run `infid-export verify` on the folder."
        ) from error
