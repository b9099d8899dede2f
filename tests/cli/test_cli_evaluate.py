from __future__ import annotations

import json
from pathlib import Path

import evaluation_parts
import pytest
import small_face_models
import tiny_engines
from cli_process import Cli
from PIL import Image

from infid_export.evaluation import set_sources
from infid_export.model.sources import BUILT_IN


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An engine folder of arithmetic, tiny scorers, two people and two prompts."""
    folder = tmp_path_factory.mktemp("stage")
    tiny_engines.write_folder(folder / "engines")
    small_face_models.write_dot_detector(folder / "detector.onnx")
    small_face_models.write_recognizer(folder / "facenet.onnx")
    evaluation_parts.write_tiny_clip(folder)
    (folder / "people").mkdir()
    evaluation_parts.dotted(40).save(folder / "people" / "ann.png")
    evaluation_parts.dotted(140).save(folder / "people" / "bob.png")
    (folder / "prompts.txt").write_text("a knight\nstylized: a knight as a woodcut\n")
    return folder


@pytest.fixture
def words(stage: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Everything but the engine folder, relative to the current one."""
    monkeypatch.chdir(stage)
    scorers = ["--clip", evaluation_parts.TINY_CLIP, "clip.safetensors", "--facenet", "facenet.onnx"]
    return [*scorers, "--face-detector", "detector.onnx", "--references", "people", "--prompts", "prompts.txt"]


def test_an_evaluation_from_engines_to_documents(cli: Cli, words: list[str], tmp_path: Path) -> None:
    code, out, err = cli("evaluate", "engines", *words, "--steps", "2", "--seeds", "2", "-o", tmp_path / "out")
    assert code == 0, err
    assert "Cosine similarities for 2 people × 2 prompts, with 95 % intervals over people" in out
    rows = [line.split()[:2] for line in out.splitlines() if line.startswith(("all", "plain", "stylized"))]
    assert rows == [["all", "8"], ["plain", "4"], ["stylized", "4"]]
    assert "of 8 images show no face and count as 0 in M_FaceNet" in out
    assert "backend onnxruntime" in err and "pictures" in err
    scores = json.loads((tmp_path / "out/scores.json").read_text())
    assert scores["counts"]["pictures"] == 8
    assert scores["generator"]["settings"]["steps"] == 2
    assert f"{scores['scores']['all']['clip_t']['mean']:.3f} [" in out
    assert Image.open(tmp_path / "out/grid.png").width == 8 + 3 * 168
    assert len(list((tmp_path / "out/pictures").glob("*.png"))) == 8
    assert not list((tmp_path / "out").rglob("*.partial"))


def test_as_json_and_against_itself(cli: Cli, words: list[str], tmp_path: Path) -> None:
    assert cli("evaluate", "engines", *words, "-o", tmp_path / "out", "--quiet")[0] == 0
    scores = tmp_path / "out/scores.json"
    code, out, err = cli("evaluate", "engines", *words, "--against", scores, "--json", "--quiet")
    assert (code, err) == (0, "")
    document = json.loads(out)
    assert document["against"]["passed"] is True
    assert document["pictures"] == json.loads(scores.read_text())["pictures"]
    assert document["files"] == []


def test_a_lost_score_fails(cli: Cli, words: list[str], tmp_path: Path) -> None:
    cli("evaluate", "engines", *words, "-o", tmp_path / "out")
    scores = tmp_path / "out/scores.json"
    document = json.loads(scores.read_text())
    document["pictures"][0]["clip_i"] += 0.1  # the reference was better
    scores.write_text(json.dumps(document))
    code, out, _ = cli("evaluate", "engines", *words, "--against", scores)
    assert code == 1
    verdicts = {line.split()[1]: line.split()[0] for line in out.splitlines() if line.startswith(("PASSED", "FAILED"))}
    assert verdicts == {"CLIP-T": "PASSED", "CLIP-I": "FAILED", "M_FaceNet": "PASSED", "no": "FAILED"}
    assert "FAILED no score may drop by more than 0.5%" in out


def test_the_pytorch_reference(cli: Cli, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BUILT_IN, "random-sdxl", evaluation_parts.SMALL)
    recognizer = small_face_models.write_recognizer(tmp_path / "recognizer.onnx")
    words = [*words, "--model", "random-sdxl", "--recognizer", str(recognizer), "--adain", "off", "--steps", "1"]
    code, out, err = cli("evaluate", *words, "--json", "--quiet")
    assert code == 0, err
    generator = json.loads(out)["generator"]
    assert (generator["kind"], generator["precision"], generator["model"]["config"]["adain"]) == (
        "pytorch", "fp32", "off",
    )  # fmt: skip


def test_a_dry_run_counts_the_pictures_and_makes_none(cli: Cli, words: list[str], tmp_path: Path) -> None:
    output = tmp_path / "out"
    code, out, _ = cli("evaluate", "engines", *words, "--seeds", "3", "--dry-run", "-o", output)
    assert code == 0
    assert out == "12 images: 2 people × 2 prompts (1 stylized) × 3 seeds; nothing was generated\n"
    assert not output.exists()
    code, out, _ = cli("evaluate", "engines", *words, "--seeds", "3", "--dry-run", "--json")
    assert json.loads(out)["pictures"] == 12
    code, out, _ = cli("evaluate", "engines", *words[:7], "--dry-run")
    assert out.startswith("200 images: 20 people × 10 prompts (5 stylized) × 1 seeds")


def test_a_set_in_one_file(cli: Cli, words: list[str], stage: Path, tmp_path: Path) -> None:
    chosen = {"people": [{"name": "ann", "photo": str(stage / "people/ann.png")}], "prompts": ["x"], "seeds": [1, 2]}
    (tmp_path / "set.json").write_text(json.dumps(chosen))
    code, out, _ = cli("evaluate", "engines", *words[:7], "--set", tmp_path / "set.json", "--steps", "1")
    assert code == 0
    assert "[–]" in out  # a single person has no interval


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (["--prompts", "/dev/null"], "has no prompt"),
        (["--references", "engines/onnx"], "has no photos"),
        (["--references", "blank"], "No face was found in the reference photo of cy"),
        (["--facenet", "missing.onnx"], "There is no model at missing.onnx"),
        (["--facenet", "detector.onnx"], "detector.onnx takes ['N', 3, 'H', 'W'], not [N, 3, S, S]"),
        (["--face-detector", "facenet.onnx"], "not a CenterFace model"),
        (["--clip", "ViT-H-14", "missing.pt"], "no CLIP checkpoint at missing.pt"),
        (["--clip", "ViT-Q-99", "clip.safetensors"], "no model named ViT-Q-99"),
        (["--against", "prompts.txt"], "prompts.txt is not an evaluation"),
        (["--set", "missing.json"], "--references has no effect with --set"),
        (["--model", "demo"], "an engine folder has no effect with --model"),
        (["--adain", "off"], "--adain has no effect with engines"),
        (["--stylized", "1"], "only to the world's prompts"),
        (["--seeds", "0"], "0 seeds"),
        (["--steps", "0"], "steps"),
        (["-o", "prompts.txt/out"], "cannot be written"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_evaluated_is_one_sentence(
    cli: Cli, words: list[str], stage: Path, change: list[str], problem: str
) -> None:
    (stage / "blank").mkdir(exist_ok=True)
    evaluation_parts.plain(90, 90, 90, size=64).save(stage / "blank/cy.png")
    code, out, err = cli("evaluate", "engines", *words, *change, "--quiet")
    assert (code, out) == (1, "")
    first, second = err.splitlines()
    assert first.startswith("error: ") and problem in first
    assert second.startswith("  fix: ")


def test_no_engine_folder_is_found_in_a_dry_run_too(cli: Cli, words: list[str]) -> None:
    for more in ([], ["--dry-run"]):
        code, _, err = cli("evaluate", "nowhere", *words, *more, "--quiet")
        assert code == 1
        assert "nowhere is not an engine folder" in err


def test_the_scale_and_crop_need_a_facenet(cli: Cli, words: list[str]) -> None:
    code, _, err = cli("evaluate", "engines", *words[:3], *words[5:], "--facenet-scale", "unit")
    assert code == 1
    assert "--facenet-scale has no effect" in err


def test_the_worlds_name_is_the_commands() -> None:
    from infid_export.cli import evaluate

    assert evaluate._WORLD == set_sources.WORLD
    counts = f"{set_sources.WORLD}:{set_sources.PEOPLE}", f"{set_sources.WORLD}:{set_sources.PROMPTS}"
    text = Path(evaluate.__file__).read_text()
    assert all(count in text for count in counts)
