"""What an identity file says besides its configuration: the license of its weights, and whether it has a LoRA.

Imports are light.
"""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open

from infid_engines.errors import InputError

LICENSE_KEY = "infid_license"  # key in an identity file's header
LORA = "lora."  # prefix of the tensors of a LoRA: `lora.<path of a layer in the UNet>.down.weight` and `.up.weight`


def stored_license(path: Path) -> str:
    """Return the license line of an identity file; an empty string if it has none.

    Raises:
        InputError: the file cannot be read.
    """
    with open_header(path) as file:
        return str((file.metadata() or {}).get(LICENSE_KEY, ""))


def lora_tensors(path: Path) -> tuple[str, ...]:
    """Return the names of the tensors of an identity file's LoRA; none if it has no LoRA.

    Raises:
        InputError: the file cannot be read.
    """
    with open_header(path) as file:
        return tuple(name for name in file.keys() if name.startswith(LORA))  # noqa: SIM118 (no mapping)


def open_header(path: Path) -> safe_open:
    """Open an identity file to read its header.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        return safe_open(path, framework="numpy")
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{path} is not an intact safetensors file ({error}).",
            fix="Copy or download it again; convert a .bin of another method with `infid-export import`.",
        ) from error
