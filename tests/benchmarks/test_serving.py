"""The measurements of the server, on tiny engines: each runs from end to end, and what they compute is right."""

from __future__ import annotations

import json
import math
import signal
import struct
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from running import dot_png
from tiny_engines import write_folder

from benchmarks.serving import hostile, tables
from benchmarks.serving.__main__ import main
from benchmarks.serving.client import photos, psnr
from benchmarks.serving.customers import ACTIONS
from benchmarks.serving.hostile_cases import KINDS, Target, png
from benchmarks.serving.ledger import Ledger, is_server_error
from benchmarks.serving.measures import median_ms, quantiles_ms, slope_per_hour
from benchmarks.serving.server_process import ServerProcess
from infid_engines.errors import EngineFolderError, InputError

Run = Callable[..., dict[str, Any]]
TARGET = Target("127.0.0.1:8000", "token", "person_a", dot_png(), 2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("tiny") / "engines")


@pytest.fixture
def run(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Run a subcommand, and return its document."""
    before = signal.getsignal(signal.SIGTERM)
    (tmp_path / "face.png").write_bytes(dot_png())

    def measure(command: str, *options: str, code: int = 0) -> dict[str, Any]:
        words = [command, str(folder), *options, "--photo", str(tmp_path / "face.png"), "--results", str(tmp_path)]
        assert main([*words, "--machine", "2 cores"]) == code
        printed = capsys.readouterr()
        document = json.loads((tmp_path / f"serving-{command}.json").read_text())
        assert document["kind"] == f"serving {command}"
        assert {"machine", "python", "versions", "commit"} <= document.keys()
        assert printed.out.startswith(tables.TABLES[f"serving-{command}"](document))
        assert printed.err
        return dict(document)

    yield measure
    signal.signal(signal.SIGTERM, before)


def test_load(run: Run) -> None:
    document = run("load", "--concurrency", "1", "4", "--images", "6", "--steps", "2")
    assert [each["concurrency"] for each in document["levels"]] == [1, 4]
    for level in document["levels"]:
        assert level["statuses"] == {"200": 6}
        assert 0 < level["p50_ms"] <= level["p95_ms"] <= level["p99_ms"]
        assert level["images_per_second"] > 0


def test_overhead(run: Run) -> None:
    document = run("overhead", "--rounds", "3", "--steps", "2")
    assert document["same_image"]
    parts = sum(document[name]["median_ms"] for name in ("round", "png", "added"))
    assert parts == pytest.approx(document["request"]["median_ms"], rel=0.5)
    assert 0 < document["added"]["median_ms"] < document["request"]["median_ms"]


def test_batching(run: Run, folder: Path) -> None:
    document = run("batching", str(folder), "--customers", "4", "--rounds", "2", "--steps", "2")
    assert [each["batch"] for each in document["folders"]] == [2, 2]
    for each in document["folders"]:
        assert each["ratio"].keys() == {"template", "same prompt"}
        assert each["met"] == (each["ratio"]["template"] >= each["goal"])


def test_soak(run: Run) -> None:
    document = run("soak", "--minutes", "0.05", "--customers", "4", "--sample-seconds", "0.5", "--seed", "3")
    assert (document["lost"], document["server_errors"], document["metrics_differ"]) == ([], 0, [])
    assert document["stop_seconds"] < 15
    assert document["exit_code"] == document["bugs_logged"] == document["faults"] == 0
    assert document["actions"].keys() <= ACTIONS.keys()
    assert document["requests"] >= sum(document["statuses"].values()) > 20
    assert document["images"] > 0
    assert len(document["samples"]) > 2
    assert document["at_end"].keys() == {"resident_mb", "descriptors", "threads"}


def test_hostile(run: Run) -> None:
    document = run("hostile", "--requests", "120", "--slow-clients", "3")
    assert [each["faults"] for each in document["servers"].values()] == [[], []]
    assert sum(sum(each["requests"].values()) for each in document["servers"].values()) == 120
    assert min(each["files_compared"] for each in document["servers"].values()) > 9


def test_a_fault_is_an_exit_code(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hostile, "_GROWTH_MB", -1e6)
    document = run("hostile", "--requests", "40", "--slow-clients", "0", code=1)
    assert document["faults"] == 2
    assert "memory has grown" in document["servers"]["with tokens"]["faults"][0]


def test_a_folder_that_cannot_be_served_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(EngineFolderError, match="did not start"), ServerProcess(tmp_path, tmp_path):
        pass
    before = signal.getsignal(signal.SIGTERM)
    assert main(["load", str(tmp_path), "--results", str(tmp_path)]) == 1
    signal.signal(signal.SIGTERM, before)
    assert "did not start" in capsys.readouterr().err


def test_quantiles() -> None:
    assert quantiles_ms([each / 1e3 for each in range(101)]) == {"p50_ms": 50, "p95_ms": 95, "p99_ms": 99}
    assert quantiles_ms([0.002]) == {"p50_ms": 2, "p95_ms": 2, "p99_ms": 2}
    assert median_ms([0.001, 0.002, 0.003, 0.004, 0.005, 0.006]) == {"median_ms": 3.5, "p20_ms": 2, "p80_ms": 5}


def test_a_slope_leaves_out_the_start() -> None:
    line = [(second, 100 + second / 3600 * 7) for second in range(0, 3600, 10)]
    assert slope_per_hour(line) == pytest.approx(7)
    grown = [(second, 0.0 if second < 900 else 50.0) for second in range(0, 3610, 10)]
    assert slope_per_hour(grown) == pytest.approx(0)
    assert slope_per_hour(grown, part=1.0) > 10
    assert slope_per_hour([(0, 1)]) == slope_per_hour([]) == slope_per_hour([(1, 1), (1, 2)]) == 0


def test_counts_are_compared_with_the_servers() -> None:
    ledger = Ledger()
    ledger.answered("POST", "/a", 200, images=2)
    ledger.answered("POST", "/a", 400)
    ledger.answered("GET", "/b", 503)
    total = "infid_requests_total"
    before = Counter({(total, "POST", "/a", "200"): 4.0})
    after = Counter({(total, "POST", "/a", "200"): 5.0, (total, "POST", "/a", "400"): 1.0,
                     (total, "GET", "/b", "503"): 1.0, ("infid_images_total", "done"): 2.0})  # fmt: skip
    one_more = after + Counter({(total, "POST", "/a", "499"): 1.0})
    assert ledger.differences(before, after) == []
    assert len(ledger.differences(before, one_more)) == 1
    ledger.dropped["POST", "/a"] = 1  # sent or not
    assert ledger.differences(before, after) == ledger.differences(before, one_more) == []
    ledger.left["POST", "/a"] = 1  # in the middle of an answer
    assert len(ledger.differences(before, after)) == 1
    assert ledger.differences(before, one_more) == []
    for more in ((total, "POST", "/a", "500"), (total, "GET", "/b", "200"), (total, "GET", "/c", "404")):
        assert len(ledger.differences(before, one_more + Counter({more: 1.0}))) == 1
    ledger.answered("POST", "/a", 200, images=1)
    assert [each.split(":")[0] for each in ledger.differences(before, one_more)] == [
        "POST /a", "3 images arrived, and the server counts 2"
    ]  # fmt: skip
    assert ledger.statuses() == {"200": 2, "400": 1, "503": 1}
    assert ledger.server_errors() == 0


def test_what_is_a_fault_of_the_server() -> None:
    assert [status for status in (200, 404, 429, 499, 500, 502, 503, 507) if is_server_error(status)] == [500, 502]


def test_hostile_requests_repeat() -> None:
    for kind, make in KINDS.items():
        first, second = ([make(TARGET, random) for _ in range(30)] for random in (Random(1), Random(1)))
        assert first == second, kind


def test_a_bomb_is_small_and_its_header_is_valid() -> None:
    content = png(60_000, 50_000)
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", content[16:24]) == (60_000, 50_000)
    (check,) = struct.unpack(">I", content[29:33])
    assert check == zlib.crc32(content[12:29])


def test_a_snapshot_sees_every_change(tmp_path: Path) -> None:
    people = tmp_path / "home" / "people"
    people.mkdir(parents=True)
    (tmp_path / "canary").write_text("a")
    before = hostile.snapshot(tmp_path, people)
    (people / "somebody").write_text("b")
    assert hostile.snapshot(tmp_path, people) == before
    (tmp_path / "canary").write_text("b")
    (tmp_path / "home" / "new").mkdir()
    after = hostile.snapshot(tmp_path, people)
    assert {path for path in after if after[path] != before.get(path)} == {"canary", "home/new"}


def test_drawn_people_are_different_and_files_are_repeated(tmp_path: Path) -> None:
    assert len(set(photos([], 3))) == 3
    (tmp_path / "a").write_bytes(b"a")
    assert photos([tmp_path / "a"], 2) == [b"a", b"a"]
    with pytest.raises(InputError, match="cannot be read"):
        photos([tmp_path / "b"], 1)


def test_psnr() -> None:
    image = np.zeros((2, 2, 3), np.uint8)
    assert psnr(image, image) == math.inf
    assert psnr(image, image + np.uint8(255)) == 0
    assert psnr(image, image + np.uint8(1)) == pytest.approx(48.13, abs=0.01)
