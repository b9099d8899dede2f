"""Faults that were found in how people are kept."""

from __future__ import annotations

from pathlib import Path

from running import options_of, running


def test_a_damaged_file_of_a_person_is_no_fault_of_the_server(tiny_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "people"
    with running(options_of(tiny_folder, people=folder)) as server:
        (folder / "broken.safetensors").write_bytes(b"broken")
        answer = server.get("/v1/people/broken")
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "damaged_person")
        assert str(tmp_path) not in answer.text
        assert server.delete("/v1/people/broken").status_code == 200
        assert server.get("/v1/people/broken").json()["error"]["code"] == "not_found"
