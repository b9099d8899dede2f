"""A server of a few-step model with fixed timesteps."""

from __future__ import annotations

from pathlib import Path

import pytest
from running import options_of, running
from tiny_engines import FEW_STEPS, write_folder


@pytest.mark.filterwarnings("error:The number of steps")
def test_it_gets_ready_and_answers(tmp_path: Path) -> None:
    folder: Path = write_folder(tmp_path / "engines", **FEW_STEPS)
    with running(options_of(folder)) as server:
        body = {"prompt": "a knight", "person": server.enroll(), "seed": 7}
        answer = server.post("/v1/images/generations", json=body)
        assert answer.status_code == 200, answer.text
        other = server.post("/v1/images/generations", json={**body, "steps": 2})
        assert other.status_code == 400
        assert "The number of steps must be 4" in other.json()["error"]["message"]
        assert not server.log
