"""`infid-export serve`."""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path

from infid_engines.errors import BackendUnavailableError, InputError
from infid_export.cli.flags import add_folder, add_running
from infid_export.cli.output import Output
from infid_export.cli.serve_ray import run_on_ray
from infid_export.serve.options import Limits, ServeOptions

EXAMPLES = (
    "infid-export serve infid-engines",
    "infid-export serve infid-engines --host 0.0.0.0 --token-file token --people people",
)
_LIMITS = {
    "bytes": "bytes of a request",
    "pixels": "pixels of a photo",
    "photos": "photos of a person",
    "prompt": "characters of a prompt",
    "images": "images of a request",
    "steps": "steps of an image",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_folder(parser, "folder", "engine folder")
    add_running(parser)
    group = parser.add_argument_group("server")
    group.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1: this machine only)")
    group.add_argument("--port", type=int, default=8000, help="port to listen on (8000); 0 chooses a free one")
    group.add_argument(
        "--token-file", type=Path, metavar="FILE",
        help="tokens that clients may send, one per line; required unless the host is this machine only",
    )  # fmt: skip
    group.add_argument(
        "--cors", nargs="+", default=[], metavar="ORIGIN", help="other origins whose pages may call the server"
    )
    group.add_argument(
        "--queue",
        type=int,
        default=ServeOptions.queue,
        metavar="N",
        help=f"requests that may wait ({ServeOptions.queue})",
    )
    group.add_argument(
        "--grace", type=float, default=30.0, metavar="S", help="seconds to finish requests when it is stopped (30)"
    )
    many = parser.add_argument_group("several processes")
    many.add_argument("--ray", action="store_true", help="serve on Ray: on this machine, or the cluster at RAY_ADDRESS")
    many.add_argument("--replicas", type=int, metavar="N", help="copies of the server on Ray, one per GPU (1)")
    kept = parser.add_argument_group("people and templates")
    kept.add_argument(
        "--people", type=Path, metavar="DIR", help="keep people as files there, mode 0600 (in memory otherwise)"
    )
    kept.add_argument("--templates", type=Path, metavar="DIR", help="keep templates as files there (likewise)")
    kept.add_argument(
        "--people-budget",
        type=int,
        default=ServeOptions.people_budget,
        metavar="BYTES",
        help=f"memory for people ({ServeOptions.people_budget})",
    )
    kept.add_argument(
        "--template-budget", type=int, metavar="BYTES", help="memory or disk for templates (a quarter of free memory)"
    )
    limits = parser.add_argument_group("limits of a request")
    for name, what in _LIMITS.items():
        value = getattr(Limits, name)
        limits.add_argument(f"--max-{name}", type=int, default=value, metavar="N", help=f"{what} ({value})")


def run(arguments: argparse.Namespace, output: Output) -> int:
    """Serve until stopped. The access log goes to stdout, one JSON document per line."""
    try:
        from infid_export.runtime.enrollment import DRAWN_ONLY
        from infid_export.serve.app import create_app
        from infid_export.serve.options import read_tokens
        from infid_export.serve.server import listen, server_of, url_of
    except ModuleNotFoundError as error:
        raise BackendUnavailableError(
            f"`infid-export serve` needs {error.name}, which is not installed.", fix='pip install "infid-export[serve]"'
        ) from error
    if arguments.grace < 0:
        raise InputError(f"--grace must be 0 or more, not {arguments.grace:g}.", fix="Give a number of seconds.")
    if arguments.ray:
        return run_on_ray(arguments, output, {name: getattr(arguments, f"max_{name}") for name in _LIMITS})
    if arguments.replicas is not None:
        raise InputError("--replicas needs --ray.", fix="Add --ray.")
    options = ServeOptions(
        arguments.folder, arguments.backend, arguments.device, arguments.threads, arguments.people, arguments.templates,
        arguments.people_budget, arguments.template_budget, arguments.queue,
        () if arguments.token_file is None else read_tokens(arguments.token_file), tuple(arguments.cors),
        Limits(**{name: getattr(arguments, f"max_{name}") for name in _LIMITS}),
    )  # fmt: skip
    stdout = sys.__stdout__
    assert stdout is not None

    def write(line: str) -> None:
        stdout.write(line + "\n")
        stdout.flush()

    with listen(arguments.host, arguments.port, bool(options.tokens)) as listening:
        app = create_app(options, access_log=write, log=lambda line: print(line, file=sys.stderr, flush=True))  # noqa: T201
        pipe = app.state.service.pipe
        url = url_of(listening)
        output.note(f"backend {pipe.choice}")
        if pipe.manifest.faces.get("detector") == "drawn":
            output.note(DRAWN_ONLY)
        if not app.state.service.shelf.available:
            output.note("no templates: the folder lacks the graphs text_step and identity_step")
        output.note(f"{url}: loading the engines; /readyz answers 200 when they are ready. Ctrl-C stops.")
        output.document({"url": url, "backend": pipe.backend, "device": pipe.device})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # once, above, and not at each photo
            server_of(app, arguments.grace, output.note).run(sockets=[listening])
    return 0
