from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from small_face_models import quick_faces

from infid_engines.errors import EngineFolderError, InputError, ParityError
from infid_engines.folder import FolderTransaction
from infid_engines.manifest import Manifest
from infid_engines.progress import SilentReporter
from infid_export.export import plan
from infid_export.export.artifact import weights_file
from infid_export.export.build_options import BuildOptions
from infid_export.export.builder import build, stale, verify
from infid_export.export.graph_parity import compare_graphs
from infid_export.export.graphs import graphs_for
from infid_export.export.inspection import read_graph
from infid_export.export.parity import ImageParity, ParityReport, ParityRow, compare, psnr
from infid_export.export.plan import make_plan
from infid_export.export.vae_range import write_vae_range
from infid_export.export.weights import WeightsLayout
from infid_export.runtime.pipeline import Pipeline
from infid_export.sampling.noise_schedule import SDXL_SCHEDULER
from infid_export.sampling.samplers import SamplerTable

SMALL = ("vae_decoder",)


def small(folder: Path, **options) -> BuildOptions:
    """A build of one small graph."""
    wanted = {"graphs": SMALL, "backends": ("onnxruntime",), "height": 64, "width": 64, **quick_faces(folder.parent)}
    return BuildOptions(output=folder, **{**wanted, **options})


@pytest.fixture(scope="module")
def built_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small") / "engines"
    build(small(folder))
    return folder


@pytest.fixture
def small_folder(built_once: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shutil.copytree(built_once, tmp_path_factory.mktemp("copy") / "engines")


def test_demo_builds_every_graph_and_passes_parity(demo_build):
    assert sorted(demo_build.manifest.graphs) == sorted(graphs_for("two"))
    assert {row.graph for row in demo_build.parity.rows} == set(graphs_for("two"))
    assert demo_build.parity.passed
    assert demo_build.parity.image is not None
    assert demo_build.parity.image.steps == 30
    assert demo_build.parity.image.psnr_db >= 40


def test_graphs_are_what_a_strongly_typed_builder_wants(demo_folder):
    for name in graphs_for("two"):
        model = onnx.load(demo_folder / "onnx" / f"{name}.onnx", load_external_data=False)
        operators = {node.op_type for node in model.graph.node}
        assert not operators & {"CastLike", "SplitToSequence", "SequenceAt", "If", "Loop", "Identity"}
        orders = [list(each.attribute[0].ints) for each in model.graph.node if each.op_type == "Transpose"]
        assert all(order != sorted(order) for order in orders), "ONNX Runtime before 1.30 takes it for a real one"
        large = [t for t in model.graph.initializer if not t.external_data and len(t.raw_data) > 1 << 16]
        assert not large, "weights belong into the shared files"
        for value in (*model.graph.input, *model.graph.output):
            assert all(dimension.dim_value > 0 for dimension in value.type.tensor_type.shape.dim)


def test_strengths_guidance_and_coefficients_are_inputs(demo_folder):
    names = {spec.name for spec in read_graph(demo_folder / "onnx" / "denoise_step.onnx").inputs}
    assert {"style_strength", "identity_strength", "guidance", "coefficients", "timestep"} <= names


def test_step_graphs_share_one_weights_file(demo_build):
    files = {demo_build.manifest.graphs[name].weights for name in ("denoise_step", "text_step", "identity_step")}
    assert files == {("onnx/unet.safetensors",)}


def test_an_unchanged_rebuild_does_nothing(demo_folder):
    """Nothing is made, written, hashed or loaded; benchmarks/rebuild_speed.py measures the time.

    The first rebuild hashes the files once, since only the hash of a file that has not just changed is remembered.
    """
    program = (
        "import sys\nfrom infid_engines import manifest\nhash_of, hashed = manifest.sha256_file, []\n"
        "manifest.sha256_file = lambda path, *rest: (hashed.append(str(path)), hash_of(path, *rest))[1]\n"
        "from infid_export.cli.main import run\ncode = run(sys.argv[1:])\n"
        "heavy = ('torch', 'diffusers', 'transformers', 'onnxscript', 'open_clip', 'tensorrt')\n"
        "print(code, [name for name in heavy if name in sys.modules], *hashed, sep='\\n', file=sys.stderr)"
    )
    arguments = ["build", "--fp16", "-o", str(demo_folder), "--backend", "onnxruntime", "--json", "--quiet"]
    arguments += [word for name in graphs_for("two") for word in ("--graph", name)]
    states = files_of(demo_folder)
    for _ in range(2):
        found = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
    code, heavy, *hashed = found.stderr.splitlines()
    assert (code, heavy) == ("0", "[]")
    assert hashed
    assert [path for path in hashed if str(demo_folder) in path] == []
    assert json.loads(found.stdout)["made"] == {}
    assert files_of(demo_folder) == states


def files_of(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Everything that changes when a file is written again."""
    states = {str(path): path.stat() for path in folder.rglob("*")}
    return {name: (state.st_ino, state.st_mtime_ns, state.st_size) for name, state in states.items()}


def test_a_change_rebuilds_what_depends_on_it_and_says_why(small_folder):
    weights = (small_folder / "onnx/vae.safetensors").stat().st_ino
    report = build(small(small_folder, height=96))
    assert report.made == {"onnx/vae_decoder.onnx": "changed height: 64 -> 96"}
    assert (small_folder / "onnx/vae.safetensors").stat().st_ino == weights
    assert Manifest.load(small_folder).graphs["vae_decoder"].outputs[0].shape == (1, 3, 96, 64)


@pytest.mark.parametrize(
    ("changes", "flag"),
    [
        ({"model": "random-sdxl", "identity": Path("i.safetensors")}, "--identity"),
        ({"image_encoder": "laion"}, "--image-encoder"),
        ({"face_models": Path("pack")}, "--face-models"),
        ({"refit": True}, "--refit"),
        ({"strip": True}, "--strip"),
        ({"optimization_level": 3}, "--optimization-level"),
        ({"parity_image": "on"}, "--parity-image on"),
    ],
)
def test_an_option_without_effect_is_rejected(tmp_path, changes, flag):
    with pytest.raises(InputError, match=f"{flag} would have no effect"):
        make_plan(small(tmp_path / "engines", **changes))


def test_another_detector_changes_only_the_detector_and_reads_real_photos(demo_folder, tmp_path, astronaut):
    folder = shutil.copytree(demo_folder, tmp_path / "engines")
    report = build(BuildOptions(folder, precision="fp16", backends=("onnxruntime",), detector="centerface"))
    assert list(report.made) == ["faces/detector.onnx"]
    assert "for photos" in " ".join(report.manifest.notes)
    with Pipeline.load(folder) as pipe:
        person = pipe.enroll(astronaut)
    assert person.identity_tokens.shape[1] == report.manifest.identity_tokens


def test_a_seed_of_random_weights_is_rejected_where_weights_are_trained(tmp_path):
    with pytest.raises(InputError, match="seed for random weights has no effect"):
        make_plan(small(tmp_path / "engines", seed=1))


def test_another_schedule_is_written_into_the_manifest(small_folder, monkeypatch):
    folder_manifest = "infid_export.export.folder_manifest"
    other = {**SDXL_SCHEDULER, "beta_end": 0.013}
    monkeypatch.setattr("infid_export.model.shipped.ShippedSource.scheduler", other)
    table = SamplerTable(np.zeros((30, 8), np.float32), 1.0)
    monkeypatch.setattr(f"{folder_manifest}.sampler_table", lambda *_: table)
    assert build(small(small_folder)).made == {}
    stored = Manifest.load(small_folder).scheduler
    assert stored["beta_end"] == 0.013
    assert stored["table"] == [[0.0] * 8] * 30


def test_a_missing_or_cut_file_is_made_again(small_folder):
    (small_folder / "tokenizer/tokenizer.json").unlink()
    (small_folder / "faces/detector.onnx").write_bytes(b"x")
    report = build(small(small_folder))
    assert report.made == {"tokenizer/tokenizer.json": "missing", "faces/detector.onnx": "damaged"}


def test_a_file_of_the_same_size_but_other_content_is_made_again(small_folder):
    corrupt(small_folder / "onnx/vae.safetensors", "decoder.conv_in.weight", small_folder)
    with pytest.raises(EngineFolderError, match="has changed"):
        verify(small_folder)
    assert build(small(small_folder)).made == {"onnx/vae.safetensors": "damaged"}
    assert verify(small_folder).passed


def test_a_file_replaced_with_the_same_size_and_time_is_made_again(small_folder):
    path = small_folder / "onnx/vae.safetensors"
    build(small(small_folder))  # its hash is known by now
    status, other = path.stat(), path.with_name("other")
    other.write_bytes(path.read_bytes())
    corrupt(other, "decoder.conv_in.weight", small_folder)
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.replace(path)
    assert build(small(small_folder)).made == {"onnx/vae.safetensors": "damaged"}


def test_a_file_that_was_only_touched_is_kept(small_folder):
    (small_folder / "onnx/vae.safetensors").touch()
    assert not build(small(small_folder)).made


def test_comparisons_survive_an_interruption(tmp_path, monkeypatch):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("infid_engines.folder.FolderTransaction.commit", interrupted)
        with pytest.raises(KeyboardInterrupt):
            build(small(tmp_path / "engines"))
    monkeypatch.setattr("infid_export.export.graph_parity.compare_graphs", interrupted)
    report = build(small(tmp_path / "engines"))
    assert report.parity.passed
    assert [row.graph for row in report.parity.rows] == list(SMALL)


def test_code_that_concerns_one_kind_of_artifact_makes_only_that_one_stale(small_folder, monkeypatch):
    original = plan.code_hash
    for kind, made in (
        ("tokenizer", {"tokenizer/tokenizer.json", "tokenizer_2/tokenizer.json"}),
        ("graph", {"onnx/vae_decoder.onnx"}),
        ("weights", {"onnx/vae.safetensors"}),
        ("fused", set()),
        ("plugins", set()),
        ("parity", set()),
    ):
        changed = {kind: "changed"}
        monkeypatch.setattr(
            plan, "code_hash", lambda asked, *types, new=changed: new.get(asked) or original(asked, *types)
        )
        with FolderTransaction(small_folder, SilentReporter()) as transaction:
            assert set(stale(make_plan(small(small_folder)), transaction)) == made


def test_a_killed_build_goes_on_with_what_it_had_made(tmp_path):
    """tests/reliability/test_kills.py kills at random moments."""
    folder, staging = tmp_path / "engines", tmp_path / ".engines.building"
    recognizer = str(quick_faces(tmp_path)["recognizer"])
    arguments = ["build", "-o", str(folder), "--graph", "vae_decoder", "--height", "64", "--width", "64"]
    arguments += ["--recognizer", recognizer, "--allow-other-encoders", "--detector", "centerface"]
    command = [sys.executable, "-m", "infid_export", *arguments, "--backend", "onnxruntime", "--quiet", "--json"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None and not (staging / "onnx/vae_decoder.onnx").exists():  # made after the weights
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not folder.exists()
    report = build(small(folder))
    assert "onnx/vae.safetensors" not in report.made
    assert not staging.exists()


def corrupt(path: Path, tensor: str, folder: Path) -> None:
    """Change one weight in the shared file, as a wrong conversion would."""
    layout = json.loads(path.read_bytes()[8 : 8 + int.from_bytes(path.read_bytes()[:8], "little")])
    start = 8 + int.from_bytes(path.read_bytes()[:8], "little") + layout[tensor]["data_offsets"][0]
    with path.open("r+b") as file:
        file.seek(start)
        file.write(np.full(1, 30.0, np.float32).tobytes())
    assert folder in path.parents


def compared(options: BuildOptions) -> list[ParityRow]:
    """Compare the graphs of an existing folder."""
    plan = make_plan(options)
    with SilentReporter().stage("parity") as stage:
        return list(compare_graphs(plan, options.output, Manifest.load(options.output), list(plan.graphs), stage))


def test_one_corrupted_weight_fails_parity(small_folder):
    (before,) = compared(small(small_folder))
    assert before.passed
    corrupt(small_folder / "onnx/vae.safetensors", "decoder.conv_in.weight", small_folder)
    (after,) = compared(small(small_folder))
    assert not after.passed
    assert after.rms_error > 100 * before.rms_error


def scramble(path: Path, tensor: str) -> None:
    """Permute a weight matrix: the same values in other places, as a wrong layout would."""
    content = bytearray(path.read_bytes())
    header = 8 + int.from_bytes(content[:8], "little")
    start, end = json.loads(content[8:header])[tensor]["data_offsets"]
    values = np.frombuffer(bytes(content[header + start : header + end]), np.float16)
    content[header + start : header + end] = np.random.default_rng(0).permutation(values).tobytes()
    path.write_bytes(content)


BLOCK = "mid_block.attentions.0.transformer_blocks.0"


@pytest.mark.parametrize(
    ("graph", "component", "tensor"),
    [
        ("denoise_step", "unet", f"{BLOCK}.attn2.to_q.weight"),
        ("denoise_step", "unet", f"{BLOCK}.attn1.to_k.weight"),
        ("denoise_step", "unet", f"{BLOCK}.attn2.to_v.weight"),
        ("identity_encoder", "identity", f"projections.{BLOCK.replace('.', '/')}/attn2.to_v_id.weight"),
    ],
)
def test_one_scrambled_matrix_of_an_fp16_graph_fails_parity(demo_folder, tmp_path, graph, component, tensor):
    folder = shutil.copytree(demo_folder, tmp_path / "engines")
    scramble(folder / f"onnx/{component}.safetensors", tensor)
    rows = compared(BuildOptions(folder, precision="fp16", graphs=(graph,), backends=("onnxruntime",)))
    assert not all(row.passed for row in rows), [row.rms_error for row in rows]


def test_verify_sees_a_changed_file_and_repeats_parity(small_folder):
    assert verify(small_folder).passed
    corrupt(small_folder / "onnx/vae.safetensors", "decoder.conv_in.weight", small_folder)
    with pytest.raises(EngineFolderError, match=r"vae\.safetensors has changed"):
        verify(small_folder)


def test_failed_parity_ends_the_build_and_keeps_nothing(tmp_path, monkeypatch):
    folder = tmp_path / "engines"
    original = WeightsLayout.write

    def spoiled(self, path, weights, on_progress=None):
        return original(self, path, ((n, t * (1.5 if n == "decoder.conv_in.weight" else 1)) for n, t in weights))

    monkeypatch.setattr(WeightsLayout, "write", spoiled)
    with pytest.raises(ParityError, match=r"vae_decoder.image: max .* against max"):
        build(small(folder))
    assert not folder.exists()
    assert not (tmp_path / ".engines.building").exists()
    failed = json.loads((tmp_path / "engines.failed-parity.json").read_text())
    assert failed["passed"] is False
    assert failed["rows"][0]["passed"] is False


def test_failed_parity_leaves_the_old_folder(small_folder, monkeypatch):
    before = (small_folder / "manifest.json").read_bytes()
    original = plan.code_hash
    monkeypatch.setattr(
        plan, "code_hash", lambda kind, *types: "changed" if kind == "parity" else original(kind, *types)
    )
    monkeypatch.setattr(
        "infid_export.export.parity.tolerance", lambda precision: type("T", (), {"max": 0.0, "rms": 0.0})()
    )
    with pytest.raises(ParityError):
        build(small(small_folder))
    assert (small_folder / "manifest.json").read_bytes() == before


def test_vae_that_overflows_fp16_is_kept_in_fp32(tmp_path, monkeypatch, source):
    monkeypatch.setattr("infid_export.export.vae_range._FP16_SAFE", 10.0)
    report = build(small(tmp_path / "engines", precision="fp16"))
    assert any(note.startswith("VAE decoder: fp32, activations reach") for note in report.notes)
    layout = WeightsLayout.of(source.empty("vae"), next(iter(source.empty("vae").parameters())).dtype)
    assert (report.folder / weights_file("vae")).stat().st_size == layout.size
    assert report.parity.passed


def test_vae_with_a_weight_beyond_fp16_is_kept_in_fp32(tmp_path, monkeypatch, source):
    vae = source.load("vae", torch.float32)
    vae.quant_conv.weight.data.fill_(70_000.0)  # in the encoder: it changes no activation of the decoder
    monkeypatch.setattr(source, "load", lambda *_: vae)
    write_vae_range(source, tmp_path / "range.json")
    found = json.loads((tmp_path / "range.json").read_text())
    assert found["precision"] == "fp32"
    assert "a weight reaches 70000" in found["why"]


def test_parity_at_another_size_uses_the_same_weights(tmp_path):
    report = build(small(tmp_path / "engines", parity_size=96))
    assert report.parity.passed
    assert report.parity.rows[0].size == (96, 96)
    assert report.manifest.graphs["vae_decoder"].outputs[0].shape == (1, 3, 64, 64)


@pytest.mark.parametrize(
    ("guidance", "choices"),
    [(True, {"cross_adain": "output", "adain": "standard"}), (False, {"self_attention": "mutual"})],
    ids=str,
)
def test_variants_of_the_method_export_for_many_people_and_pass(tmp_path, guidance, choices):
    options = small(tmp_path / "engines", graphs=("denoise_step",), batch=2, people=2, width=96, guidance=guidance)
    report = build(replace(options, **choices))
    shapes = {spec.name: spec.shape for spec in report.manifest.graphs["denoise_step"].inputs}
    assert shapes["identity_latents"] == (2, 4, 16, 24)
    assert shapes["identity_keys"][:2] == (4 if guidance else 2, 2 * 54)
    assert ("guidance" in shapes) == guidance
    assert report.manifest.defaults["guidance"] == (3.0 if guidance else 1.0)
    assert report.parity.passed
    assert report.manifest.model["config"].items() >= choices.items()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"height": 100}, "multiple of 32"),
        ({"batch": 0}, "batch must be at least 1"),
        ({"graphs": ("unet",)}, "no graph named unet"),
        ({"detector": "insightface"}, "needs your InsightFace model folder"),
    ],
)
def test_impossible_options_are_rejected(options, message):
    with pytest.raises(InputError, match=message):
        BuildOptions(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "no/such-model"}, "needs identity weights"),
        ({"backends": ("onnxruntime",), "targets": ("sm_89",)}, "no engine of tensorrt or tensorrt_rtx is built"),
        ({"backends": ("tensorrt_rtx",), "targets": ("sm_90",)}, "cannot build for sm_90"),
        ({"recognizer": Path("none.onnx")}, "There is no model at none.onnx"),
    ],
)
def test_impossible_plans_are_rejected(tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        make_plan(BuildOptions(output=tmp_path / "engines", **options))


def test_a_failing_comparison_is_never_a_pass():
    x = {"y": np.random.default_rng(0).standard_normal(1000).astype(np.float32)}
    settings = {"precision": "fp16", "key": "k", "size": (64, 64), "groups": {}}
    assert compare("g", x, x, **settings)[0].passed
    for wrong in (x["y"] * 1.02, np.full(1000, np.nan, np.float32), x["y"][:10], np.zeros(1000, np.float32)):
        assert not compare("g", x, {"y": wrong}, **settings)[0].passed
    spike = x["y"].copy()
    spike[3] += 0.2
    assert not compare("g", x, {"y": spike}, **settings)[0].passed


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_a_failed_comparison_advises_fp32_only_where_that_is_another_precision(precision):
    x = {"y": np.random.default_rng(0).standard_normal(1000).astype(np.float32)}
    rows = compare("g", x, {"y": 2 * x["y"]}, precision=precision, key="k", size=(64, 64), groups={})
    image = ImageParity(precision, 10.0, 40.0, 30, False, "k")
    for report in (ParityReport(tuple(rows)), ParityReport((), image)):
        assert ParityReport.from_json(json.loads(json.dumps(report.to_json()))) == report
        with pytest.raises(ParityError) as caught:
            report.require()
        assert ("Build with --precision fp32" in caught.value.fix) == (precision == "fp16")
        assert "Nothing was kept" in caught.value.fix


def test_psnr():
    x = np.full((4, 4), 0.5)
    assert psnr(x, x + 0.01) == pytest.approx(40)
    assert psnr(x, x) == 200
    assert psnr(x, x * np.nan) == 0


def test_folder_can_be_moved(demo_folder, tmp_path, person):
    from infid_export.runtime.pipeline import Pipeline

    moved = shutil.copytree(demo_folder, tmp_path / "elsewhere")
    with Pipeline.load(moved) as pipe:
        assert pipe.generate("a portrait", person, seed=0, steps=1, output_type="np").shape == (1, 128, 128, 3)
