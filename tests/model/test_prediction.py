"""What a UNet predicts: by the file's keys, its metadata, the folder's scheduler, or as the user says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from infid_engines.errors import InputError
from infid_export.export.build_options import BuildOptions
from infid_export.export.face_models import write_shipped
from infid_export.export.plan import make_plan
from infid_export.model.checkpoints.prediction import GivenPrediction, file_sampling, folder_sampling
from infid_export.model.checkpoints.tensor_file import TensorFile
from infid_export.sampling.noise_schedule import noise_schedule
from infid_export.sampling.samplers import sampler_table
from infid_export.sampling.scheduler_config import SDXL_SAMPLING

V, EPSILON = "v_prediction", "epsilon"


def header(tmp_path: Path, *keys: str, **metadata: str) -> TensorFile:
    tensors = {"a": torch.zeros(1), **{key: torch.zeros(0) for key in keys}}
    save_file(tensors, tmp_path / "file.safetensors", metadata=metadata)
    return TensorFile.open(tmp_path / "file.safetensors")


FILES = {
    "nothing": ((), {}, (None, False), (EPSILON, False), "nothing in the file says otherwise; if the images are noise"),
    "key": (("v_pred",), {}, (None, False), (V, False), "prediction v: the file has the key v_pred"),
    "keys": (("v_pred", "ztsnr"), {}, (None, False), (V, True), "zero terminal SNR, as the key ztsnr says"),
    "modelspec": ((), {"modelspec.prediction_type": "v"}, (None, False), (V, False), "modelspec.prediction_type = v"),
    "metadata": ((), {"prediction_type": "v_prediction"}, (None, False), (V, False), "prediction_type = v_prediction"),
    "epsilon said": ((), {"modelspec.prediction_type": "epsilon"}, (None, False), (EPSILON, False), "metadata has"),
    "v given": ((), {}, ("v", False), (V, False), "prediction v: as --prediction says"),
    "epsilon given": (
        ("v_pred", "ztsnr"), {}, ("epsilon", False), (EPSILON, False),
        "prediction epsilon: as --prediction says, although the file has the key v_pred",
    ),
    "both given": ((), {}, ("v", True), (V, True), "zero terminal SNR, as --zero-snr says, and therefore trailing"),
    "zero SNR given": (("v_pred",), {}, (None, True), (V, True), "as --zero-snr says"),
    "unknown, but given": ((), {"prediction_type": "x0"}, ("v", False), (V, False), "although the file's metadata has"),
}  # fmt: skip


@pytest.mark.parametrize("case", FILES)
def test_a_file_and_the_user_decide(tmp_path, case):
    keys, metadata, given, (prediction, zero), said = FILES[case]
    sampling, note = file_sampling(header(tmp_path, *keys, **metadata), GivenPrediction(*given))
    schedule = sampling.schedule
    assert (schedule["prediction_type"], schedule["rescale_betas_zero_snr"]) == (prediction, zero)
    assert said in note
    assert sampling.spacing == schedule["timestep_spacing"] == ("trailing" if zero else "leading")
    assert (noise_schedule(schedule).alphas_cumprod[-1] == 0) == zero
    sampler_table(schedule, 4, sampling.sampler, sampling.spacing)


def test_what_contradicts_itself_is_rejected(tmp_path):
    with pytest.raises(InputError, match="cannot predict epsilon"):
        GivenPrediction("epsilon", True)
    with pytest.raises(InputError, match="cannot predict epsilon"):
        make_plan(BuildOptions(prediction="epsilon", zero_snr=True))
    for keys, given, message in (
        (("ztsnr",), (None, False), r"file\.safetensors has zero terminal SNR, but predicts epsilon"),
        ((), (None, True), "--zero-snr was given, but the model predicts epsilon"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            file_sampling(header(tmp_path, *keys), GivenPrediction(*given))
        assert "--prediction v" in caught.value.fix
    with pytest.raises(InputError, match="prediction_type = 'x0' in its metadata"):
        file_sampling(header(tmp_path, prediction_type="x0"), GivenPrediction())


@pytest.mark.parametrize(
    ("own", "own_zero", "given", "prediction", "zero", "said"),
    [
        (EPSILON, False, (None, False), EPSILON, False, ""),
        (V, True, (None, False), V, True, ""),
        (EPSILON, False, ("v", False), V, False, "as --prediction says, in place of epsilon of the checkpoint's"),
        (V, True, ("epsilon", False), EPSILON, False, "in place of v of the checkpoint's scheduler"),
        (V, False, ("v", False), V, False, "prediction v: as --prediction says"),
        (V, False, (None, True), V, True, "as the checkpoint's scheduler says; zero terminal SNR, as --zero-snr says"),
        ("sample", False, ("epsilon", False), EPSILON, False, "in place of sample"),
    ],
)
def test_the_user_goes_before_a_folders_scheduler(own, own_zero, given, prediction, zero, said):
    schedule = {**SDXL_SAMPLING.schedule, "prediction_type": own, "rescale_betas_zero_snr": own_zero}
    found, note = folder_sampling(replace(SDXL_SAMPLING, schedule=schedule), GivenPrediction(*given))
    changed = (found.schedule["prediction_type"], found.schedule["rescale_betas_zero_snr"])
    assert changed == (prediction, zero)
    assert said in note and bool(note) == bool(said)


def test_a_folder_is_built_as_the_user_says(parts, tmp_path):
    write_shipped("recognizer", tmp_path / "recognizer.onnx")
    options = {
        "model": str(parts["base"]),
        "identity": parts["identity"],
        "image_encoder": str(parts["encoder"]),
        "recognizer": tmp_path / "recognizer.onnx",
        "backends": ("onnxruntime",),
    }
    plan = make_plan(BuildOptions(**options, prediction="v"))
    assert plan.source.scheduler["prediction_type"] == V
    assert any("in place of epsilon" in note for note in plan.notes)
    assert plan.image_key() != make_plan(BuildOptions(**options)).image_key()


@pytest.mark.parametrize(("flag", "given"), [("--prediction", {"prediction": "v"}), ("--zero-snr", {"zero_snr": True})])
def test_a_built_in_model_predicts_epsilon(flag, given):
    with pytest.raises(InputError, match=f"{flag} would have no effect: the model demo predicts epsilon"):
        make_plan(BuildOptions(**given))
