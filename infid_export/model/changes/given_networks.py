"""The networks that a user gives in place of a model's own: a VAE, or a UNet alone. Imports are light."""

from __future__ import annotations

from pathlib import Path

from infid_engines.errors import InputError
from infid_export.model.changes.replaced_source import ReplacedSource
from infid_export.model.changes.updated_source import UpdatedSource
from infid_export.model.checkpoints.file_kind import require_unet, require_vae
from infid_export.model.checkpoints.files import read_json, weight_files
from infid_export.model.checkpoints.kind import check_vae
from infid_export.model.checkpoints.prediction import ZERO_SNR_KEY, stated_prediction
from infid_export.model.checkpoints.stored_network import StoredNetwork, find_network
from infid_export.model.checkpoints.tensor_file import TensorFile
from infid_export.model.sources import ModelSource

_VAE_FORMATS = "Give a safetensors file, or a folder in diffusers' format with config.json."


def with_networks(source: ModelSource, vae: Path | None = None, unet: Path | None = None) -> ModelSource:
    """Return a model with another VAE, another UNet, or both.

    Args:
        source: the model.
        vae: a safetensors file, or a folder in diffusers' format: the VAE's, or the one above it.
        unet: a safetensors file.

    Raises:
        InputError: a network is missing, or does not fit the model.
    """
    if isinstance(source, UpdatedSource):  # what identity weights add to a UNet, they add to any
        return UpdatedSource(with_networks(source.base, vae, unet), source.updates)
    if unet is not None:
        source = ReplacedSource(source, *_unet(unet, source))
    if vae is not None and vae.is_dir():
        source = ReplacedSource(source, _folder_vae(vae, source), f"vae: {vae}, in place of the model's")
    elif vae is not None:
        factor = source.architecture.vae["scaling_factor"]
        note = f"vae: {vae}, in place of the model's; a file has no scaling factor, so it is the model's, {factor}"
        source = ReplacedSource(source, _file_vae(vae, source), note)
    return source


def _unet(path: Path, source: ModelSource) -> tuple[StoredNetwork, str]:
    """Return the UNet in a file, and a note on it."""
    file = _opened(path, "UNet", "Give a safetensors file.")
    require_unet(file)
    stated, why = stated_prediction(file, rejects=False)
    predicted = source.scheduler["prediction_type"]
    if stated == "v_prediction" != predicted:
        raise InputError(
            f"The UNet {path} predicts v ({why}), but {source.name} predicts {predicted}.", fix="Add --prediction v."
        )
    if ZERO_SNR_KEY in file.shapes and not source.scheduler["rescale_betas_zero_snr"]:
        raise InputError(
            f"The UNet {path} has zero terminal SNR (by its key {ZERO_SNR_KEY}), but {source.name} has not.",
            fix="Add --zero-snr.",
        )
    note = f"unet: {path}, in place of the model's"
    if predicted == "v_prediction" != stated:
        note += "; nothing in it says that it predicts v, as the model does"
    return find_network("unet", source.architecture.unet, [file], f"The unet weights of {path}"), note


def _file_vae(path: Path, source: ModelSource) -> StoredNetwork:
    file = _opened(path, "VAE", _VAE_FORMATS)
    require_vae(file)
    return find_network("vae", source.architecture.vae, [file], f"The vae weights of {path}")


def _folder_vae(path: Path, source: ModelSource) -> StoredNetwork:
    folder = path / "vae" if (path / "vae").is_dir() else path
    if not (folder / "config.json").is_file():
        raise InputError(f"{path} has no VAE: there is no {folder / 'config.json'}.", fix=_VAE_FORMATS)
    where = f"{folder}/config.json"
    config = read_json(folder / "config.json")
    check_vae(config, where)
    own = source.architecture.vae
    factor, wanted = config.get("scaling_factor", _DEFAULT_FACTOR), own["scaling_factor"]
    if factor != wanted:
        whose = ", Stable Diffusion 1's and 2's" if factor == _DEFAULT_FACTOR else ""
        raise InputError(
            f"{where} has scaling_factor = {factor}{whose}; the UNet of {source.name} was trained with {wanted}.",
            fix="Use a VAE for SDXL, such as madebyollin/sdxl-vae-fp16-fix.",
        )
    levels, needed = len(config["block_out_channels"]), len(own["block_out_channels"])
    if levels != needed:
        raise InputError(
            f"{where} has {levels} levels (block_out_channels), but the latents of {source.name} need {needed}.",
            fix="Use a VAE for SDXL.",
        )
    files = [TensorFile.open(file) for file in weight_files(folder).files]
    return find_network("vae", config, files, f"The vae weights of {folder}")


_DEFAULT_FACTOR = 0.18215  # diffusers' default, and Stable Diffusion 1's


def _opened(path: Path, what: str, formats: str) -> TensorFile:
    if not path.exists():
        raise InputError(f"There is no {what} at {path}.", fix=formats)
    return TensorFile.open(path)
