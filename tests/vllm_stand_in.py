"""A small HTTP server that answers in vLLM's form, for what a real server cannot be made to do: fail on demand."""

import hashlib
import json
import socket
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np


def make_logprobs(prompt, weights: str = "trained") -> list[float]:
    """Return what the "weights" give the labels after a prompt: a pure function of its ids."""
    draw = int.from_bytes(hashlib.sha256(f"{weights} {list(prompt)}".encode()).digest()[:8]) / 2**64
    return [float(np.log(0.98 * share)) for share in (0.05 + 0.9 * draw, 0.95 - 0.9 * draw)]


class StandIn:
    """A server, and what tests change in it.

    Attributes:
        fault: Called with each completion's number, from 0; returns None to answer, a status to answer with it, "hang",
            "drop" to close the connection, "cut" to close it in the middle of the answer, or "garble" to send what is
            not compressed as it says.
        answered: The lists of prompts that it gave answers to, the checks' own among them.
        busiest: Most completions that were under way together.
    """

    def __init__(self, tokenizer=None, port: int = 0, **changes):
        self.tokenizer = tokenizer
        self.models = [{"id": "judge", "root": "/models/judge", "max_model_len": 1024}]
        self.weights = "trained"
        self.api_key = ""
        self.knows_logprob_token_ids = True
        self.delay_s = 0.0
        self.fault: Callable[[int], int | str | None] = lambda number: None
        self.questions: list[dict] = []
        self.answered: list[list[list[int]]] = []
        self.busiest = self._busy = 0
        self._lock = threading.Lock()
        self._is_closed = threading.Event()
        vars(self).update(changes)
        self._server = _Server(("127.0.0.1", port), _Handler)
        self._server.stand_in = self
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    @property
    def port(self) -> int:
        return self._server.server_address[1]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def kill(self) -> None:
        """Stop listening, and break off what is under way."""
        self._is_closed.set()
        self._server.shutdown()
        self._server.server_close()
        self._server.break_off()

    def complete(self, question: dict) -> tuple[int | str, dict]:
        """Return status, or way of failing, and answer of a completion."""
        with self._lock:
            number = len(self.questions)
            self.questions.append(question)
            self._busy += 1
            self.busiest = max(self.busiest, self._busy)
        try:
            fault = self.fault(number)
            if fault == "hang":
                self._is_closed.wait()
                return "drop", {}
            time.sleep(self.delay_s)
            if fault not in (None, "cut", "garble"):
                return fault, {"error": {"message": "EngineCore died"}}
            answer = self._answer(question)
            with self._lock:
                if fault is None:
                    self.answered.append(question["prompt"])
            return fault or 200, answer
        finally:
            with self._lock:
                self._busy -= 1

    def _answer(self, question: dict) -> dict:
        choices = []
        for index, prompt in enumerate(question["prompt"]):
            known = question["logprob_token_ids"] if self.knows_logprob_token_ids else question["logprob_token_ids"][:1]
            labels = dict(zip(known, make_logprobs(prompt, self.weights), strict=False))
            top = {f"token_id:{token}": logprob for token, logprob in {7: -9.5, **labels}.items()}
            choices.append({"index": index, "text": "A", "logprobs": {"top_logprobs": [top]}})
        return {"object": "text_completion", "choices": choices[::-1]}


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # connections that come together; of more than 5 it would reset some

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self._connections: set[socket.socket] = set()

    def get_request(self):
        connection, address = super().get_request()
        self._connections.add(connection)
        return connection, address

    def break_off(self) -> None:
        for connection in self._connections:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # closed already

    def handle_error(self, request, client_address) -> None:
        """Say nothing of connections that were broken off."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else the body waits 40 ms for the client's word that it has the headers

    def log_message(self, *arguments) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self._reply(200, {"object": "list", "data": self.server.stand_in.models})

    def do_POST(self) -> None:
        stand_in = self.server.stand_in
        question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/tokenize":
            if stand_in.tokenizer is None:
                self._reply(404, {"detail": "Not Found"})
            else:
                ids = stand_in.tokenizer(question["prompt"], add_special_tokens=question["add_special_tokens"])
                self._reply(200, {"tokens": ids["input_ids"]})
            return
        status, answer = stand_in.complete(question)
        if status == "drop":
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
        else:
            self._reply(status, answer)

    def _reply(self, status: int | str, answer: object) -> None:
        key = self.server.stand_in.api_key
        if key and self.path.startswith("/v1") and self.headers["Authorization"] != f"Bearer {key}":
            status, answer = 401, {"error": "Unauthorized"}
        body = json.dumps(answer).encode()
        self.send_response(200 if status in ("cut", "garble") else status)
        if status == "garble":
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if status == "cut" else body)
        if status == "cut":
            self.close_connection = True


@contextmanager
def run_stand_ins(count: int, tokenizer=None, **changes):
    """Run servers, and kill them at the end."""
    stand_ins = [StandIn(tokenizer, **changes) for _ in range(count)]
    try:
        yield stand_ins
    finally:
        for stand_in in stand_ins:
            stand_in.kill()
