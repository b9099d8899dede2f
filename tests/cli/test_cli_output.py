from __future__ import annotations

import io
import json
import math
import sys
from pathlib import Path

import pytest
from rich.cells import cell_len

from infid_export.cli.output import Output, shown, size

COLUMNS = ("verdict", "output", "type", "max", "limit")
ROWS = [
    ("PASSED", "identity_step.next_identity_latents", "float32", "1.2e-3", "1.0e-1"),
    ("FAILED", "text_encoder.[hidden]_states", "float16", "9.9e+9", "1.0e-1"),
    ("PASSED", "Größe 顔 × λ", "float16", "", "1.0e-1"),
]


def printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], width: int | None) -> list[str]:
    monkeypatch.delenv("COLUMNS", raising=False)
    if width:
        monkeypatch.setenv("COLUMNS", str(width))
    Output().table("Parity with the PyTorch reference, which is a long title", COLUMNS, ROWS, numbers=("max",))
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("width", [20, 40, 60, 80, 200])
def test_a_table_fits_the_terminal_and_loses_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], width: int
) -> None:
    lines = printed(monkeypatch, capsys, width)
    assert max(map(cell_len, lines)) <= width
    kept = "".join("".join(lines).split())
    for row in ROWS:
        assert row[0] in kept
        assert all(cell in kept for cell in row if cell_len(cell) <= 7)
    # wrapped cells: every character is still there
    for row in ROWS:
        assert all(kept.count(letter) >= row[1].count(letter) for letter in set(row[1]) - {" "})


def test_a_wide_terminal_gets_one_line_a_row(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = printed(monkeypatch, capsys, 200)
    assert len([line for line in lines if line.strip()]) == 2 + len(ROWS)
    assert lines[2].split() == list(ROWS[0])


def test_a_narrow_terminal_gets_records(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [line.rstrip() for line in printed(monkeypatch, capsys, 40)]
    assert "verdict: FAILED" in lines
    assert "max:     9.9e+9" in lines


def test_a_file_gets_no_color_and_no_folding(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    long = "x" * 500
    monkeypatch.delenv("COLUMNS", raising=False)
    Output().table("t", ("path", "verdict"), [(long, "FAILED")])
    out = capsys.readouterr().out
    assert long in out
    assert "\x1b" not in out


def test_a_line_is_never_folded(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    path = "/a folder/" + "deep/" * 30 + "[bold]picture.png"
    Output().line(path)
    assert capsys.readouterr().out == path + "\n"


def test_json_is_one_valid_document(capsys: pytest.CaptureFixture[str]) -> None:
    output = Output(as_json=True)
    output.line("text")
    output.table("t", ("a",), [("b",)])
    output.document({"path": Path("a/b"), "error": math.inf, "rows": ({"x": math.nan},), "n": 1})
    output.document({"second": 1})
    found = json.loads(capsys.readouterr().out)
    assert found == {"path": "a/b", "error": None, "rows": [{"x": None}], "n": 1}


def test_quiet_keeps_data_and_errors(capsys: pytest.CaptureFixture[str]) -> None:
    output = Output(quiet=True)
    output.note("a hint")
    with output.progress() as reporter, reporter.stage("work") as stage:
        stage.update(0.5, "detail")
        reporter.note("a choice")
    output.line("data")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("data\n", "")


def test_hints_go_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    Output().note("a hint [with brackets] " + "long " * 60)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("a hint [with brackets] long")
    assert captured.err.count("\n") == 1


def test_color_only_repeats_the_words(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "xterm-256color")
    texts = {}
    for name in ("color", "plain"):
        if name == "plain":
            monkeypatch.setenv("NO_COLOR", "1")
        else:
            monkeypatch.delenv("NO_COLOR", raising=False)
        stream = Terminal()
        monkeypatch.setattr(sys, "stdout", stream)
        Output().table("t", ("verdict",), [("FAILED",)])
        texts[name] = stream.getvalue()
    assert "\x1b[1;31mFAILED" in texts["color"]
    assert "31m" not in texts["plain"]
    assert "FAILED" in texts["plain"]


def test_sizes() -> None:
    assert [size(n) for n in (0, 999, 1000, 41_800, 7.7e6, 5.13e9)] == [
        "0 B", "999 B", "1.0 kB", "41.8 kB", "7.7 MB", "5.13 GB",
    ]  # fmt: skip


def test_paths_are_shown_as_typed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert shown(tmp_path / "engines/a.onnx") == "engines/a.onnx"
    assert shown(Path("/elsewhere/a.onnx")) == "/elsewhere/a.onnx"
