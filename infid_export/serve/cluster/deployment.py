"""`infid-export serve --ray`: starts Ray on this machine, or connects to a cluster, and serves there until stopped."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from infid_engines.errors import BackendUnavailableError, InputError

_OBJECT_STORE_BYTES = 200_000_000  # Ray's own default is a third of the memory; requests and images pass through it
_LOOKS_EVERY = 2.0  # seconds


def serve_on_ray(
    args: dict[str, Any], host: str, port: int, note: Callable[[str], None], ready: Callable[[str], None]
) -> None:
    """Serve on Ray until SIGTERM or Ctrl-C.

    With the variable RAY_ADDRESS, the cluster there is used; otherwise one is started on this machine and ended with
    the server. Nothing of Ray's usage is reported to anybody.

    Args:
        args: of `infid_export.serve.ray.app`.
        host: address that the HTTP proxy listens on.
        port: likewise.
        note: receives sentences on what happens.
        ready: receives the place of Ray's logs once requests are answered.

    Raises:
        InputError: the arguments are wrong, the machine has too few GPUs, or the cluster serves already.
        BackendUnavailableError: the cluster cannot be reached, or no replica starts.
    """
    _prepare()
    import ray
    from ray import serve

    from infid_export.serve.ray import NAME, app

    for name in ("ray", "ray.serve"):
        logging.getLogger(name).setLevel(logging.ERROR)
    application = app(args)
    with _cluster(note), _interruptible():
        if serve.status().proxies:
            raise InputError("The cluster serves already.", fix="Deploy there with `serve deploy`: docs/scaling.md.")
        gpus = ray.cluster_resources().get("GPU", 0)  # type: ignore[no-untyped-call]
        try:
            if "RAY_ADDRESS" not in os.environ and application_gpus(args) > gpus:
                raise InputError(f"This machine has {gpus:g} GPUs, fewer than {args['replicas']} replicas.",
                                 fix="Give fewer with --replicas.")  # fmt: skip
            serve.start(proxy_location="HeadOnly", http_options={"host": host, "port": port})
            serve.run(application, name=NAME)
            ready(_logs())
            _watch(serve, NAME, note)
        except (RuntimeError, ray.exceptions.RayError) as error:
            raise BackendUnavailableError(
                f"Ray could not start the server: {_last_line(serve, NAME, error)}", fix=f"Its logs are in {_logs()}."
            ) from error
        except KeyboardInterrupt:
            note(f"stopping; requests that wait are finished for {args['grace']:g} s")
        finally:
            serve.delete(NAME)  # waits for the requests that are being answered
            if "RAY_ADDRESS" in os.environ:
                serve.shutdown()  # type: ignore[no-untyped-call]


def application_gpus(args: dict[str, Any]) -> float:
    """Return how many GPUs all replicas reserve."""
    from infid_export.serve.ray import Arguments, actor_resources

    given = Arguments.model_validate(args)
    return given.replicas * actor_resources(given)["num_gpus"]


def _prepare() -> None:
    """Set what Ray reads from the environment when it is imported."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    if "RAY_ADDRESS" not in os.environ:  # Ray listens on all interfaces, and runs what it is sent: it needs a token
        os.environ.setdefault("RAY_worker_niceness", "0")  # 15, and on busy cores the replicas starve
        os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")  # 5, and busy cores make it fail
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


@contextmanager
def _cluster(note: Callable[[str], None]) -> Iterator[None]:
    """Connect to Ray, which is started if no address is given."""
    import ray

    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    address = os.environ.get("RAY_ADDRESS")
    try:
        if address:
            ray.init(address=address, **quiet)
        else:
            ray.init(
                address="local", include_dashboard=False, object_store_memory=_OBJECT_STORE_BYTES, **quiet,
                _system_config={"automatic_object_spilling_enabled": False},  # photos are not written to a disk
            )  # fmt: skip
    except ConnectionError as error:
        raise BackendUnavailableError(
            f"The Ray cluster at {address} cannot be reached ({error}).", fix="Check RAY_ADDRESS, or unset it."
        ) from error
    try:
        note(f"Ray {ray.__version__}, {'the cluster at ' + address if address else 'on this machine'}")
        yield
    finally:
        ray.shutdown()


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let SIGTERM do what Ctrl-C does; Ray's own handler would end the process at once."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _watch(serve: Any, name: str, note: Callable[[str], None]) -> None:
    """Report changes until interrupted."""
    last = ""
    while True:
        time.sleep(_LOOKS_EVERY)
        found = serve.status().applications[name].deployments[name]
        states = ", ".join(f"{count} {state.lower()}" for state, count in sorted(found.replica_states.items()))
        now = f"replicas: {states}" + (f" ({found.message})" if found.message else "")
        if last and now != last:
            note(now)
        last = now


def _logs() -> str:
    """Return where Ray writes its logs, on each node."""
    import ray

    context = ray.get_runtime_context()
    return f"{context.get_temp_dir()}/{context.get_session_name()}/logs"


def _last_line(serve: Any, name: str, error: Exception) -> str:
    """Return what the last exception of a replica that did not start says."""
    application = serve.status().applications.get(name)
    deployments = [] if application is None else list(application.deployments.values())
    text = "\n".join([str(error), *(each.message for each in deployments if each.message)])
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return next((line.partition(": ")[2] for line in reversed(lines) if "Error: " in line), lines[-1])
