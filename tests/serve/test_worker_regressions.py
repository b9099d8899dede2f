"""Faults that were found in the thread that draws."""

from __future__ import annotations

from pathlib import Path

from running import options_of, running


def test_a_folder_of_templates_that_is_gone_stops_nobody(tiny_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "templates"
    with running(options_of(tiny_folder, templates=folder)) as server:
        body = {"prompt": "a", "person": server.enroll()}
        folder.rename(tmp_path / "moved")
        folder.write_text("a file")
        assert server.post("/v1/images/generations", json=body).status_code == 200
        assert server.post("/v1/templates", json={"prompt": "a"}).status_code == 400
        folder.unlink()
        (tmp_path / "moved").rename(folder)
        assert server.post("/v1/templates", json={"prompt": "a"}).status_code == 201
