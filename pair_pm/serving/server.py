"""The process: a socket, uvicorn on it, and an end that answers what was taken before it goes."""

import gc
import ipaddress
import logging
import os
import resource
import secrets
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import uvicorn

from pair_pm.errors import ConfigError, MissingPathError
from pair_pm.serving.connection import IDLE_S, MOST_CONNECTIONS, Connection
from pair_pm.serving.service import Service

logger = logging.getLogger(__name__)

API_KEY_VARIABLE = "PAIR_PM_API_KEY"
_SHORTEST_KEY = 16
_MOST_HEADER_BYTES = 64 * 2**10
_FAREWELL_S = 1.0  # of the drain, for answers to go out once nothing more is computed


def read_api_key(path: str | None) -> str:
    """Return the key that requests must carry, from a file's first line or the environment; "" for none.

    Raises:
        MissingPathError: there is no such file.
        ConfigError: it is too short, or holds what a header cannot.
    """
    if path is not None and not Path(path).is_file():
        raise MissingPathError(f"{path}: no such file; required is one whose first line is the API key")
    lines = os.environ.get(API_KEY_VARIABLE, "") if path is None else Path(path).read_text("utf-8", "replace")
    key = lines.partition("\n")[0].strip()
    if (key or path is not None) and (len(key) < _SHORTEST_KEY or not key.isascii() or not key.isprintable()):
        raise ConfigError(
            f"{path or API_KEY_VARIABLE}: no key; at least {_SHORTEST_KEY} printable ASCII characters are required; "
            f"for example {secrets.token_urlsafe(24)}"
        )
    return key


def is_local_address(host: str) -> bool:
    """Return whether a host to listen on is reached from this machine alone."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def open_socket(host: str, port: int, has_key: bool) -> socket.socket:
    """Return a socket that is bound and does not listen yet: a port in use is known before the model is loaded.

    Raises:
        ConfigError: the address is open to others and there is no key, or it cannot be had.
    """
    if not is_local_address(host) and not has_key:
        raise ConfigError(
            f"--host {host}: others than this machine reach it; an API key is required; set {API_KEY_VARIABLE}, or "
            "give --api-key-file"
        )
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except (OSError, OverflowError) as error:
        raise ConfigError(f"--host {host} --port {port}: {error}; an address that is free is required") from error
    return listener


def tune_process() -> None:
    """Set what Python and its libraries set for one computing thread to what many small requests beside it need.

    To be called once, when all is loaded.
    """
    # A forward pass gives the interpreter back hundreds of times; at Python's own 5 ms each return could cost more than
    # the pass, and did cost a small model a sixth of its speed.
    sys.setswitchinterval(0.0005)
    # What is there now stays: half a million objects, which every full collection would halt all for 0.3 s to look at.
    gc.collect()
    gc.freeze()
    # The two prompts of a comparison are tokenised sooner than other threads wake up to share them.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def run(app, listener: socket.socket, drain_timeout_s: float, announce: Callable[[], None]) -> None:
    """Serve until SIGTERM or SIGINT; then answer what was taken, refuse what comes, and return within the time.

    Threads may be left that compute, or wait for a server of the weights, for clients who are answered or gone.

    Args:
        app: Of `pair_pm.serving.app.create_app`.
        listener: A bound socket.
        drain_timeout_s: How long requests that were taken may still take. A second signal ends the wait.
        announce: Called when it listens.

    Raises:
        ConfigError: another process listens at the address by now.
    """
    config = uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=IDLE_S,
        timeout_graceful_shutdown=_FAREWELL_S,
        h11_max_incomplete_event_size=_MOST_HEADER_BYTES,
        backlog=2 * MOST_CONNECTIONS,
    )
    _allow_open_files(2 * MOST_CONNECTIONS + 200)
    service: Service = app.state.service
    server = _Server(config, service, drain_timeout_s, announce)
    server.run(sockets=[listener])
    service.close()
    if not server.is_drained:
        logger.warning("the drain is over; what was not done was answered with 503")


def _allow_open_files(count: int) -> None:
    """Raise the process's limit, often 1024, where it may be raised: connections are files."""
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count if most == resource.RLIM_INFINITY else min(count, most)
    if now != resource.RLIM_INFINITY and now < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


class _Server(uvicorn.Server):
    """Uvicorn, which on a signal would close the door first: here it stays open to say 503 until all is answered."""

    def __init__(self, config: uvicorn.Config, service: Service, drain_timeout_s: float, announce: Callable[[], None]):
        super().__init__(config)
        self._announce = announce
        self.is_drained = True
        self._service = service
        self._drain_timeout_s = drain_timeout_s
        self._drains_until = float("inf")

    async def startup(self, sockets=None) -> None:
        """Listen."""
        try:
            await super().startup(sockets)
        except OSError as error:  # two may bind an address while both load their models; one of them may listen
            raise ConfigError(f"{sockets[0].getsockname()}: {error}; an address that is free is required") from error
        self._announce()

    def handle_exit(self, sig, frame) -> None:
        """Begin to drain; at the second signal, end."""
        if self._service.is_draining:
            self._drains_until = 0.0
        else:
            self._service.is_draining = True
            self._drains_until = time.monotonic() + max(0.0, self._drain_timeout_s - 2 * _FAREWELL_S)

    async def on_tick(self, counter: int) -> bool:
        """Return whether to end, which is asked ten times a second."""
        if counter % 10 == 0:
            for connection in list(self.server_state.connections):
                connection.close_if_stuck()
        if self._service.is_draining:
            if not self._service.under_way:
                return True
            if time.monotonic() > self._drains_until:
                self.is_drained = False
                self._service.give_up()
                return True
        return await super().on_tick(counter)
