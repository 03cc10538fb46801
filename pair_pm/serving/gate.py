"""What stands before every request: who may ask, how many at once, how large and how slowly; and the log.

It is plain ASGI, outermost but for CORS: what it refuses costs nothing behind it, and nothing behind it can answer with
a traceback.
"""

import asyncio
import base64
import hmac
import ipaddress
import json
import logging
import time
import traceback
from collections.abc import Collection

from starlette.responses import JSONResponse

from pair_pm.serving.problems import Problem, exceed
from pair_pm.serving.service import Service

logger = logging.getLogger(__name__)

# They tell nothing of the model, and the page has to be there before it can ask for a key.
OPEN_PATHS = ("/", "/health", "/ready", "/docs", "/openapi.json")
_POLLED_PATHS = ("/health", "/ready", "/metrics")  # every few seconds: the log tells only when they fail


class HangUp(Exception):
    """The client is gone; nobody waits for an answer."""


class Gate:
    """The service's door.

    Args:
        app: What answers.
        service: Whose settings hold.
        paths: Those that metrics may name; others are one.
        open_folder: A path below which files lie that anyone may read.
        is_local: Whether it listens on this machine alone: then only the machine's own names are answered to, because
            a web page can have a name of its own point here.
    """

    def __init__(self, app, service: Service, paths: Collection[str], open_folder: str, is_local: bool):
        self.app = app
        self.service = service
        self.paths = frozenset(paths)
        self.open_folder = open_folder
        self.is_local = is_local

    async def __call__(self, scope, receive, send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        visit = _Visit(send)
        try:
            await self._answer(scope, receive, visit)
        except HangUp:
            visit.status = 499  # nginx's number for it; it is only logged
            self.service.measures.note_hang_up()
        except Problem as problem:
            await visit.send_problem(scope, receive, problem)
        except Exception as error:
            self._log_defect(error)
            await visit.send_problem(
                scope, receive, Problem(500, "internal", "a defect of the service; its log has more")
            )
        self._note(scope, visit)

    async def _answer(self, scope, receive, visit: "_Visit") -> None:
        headers = dict(scope["headers"])
        if self.is_local and not _is_local_name(_host_of(headers)):
            raise Problem(421, "unknown_host", "another host's name; localhost or 127.0.0.1 is required", "host")
        if "\0" in scope["path"]:
            raise Problem(404, "not_found", "a path with NUL; one of those in /docs is required")
        if scope["path"].startswith(self.open_folder):  # parts of a file: Starlette gathers thousands of them, slowly
            scope = {**scope, "headers": [header for header in scope["headers"] if header[0] != b"range"]}
        if scope["path"] in OPEN_PATHS or scope["path"].startswith(self.open_folder):
            await self.app(scope, receive, visit.send)
            return
        self._check_key(headers)
        if scope["method"] != "POST":
            await self.app(scope, receive, visit.send)
            return
        if (refusal := self.service.find_refusal()) is not None:
            raise refusal
        self.service.under_way += 1
        try:
            body = await self._read_body(headers, receive)
            if self.service.settings.log_prompts:
                text = json.dumps(body.decode("utf-8", "replace"), ensure_ascii=False)
                logger.info("%s: %s", _write_path(scope), text)
            await self.app(scope, _replay(body, receive), visit.send)
        finally:
            self.service.under_way -= 1

    def _check_key(self, headers: dict[bytes, bytes]) -> None:
        key = self.service.settings.api_key
        if key and not hmac.compare_digest(_read_key(headers.get(b"authorization", b"")), key.encode()):
            raise Problem(
                401, "unauthorized", "no API key, or another one; Authorization: Bearer KEY is required",
                "authorization", {"WWW-Authenticate": "Bearer"},
            )  # fmt: skip

    async def _read_body(self, headers: dict[bytes, bytes], receive) -> bytes:
        limits = self.service.settings.limits
        if headers.get(b"content-type", b"").split(b";")[0].strip().lower() != b"application/json":
            raise Problem(415, "not_json", "another content type; application/json is required", "content-type")
        if b"transfer-encoding" in headers and b"content-length" in headers:  # a proxy may have believed the other one
            raise Problem(
                400, "invalid_http", "Content-Length and Transfer-Encoding; one of them is required",
                "content-length", {"Connection": "close"},
            )  # fmt: skip
        size, body = int(headers.get(b"content-length", b"0")), bytearray()  # the server lets only digits through
        try:
            async with asyncio.timeout(limits.body_timeout_s):
                while size <= limits.body_bytes:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise HangUp
                    body += message.get("body", b"")
                    size = max(size, len(body))
                    if size <= limits.body_bytes and not message.get("more_body"):
                        return bytes(body)
        except TimeoutError:
            raise Problem(
                408, "body_timeout", f"not all of the body came within {limits.body_timeout_s:g} s; it is required",
                "body", {"Connection": "close"},
            ) from None  # fmt: skip
        # The connection reads some of the rest away, so that the client gets to the answer.
        raise exceed("body", f"{size} bytes", limits.body_bytes, "--max-body-bytes")

    def _log_defect(self, error: Exception) -> None:
        if self.service.settings.log_prompts:
            logger.error("a defect", exc_info=error)
        else:  # its message could quote a prompt
            frames = "".join(traceback.format_tb(error.__traceback__))
            logger.error("a defect, %s, at\n%s", type(error).__name__, frames.rstrip())

    def _note(self, scope, visit: "_Visit") -> None:
        path = scope["path"] if scope["path"] in self.paths else "other"
        seconds = time.monotonic() - visit.started
        self.service.measures.note_request(path, visit.status, seconds)
        level = logging.DEBUG if path in _POLLED_PATHS and visit.status == 200 else logging.INFO
        logger.log(level, "%s %s %d %.0f ms", scope["method"][:20], _write_path(scope), visit.status, 1000 * seconds)


class _Visit:
    """A request's answer as it goes out."""

    def __init__(self, send):
        self.started = time.monotonic()
        self.status = 0
        self._send = send

    async def send(self, message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        await self._send(message)

    async def send_problem(self, scope, receive, problem: Problem) -> None:
        if not self.status:
            response = JSONResponse(problem.to_dict(), problem.status, problem.headers)
            await response(scope, receive, self.send)


def _write_path(scope) -> str:
    """Return a request's path for the log: in one line, however it was spelled."""
    return json.dumps(scope["path"][:200])


def _host_of(headers: dict[bytes, bytes]) -> str:
    host = headers.get(b"host", b"").decode("latin-1").lower()
    return host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host


def _is_local_name(host: str) -> bool:
    """Return whether a host is this machine whoever is asked: no name of the web's can pass for an address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _read_key(authorization: bytes) -> bytes:
    """Return the key: a bearer's, or a basic password, which is what a client makes of http://any:KEY@host."""
    scheme, _, value = authorization.partition(b" ")
    if scheme.lower() == b"basic":
        try:
            return base64.b64decode(value.strip(), validate=True).partition(b":")[2]
        except ValueError:
            return b""
    return value.strip() if scheme.lower() == b"bearer" else b""


def _replay(body: bytes, receive):
    """Return a receive that gives the body at once, and then what the client does."""
    is_read = False

    async def receive_again():
        nonlocal is_read
        if is_read:
            return await receive()
        is_read = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive_again
