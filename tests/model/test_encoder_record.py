from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_face_models import write_recognizer

from infid_engines.errors import InputError
from infid_export.export.build_options import BuildOptions
from infid_export.export.face_models import write_shipped
from infid_export.export.plan import make_plan
from infid_export.faces.recognition import ArcFaceRecognizer
from infid_export.model.checkpoints.folder_source import CheckpointSource
from infid_export.model.encoder_match import encoder_notes, encoders_of
from infid_export.model.encoder_record import ENCODERS_KEY, EncoderRecord
from infid_export.model.identity import IdentityModules
from infid_export.model.processors import identity_blocks
from infid_export.model.shipped import fingerprint
from infid_export.model.sources import RandomSource

OWN = ("a" * 64, "arcface_r50.onnx")


@pytest.fixture
def trained(source: RandomSource) -> EncoderRecord:
    return encoders_of(source, *OWN, "centerface")


def saved(folder: Path, source: RandomSource, record: EncoderRecord | None) -> Path:
    identity = source.load("identity", torch.float32)
    identity.encoders = record
    identity.save(folder / "identity.safetensors")
    return folder / "identity.safetensors"


def test_the_record_is_kept_in_the_file(source: RandomSource, trained: EncoderRecord, tmp_path: Path) -> None:
    path = saved(tmp_path, source, trained)
    assert EncoderRecord.read(path) == trained
    loaded = IdentityModules.load(path, identity_blocks(source.empty("unet")))
    loaded.save(tmp_path / "again.safetensors")
    assert EncoderRecord.read(tmp_path / "again.safetensors") == trained
    assert EncoderRecord.read(saved(tmp_path, source, None)) is None


def test_the_same_encoders_need_no_word(source: RandomSource, trained: EncoderRecord, tmp_path: Path) -> None:
    assert encoder_notes(source, saved(tmp_path, source, trained), OWN, "centerface", allow_others=False) == ()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recognizer": "b" * 64, "recognizer_name": "glint.onnx"},
         r"trained with the recognizer glint\.onnx \(b{12}…\), not arcface_r50\.onnx \(a{12}…\)\. Give the encoders"),
        ({"image_encoder": "b" * 64, "image_encoder_name": "vit.pt"},
         r"trained with the image encoder vit\.pt \(b{12}…\), not the demo model's \(\w{12}…\)\. Give the encoders"),
        ({"recognizer": "b" * 64, "image_encoder": "c" * 64}, "the recognizer .*, and with the image encoder .* not"),
    ],
    ids=["recognizer", "image-encoder", "both"],
)  # fmt: skip
def test_other_encoders_are_rejected_by_both_names(
    source: RandomSource, trained: EncoderRecord, tmp_path: Path, changes: dict[str, str], message: str
) -> None:
    path = saved(tmp_path, source, replace(trained, **changes))
    with pytest.raises(InputError, match=message) as caught:
        encoder_notes(source, path, OWN, "centerface", allow_others=False)
    assert str(path) in caught.value.problem
    notes = encoder_notes(source, path, OWN, "centerface", allow_others=True)
    assert len(notes) == len(changes) // 2 or len(notes) == 2


def test_what_is_not_known_is_noted(source: RandomSource, trained: EncoderRecord, tmp_path: Path) -> None:
    def notes(record: EncoderRecord | None) -> str:
        return " ".join(encoder_notes(source, saved(tmp_path, source, record), OWN, "centerface", allow_others=False))

    assert "do not say which recognizer and image encoder" in notes(None)
    assert notes(replace(trained, recognizer="", recognizer_name="")).endswith("with an unnamed recognizer")
    assert notes(replace(trained, recognizer="", recognizer_name="buffalo_l")).endswith(
        "with the recognizer buffalo_l; whether arcface_r50.onnx is the same is not checked"
    )
    assert notes(replace(trained, detector="drawn")).endswith("on faces that drawn found, not centerface")
    tag = replace(trained, image_encoder="tag ViT-H-14 laion", image_encoder_name="open_clip's laion")
    assert notes(tag).endswith(
        "with the image encoder open_clip's laion; whether the demo model's is the same is not checked"
    )


def test_tags_of_open_clip_are_compared_with_each_other(source: RandomSource) -> None:
    checkpoint = CheckpointSource.__new__(CheckpointSource)
    checkpoint.config, checkpoint.image_encoder, checkpoint.name = source.config, "laion2b_s32b_b79k", "sdxl"
    checkpoint.image_encoder_file = None
    found = encoders_of(checkpoint, *OWN, "centerface")
    assert found.image_encoder == f"tag {source.config.image_encoder} laion2b_s32b_b79k"
    assert found.image_encoder_name == "open_clip's laion2b_s32b_b79k"


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", '{"recognizer": 3}', '{"color": "red"}'])
def test_a_record_that_cannot_be_read_is_rejected(source: RandomSource, tmp_path: Path, text: str) -> None:
    path = saved(tmp_path, source, None)
    metadata = {"infid_config": json.dumps(source.config.to_dict()), ENCODERS_KEY: text}
    save_file(load_file(path), path, metadata=metadata)
    with pytest.raises(InputError, match="record of its encoders cannot be read"):
        EncoderRecord.read(path)
    with pytest.raises(InputError, match="record of its encoders cannot be read"):
        IdentityModules.load(path, identity_blocks(source.empty("unet")))


def test_the_demo_models_weights_belong_to_its_recognizer(tmp_path: Path) -> None:
    own, other = tmp_path / "own.onnx", write_recognizer(tmp_path / "other.onnx")
    write_shipped("recognizer", own)
    assert ArcFaceRecognizer(own).fingerprint == fingerprint("recognizer")  # whatever the exporter's version writes
    make_plan(BuildOptions(tmp_path / "engines", recognizer=own, backends=("onnxruntime",)))
    with pytest.raises(InputError, match=r"The demo model's identity weights were trained with .* not other\.onnx"):
        make_plan(BuildOptions(tmp_path / "engines", recognizer=other, backends=("onnxruntime",)))
    plan = make_plan(
        BuildOptions(tmp_path / "engines", recognizer=other, backends=("onnxruntime",), allow_other_encoders=True)
    )
    assert any("not other.onnx" in note for note in plan.notes)


def test_a_recognizer_with_pixels_of_its_own_makes_another_model(tmp_path: Path) -> None:
    """People enrolled before its scaling was detected have different embeddings, and must be enrolled again."""
    raw = write_recognizer(tmp_path / "raw.onnx", start=[("Sub", 127.5), ("Mul", 1 / 127.5)])
    options = BuildOptions(tmp_path / "e", recognizer=raw, backends=("onnxruntime",), allow_other_encoders=True)
    plan = make_plan(options)
    assert plan.files["faces/recognizer.onnx"].key_fields["pixels"] == "raw"
    assert any("pixels raw" in note for note in plan.notes)
