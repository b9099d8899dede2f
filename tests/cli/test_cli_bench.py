"""`infid-export bench` on a hand-made folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_process import Cli
from tiny_engines import write_folder

QUICK = ("--steps", 2, "--rounds", 1, "--image-rounds", 1)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_folder(tmp_path / "engines")


def test_tables_and_files(cli: Cli, folder: Path, tmp_path: Path) -> None:
    code, out, err = cli("bench", folder, *QUICK, "--threads", 1, "-o", "measured")
    assert code == 0
    assert out.startswith("tiny fp32, 64 × 64, batch 2, onnxruntime on ")
    for text in (
        "Graphs, milliseconds",
        "Images of 2 steps, milliseconds",
        "joint over plain",
        "host: ",
        "peak memory",
    ):
        assert text in out
    assert out.endswith("measured/bench.json\nmeasured/report.html\n")
    assert "onnxruntime: the folder has engines" in err
    assert json.loads((tmp_path / "measured" / "bench.json").read_text())["graphs"]["denoise_step"]["samples"] == 1
    assert (tmp_path / "measured" / "report.html").read_text().startswith("<!doctype html>")


def test_one_document(cli: Cli, folder: Path) -> None:
    code, out, _ = cli("bench", folder, *QUICK, "--json", "--quiet")
    assert (code, json.loads(out)["kind"]) == (0, "bench")


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("bench", "none"), "none"),
        (("bench", "engines", "--rounds", "0"), "--rounds must be at least 1"),
        (("bench", "engines", "--image-rounds", "-1"), "--image-rounds must be at least 1"),
        (("bench", "engines", "--device", "cuda:9999"), "There is no cuda:9999: CUDA finds "),
        (("bench", "engines", "--threads", "0"), "The number of threads must be at least 1"),
        (("bench", "engines", "--against", "tensorflow"), "tensorflow"),
        (("bench", "engines", "-o", "engines/manifest.json"), "engines/manifest.json"),
    ],
)
def test_bad_arguments_are_one_sentence(cli: Cli, folder: Path, words: tuple[str, ...], problem: str) -> None:
    code, out, err = cli(*words)
    assert (code, out) == (1, "")
    assert problem in err
    assert err.count("error: ") == err.count("  fix: ") == 1
