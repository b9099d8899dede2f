"""Weights are loaded completely, or the error names the bad tensors."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from infid_engines.errors import InputError
from infid_export.export.weights import WeightsLayout
from infid_export.model.architectures import Sampling
from infid_export.model.checkpoints.folder import read_checkpoint
from infid_export.model.checkpoints.folder_source import CheckpointSource
from infid_export.model.checkpoints.loading import load_image_encoder, load_network
from infid_export.model.identity import IdentityModules
from infid_export.model.opening import open_source
from infid_export.model.processors import identity_blocks
from infid_export.model.reference_pipeline import InfiniteIDPipeline
from infid_training.base_model import open_base

State = dict[str, Tensor]


@pytest.fixture
def base(parts: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the checkpoint whose files may be replaced, but not modified."""
    return shutil.copytree(parts["base"], tmp_path / "base", copy_function=os.link)


def opened(parts: dict[str, Path], base: Path, **changed: Path) -> CheckpointSource:
    given = {**parts, **changed}
    source = open_source(str(base), identity=given["identity"], image_encoder=str(given["encoder"]))
    assert isinstance(source, CheckpointSource)
    return source


def weights_of(base: Path, component: str) -> Path:
    (path,) = (base / component).glob("*.safetensors")
    return path


def rewrite(path: Path, change: Callable[[State], State]) -> None:
    state = change(load_file(path))
    path.unlink()
    save_file({name: value.contiguous() for name, value in state.items()}, path, metadata={"format": "pt"})


def set_json(path: Path, **fields: object) -> None:
    values = json.loads(path.read_text())
    path.unlink()
    path.write_text(json.dumps({**values, **fields}))


NETWORKS = ("unet", "vae", "text_encoder", "text_encoder_2")
KEY = {
    "unet": "conv_in.weight",
    "vae": "decoder.conv_in.weight",
    "text_encoder": "final_layer_norm.weight",
    "text_encoder_2": "text_projection.weight",
}


def without(state: State, key: str) -> State:
    return {name: value for name, value in state.items() if name != key}


CHANGES: dict[str, Callable[[State, str], State]] = {
    "missing": without,
    "missing and unexpected": lambda state, key: {
        **without(state, key), key.replace(".weight", ".base_layer.weight"): state[key]
    },
    "unexpected": lambda state, key: {**state, "foreign.weight": torch.zeros(3)},
    "of another shape": lambda state, key: {**state, key: torch.zeros(3, *state[key].shape)},
}  # fmt: skip


@pytest.mark.parametrize("problem", CHANGES)
@pytest.mark.parametrize("component", NETWORKS)
def test_weights_that_do_not_fit_are_named(base, component, problem):
    key = KEY[component]
    rewrite(weights_of(base, component), lambda state: CHANGES[problem](state, key))
    with pytest.raises(InputError) as caught:
        load_network(base, component, torch.float32)
    named = "foreign.weight" if problem == "unexpected" else key.removesuffix(".weight")
    assert f"{component} weights" in caught.value.problem
    assert problem.split()[0] in caught.value.problem
    assert named in caught.value.problem
    assert ("Merge the adapter" in caught.value.fix) == (problem == "missing and unexpected")


@pytest.mark.parametrize("component", ["text_encoder", "text_encoder_2"])
def test_text_encoders_are_loaded_as_sdxls_own_files_name_their_tensors(base, source, component):
    """The names have a prefix that some versions of transformers use and others do not."""

    def prefixed(state: State) -> State:
        plain = {name.removeprefix("text_model."): value for name, value in state.items()}
        return {name if "projection" in name else f"text_model.{name}": value for name, value in plain.items()}

    rewrite(weights_of(base, component), prefixed)
    expected = dict(source.weights(component, torch.float32))
    found = dict(load_network(base, component, torch.float32).named_parameters())
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_names_without_effect_are_allowed(base):
    extra = {
        "text_model.embeddings.position_ids": torch.arange(77)[None],
        "text_projection.weight": torch.zeros(64, 64),
    }
    rewrite(weights_of(base, "text_encoder"), lambda state: {**state, **extra})
    load_network(base, "text_encoder", torch.float32)


@pytest.mark.parametrize(
    ("component", "value"),
    [
        ("unet", math.nan),
        ("vae", math.inf),
        ("vae", 70_000.0),
        ("text_encoder", math.nan),
        ("text_encoder_2", 70_000.0),
    ],
)
def test_values_that_are_not_finite_in_their_type_are_named(base, component, value):
    key = KEY[component]
    rewrite(weights_of(base, component), lambda state: {**state, key: torch.full_like(state[key], value)})
    with pytest.raises(InputError) as caught:
        load_network(base, component, torch.float16)
    assert key in caught.value.problem
    if value == 70_000:
        assert "reaches 7e+04, but fp16 ends at 65504" in caught.value.problem
        assert "--precision fp32" in caught.value.fix
        load_network(base, component, torch.float32)
    else:
        assert "non-finite" in caught.value.problem


def test_the_written_weights_say_the_same(tmp_path):
    layer = torch.nn.Linear(2, 2)
    layout = WeightsLayout.of(layer, torch.float16)
    for value, message in ((70_000.0, "but fp16 ends at 65504"), (math.nan, "non-finite")):
        weights = [("weight", torch.full((2, 2), value)), ("bias", torch.zeros(2))]
        with pytest.raises(InputError, match=message):
            layout.write(tmp_path / "w", weights)


@pytest.mark.parametrize(
    ("component", "damage"), [("unet", "cut"), ("vae", "empty"), ("text_encoder", "pickle"), ("text_encoder_2", "cut")]
)
def test_damaged_weights_are_named_when_the_checkpoint_is_opened(parts, base, component, damage):
    path = weights_of(base, component)
    content = path.read_bytes()
    path.unlink()
    path.write_bytes({"cut": content[:-5], "empty": b"", "pickle": b"\x80\x02}q\x00."}[damage])
    with pytest.raises(InputError, match=r"safetensors cannot be loaded"):
        opened(parts, base)


def test_a_configuration_that_makes_no_network_is_named(parts, base):
    set_json(base / "unet/config.json", norm_num_groups=7)
    with pytest.raises(InputError, match=r"The unet of .* cannot be"):
        opened(parts, base).empty("unet")


def test_variants_give_their_own_weights(parts, base):
    plain = weights_of(base, "vae")
    half = plain.with_name("diffusion_pytorch_model.bf16.safetensors")
    state = load_file(plain)
    save_file({name: value.to(torch.bfloat16) for name, value in state.items()}, half, metadata={"format": "pt"})
    plain.unlink()
    found = opened(parts, base)
    assert "variant bf16" in " ".join(found.notes)
    weights = dict(found.weights("vae", torch.float32))
    torch.testing.assert_close(weights[KEY["vae"]], state[KEY["vae"]].bfloat16().float(), rtol=0, atol=0)


@pytest.mark.parametrize("component", ["unet", "text_encoder_2"])
def test_shards_of_a_variant_are_loaded(parts, base, component):
    path = weights_of(base, component)
    state = {name: value.half() for name, value in load_file(path).items()}
    stem, names = path.name.removesuffix(".safetensors"), sorted(state)
    path.unlink()
    places = {}
    for number, chosen in enumerate((names[::2], names[1::2]), start=1):
        shard = f"{stem}-{number:05}-of-00002.fp16.safetensors"
        save_file({name: state[name] for name in chosen}, path.with_name(shard), metadata={"format": "pt"})
        places |= dict.fromkeys(chosen, shard)
    index = path.with_name(f"{stem}.safetensors.index.fp16.json")
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    found = opened(parts, base)
    before = found.fingerprint(component)
    loaded = found.load(component, torch.float32).state_dict()
    assert sum(value.numel() for value in loaded.values()) >= sum(value.numel() for value in state.values())
    rewrite(path.with_name(shard), lambda kept: {name: value + 1 for name, value in kept.items()})
    assert opened(parts, base).fingerprint(component) != before


def encoder_file(parts: dict[str, Path], path: Path, change: Callable[[State], State]) -> Path:
    state = change(torch.load(parts["encoder"], weights_only=True))
    if path.suffix == ".safetensors":
        save_file({name: value.contiguous() for name, value in state.items()}, path)
    else:
        torch.save(state, path)
    return path


FOREIGN: dict[str, tuple[Callable[[State], State], str]] = {
    "unknown names": (lambda s: {f"vision_model.{k}": v for k, v in s.items()}, r"missing: visual\.class_embedding"),
    "fewer layers": (
        lambda s: {name: value for name, value in s.items() if "visual.transformer.resblocks.3." not in name},
        r"is an image encoder \(3 layers of width 128\), but the identity weights need ViT-H-14 \(4 layers",
    ),
    "cut": (lambda s: without(s, "visual.conv1.weight"), r"missing: visual\.conv1\.weight"),
    "text only": (lambda s: {k: v for k, v in s.items() if "visual" not in k}, r"no tensors visual\.… or vision_mod"),
    "other size": (
        lambda s: {**s, "visual.positional_embedding": torch.zeros(145, 128)}, r"another shape: visual\.positional_emb"
    ),
}  # fmt: skip


@pytest.mark.parametrize("ending", ["pt", "safetensors"])
@pytest.mark.parametrize("kind", FOREIGN)
def test_a_foreign_image_encoder_is_named(parts, source, tmp_path, kind, ending):
    change, message = FOREIGN[kind]
    path = encoder_file(parts, tmp_path / f"encoder.{ending}", change)
    with pytest.raises(InputError, match=message):
        load_image_encoder(source.empty("image_encoder"), "ViT-H-14", str(path))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x02}q\x00.", b"\x80\x04N.", b"text"])
@pytest.mark.parametrize("ending", ["pt", "bin", "safetensors"])
def test_an_image_encoder_that_is_no_checkpoint_is_named(source, tmp_path, content, ending):
    path = tmp_path / f"encoder.{ending}"
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"encoder\.{ending}"):
        load_image_encoder(source.empty("image_encoder"), "ViT-H-14", str(path))


def test_an_image_encoder_with_values_that_are_not_finite_is_named(parts, tmp_path):
    key = "visual.conv1.weight"
    path = encoder_file(parts, tmp_path / "encoder.pt", lambda state: {**state, key: state[key] * math.nan})
    with pytest.raises(InputError, match=r"visual\.conv1\.weight contains non-finite values"):
        opened(parts, parts["base"], encoder=path).load("image_encoder", torch.float32)


def test_a_pickled_program_is_not_run(source, tmp_path):
    class Program:
        def __reduce__(self) -> tuple[object, ...]:
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"visual.conv1.weight": Program()}, tmp_path / "encoder.pt")
    with pytest.raises(InputError, match=r"encoder\.pt cannot be loaded"):
        load_image_encoder(source.empty("image_encoder"), "ViT-H-14", str(tmp_path / "encoder.pt"))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("tag", "message"),
    [
        ("no_such_tag", "no file no_such_tag, and open_clip has no such checkpoint"),
        ("dfn5b", "trained with quick_gelu"),
    ],
)
def test_a_tag_that_cannot_be_used_is_named(source, tag, message):
    with pytest.raises(InputError, match=message):
        load_image_encoder(source.empty("image_encoder"), "ViT-H-14", tag)


def test_an_architecture_that_the_encoder_does_not_compute_is_rejected(parts, tmp_path):
    config = json.loads((parts["identity"].parent / "infid-test-vit.json").read_text())
    modules = identity_modules(parts)
    for name, changed in (
        ("quick", {"quick_gelu": True}),
        ("pooled", {"vision_cfg": {**config["vision_cfg"], "no_ln_pre": True}}),
        ("timm", {"vision_cfg": {"timm_model_name": "convnext_base", "image_size": 224}}),
    ):
        (tmp_path / f"infid-test-{name}.json").write_text(json.dumps({**config, **changed}))
        open_clip.add_model_config(tmp_path / f"infid-test-{name}.json")
        modules.config = replace(modules.config, image_encoder=f"infid-test-{name}")
        modules.save(tmp_path / "identity.safetensors")
        with pytest.raises(InputError, match="is not a plain vision transformer"):
            opened(parts, parts["base"], identity=tmp_path / "identity.safetensors")


def identity_modules(parts: dict[str, Path]) -> IdentityModules:
    blocks = identity_blocks(opened(parts, parts["base"]).empty("unet"))
    return IdentityModules.load(parts["identity"], blocks)


def test_identity_weights_of_another_model_are_rejected_when_it_is_opened(parts, tmp_path):
    path = tmp_path / "identity.safetensors"
    modules = identity_modules(parts)
    own = modules.config
    for field, value in (("cross_attention_dim", 2048), ("clip_tokens", 257), ("clip_width", 1280)):
        modules.config = replace(own, **{field: value})
        modules.save(path)
        with pytest.raises(InputError, match=f"{field} = {value}"):
            opened(parts, parts["base"], identity=path)


@pytest.mark.parametrize("value", [math.nan, 70_000.0])
def test_identity_weights_that_are_not_finite_are_named(parts, tmp_path, value):
    path = tmp_path / "identity.safetensors"
    modules = identity_modules(parts)
    modules.clip_mapper[0].bias.data.fill_(value)
    modules.save(path)
    with pytest.raises(InputError, match=r"clip_mapper\.0\.bias (contains non-finite|reaches 7e\+04)"):
        opened(parts, parts["base"], identity=path).load("identity", torch.float16)


@pytest.mark.parametrize(
    "text", ["[]", "null", "3", "{", '{"center_tokens": "yes"}', '{"image_encoder": 3}', '{"clip_tokens": null}']
)
def test_an_identity_configuration_that_is_none_is_named(parts, tmp_path, text):
    path = tmp_path / "identity.safetensors"
    save_file({"a": torch.zeros(1)}, path, metadata={"infid_config": text})
    with pytest.raises(InputError, match=r"identity configuration|must be"):
        opened(parts, parts["base"], identity=path)


# One example of each kind of file; `test_checkpoint_kind` has every field.
KINDS = [
    ("scheduler/scheduler_config.json", "_class_name", "FlowMatchEulerDiscreteScheduler"),
    ("scheduler/scheduler_config.json", "prediction_type", "flow_prediction"),
    ("scheduler/scheduler_config.json", "timestep_spacing", "quadratic"),
    ("unet/config.json", "time_cond_proj_dim", 256),
    ("unet/config.json", "sample_size", None),
    ("vae/config.json", "latents_mean", [0.0, 0.0, 0.0, 0.0]),
    ("text_encoder/config.json", "vocab_size", 49410),
    ("text_encoder_2/config.json", "eos_token_id", 5),
    ("model_index.json", "requires_aesthetics_score", True),
]


@pytest.mark.parametrize(("file", "field", "value"), KINDS, ids=lambda value: str(value)[:20])
def test_every_way_in_rejects_a_checkpoint_of_another_kind(parts, base, file, field, value):
    set_json(base / file, **{field: value})
    name = str(value) if field == "_class_name" else str(value) if field == "vocab_size" else field
    for way in (
        lambda: opened(parts, base),
        lambda: InfiniteIDPipeline.from_pretrained(base, identity=parts["identity"]),
        lambda: open_base(str(base), image_encoder=str(parts["encoder"]), initial=str(parts["identity"])),
    ):
        with pytest.raises(InputError, match=name):
            way()


def test_the_reference_pipeline_loads_weights_as_strictly(parts, base):
    rewrite(weights_of(base, "text_encoder_2"), lambda state: without(state, KEY["text_encoder_2"]))
    with pytest.raises(InputError, match=r"missing: text_projection\.weight"):
        InfiniteIDPipeline.from_pretrained(base, identity=parts["identity"])


def test_the_reference_pipeline_takes_a_part_in_place_of_the_checkpoints(parts, base, source):
    set_json(base / "vae/config.json", latents_mean=[0.0, 0.0, 0.0, 0.0])
    vae = source.load("vae", torch.float32)
    assert InfiniteIDPipeline.from_pretrained(base, identity=parts["identity"], vae=vae).vae is vae
    vae.register_to_config(latents_std=[1.0, 1.0, 1.0, 1.0])
    with pytest.raises(InputError, match="The given vae has latents_std"):
        InfiniteIDPipeline.from_pretrained(base, identity=parts["identity"], vae=vae)


def test_the_only_note_of_a_checkpoint_of_the_libraries_is_its_sampler(parts, base):
    assert read_checkpoint(base).notes == ("sampler: ddim with leading spacing, as the checkpoint's DDIMScheduler",)
    set_json(base / "model_index.json", scheduler=["diffusers", "EulerDiscreteScheduler"])
    set_json(base / "scheduler/scheduler_config.json", _class_name="EulerDiscreteScheduler", use_karras_sigmas=True)
    assert read_checkpoint(base).notes == (
        "sampler: euler with karras spacing, as the checkpoint's EulerDiscreteScheduler",
    )
    assert opened(parts, base).architecture.sampling == Sampling(sampler="euler", spacing="karras")


def test_a_few_step_model_needs_few_steps_and_no_guidance(parts, base):
    set_json(base / "model_index.json", scheduler=["diffusers", "LCMScheduler"])
    set_json(base / "scheduler/scheduler_config.json", _class_name="LCMScheduler", original_inference_steps=40)
    source = opened(parts, base)
    assert source.architecture.sampling == Sampling(steps=4, guidance=1.0, sampler="lcm", spacing=None)
    assert source.scheduler["original_inference_steps"] == 40


def test_training_rejects_a_model_that_does_not_predict_the_noise(parts, base):
    set_json(base / "scheduler/scheduler_config.json", prediction_type="v_prediction", rescale_betas_zero_snr=True)
    assert opened(parts, base).scheduler["rescale_betas_zero_snr"] is True
    with pytest.raises(InputError, match=r"training needs a model that predicts the noise"):
        open_base(str(base), image_encoder=str(parts["encoder"]), initial=str(parts["identity"]))


def test_a_fresh_run_takes_the_width_of_the_checkpoint(parts, base):
    found = open_base(str(base), image_encoder=str(parts["encoder"]))
    assert found.config.cross_attention_dim == found.architecture.unet["cross_attention_dim"] == 128


def test_a_checkpoint_is_read_without_torch(base):
    program = (
        "import sys; from pathlib import Path; from infid_export.model.checkpoints.folder import read_checkpoint; "
        f"read_checkpoint(Path({str(base)!r})); sys.exit('torch' in sys.modules)"
    )
    paths = os.pathsep.join(str(Path(entry or ".").resolve()) for entry in sys.path)
    assert subprocess.run([sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": paths}).returncode == 0
