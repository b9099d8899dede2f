from __future__ import annotations

import errno
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier, Lock

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from small_shards import SIZE, write_shards

from infid_engines.errors import InputError
from infid_engines.progress import SilentReporter
from infid_export.model.encoders import IdentityEncoder
from infid_export.model.identity import IdentityModules
from infid_export.model.processors import identity_blocks
from infid_export.model.sources import ModelSource, RandomSource
from infid_training import cache as module
from infid_training.base_model import initial_identity, open_base
from infid_training.cache import ShardedPhotos, cached_file, fill_cache
from infid_training.encode import PhotoEncoders
from infid_training.run import RunRequest, train_on_shards
from infid_training.run_estimate import estimate
from infid_training.run_options import TrainOptions
from infid_training.samples import SampleGrid, fixed_people
from infid_training.shards import PreparedPhoto, ShardIndex, read_shard

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def base() -> ModelSource:
    return open_base("demo")


@pytest.fixture
def shards(tmp_path: Path, base: ModelSource) -> Path:
    return write_shards(tmp_path / "shards", base.architecture.image_encoder["image_size"])


def fill(shards: Path, source: ModelSource) -> Path:
    with SilentReporter().stage("caching") as stage:
        fill_cache(shards, shards / "cache", source, stage, torch.device("cpu"))
    return shards / "cache"


def test_rows_are_the_frozen_networks_outputs(shards: Path, base: ModelSource) -> None:
    photos = ShardedPhotos(shards, fill(shards, base), base, "train")
    prepared = [photo for shard in ShardIndex.load(shards).of("train") for photo in read_shard(shards / shard.file)]
    assert list(photos.names) == [photo.name for photo in prepared] == [f"p{i // 2}/{i % 2}.jpg" for i in range(6)]
    assert photos.people.tolist() == [0, 0, 1, 1, 2, 2]
    order = torch.tensor([5, 0, 3])  # across both files, not ascending
    targets, references = photos.targets(order), photos.references(order)
    vae, image_encoder = (base.load(name, torch.float32) for name in ("vae", "image_encoder"))
    for row, index in enumerate(order.tolist()):
        target, face = (
            torch.from_numpy(each.copy()).permute(2, 0, 1)[None].float() / 255
            for each in (prepared[index].target, prepared[index].face)
        )
        with torch.no_grad():
            latents = vae.encode(2 * target - 1).latent_dist.mean * 0.13025  # SDXL's scaling factor
            features = image_encoder(face)
        torch.testing.assert_close(targets.latents[row], latents[0], atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(references.clip_features[row].float(), features[0], atol=1e-2, rtol=1e-2)
        assert np.array_equal(references.face_embeddings[row].numpy(), prepared[index].embedding)
        assert targets.time_ids[row].tolist() == [90, 80, 3, 0, 64, 64]
    assert targets.prompt_embeds is None


def test_with_text_the_captions_are_there(shards: Path, base: ModelSource) -> None:
    source = open_base("demo", with_text=True)
    photos = ShardedPhotos(shards, fill(shards, source), source, "train")
    targets = photos.targets(torch.arange(6))
    width = base.architecture.unet["cross_attention_dim"]
    assert targets.prompt_embeds is not None and targets.prompt_embeds.shape == (6, 77, width)
    assert targets.pooled_prompt_embeds is not None
    assert torch.equal(targets.prompt_embeds[0], targets.prompt_embeds[2])  # the same caption
    assert not torch.equal(targets.prompt_embeds[0], targets.prompt_embeds[1])


@pytest.mark.parametrize("with_text", [False, True], ids=["faces", "captions"])
def test_the_estimate_is_the_size_of_the_cache(shards: Path, with_text: bool) -> None:
    source = open_base("demo", with_text=with_text)
    cache = fill(shards, source)
    found = sum(path.stat().st_size for path in cache.iterdir())
    header = sum(8 + int.from_bytes(path.read_bytes()[:8], "little") for path in cache.iterdir())
    assert found - header == 8 * estimate(source, TrainOptions(), SIZE, 1, 100.0).cache_bytes_per_photo


def test_what_is_there_is_not_made_again(shards: Path, base: ModelSource, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = fill(shards, base)
    files = sorted(cache.iterdir())
    assert len(files) == 3

    def never(*_: object) -> None:
        raise AssertionError("the networks were loaded")

    with monkeypatch.context() as patch:
        patch.setattr(module, "PhotoEncoders", never)
        fill(shards, base)
        with pytest.raises(AssertionError):
            fill(shards, RandomSource("demo"))
        with pytest.raises(AssertionError):
            fill(shards, open_base("demo", with_text=True))
    other = write_shards(shards.parent / "other", base.architecture.image_encoder["image_size"], seed=1)
    names = [cached_file(cache, shard, "") for folder in (shards, other) for shard in ShardIndex.load(folder).shards]
    assert len(set(names)) == 6


def test_an_interrupted_cache_goes_on_and_never_shows_a_half(
    shards: Path, base: ModelSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    original = PhotoEncoders.encode

    def encode(networks: PhotoEncoders, photos: list[PreparedPhoto]) -> dict[str, torch.Tensor]:
        calls.append(len(photos))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(networks, photos)

    monkeypatch.setattr(PhotoEncoders, "encode", encode)
    with pytest.raises(KeyboardInterrupt):
        fill(shards, base)
    assert len(list((shards / "cache").iterdir())) == 1
    fill(shards, base)
    assert calls == [4, 2, 2, 2]
    assert len(list((shards / "cache").iterdir())) == 3


def test_processes_that_look_at_different_times_make_every_file(shards: Path, base: ModelSource) -> None:
    for rank in range(2):
        with SilentReporter().stage("caching") as stage:
            fill_cache(shards, shards / "cache", base, stage, torch.device("cpu"), rank, ranks=2)
    assert len(list((shards / "cache").iterdir())) == 3


def test_two_runs_at_once_share_the_work(shards: Path, base: ModelSource, monkeypatch: pytest.MonkeyPatch) -> None:
    both, loading, encoded = Barrier(2), Lock(), []

    class Encoders(PhotoEncoders):
        def __init__(self, *given: object) -> None:
            both.wait()  # both have found every file missing
            with loading:  # threads cannot do this at the same time; processes can
                super().__init__(*given)  # type: ignore[arg-type]

        def encode(self, photos: list[PreparedPhoto]) -> dict[str, torch.Tensor]:
            encoded.extend(photo.name for photo in photos)
            return super().encode(photos)

    monkeypatch.setattr(module, "PhotoEncoders", Encoders)
    with ThreadPoolExecutor() as pool:
        for filled in [pool.submit(fill, shards, base) for _ in range(2)]:
            filled.result()
    assert len(encoded) == len(set(encoded)) == 8
    assert len(list((shards / "cache").iterdir())) == 3


def test_a_shard_that_is_not_the_indexs_is_rejected(shards: Path, base: ModelSource) -> None:
    other = write_shards(shards.parent / "other", base.architecture.image_encoder["image_size"], seed=1)
    (other / "train-00001.tar").replace(shards / "train-00001.tar")
    with pytest.raises(InputError, match=r"train-00001.tar is damaged or was replaced"):
        fill(shards, base)
    assert len(list((shards / "cache").iterdir())) == 1
    (shards / "train-00001.tar").unlink()
    with pytest.raises(InputError, match=r"There is no shard .*train-00001.tar"):
        fill(shards, base)


def test_bad_caches_and_shards_are_named(shards: Path, base: ModelSource, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module, "save_file", full)
        with pytest.raises(InputError, match="is full"):
            fill(shards, base)
    assert list((shards / "cache").iterdir()) == []
    cache = fill(shards, base)
    file = cached_file(cache, ShardIndex.load(shards).shards[0], module.encoder_fingerprint(base))
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(InputError, match=r"cache file .* cannot be read"):
        ShardedPhotos(shards, cache, base, "train")
    save_file({"latents": torch.zeros(1)}, file)
    with pytest.raises(InputError, match=r"cache file .* cannot be read"):
        ShardedPhotos(shards, cache, base, "train")
    wrong = write_shards(shards.parent / "wrong", 32)
    with pytest.raises(InputError, match=r"aligned faces of 32.*needs"):
        fill(wrong, base)


def test_fresh_weights_are_the_texts_projections(base: ModelSource, tmp_path: Path) -> None:
    unet = base.load("unet", torch.float32)
    one, same, other = (initial_identity(unet, base.config, seed=seed) for seed in (0, 0, 1))
    for path in identity_blocks(unet):
        layer, attention = one.projections[path.replace(".", "/")], unet.get_submodule(path)
        assert torch.equal(layer["to_k_id"].weight, attention.to_k.weight)
        assert torch.equal(layer["to_v_id"].weight, attention.to_v.weight)
    assert torch.equal(one.clip_mapper[0].weight, same.clip_mapper[0].weight)
    assert not torch.equal(one.clip_mapper[0].weight, other.clip_mapper[0].weight)
    one.save(tmp_path / "start.safetensors")
    source = open_base("demo", initial=str(tmp_path / "start.safetensors"))
    stored = initial_identity(unet, source.config, str(tmp_path / "start.safetensors"), seed=5)
    assert torch.equal(stored.face_mapper.proj[0].weight, one.face_mapper.proj[0].weight)


def test_tokens_are_centered_where_asked_for_or_stored(base: ModelSource, tmp_path: Path) -> None:
    assert not open_base("random-sdxl").config.center_tokens
    assert open_base("random-sdxl", center_tokens=True).config.center_tokens
    assert open_base("demo").config.center_tokens  # its own weights' configuration
    unet = base.load("unet", torch.float32)
    file = str(tmp_path / "plain.safetensors")
    initial_identity(unet, replace(base.config, center_tokens=False)).save(Path(file))
    assert not open_base("demo", initial=file).config.center_tokens
    assert open_base("demo", initial=file, center_tokens=True).config.center_tokens


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere", "tag"), "not a built-in model, a folder"),
        ((".",), "is not a checkpoint in diffusers' format"),
        (("someone/sdxl",), "needs an image encoder"),
        (("demo", None, "nowhere.safetensors"), "no identity file"),
    ],
)
def test_models_that_cannot_be_opened(arguments: tuple, message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_base(*arguments)


def test_a_run_on_shards_gives_weights_and_sample_grids(shards: Path, tmp_path: Path) -> None:
    options = TrainOptions(
        steps=2, batch_size=2, validation_pairs=2, sample_every=2, checkpoint_every=2, ema_decay=0.9
    )  # fmt: skip
    request = RunRequest(shards, tmp_path / "run", options, sample_prompts=("a", "b"), sample_steps=1)
    report = train_on_shards(request)
    assert report.validation_loss is not None
    source = open_base("demo")
    unet = source.load("unet", torch.float32)
    trained = IdentityModules.load(report.identity, identity_blocks(unet))
    assert trained.config == source.config
    side = source.architecture.size + 4
    grid = Image.open(tmp_path / "run/samples/step-00000002.png")
    assert grid.size == (3 * side, 1 * side)  # the reference and two prompts, for the one person held out
    report = train_on_shards(request)
    assert report.resumed_from == 2
    with pytest.raises(InputError, match="Sample images are only drawn with --sample-every"):
        train_on_shards(RunRequest(shards, tmp_path / "other", TrainOptions(steps=1), sample_steps=3))


def test_people_with_one_photo_are_the_shards_choice(tmp_path: Path, base: ModelSource) -> None:
    crop = base.architecture.image_encoder["image_size"]
    options = TrainOptions(steps=1, batch_size=1, validate_every=0)
    for choice in ("refuse", "own-pair"):
        folder = write_shards(tmp_path / choice, crop, each=1, single_photo=choice)
        request = RunRequest(folder, tmp_path / f"run-{choice}", options)
        if choice == "refuse":
            with pytest.raises(InputError, match="3 people have only one photo"):
                train_on_shards(request)
        else:
            assert train_on_shards(request).steps == 1


def test_samples_show_the_identity_of_the_reference_photo(shards: Path, base: ModelSource) -> None:
    photos = ShardedPhotos(shards, fill(shards, base), base, "train")
    unet = base.load("unet", torch.float32)
    identity = initial_identity(unet, base.config)
    people = fixed_people(shards, photos, "train")
    assert [person.index for person in people] == [0, 2, 4]
    second = next(photo for photo in read_shard(shards / "train-00000.tar") if photo.name == photos.names[2])
    assert np.array_equal(people[1].face, second.face)
    found = SampleGrid(base, unet, photos, people)._keys_and_values(identity, 2)
    encoder = IdentityEncoder(base.load("image_encoder", torch.float32), identity)
    face = torch.from_numpy(second.face.copy()).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        _, *expected = encoder(face, torch.from_numpy(second.embedding)[None])
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-2, rtol=1e-2)  # features are stored in fp16
