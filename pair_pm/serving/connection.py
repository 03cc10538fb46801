"""A client's connection: closed where the client keeps it waiting, and every answer on it in the service's own form.

Uvicorn's timer covers a connection that lies idle after an answer, and no more: who sends a head or a refused body a
byte at a time, or never takes the answer, would hold a connection for ever, and with a thousand of them all there are.
"""

import logging
from http import HTTPStatus

import h11
from starlette.responses import JSONResponse
from uvicorn.protocols.http.h11_impl import H11Protocol

from pair_pm.serving.problems import Problem, retry

logger = logging.getLogger(__name__)

MOST_CONNECTIONS = 1000
IDLE_S = 75.0  # longer than clients and proxies keep a connection, so that none is used as it closes
# How long a client may owe what it owes: a request's head, the next request, the rest of a body that was answered
# already, which is read away so that the client gets to the answer, and the taking of an answer.
_PATIENCE_S = {"head": 10.0, "request": IDLE_S, "rest": 5.0, "taking": 60.0}

# Each chunk of a body costs as much time as a kilobyte of it: more of them would hold up the whole service.
_FREE_CHUNKS, _FEWEST_BYTES_A_CHUNK = 1000, 1024


class _Reader(h11.Connection):
    """Reads HTTP, and refuses bodies in crumbs."""

    def next_event(self):
        """Return what comes next."""
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._chunks = self._bytes = 0
        elif isinstance(event, h11.Data):
            self._chunks += event.chunk_start
            self._bytes += len(event.data)
            if self._chunks > max(_FREE_CHUNKS, self._bytes / _FEWEST_BYTES_A_CHUNK):
                raise h11.RemoteProtocolError("chunks are too small")
        return event


class Connection(H11Protocol):
    """A connection of the server; `close_if_stuck` is to be called about once a second."""

    def connection_made(self, transport) -> None:
        """Take it; where there are too many it hears so, and where there are far too many it does not."""
        super().connection_made(transport)
        self.conn = _Reader(h11.SERVER, self.config.h11_max_incomplete_event_size)
        self._owed: tuple[str | None, object] = (None, None)
        self._since = self.loop.time()
        if len(self.connections) > 2 * MOST_CONNECTIONS:
            transport.abort()
        elif len(self.connections) > MOST_CONNECTIONS:
            self.app = _answer_full

    def close_if_stuck(self) -> None:
        """Close it if its client has owed the same for too long."""
        owed, now = (self._find_owed(), self.cycle), self.loop.time()
        if owed != self._owed:
            self._owed, self._since = owed, now
        elif owed[0] is not None and now - self._since > _PATIENCE_S[owed[0]]:
            self.transport.abort()  # close() would wait until the client has taken the answer

    def _find_owed(self) -> str | None:
        """Return what the client owes; None while a request of it is worked on, which has limits of its own."""
        if self.transport.get_write_buffer_size():
            return "taking"
        if self.conn.their_state is h11.IDLE:
            return "head" if self.cycle is None or self.conn.trailing_data[0] else "request"
        if self.conn.their_state is h11.SEND_BODY and self.cycle.response_complete:
            return "rest"
        return None

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, or too costly to read, unless another answer has begun; and close."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            problem = Problem(
                400,
                "invalid_http",
                "no request of HTTP/1.1, or a body in crumbs; one in chunks of kilobytes is required",
            )
            body = JSONResponse(problem.to_dict()).body
            headers = [("content-type", "application/json"), ("content-length", str(len(body)))]
            response = h11.Response(
                status_code=400, headers=[*headers, ("connection", "close")], reason=HTTPStatus(400).phrase
            )
            for event in (response, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event))
        if self.cycle is not None:  # whose body it was that is no HTTP: nobody waits for its answer now
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.close()

    def _unsupported_upgrade_warning(self) -> None:
        """Say nothing: an upgrade is the client's wish, and a request without it is answered."""


async def _answer_full(scope, receive, send) -> None:
    problem = Problem(
        503, "too_many_connections",
        f"over {MOST_CONNECTIONS} connections are open; fewer are required; try again after Retry-After", "",
        {**retry(1), "Connection": "close"},
    )  # fmt: skip
    await JSONResponse(problem.to_dict(), problem.status, problem.headers)(scope, receive, send)
