"""`infid-export serve --ray`."""

from __future__ import annotations

import argparse
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from infid_engines.errors import BackendUnavailableError, InputError
from infid_export.cli.output import Output


def run_on_ray(arguments: argparse.Namespace, output: Output, limits: dict[str, int]) -> int:
    """Serve on Ray until stopped. The access log is in Ray's own logs.

    Args:
        arguments: of the command.
        output: of the command.
        limits: of a request.
    """
    if find_spec("ray") is None:  # it must not be imported before its environment is set
        raise BackendUnavailableError(
            "`infid-export serve --ray` needs ray, which is not installed.", fix='pip install "infid-export[ray]"'
        )
    from infid_export.runtime.pipeline import Pipeline
    from infid_export.serve.cluster.deployment import serve_on_ray
    from infid_export.serve.options import read_tokens
    from infid_export.serve.server import listen, url_of

    replicas = 1 if arguments.replicas is None else arguments.replicas
    if replicas < 1:
        raise InputError(f"--replicas must be at least 1, not {replicas}.", fix="Give 1 or more.")
    if arguments.token_file is not None:
        read_tokens(arguments.token_file)
    backend, device = arguments.backend, arguments.device
    if "RAY_ADDRESS" not in os.environ:  # the nodes of a cluster may differ from this machine
        with Pipeline.load(arguments.folder, backend, device, threads=arguments.threads) as pipe:
            output.note(f"backend {pipe.choice}")
            backend, device = pipe.backend, pipe.device
    with listen(arguments.host, arguments.port, arguments.token_file is not None) as listening:
        url, port = url_of(listening), listening.getsockname()[1]
    args: dict[str, Any] = {
        "folder": _absolute(arguments.folder), "backend": backend, "device": device, "threads": arguments.threads,
        "people": _absolute(arguments.people), "templates": _absolute(arguments.templates),
        "people_budget": arguments.people_budget, "template_budget": arguments.template_budget,
        "queue": arguments.queue, "token_file": _absolute(arguments.token_file), "origins": list(arguments.cors),
        "limits": limits, "replicas": replicas, "grace": arguments.grace,
    }  # fmt: skip

    def ready(logs: str) -> None:
        output.note(f"{url}: {replicas} replicas are ready. Ctrl-C stops. Logs: {logs}")
        output.document({"url": url, "backend": backend, "device": device, "replicas": replicas})

    serve_on_ray(args, arguments.host, port, output.note, ready)
    return 0


def _absolute(path: Path | None) -> str | None:
    """Return a path as every process on every node has to be given it."""
    return None if path is None else str(path.resolve())
