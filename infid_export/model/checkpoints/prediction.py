"""What a checkpoint's UNet predicts: by its file or its scheduler configuration, or as the user says.

A model that predicts v but is sampled as if it predicted the noise draws noise. Single files have no scheduler
configuration: trainers mark them with the empty tensors `v_pred` and `ztsnr`, or in the header's metadata, and many
conversions lose both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from infid_engines.errors import InputError
from infid_export.model.checkpoints.tensor_file import TensorFile
from infid_export.sampling.scheduler_config import SDXL_SAMPLING, ModelSampling

V_KEY, ZERO_SNR_KEY = "v_pred", "ztsnr"
_METADATA = ("modelspec.prediction_type", "prediction_type")
_NAMES: Mapping[str, str] = {"v": "v_prediction", "v_prediction": "v_prediction", "epsilon": "epsilon"}
_SHOWN: Mapping[str, str] = {"v_prediction": "v", "epsilon": "epsilon", "sample": "sample"}
_UNSAID = "nothing in the file says otherwise; if the images are noise, try --prediction v"


@dataclass(frozen=True)
class GivenPrediction:
    """What the user says about a checkpoint.

    Args:
        prediction: what the UNet predicts; None is what the checkpoint says.
        zero_snr: whether it was trained with zero terminal SNR, also if the checkpoint does not say so.

    Raises:
        InputError: the two contradict each other.
    """

    prediction: Literal["epsilon", "v"] | None = None
    zero_snr: bool = False

    def __post_init__(self) -> None:
        """Reject zero terminal SNR without v."""
        if self.zero_snr and self.prediction == "epsilon":
            raise InputError(
                "A model that was trained with zero terminal SNR cannot predict epsilon.",
                fix="Use --prediction v, or leave out --zero-snr.",
            )

    def or_else(self, own: str) -> str:
        """Return the schedule's name of what the UNet predicts; `own` is what the checkpoint says."""
        return own if self.prediction is None else _NAMES[self.prediction]

    def snr(self, own: bool) -> bool:
        """Return whether zero terminal SNR is on; `own` is what the checkpoint says."""
        return self.zero_snr or (own and self.prediction != "epsilon")


AS_STORED = GivenPrediction()  # the checkpoint decides


def folder_sampling(stored: ModelSampling, given: GivenPrediction) -> tuple[ModelSampling, str]:
    """Return the sampling of a checkpoint folder, and a note if the user's word replaces the folder's."""
    own, zero = str(stored.schedule["prediction_type"]), bool(stored.schedule["rescale_betas_zero_snr"])
    prediction = given.or_else(own)
    sampling = _sampling(stored, prediction, given.snr(zero), "The checkpoint's scheduler", given.zero_snr)
    if given.prediction is None and not given.zero_snr:
        return sampling, ""
    said = f"prediction {_SHOWN[prediction]}: as --prediction says"
    if given.prediction is None:
        said = f"prediction {_SHOWN[prediction]}: as the checkpoint's scheduler says"
    elif prediction != own:
        said += f", in place of {_SHOWN[own]} of the checkpoint's scheduler"
    return sampling, said + _snr_note(
        sampling, stored, "--zero-snr" if given.zero_snr else "the checkpoint's scheduler"
    )


def file_sampling(file: TensorFile, given: GivenPrediction) -> tuple[ModelSampling, str]:
    """Return the sampling of a single file, and a note that says what its UNet predicts, and why.

    Raises:
        InputError: the file says something that is not known, or that contradicts itself.
    """
    own, why = stated_prediction(file, rejects=given.prediction is None)
    own = own or "epsilon"
    prediction = given.or_else(own)
    zero = given.snr(ZERO_SNR_KEY in file.shapes)
    sampling = _sampling(SDXL_SAMPLING, prediction, zero, str(file.path), given.zero_snr)
    if given.prediction is None:
        said = f"prediction {_SHOWN[prediction]}: {why or _UNSAID}"
    else:
        said = f"prediction {_SHOWN[prediction]}: as --prediction says"
        if prediction != own and why:
            said += f", although {why}"
    return sampling, said + _snr_note(
        sampling, SDXL_SAMPLING, "--zero-snr" if given.zero_snr else f"the key {ZERO_SNR_KEY}"
    )


def stated_prediction(file: TensorFile, rejects: bool = True) -> tuple[str, str]:
    """Return what a file says that its UNet predicts, and where it says so; empty strings if it says nothing.

    Args:
        file: a checkpoint, or a UNet alone.
        rejects: whether something that is not supported is rejected, or returned as it is.

    Raises:
        InputError: see `rejects`.
    """
    if V_KEY in file.shapes:
        return "v_prediction", f"the file has the key {V_KEY}"
    for field in _METADATA:
        if (value := file.metadata.get(field)) is None:
            continue
        why = f"the file's metadata has {field} = {value}"
        if value.lower() in _NAMES:
            return _NAMES[value.lower()], why
        if rejects:
            raise InputError(
                f"{file.path} has {field} = {value!r} in its metadata, which is not supported.",
                fix="If its UNet predicts the noise, add --prediction epsilon; if it predicts v, --prediction v.",
            )
        return value, why
    return "", ""


def _sampling(stored: ModelSampling, prediction: str, zero_snr: bool, where: str, given: bool) -> ModelSampling:
    """Return a sampling with another prediction.

    With zero terminal SNR, sampling has to start at the noisiest timestep, which the spacing `leading` leaves out.

    Raises:
        InputError: zero terminal SNR together with epsilon.
    """
    if zero_snr and prediction == "epsilon":
        said = "--zero-snr was given, but the model" if given else f"{where} has zero terminal SNR, but"
        raise InputError(f"{said} predicts epsilon, as far as is known.", fix="Add --prediction v.")
    schedule: dict[str, Any] = {
        **stored.schedule, "prediction_type": prediction, "rescale_betas_zero_snr": zero_snr
    }  # fmt: skip
    changed = zero_snr and not stored.schedule["rescale_betas_zero_snr"] and stored.spacing == "leading"
    spacing = "trailing" if changed else stored.spacing
    if changed:
        schedule["timestep_spacing"] = spacing
    return replace(stored, schedule=schedule, spacing=spacing)


def _snr_note(sampling: ModelSampling, stored: ModelSampling, why: str) -> str:
    if not sampling.schedule["rescale_betas_zero_snr"]:
        return ""
    spacing = f", and therefore {sampling.spacing} spacing" if sampling.spacing != stored.spacing else ""
    return f"; zero terminal SNR, as {why} says{spacing}"
