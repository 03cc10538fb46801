"""The service in a thread of the test's own process, on a real socket: for engines that the test holds in its hand."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx

from pair_pm import PairScorer
from pair_pm.serving.app import create_app
from pair_pm.serving.server import open_socket, run
from pair_pm.serving.service import Service
from pair_pm.serving.settings import Settings


class GatedEngine:
    """A real engine that answers when it is let; it counts what it was asked.

    Attributes:
        gate: Closed, its next call waits.
        calls: Prompts of each call, as they came.
    """

    def __init__(self, engine):
        self.max_prompt_tokens = engine.max_prompt_tokens
        self.max_batch_tokens = engine.max_batch_tokens
        self.gate = threading.Event()
        self.gate.set()
        self.calls: list[list] = []
        self._engine = engine

    def label_logprobs(self, prompts):
        self.calls.append(list(prompts))
        assert self.gate.wait(30)
        return self._engine.label_logprobs(prompts)


@dataclass
class ServiceThread:
    """A service that listens, and a client of it."""

    service: Service
    client: httpx.Client
    port: int


@contextmanager
def serve_in_thread(scorer: PairScorer, settings: Settings) -> Iterator[ServiceThread]:
    """Start a service, give it, and drain it."""
    listener = open_socket("127.0.0.1", 0, has_key=False)
    app = create_app(scorer, settings)
    listens = threading.Event()
    thread = threading.Thread(target=run, args=(app, listener, 20.0, listens.set), daemon=True)
    thread.start()
    assert listens.wait(30)
    port = listener.getsockname()[1]
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            yield ServiceThread(app.state.service, client, port)
    finally:
        app.state.service.is_draining = True
        thread.join(30)
        assert not thread.is_alive()


def wait_until(condition) -> None:
    """Return when a condition holds, which it must soon."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)
