from __future__ import annotations

import errno
import math
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from infid_engines.errors import InputError, TrainingError
from infid_engines.progress import SilentReporter, Stage
from infid_export.faces.alignment import ARCFACE_TEMPLATE, align, portrait_template
from infid_export.faces.detection import _decode
from infid_export.model import shipped
from infid_export.model.architectures import DEMO, identity_config
from infid_export.model.components import construct
from infid_export.model.config import read_config
from infid_export.model.face_networks import FACE_NETWORKS, DetectorNetwork, RecognizerNetwork
from infid_export.model.shipped import ROWS, ShippedSource
from infid_export.model.sources import COMPONENTS
from infid_kernels import merged_cross_attention_reference
from infid_training.recipe import autoencoder, base, contrast, detector_stage, files, identity_stage, recognizer_stage
from infid_training.recipe.crops import aligned
from infid_training.recipe.fitting import Fit, fit
from infid_training.recipe.pictures import PICTURES, SIZE, Pictures, draw_pictures, scene_of
from infid_training.recipe.stages import Recipe
from infid_training.run_options import TrainOptions
from infid_training.world.people import person

FEW = 2
STEPS = {"vae": 12, "clip": 60, "recognizer": 25, "detector": 15, "base": 15}


@pytest.fixture(scope="module")
def stage() -> Stage:
    with SilentReporter().stage("") as found:
        return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("recipe")


@pytest.fixture(scope="module")
def pictures(folder: Path, stage: Stage) -> Pictures:
    return draw_pictures(folder, stage, people=FEW)


def new(name: str) -> nn.Module:
    torch.manual_seed(0)
    return construct(name, DEMO, identity_config(DEMO))


def test_pictures_are_drawn_once_and_none_shows_a_held_out_combination(
    pictures: Pictures, folder: Path, stage: Stage
) -> None:
    assert pictures.pixels.shape == (FEW * PICTURES, SIZE, SIZE, 3)
    assert len(pictures) == FEW * PICTURES
    written = (folder / "pixels.npy").stat().st_mtime_ns
    np.testing.assert_array_equal(draw_pictures(folder, stage, people=FEW).pixels, pictures.pixels)
    assert (folder / "pixels.npy").stat().st_mtime_ns == written
    assert not any(scene_of(index).held_out for index in range(1200))
    assert pictures.caption(0, True) == scene_of(0).caption(person(0).describe())


@pytest.mark.parametrize("name", ["pixels.npy", "landmarks.npy"])
def test_broken_pictures_are_named(name: str, folder: Path, pictures: Pictures, stage: Stage, tmp_path: Path) -> None:
    for kept in ("pixels.npy", "landmarks.npy"):
        (tmp_path / kept).write_bytes((folder / kept).read_bytes()[: 50 if kept == name else None])
    with pytest.raises(InputError, match=rf"{name} is broken.*Delete it"):
        draw_pictures(tmp_path, stage, people=FEW)


def test_a_disk_too_small_for_the_pictures_is_told_before_they_are_drawn(
    tmp_path: Path, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(InputError, match="is full"):
        draw_pictures(tmp_path, stage, people=FEW)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("template", "size"), [(portrait_template(), 224), (ARCFACE_TEMPLATE, 112)])
def test_crops_in_batches_are_the_faces_of_the_runtime(pictures: Pictures, template: np.ndarray, size: int) -> None:
    batch = aligned(pictures.pixels, pictures.marks, template, size).permute(0, 2, 3, 1).numpy() * 255
    single = np.stack(
        [align(*pair, template, size) for pair in zip(pictures.pixels, pictures.marks * SIZE - 0.5, strict=True)]
    )
    apart = np.abs(batch - single).mean()
    shifted = np.abs(np.roll(batch, 1, axis=2) - single).mean()
    assert apart < 0.6 * shifted  # the rest is the difference between bilinear and bicubic


def test_scaling_latents_gives_sdxls_deviation_and_the_same_pictures(pictures: Pictures) -> None:
    vae = new("vae").eval()
    vae.requires_grad_(False)
    before = vae.decode(autoencoder.encode(vae, pictures.pixels)).sample
    variances = vae.encode(autoencoder.to_signal(pictures.pixels)).latent_dist.std.detach()
    autoencoder.scale_latents(vae, pictures)
    latents = autoencoder.encode(vae, pictures.pixels)
    assert float(vae.config.scaling_factor * latents.std()) == pytest.approx(1.0, rel=1e-3)
    torch.testing.assert_close(vae.decode(latents).sample, before, rtol=1e-3, atol=1e-3)
    ratio = vae.encode(autoencoder.to_signal(pictures.pixels)).latent_dist.std.detach() / variances
    torch.testing.assert_close(ratio, torch.full_like(ratio, float(ratio.mean())), rtol=1e-3, atol=0)


class _Line(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 1)

    def loss(self, step: int) -> Mapping[str, Tensor]:
        inputs = torch.from_numpy(np.random.default_rng(step).standard_normal((8, 3), np.float32))
        return {"error": (self.layer(inputs) - inputs.sum(1, keepdim=True)).square().mean()}


def test_a_fit_that_was_stopped_gives_the_weights_of_one_that_was_not(
    tmp_path: Path, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infid_training.recipe.fitting._SAVED_EVERY", -1.0)
    how = Fit(steps=30, learning_rate=0.1)
    whole, stopped, resumed = _Line(), _Line(), _Line()
    fit(whole, whole.loss, how, tmp_path, "whole", stage)

    def interrupted(step: int) -> Mapping[str, Tensor]:
        if step == 17:
            raise KeyboardInterrupt
        return stopped.loss(step)

    with pytest.raises(KeyboardInterrupt):
        fit(stopped, interrupted, how, tmp_path, "other", stage)
    with pytest.raises(InputError, match=r"other\.partial\.safetensors was trained for 30 steps, not 40"):
        fit(stopped, stopped.loss, Fit(40, 0.1), tmp_path, "other", stage)
    assert not (tmp_path / "other.safetensors").exists()
    fit(resumed, resumed.loss, how, tmp_path, "other", stage)
    for name, value in load_file(tmp_path / "whole.safetensors").items():
        assert torch.equal(load_file(tmp_path / "other.safetensors")[name], value)
    assert not (tmp_path / "other.partial.safetensors").exists()
    assert float(whole.loss(99)["error"].detach()) < 0.1 * float(_Line().loss(99)["error"].detach())
    untouched = _Line()
    fit(untouched, lambda step: pytest.fail("it is done"), how, tmp_path, "whole", stage)
    assert torch.equal(untouched.layer.weight, whole.layer.weight)
    with pytest.raises(InputError, match=r"whole\.safetensors was trained for 30 steps, not 40"):
        fit(untouched, untouched.loss, Fit(40, 0.1), tmp_path, "whole", stage)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_file(
    tmp_path: Path, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infid_training.recipe.fitting._SAVED_EVERY", -1.0)
    line = _Line()

    def broken(step: int) -> Mapping[str, Tensor]:
        return {"error": line.loss(step)["error"] * (np.nan if step == 4 else 1)}

    with pytest.raises(TrainingError, match="loss of line is nan at step 4"):
        fit(line, broken, Fit(9, 0.1), tmp_path, "line", stage)
    assert (tmp_path / "line.partial.safetensors").is_file()


@pytest.mark.parametrize("name", ["net.safetensors", "net.partial.safetensors"])
@pytest.mark.parametrize("left", ["cut short", "another network's"])
def test_a_stages_file_that_cannot_be_used_is_named(name: str, left: str, tmp_path: Path, stage: Stage) -> None:
    path = tmp_path / name
    save_file({"module.other": torch.zeros(1)}, path, {"steps": "3", "step": "1"})
    if left == "cut short":
        path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(InputError, match=rf"{name} is broken.*Delete it"):
        fit(nn.Linear(1, 1), lambda step: {}, Fit(3, 1e-3), tmp_path, "net", stage)


def test_a_full_disk_leaves_no_half_of_a_stages_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: Stage
) -> None:
    def full(tensors: Mapping[str, Tensor], path: Path, metadata: object) -> None:
        path.write_bytes(b"half")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(files, "save_file", full)
    network = nn.Linear(1, 1)
    with pytest.raises(InputError, match="is full"):
        fit(network, lambda step: {"loss": network.weight.sum()}, Fit(1, 1e-3), tmp_path, "net", stage)
    assert not list(tmp_path.iterdir())


def test_a_recognizer_is_asked_for_a_margin_in_angle_and_for_the_traits() -> None:
    loss = recognizer_stage.RecognizerLoss(RecognizerNetwork(), range(5)).eval()
    faces, labels = torch.randn(3, 3, 112, 112), torch.tensor([0, 2, 4])
    with torch.autocast("cpu", torch.bfloat16):
        embedding = loss.network(faces).detach().float()
    angle = torch.acos(torch.cosine_similarity(embedding[:, None], loss.directions.detach()[None], dim=-1))
    angle[range(3), labels] += 0.3
    expected = torch.nn.functional.cross_entropy(24.0 * torch.cos(angle), labels)
    found = {name: term.detach() for name, term in loss(faces, labels).items()}
    torch.testing.assert_close(found["arcface"], expected, rtol=1e-4, atol=1e-4)
    traits = torch.from_numpy(np.stack([person(number).vector() for number in (0, 2, 4)]))
    with torch.no_grad():
        loss.reader.weight.zero_()
        loss.reader.bias.zero_()
    nothing_read = 5 * (12 * (traits - 0.5).square()).mean()
    torch.testing.assert_close(loss(faces, labels)["traits"].detach(), nothing_read)


def test_an_embedding_tells_the_traits_whatever_its_length() -> None:
    loss = recognizer_stage.RecognizerLoss(RecognizerNetwork(), range(5)).eval()
    faces, labels = torch.randn(3, 3, 112, 112), torch.tensor([0, 2, 4])
    before = loss(faces, labels)["traits"].detach()
    loss.network.head[-1].weight.data.mul_(4)
    torch.testing.assert_close(loss(faces, labels)["traits"].detach(), before)


def test_the_judge_and_the_generators_recognizer_share_no_person() -> None:
    people = [set(loss.people) for loss in recognizer_stage.recognizers(10).values()]
    assert not people[0] & people[1]
    assert people[0] | people[1] == set(range(10))


def test_the_detectors_maps_mean_what_the_runtime_reads_from_them(
    pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Maps with zero loss are decoded to exactly the given landmarks and boxes."""
    wanted: dict[str, Tensor] = {}

    def recorded(got: Tensor, to: Tensor) -> Tensor:
        wanted[("size", "offset", "landmarks")[len(wanted)]] = to
        return (got - to).abs().mean()

    monkeypatch.setattr(detector_stage, "l1_loss", recorded)
    seen: list[tuple[np.ndarray, np.ndarray]] = []
    view = detector_stage._view
    monkeypatch.setattr(detector_stage, "_view", lambda *where: seen.append(view(*where)) or seen[-1])
    detector_stage.detector_loss(DetectorNetwork(), pictures, 0)
    for row, (_, marks) in enumerate(seen):
        cells = np.zeros((1, 15, 48, 48), np.float32)
        x, y = np.floor(detector_stage.box_of(marks).mean(0) / 4).astype(int).clip(0, 47)
        cells[0, :, y, x] = np.concatenate([[1.0], *(wanted[name][row] for name in ("size", "offset", "landmarks"))])
        boxes, scores, points = _decode(cells[:, :1], cells[:, 1:3], cells[:, 3:5], cells[:, 5:])
        assert len(scores) == 1
        np.testing.assert_allclose(points[0], marks, atol=1e-2)
        np.testing.assert_allclose(boxes[0].reshape(2, 2), detector_stage.box_of(marks), atol=1e-2)


def test_where_the_face_is() -> None:
    marks = np.array([[[0.4, 0.4], [0.6, 0.4], [0.5, 0.5], [0.42, 0.6], [0.58, 0.6]]])
    area = base.face_area(marks, 32)
    assert area.shape == (1, 1, 32, 32)
    assert float(area.mean()) == pytest.approx(math.pi * 0.3**2, abs=0.01)
    assert area[0, 0, 16, 16] > 0.99
    assert area[0, 0, :3].max() < 0.01
    right = base.face_area(marks + np.array([0.125, 0.0]), 32)
    torch.testing.assert_close(right[..., 4:], area[..., :-4])


def test_the_texts_mean_is_what_adain_mean_adds_beside_centered_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "_BATCH", 2)
    unet = new("unet").eval()
    attention = unet.mid_block.attentions[0].transformer_blocks[0].attn2
    text_mean = base.TextMean(unet)
    hidden, text = torch.randn(2, 16, 128), torch.randn(2, 77, 128)
    with torch.no_grad():
        text_mean.choose(np.array([True, False]))
        found = attention(hidden, encoder_hidden_states=text)
        # one identity token whose values have mean 0, by the formula of merged cross-attention
        q, k, v = attention.to_q(hidden), attention.to_k(text), attention.to_v(text)
        heads = [each.unflatten(-1, (attention.heads, -1)).transpose(1, 2) for each in (q, k, v)]
        zeros = torch.zeros_like(heads[1][:, :, :1])
        merged = merged_cross_attention_reference(*heads, zeros, zeros, torch.ones(2), torch.tensor([1.0, 0.0]))
        torch.testing.assert_close(found, attention.to_out[0](merged.transpose(1, 2).flatten(2)))
        text_mean.remove()
        torch.testing.assert_close(attention(hidden, encoder_hidden_states=text)[1], found[1])


def test_half_of_what_the_unet_learns_from_has_a_style(pictures: Pictures, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "_BATCH", 400)
    seen: list[int] = []
    monkeypatch.setattr(Pictures, "caption", lambda _, index, __: seen.append(index) or "a photo")
    texts = base.Texts(contrast.tokenizers(), new("text_encoder"), new("text_encoder_2"))
    monkeypatch.setattr(base.Texts, "encode", lambda _, captions: (torch.zeros(400, 1, 1), torch.zeros(400, 1)))
    unet = _Still()
    loss = base.BaseLoss(unet, texts, torch.zeros(len(pictures), 4, 32, 32), pictures, base.TextMean(unet))
    loss(0)
    assert np.mean([scene_of(index).style != "photo" for index in seen]) == pytest.approx(0.5, abs=0.08)
    assert len(set(seen)) == len(pictures)


def test_every_other_step_sees_faces_alone(pictures: Pictures, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base.Texts, "encode", lambda _, captions: (torch.zeros(96, 1, 1), torch.zeros(96, 1)))
    monkeypatch.setattr(base.DDIMScheduler, "add_noise", lambda _, clean, *__: clean)
    chosen: list[int] = []
    monkeypatch.setattr(Pictures, "caption", lambda _, index, __: chosen.append(index) or "a photo")
    unet = _Still()
    texts = base.Texts(contrast.tokenizers(), new("text_encoder"), new("text_encoder_2"))
    base.BaseLoss(unet, texts, _places(len(pictures)), pictures, base.TextMean(unet))(1)
    faces, sizes = unet.latents, unet.sizes
    assert faces.shape == (96, 4, 16, 16)
    assert len(faces[:, :2, 0, 0].unique(dim=0)) > 10  # the squares move
    corners = faces[:, :2, 0, 0]
    torch.testing.assert_close(faces[:, :2, -1, -1], corners + 15)
    assert sizes[:, [0, 1]].unique().tolist() == [128]
    torch.testing.assert_close(sizes[:, [3, 2]], 4 * corners)  # top before left
    assert sizes[:, [4, 5]].unique().tolist() == [64]
    middles = torch.from_numpy(32 * pictures.marks[chosen].mean(1)) - corners
    assert ((middles > 4) & (middles < 12)).all()


def test_identity_is_learned_from_whole_photos_and_from_faces_alone(pictures: Pictures) -> None:
    numbers, unused = torch.arange(len(pictures)), torch.empty(0)
    photos = identity_stage.PhotosOfTheWorld(numbers, _places(len(pictures)), unused, unused, pictures)
    whole, faces = (photos.targets(torch.tensor([first, 5, 6])) for first in (4, 7))
    assert whole.latents.shape == (3, 4, 32, 32)
    assert whole.time_ids.tolist() == 3 * [[128, 128, 0, 0, 128, 128]]
    assert faces.latents.shape == (3, 4, 16, 16)
    for row, number in enumerate((7, 5, 6)):
        left, top = faces.latents[row, :2, 0, 0].tolist()
        assert faces.time_ids[row].tolist() == [128, 128, 4 * top, 4 * left, 64, 64]
        middle = 32 * pictures.marks[number].mean(0) - [left, top]
        assert np.all((middle > 4) & (middle < 12))
    again = photos.targets(torch.tensor([7, 5, 6]))
    assert torch.equal(again.latents, faces.latents)  # so that training resumes exactly


def _places(count: int) -> Tensor:
    """Latents that encode their own position: left and top, twice."""
    lines = torch.arange(32.0)
    return torch.stack(torch.meshgrid(lines, lines, indexing="xy")).repeat(2, 1, 1).expand(count, 4, 32, 32)


class _Still(nn.Module):
    device = torch.device("cpu")

    def forward(self, latents: Tensor, *_: Any, added_cond_kwargs: dict[str, Tensor], **__: Any) -> tuple[Tensor]:
        self.latents, self.sizes = latents, added_cond_kwargs["time_ids"]
        return (latents,)


@pytest.mark.parametrize("name", STEPS)
def test_every_stage_learns_two_people_by_heart(
    name: str, pictures: Pictures, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, stage: Stage
) -> None:
    modules = (autoencoder, contrast, recognizer_stage, detector_stage, base)
    for module, batch in zip(modules, (4, 6, 8, 4, 4), strict=True):
        monkeypatch.setattr(module, "_BATCH", batch)
    monkeypatch.setattr(base, "_FACES", 8)
    if name == "vae":
        vae = new("vae").requires_grad_(True)
        module, loss = vae, lambda step: autoencoder.autoencoder_loss(vae, pictures, step)
    elif name == "recognizer":
        taught = recognizer_stage.RecognizerLoss(RecognizerNetwork(), range(FEW))
        module, loss = taught, lambda step: recognizer_stage.recognizer_loss(taught, pictures, 0, step)
    elif name == "detector":
        detector = DetectorNetwork()
        module, loss = detector, lambda step: detector_stage.detector_loss(detector, pictures, step)
    else:
        image, *texts = (new(part) for part in ("image_encoder", "text_encoder", "text_encoder_2"))
        towers = contrast.ContrastiveTowers(image.visual, *texts).requires_grad_(True)
        words = contrast.tokenizers()
        module, loss = towers, lambda step: contrast.contrastive_loss(towers, words, pictures, step)
        if name == "base":
            unet = new("unet").requires_grad_(True)
            latents = torch.randn(len(pictures), 4, 32, 32, generator=torch.Generator().manual_seed(0)).half()
            module = unet
            loss = base.BaseLoss(unet, base.Texts(words, *texts), latents, pictures, base.TextMean(unet))
    seen = []

    def recorded(step: int) -> Mapping[str, Tensor]:
        terms = loss(step)
        seen.append(float(torch.stack([term.detach() for term in terms.values()]).sum()))
        return terms

    fit(module, recorded, Fit(STEPS[name], learning_rate=2e-3), tmp_path, name, stage)
    assert np.mean(seen[-4:]) < 0.9 * np.mean(seen[:4])


def test_the_recipe_makes_every_file_and_then_nothing_more(
    pictures: Pictures, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (autoencoder, contrast, recognizer_stage, detector_stage, base):
        monkeypatch.setattr(module, "FIT", Fit(1, 1e-3))
        monkeypatch.setattr(module, "_BATCH", 4)
    monkeypatch.setattr(
        identity_stage, "OPTIONS", TrainOptions(steps=2, batch_size=2, learning_rate=1e-3, validate_every=0)
    )
    recipe = Recipe(folder, "cpu", SilentReporter(), people=FEW, compiled=False)
    assert {file.stem for file in recipe.run()} == {*COMPONENTS, *FACE_NETWORKS}
    recipe = replace(recipe, ablation=True)
    files = recipe.run()
    assert {file.stem for file in files} == {*COMPONENTS, *FACE_NETWORKS, "identity-with-text"}
    written = {file: file.stat().st_mtime_ns for file in folder.glob("*.*")}
    stages = {"vae", "clip", "recognizer", "facenet", "detector", "base", "identity", "identity-with-text"}
    assert stages <= {file.stem for file in written}
    assert not list(folder.glob("*partial*"))
    assert recipe.run() == files
    assert {file: file.stat().st_mtime_ns for file in folder.glob("*.*")} == written
    _check_packed(folder, recipe.base(pictures, recipe.towers(pictures), torch.empty(0)), monkeypatch)


def _check_packed(folder: Path, unet: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package loads what was packed, except for fp16 rounding and words that are in no caption."""
    packed = folder / "demo"
    monkeypatch.setattr(shipped, "FILES", packed)
    source = ShippedSource()
    assert read_config(packed / "identity-with-text.safetensors").trained_with_text
    assert not source.config.trained_with_text
    for name, weight in source.load("unet", torch.float16).named_parameters():
        assert torch.equal(weight, unet.get_parameter(name).half())
    for name in COMPONENTS:
        assert source.load(name, torch.float32)
    towers, words = load_file(folder / "clip.safetensors"), load_file(packed / "text_encoder.safetensors")
    key = "embeddings.token_embedding.weight"
    rows = words[f"{key}{ROWS}"].long()
    assert torch.equal(words[key], towers[f"text_encoder.{key}"][rows].half())
    assert {49406, 49407} < set(rows.tolist()) and len(rows) < 80
    for name, network in FACE_NETWORKS.items():
        assert shipped.load_shipped(network(), name)


def test_faces_are_read_as_the_runtime_reads_them(pictures: Pictures) -> None:
    encoder, network = new("image_encoder").eval(), RecognizerNetwork().eval()
    with torch.no_grad():
        features, embeddings = identity_stage.read_faces(encoder, network, pictures.pixels[:2], pictures.marks[:2])
        for row in range(2):
            photo, marks = pictures.pixels[row], pictures.marks[row] * SIZE - 0.5
            crop, face = align(photo, marks, portrait_template(), 224), align(photo, marks, ARCFACE_TEMPLATE, 112)
            expected = encoder(torch.from_numpy(crop.astype(np.float32).transpose(2, 0, 1)[None] / 255))
            assert torch.cosine_similarity(features[row].flatten(), expected.flatten(), dim=0) > 0.98
            wanted = network(torch.from_numpy((face.astype(np.float32).transpose(2, 0, 1)[None] - 127.5) / 127.5))[0]
            assert torch.cosine_similarity(embeddings[row], wanted, dim=0) > 0.98
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(2))
