from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_run import OPTIONS, losses, small_identity, small_photos, small_run, small_unet

from infid_engines.atomic_files import locked
from infid_engines.documents import sealed
from infid_engines.errors import InputError, TrainingError
from infid_engines.manifest import sha256_file
from infid_engines.tensor_seal import SEAL_KEY
from infid_export.model.identity import IdentityModules
from infid_export.model.processors import identity_blocks
from infid_training import loop, run_checkpoint, stepper
from infid_training.batches import BatchSampler
from infid_training.loop import train
from infid_training.loss import identity_loss
from infid_training.stepper import Stepper

pytestmark = pytest.mark.usefixtures("one_thread")


def snapshot(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize("with_text", [False, True], ids=["paper", "with-text"])
def test_only_mappers_and_projections_change_and_all_of_them(tmp_path: Path, with_text: bool) -> None:
    unet = small_unet()
    identity = small_identity(unet, trained_with_text=with_text)
    frozen, start = snapshot(unet), snapshot(identity)
    report = train(unet, identity, small_photos(with_text=with_text), replace(OPTIONS, steps=2), tmp_path)
    assert [name for name, tensor in unet.state_dict().items() if not torch.equal(tensor, frozen[name])] == []
    assert [name for name, tensor in identity.state_dict().items() if torch.equal(tensor, start[name])] == []
    assert not any(parameter.requires_grad for parameter in (*unet.parameters(), *identity.parameters()))
    saved = IdentityModules.load(report.identity, identity_blocks(unet))
    assert saved.config == identity.config
    for name, tensor in saved.state_dict().items():
        torch.testing.assert_close(tensor, identity.state_dict()[name], rtol=0, atol=0)


def test_the_loss_falls_on_one_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same noise is used in every step: a frozen UNet with random weights cannot be guided further."""
    original = BatchSampler.batch
    monkeypatch.setattr(BatchSampler, "batch", lambda sampler, *_: original(sampler, 0))
    small_run(tmp_path, steps=80, batch_size=1, learning_rate=2e-2, checkpoint_every=80, validate_every=0)
    found = losses(tmp_path)
    assert found[80] < 0.95 * found[1], (found[1], found[80])


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"accumulation": 2, "ema_decay": 0.9, "lr_schedule": "cosine", "warmup_steps": 2},
        {"precision": "bf16", "gradient_checkpointing": True},
    ],
    ids=["plain", "accumulated", "bf16"],
)
def test_a_stopped_run_goes_on_to_the_same_losses_and_weights(
    tmp_path: Path, changes: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    small_run(whole, **changes)
    original = Stepper.step
    for stopped_at in (3, 5):

        def stop(run: Stepper, step: int, last: int = stopped_at) -> tuple[float, float, float]:
            if step == last:
                raise KeyboardInterrupt
            return original(run, step)

        monkeypatch.setattr(Stepper, "step", stop)
        with pytest.raises(KeyboardInterrupt):
            small_run(parts, **changes)
    monkeypatch.undo()
    assert small_run(parts, **changes).resumed_from == 4
    assert losses(parts) == losses(whole)
    assert (parts / "log.jsonl").read_text() == (whole / "log.jsonl").read_text()
    assert_equal_files(parts, whole)


def assert_equal_files(one: Path, other: Path) -> None:
    names = sorted(str(path.relative_to(one)) for path in one.rglob("*.safetensors"))
    assert names == sorted(str(path.relative_to(other)) for path in other.rglob("*.safetensors"))
    for name in names:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def test_a_killed_run_goes_on_to_the_same_losses(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    options = {"steps": 25, "checkpoint_every": 1, "validate_every": 0}
    small_run(whole, **options)
    command = [sys.executable, str(Path(__file__).with_name("small_run.py")), str(killed), json.dumps(options)]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    log = killed / "log.jsonl"
    while not (log.is_file() and len(log.read_text().splitlines()) >= 5):
        assert process.poll() is None  # or it has finished all of its steps
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 0 < small_run(killed, **options).resumed_from < 25
    assert losses(killed) == losses(whole)
    assert_equal_files(killed, whole)
    assert list(killed.rglob(".*.partial")) == []


def test_the_last_checkpoints_are_kept(tmp_path: Path) -> None:
    small_run(tmp_path, steps=5, checkpoint_every=1, keep=2, ema_decay=0.5)
    folders = sorted((tmp_path / "checkpoints").iterdir())
    assert [folder.name for folder in folders] == ["step-00000004", "step-00000005"]
    assert {path.name for path in folders[0].iterdir()} == {
        "identity.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json"
    }  # fmt: skip
    assert (tmp_path / "identity.safetensors").read_bytes() == (folders[1] / "ema.safetensors").read_bytes()


def test_references_that_are_not_seen_are_zeros(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []

    def watch(unet: Any, identity: Any, noisy: Any, noise: Any, steps: Any, *features: Any) -> torch.Tensor:
        rows = [feature.flatten(1).abs().amax(1) > 0 for feature in features[:2]]
        assert torch.equal(*rows)
        seen.append(rows[0])
        return identity_loss(unet, identity, noisy, noise, steps, *features)

    monkeypatch.setattr(stepper, "identity_loss", watch)
    small_run(tmp_path, steps=20, identity_dropout=0.5, validate_every=0)
    sampler = BatchSampler(small_photos(), OPTIONS.seed, OPTIONS.batch_size, dropout=0.5)
    assert [rows.tolist() for rows in seen] == [sampler.batch(step).kept.tolist() for step in range(20)]
    assert 0.2 < float(torch.cat(seen).float().mean()) < 0.8


def test_the_moving_average(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []
    original = Stepper.step

    def watch(run: Stepper, step: int) -> tuple[float, float, float]:
        seen.append(run.trained.identity.clip_mapper[0].weight.detach().clone())
        return original(run, step)

    monkeypatch.setattr(Stepper, "step", watch)
    small_run(tmp_path, steps=3, ema_decay=0.15, checkpoint_every=3)
    folder = tmp_path / "checkpoints/step-00000003"
    seen.append(load_file(folder / "identity.safetensors")["clip_mapper.0.weight"])
    average = seen[0]
    for step, weight in enumerate(seen[1:]):
        decay = min(0.15, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * weight
    torch.testing.assert_close(load_file(folder / "ema.safetensors")["clip_mapper.0.weight"], average)


def test_accumulated_passes_are_one_step_over_all_of_them(tmp_path: Path) -> None:
    """The passes of a step use different noise from one large pass, so the mean of the losses is compared."""
    unet = small_unet()
    run = Stepper(
        loop.Accelerator(mixed_precision="no", cpu=True), unet, small_identity(unet), small_photos(),
        replace(OPTIONS, accumulation=3, learning_rate=0.0),
    )  # fmt: skip
    expected = []
    for part in range(3):
        loss = run.loss_of(run._loss, small_photos(), run.sampler.batch(0, 0, part))
        (loss / 3).backward()
        expected.append(float(loss.detach()))
    norm = float(torch.nn.utils.clip_grad_norm_(run.trained.identity.parameters(), 1e9))
    run.trained.optimizer.zero_grad()
    found = run.step(0)
    assert found[0] == pytest.approx(sum(expected) / 3)
    assert found[1] == pytest.approx(norm, rel=1e-5)


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_what_is_not_finite_stops_the_run_and_names_the_photos(
    tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_run(tmp_path, steps=4)
    before = {path.name: path.read_bytes() for path in (tmp_path / "checkpoints/step-00000004").iterdir()}
    if what == "loss":
        original = Stepper.loss_of
        monkeypatch.setattr(Stepper, "loss_of", lambda *given: original(*given) * torch.nan)
    else:
        monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *given: torch.tensor(torch.inf))
    with pytest.raises(
        TrainingError, match=rf"{what}.* of step 5 is not finite.*person-\d/\d.png -> person-\d"
    ) as error:
        small_run(tmp_path, steps=8)
    assert "nan" in error.value.problem or what == "gradient"
    assert {path.name: path.read_bytes() for path in (tmp_path / "checkpoints/step-00000004").iterdir()} == before
    monkeypatch.undo()
    assert small_run(tmp_path, steps=8).resumed_from == 4


def test_a_gradient_that_is_not_finite_may_be_of_any_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *given: torch.tensor(torch.inf))
    with pytest.raises(TrainingError, match="gradient of step 1 is not finite") as error:
        small_run(tmp_path, accumulation=3)
    sampler = BatchSampler(
        small_photos(), OPTIONS.seed, OPTIONS.batch_size, accumulation=3, dropout=OPTIONS.identity_dropout
    )
    pairs = [name for part in range(3) for name in sampler.names(sampler.batch(0, 0, part))]
    assert error.value.problem.endswith(f"Its pairs were: {', '.join(pairs)}.")
    assert "Run the same command again with `--learning-rate 5e-05`" in error.value.fix


def test_a_scaler_that_leaves_out_every_step_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with fp16 on a GPU, the loss is finite but its gradient is not."""
    scaler, loss_of = torch.amp.GradScaler, Stepper.loss_of

    def steep(run: Stepper, *given: Any) -> torch.Tensor:
        return loss_of(run, *given) + (0 * run.trained.identity.clip_mapper[0].bias.sum()).sqrt()

    with monkeypatch.context() as patch:
        patch.setattr(torch.amp, "GradScaler", lambda device, enabled: scaler(device, enabled=True))
        patch.setattr(Stepper, "loss_of", steep)
        assert small_run(tmp_path, steps=4).loss is not None
        with pytest.raises(TrainingError, match="After 20 skipped steps, the gradient of step 25 is not"):
            small_run(tmp_path, steps=30)
    records = [
        json.loads(line, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
        for line in (tmp_path / "log.jsonl").read_text().splitlines()
    ]
    assert {record["gradient_norm"] for record in records if "gradient_norm" in record} == {None}


def test_full_memory_says_what_needs_less(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 2.00 MiB. GPU 0 has a total capacity of 9 GiB"
        )

    monkeypatch.setattr(Stepper, "loss_of", full)
    with pytest.raises(TrainingError, match=r"^CUDA out of memory. Tried to allocate 2.00 MiB. Run") as error:
        small_run(tmp_path)
    for flag in ("--batch-size", "--gradient-checkpointing", "--accumulation"):
        assert flag in error.value.fix


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": 1}, "seed: 0 -> 1"),
        ({"batch_size": 1, "accumulation": 2}, "accumulation: 1 -> 2; batch_size: 2 -> 1"),
        ({"lr_schedule": "cosine"}, "lr_schedule: constant -> cosine"),
    ],
)
def test_other_options_are_rejected_by_name(tmp_path: Path, changes: dict, named: str) -> None:
    small_run(tmp_path, steps=2)
    with pytest.raises(InputError, match=named):
        small_run(tmp_path, **changes)
    small_run(tmp_path, keep=1, log_every=2)  # these do not affect the loss


def test_other_photos_and_another_model_are_rejected(tmp_path: Path) -> None:
    small_run(tmp_path, steps=2)
    with pytest.raises(InputError, match="photos: "):
        small_run(tmp_path, photos=small_photos(seed=5))
    unet = small_unet(block_out_channels=[32, 32, 96], attention_head_dim=[1, 1, 3])
    with pytest.raises(InputError, match=r"cross-attention blocks: \d+ of \d+ channels -> "):
        train(unet, small_identity(unet), small_photos(), OPTIONS, tmp_path)
    unet = small_unet()
    with pytest.raises(InputError, match="holds a run of 2 steps"):
        train(unet, small_identity(unet), small_photos(), OPTIONS, tmp_path, resume=False)
    with pytest.raises(InputError, match="has already made 2 steps"):
        small_run(tmp_path, steps=1)


@pytest.mark.parametrize("name", [run_checkpoint.STATE, run_checkpoint.OPTIMIZER, run_checkpoint.WEIGHTS])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, name: str) -> None:
    small_run(tmp_path, steps=2)
    path = tmp_path / "checkpoints/step-00000002" / name
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match=f"{name} cannot be read .*Remove this checkpoint's folder, {path.parent}"):
        small_run(tmp_path)


def sign(path: Path) -> None:
    """Record a file's hash in a checkpoint's state, as if the checkpoint had been written with it."""
    state = path.parent / run_checkpoint.STATE
    document = json.loads(state.read_text())
    document["files"][path.name] = sha256_file(path)
    state.write_text(json.dumps(sealed(document)))


@pytest.mark.parametrize("name", [run_checkpoint.WEIGHTS, run_checkpoint.OPTIMIZER, run_checkpoint.STATE])
def test_one_changed_bit_of_a_checkpoint_is_damage(tmp_path: Path, name: str) -> None:
    small_run(tmp_path, steps=4)
    path = tmp_path / "checkpoints/step-00000004" / name
    content = bytearray(path.read_bytes())
    content[-8] ^= 2
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"{name} cannot be read .*Remove this checkpoint's folder"):
        small_run(tmp_path)


@pytest.mark.parametrize(
    ("name", "key", "tensor", "reason"),
    [
        (run_checkpoint.OPTIMIZER, "face_mapper.norm.bias.exp_avg", torch.zeros(3), r"exp_avg is \[3\], not \[32\]"),
        (run_checkpoint.OPTIMIZER, "face_mapper.norm.bias.exp_avg_sq", None, "face_mapper.norm.bias lacks exp_avg_sq"),
        (run_checkpoint.OPTIMIZER, "other.exp_avg", torch.zeros(3), "other"),
        (run_checkpoint.WEIGHTS, "face_mapper.norm.bias", torch.zeros(3), r"has shape \[3\]"),
        (run_checkpoint.WEIGHTS, "face_mapper.norm.bias", None, "lacks tensors: face_mapper.norm.bias"),
    ],
)
def test_another_runs_tensors_are_damage(
    tmp_path: Path, name: str, key: str, tensor: torch.Tensor | None, reason: str
) -> None:
    small_run(tmp_path, steps=4)
    path = tmp_path / "checkpoints/step-00000004" / name
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    tensors.pop(key, None)
    unsealed = {name: value for name, value in (metadata or {}).items() if name != SEAL_KEY}
    save_file(tensors if tensor is None else {**tensors, key: tensor}, path, unsealed)
    sign(path)
    with pytest.raises(InputError, match=f"{name} cannot be read .*{reason}.*Remove this checkpoint's folder"):
        small_run(tmp_path)
    shutil.rmtree(path.parent)
    assert small_run(tmp_path).resumed_from == 2


def test_weights_of_another_configuration_are_damage(tmp_path: Path) -> None:
    small_run(tmp_path, steps=2)
    path = tmp_path / "checkpoints/step-00000002" / run_checkpoint.WEIGHTS
    small_identity(small_unet(), center_tokens=True).save(path)
    sign(path)
    with pytest.raises(InputError, match=r"cannot be read .*center_tokens: true -> false.*Remove this checkpoint's"):
        small_run(tmp_path)


def test_folders_that_only_look_like_checkpoints_are_left_alone(tmp_path: Path) -> None:
    small_run(tmp_path, steps=2)
    for name in ("step-backup", "step-00000004 copy", "step-4", "step-"):
        (tmp_path / "checkpoints" / name).mkdir()
    assert small_run(tmp_path, keep=1).resumed_from == 2
    assert len(list((tmp_path / "checkpoints").iterdir())) == 5


@pytest.mark.parametrize("fails", ["save_file", "mkdir"])
def test_a_full_disk_leaves_the_last_checkpoint(tmp_path: Path, fails: str, monkeypatch: pytest.MonkeyPatch) -> None:
    small_run(tmp_path, steps=2)

    def full(first: object, *_: object, **__: object) -> None:
        if fails == "save_file":
            raise run_checkpoint.SafetensorError("I/O error: No space left on device (os error 28)")
        if not (isinstance(first, Path) and first.is_dir()):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(*((run_checkpoint, "save_file") if fails == "save_file" else (Path, "mkdir")), full)
    with pytest.raises(InputError, match=r"The disk with .*step-00000004 is full \(\d+\.\d\d GB free\)"):
        small_run(tmp_path, steps=4)
    monkeypatch.undo()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000002"]
    assert small_run(tmp_path, steps=4).resumed_from == 2


@pytest.mark.parametrize("name", ["identity.safetensors", "log.jsonl", "checkpoints/other.ckpt"])
def test_a_folder_of_other_files_is_rejected_and_left_as_it_is(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("of something else")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match="holds files, but no run"):
        small_run(tmp_path)
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / name).read_text() == "of something else"


def test_a_run_that_was_stopped_before_its_first_checkpoint_begins_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".hidden").touch()
    original = Stepper.step
    with monkeypatch.context() as patch:
        patch.setattr(Stepper, "step", lambda run, step: 1 / 0 if step else original(run, step))
        with pytest.raises(ZeroDivisionError):
            small_run(tmp_path)
    assert (tmp_path / "log.jsonl").read_text()
    assert small_run(tmp_path).resumed_from == 0


def test_a_finished_run_has_the_losses_of_its_log(tmp_path: Path) -> None:
    first, again = small_run(tmp_path), small_run(tmp_path)
    assert again == replace(first, resumed_from=6)
    assert again.loss == losses(tmp_path)[6]


def test_two_runs_in_one_folder_are_rejected(tmp_path: Path) -> None:
    with locked(tmp_path / loop.LOCK), pytest.raises(InputError, match="Another process is training in"):
        small_run(tmp_path)


def test_fp16_needs_a_gpu(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("lacks a machine without a GPU")
    with pytest.raises(InputError, match="fp16 training needs a GPU"):
        small_run(tmp_path, precision="fp16")
    with pytest.raises(InputError, match="adamw8bit needs a GPU"):
        small_run(tmp_path, optimizer="adamw8bit")


def test_samples_are_asked_for_with_the_moving_average(tmp_path: Path) -> None:
    unet, asked = small_unet(), []
    identity = small_identity(unet)
    options = replace(OPTIONS, sample_every=4, ema_decay=0.5)
    train(unet, identity, small_photos(), options, tmp_path, sample=lambda *given: asked.append(given))
    assert [(step, folder) for step, _, folder in asked] == [(4, tmp_path / "samples"), (6, tmp_path / "samples")]
    assert all(modules is not identity for _, modules, _ in asked)


def test_two_processes_average_their_gradients(tmp_path: Path) -> None:
    """They are started as by torchrun; this process computes the same two steps by hand."""
    options = replace(OPTIONS, steps=2, batch_size=1, validate_every=2, checkpoint_every=2, learning_rate=1e-3)
    changes = {name: getattr(options, name) for name in ("steps", "batch_size", "validate_every", "learning_rate")}
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
        str(Path(__file__).with_name("small_run.py")), str(tmp_path), json.dumps(changes),
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    unet, photos = small_unet(), small_photos()
    run = Stepper(loop.Accelerator(mixed_precision="no", cpu=True), unet, small_identity(unet), photos, options)
    sampler = BatchSampler(photos, options.seed, rows=1, processes=2)
    identity, optimizer = run.trained.identity, run.trained.optimizer
    expected = {}
    for step in range(2):
        parts = [run.loss_of(run._loss, photos, sampler.batch(step, rank)) for rank in range(2)]
        (sum(parts) / 2).backward()
        torch.nn.utils.clip_grad_norm_(identity.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        expected[step + 1] = sum(float(part.detach()) for part in parts) / 2
    assert losses(tmp_path) == pytest.approx(expected, rel=1e-5)
    saved = load_file(tmp_path / "identity.safetensors")
    torch.testing.assert_close(
        saved["clip_mapper.0.weight"], identity.clip_mapper[0].weight.detach(), rtol=1e-4, atol=1e-6
    )


def test_photos_of_other_networks_are_rejected(tmp_path: Path) -> None:
    photos = small_photos()
    with pytest.raises(InputError, match=r"clip_features have shape \[4, 16\]; the identity modules take \[5, 16\]"):
        small_run(tmp_path, photos=replace(photos, clip_features=photos.clip_features[:, 1:]))
    unet = small_unet()
    with pytest.raises(InputError, match="needs the captions' embeddings"):
        train(unet, small_identity(unet, trained_with_text=True), photos, OPTIONS, tmp_path)
    with pytest.raises(InputError, match=r"`people` has 9 photos, but the others have \{'latents': 8\}"):
        replace(photos, latents=photos.latents[1:])
