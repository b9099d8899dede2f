"""Faults that hostile requests have found in how bodies are read."""

from __future__ import annotations

import json
import socket

import pytest
from running import Running, wait_until


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/v1/people", "multipart/form-data; boundary=x"),
        ("/v1/images/edits", "multipart/form-data; boundary=x"),
        ("/v1/images/generations", "application/json"),
        ("/v1/templates", "application/json"),
    ],
)
def test_who_hangs_up_while_sending_is_no_fault_of_the_server(fresh: Running, path: str, kind: str) -> None:
    with socket.create_connection(("127.0.0.1", int(fresh.url.rpartition(":")[2])), timeout=10) as connection:
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: 500\r\n\r\n{{"
        connection.sendall(head.encode())
    wait_until(lambda: any(json.loads(line)["method"] == "POST" for line in fresh.access))
    (line,) = (json.loads(line) for line in fresh.access if json.loads(line)["method"] == "POST")
    assert (line["route"], line["status"]) == (path, 499)
    assert fresh.metric(f'infid_requests_total{{method="POST",route="{path}",status="499"}}') == 1
