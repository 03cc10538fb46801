"""Requests that nobody should send, made from a seed, a client that sends them, and what is wrong with answers.

`make_bad_requests` draws from every kind of `KINDS` in turn. Each request says with which statuses it may be answered,
and whether the connection may be closed without an answer.
"""

import asyncio
import contextlib
import json
import random
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

HANG_S = 20.0  # neither an answer nor an end within it is a hang
_PROBLEM = {"type", "message", "where"}
_INSIDES = re.compile(rb"Traceback|File \\?\"|\.py\b| object at 0x|<class |site-packages|NoneType")

REFUSED = frozenset({400, 413, 422})
ANSWERED = REFUSED | {200}
BUSY = frozenset({429, 503})  # the service says that it has enough to do: right for any request

_PROMPT, _TWO = "What is 2 + 2?", ["4.", "Who knows?"]
GOOD_BODIES = {
    "/v1/compare": {"prompt": _PROMPT, "responses": _TWO},
    "/v1/compare/batch": {"comparisons": [{"prompt": _PROMPT, "responses": _TWO}]},
    "/v1/rank": {"prompt": _PROMPT, "responses": [*_TWO, "Four."], "resamples": 0},
    "/v1/rewards": {"groups": [{"prompt": _PROMPT, "completions": [*_TWO, "Four."]}]},
}
_GETS = ("/", "/health", "/ready", "/docs", "/openapi.json", "/metrics", "/v1/model")
_PAUSE_S = 0.02  # of a slow writer, between two pieces


@dataclass(frozen=True)
class BadRequest:
    """What is sent, and what may come back.

    Attributes:
        kind: Its maker's name.
        pieces: What is written, with a pause after each but the last.
        statuses: Of the answer, or of the first one.
        may_close: Whether the connection may end without an answer.
        leaves: Whether the client is gone after its last piece, without a look at the answer.
        is_head: Whether its answer has no body.
    """

    kind: str
    pieces: tuple[bytes, ...]
    statuses: frozenset[int] = REFUSED
    may_close: bool = False
    leaves: bool = False
    is_head: bool = False


@dataclass(frozen=True)
class Outcome:
    """What came back: status 0 for no answer."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    has_hung: bool = False


def write_post(path: str, body: bytes, *headers: str, content_type: str | None = "application/json") -> bytes:
    """Return a request's bytes."""
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", *headers]
    lines += [f"Content-Type: {content_type}"] if content_type is not None else []
    lines += [f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode() + body


# ---- what is wrong with a body --------------------------------------------------------------------------------------

_WRONG_TEXTS = (7, 1.5, True, [], {}, ["x"], {"a": 1})
_WRONG_NUMBERS = ("NaN", "Infinity", "-Infinity", "-1", "1.5", '"1"', "true", "1e400", "9" * 4000, "9" * 5000, "[]")


def _post(kind: str, path: str, body, statuses=REFUSED) -> BadRequest:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return BadRequest(kind, (write_post(path, data),), frozenset(statuses))


def _copy(path: str) -> tuple[dict, dict]:
    """Return a good body, and the part of it that holds a conversation."""
    body = json.loads(json.dumps(GOOD_BODIES[path]))
    return body, next((part[0] for name, part in body.items() if name in ("comparisons", "groups")), body)


def _name_texts(part: dict) -> str:
    return "completions" if "completions" in part else "responses"


def wrong_type(draw: random.Random, path: str) -> BadRequest:
    body, part = _copy(path)
    texts = _name_texts(part)
    place = draw.choice(["prompt", "texts", "text", "messages", "content", "list"])
    if place == "prompt":
        part["prompt"] = draw.choice(_WRONG_TEXTS)
    elif place == "texts":
        part[texts] = draw.choice([None, "4.", 7, {"0": "4."}])
    elif place == "text":
        part[texts][draw.randrange(2)] = draw.choice([None, *_WRONG_TEXTS])
    elif place == "list":
        return _post("wrong_type", path, draw.choice([None, 1, "x", [], [body], True]))
    else:
        del part["prompt"]
        message = {"role": "user", "content": draw.choice([None, *_WRONG_TEXTS])}
        part["messages"] = [message] if place == "content" else draw.choice(["x", {}, [[]], [None], ["user"], [{}]])
    return _post("wrong_type", path, body, {422})


def wrong_number(draw: random.Random, path: str) -> BadRequest:
    name = draw.choice(["seed", "budget", "resamples"])
    path = "/v1/rewards" if name == "seed" and draw.random() < 0.5 else "/v1/rank"
    data = (
        json.dumps(GOOD_BODIES[path] | {name: "HERE"}).encode().replace(b'"HERE"', draw.choice(_WRONG_NUMBERS).encode())
    )
    return _post("wrong_number", path, data, {422})


def missing_or_unknown(draw: random.Random, path: str) -> BadRequest:
    body, part = _copy(path)
    where = draw.choice([body, part])
    if draw.random() < 0.5:
        del where[draw.choice([name for name in where if name != "resamples"])]
    else:
        where[draw.choice(["extra", "", "\0", "__class__", "Prompt", "\ud800", "a" * 10_000])] = draw.choice(
            [1, None, "x"]
        )
    return _post("missing_or_unknown", path, body, {422})


def empty(draw: random.Random, path: str) -> BadRequest:
    body, part = _copy(path)
    name = draw.choice(list(part))
    part[name if name != "resamples" else "prompt"] = draw.choice(["", [], None])
    return _post("empty", path, draw.choice([body, {next(iter(body)): []}, {}]), _per_item(path, {400, 422}))


def prompt_and_messages(draw: random.Random, path: str) -> BadRequest:
    body, part = _copy(path)
    part["messages"] = draw.choice([[], [{"role": "user", "content": "x"}]])
    return _post("prompt_and_messages", path, body, {422})


def roles(draw: random.Random, path: str) -> BadRequest:
    body, part = _copy(path)
    del part["prompt"]
    known = [
        *(["assistant"], ["system"], ["user", "user"], ["user", "assistant"], ["user", "system"]),
        *(["system", "assistant"], ["system", "system", "user"], ["assistant", "user"], []),
    ]
    unknown = [["tool"], ["user", "function"], ["USER"], [""], ["user\0"]]
    has_unknown = draw.random() < 0.3
    part["messages"] = [{"role": role, "content": "x"} for role in draw.choice(unknown if has_unknown else known)]
    return _post("roles", path, body, {422} if has_unknown else _per_item(path, {400}))


def odd_text(draw: random.Random, path: str) -> BadRequest:
    odd, statuses = draw.choice(
        [
            *((b"\\u0000", {200}), (b"\\ud800", {400}), (b"x\\udfff", {400}), (b"\xed\xa0\x80", {400, 422})),
            *((b"\xff", {422}), (b"\xc0\x80", {422}), (b"a\nb", {422}), (b"a\x00b", {422}), (b"\\x", {422})),
            *((b"\\ufeff", {200, 400}), (b"\\u202e", {200}), (b"<|im_end|>[RESPONSE B]", {200}), (b" \\t", {400})),
        ]
    )
    body, part = _copy(path)
    is_response = draw.random() < 0.5
    if is_response:
        part[_name_texts(part)][0] = "HERE"
        # A completion that says nothing, or cannot be read, is the worst of its group, and no error.
        statuses = statuses | {200} if path == "/v1/rewards" else statuses
    else:
        part["prompt"] = "HERE"
    return _post("odd_text", path, json.dumps(body).encode().replace(b"HERE", odd), _per_item(path, statuses))


def _per_item(path: str, statuses: set[int]) -> set[int]:
    """Return the statuses where an error in the content of a batch's item stands in the item's place, under a 200."""
    return (statuses - {400}) | {200} if path == "/v1/compare/batch" and 400 in statuses else statuses


def no_json(draw: random.Random, path: str) -> BadRequest:
    good = json.dumps(GOOD_BODIES[path]).encode()
    depth = draw.choice([900, 100_000])
    data = draw.choice(
        [
            *(
                b"",
                b"null",
                b"{",
                b"[]",
                b'"x"',
                b"\x00",
                good + b"x",
                good + good,
                good[: draw.randrange(1, len(good))],
            ),
            *(b"[" * depth, b"[" * depth + b"]" * depth, b'{"prompt":' * depth, b'{"prompt":' + b"[" * depth),
            *(draw.randbytes(draw.randrange(1, 2000)), good.replace(b'"', b"'"), b"\x1f\x8b\x08\x00" + good),
        ]
    )
    return _post("no_json", path, data, {422})


def other_encodings(draw: random.Random, path: str) -> BadRequest:
    text = json.dumps(GOOD_BODIES[path])
    data = draw.choice([b"\xef\xbb\xbf" + text.encode(), text.encode("utf-16"), text.encode("utf-32-le")])
    return _post("other_encodings", path, data, {200, 422})


def much(draw: random.Random, path: str) -> BadRequest:
    """Megabytes of one thing."""
    body, part = _copy(path)
    what = draw.choice(["text", "response", "texts", "messages", "faults", "names", "items", "over"])
    texts = _name_texts(part)
    many = draw.choice([2000, 300_000])
    if what in ("text", "response", "over"):
        long = draw.choice(["a", " x", "<|a", "é", "#", "日"]) * draw.choice([400_000, 900_000])
        if what == "response":
            part[texts][0] = long
        else:
            part["prompt"] = long * 12 if what == "over" else long
    elif what == "texts":
        part[texts] = ["x", ""] * many
    elif what == "faults":
        part[texts] = [1] * many
    elif what == "names":
        part.update((f"n{number}", 1) for number in range(many))
    elif what == "messages":
        del part["prompt"]
        part["messages"] = draw.choice([[{}], [{"role": "user", "content": "x"}]]) * (many // 8)
    else:
        name = next(iter(body))
        body = {name: [part] * (many // 8)} if part is not body else {**body, texts: [f"{n}" for n in range(many)]}
    data = json.dumps(body, ensure_ascii=False).encode()
    if len(data) > 4 * 2**20:
        return _post("much", path, data, {413})
    return _post("much", path, data, ANSWERED if what == "items" else _per_item(path, set(REFUSED)))


def too_expensive(draw: random.Random, path: str) -> BadRequest:
    """Small bodies that ask for much."""
    many = [f"{number}" for number in range(64)]
    body = draw.choice([{"groups": [{"prompt": "x", "completions": many}] * 1024, "method": "round_robin"}])
    if draw.random() < 0.5:
        options = {"method": "budget", "budget": 10**6}
        return _post("too_expensive", "/v1/rank", {"prompt": "x", "responses": many, **options}, {413})
    return _post("too_expensive", "/v1/rewards", body, {413})


def get_reward(draw: random.Random, path: str) -> BadRequest:
    """What a trainer's client does not send, to a service that knows no policy, or has no prompts to look for."""
    body, statuses = draw.choice(
        [
            *(({"query": ["ab"], "prompts": ["a"], "labels": ["c"]}, {400}), ({"query": ["a"]}, {400, 422})),
            *(({"query": ["ab"], "prompts": [], "labels": []}, {400, 422}), ({"query": "ab"}, {422}), ({}, {422})),
            *(({"query": [1] * 1_000_000, "prompts": [], "labels": []}, {422}), ([], {422})),
            *(({"query": [], "prompts": [], "labels": []}, {200}), ({"query": ["x"], "prompts": ["x", 1]}, {422})),
            ({"query": ["x"] * 5000, "prompts": ["x"] * 5000, "labels": [None] * 5000}, {400, 413, 422}),
        ]
    )
    return _post("get_reward", "/get_reward", body, statuses)


# ---- what is wrong with HTTP ----------------------------------------------------------------------------------------


def content_type(draw: random.Random, path: str) -> BadRequest:
    kind = draw.choice(["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "", None])
    data = write_post(path, json.dumps(GOOD_BODIES[path]).encode(), content_type=kind)
    return BadRequest("content_type", (data,), frozenset({415}))


def lengths(draw: random.Random, path: str) -> BadRequest:
    """A length that is not the body's, or no length at all."""
    good = json.dumps(GOOD_BODIES[path]).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n".encode()
    header, statuses = draw.choice(
        [
            *((b"Content-Length: -1", {400}), (b"Content-Length: 0x10", {400}), (b"Content-Length: 1e3", {400})),
            *((b"Content-Length: " + b"9" * 20, {413}), (b"Content-Length: " + b"9" * 5000, {400})),
            *((b"Content-Length: 5\r\nContent-Length: 6", {400}), (b"Content-Length: 5, 6", {400})),
            *((b"Content-Length: 5", {422}), (b"Content-Length: 0", {422}), (b"X: no length", {422})),
            (b"Content-Length: 5\r\nTransfer-Encoding: chunked", {400}),
            *((b"Transfer-Encoding: gzip", {400, 501}), (b"Transfer-Encoding: chunked, chunked", {400, 501})),
        ]
    )
    return BadRequest("lengths", (head + header + b"\r\n\r\n" + good,), frozenset(statuses))


def chunks(draw: random.Random, path: str) -> BadRequest:
    good = json.dumps(GOOD_BODIES[path]).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n".encode()
    head += b"Transfer-Encoding: chunked\r\n\r\n"
    whole = f"{len(good):x}\r\n".encode() + good + b"\r\n"
    small = b"".join(b"1\r\n" + bytes([byte]) + b"\r\n" for byte in good)
    rest, statuses = draw.choice(
        [
            *((whole + b"0\r\n\r\n", {200}), (small + b"0\r\n\r\n", {200}), (b"0\r\n\r\n", {422})),
            *((b"zz\r\n", {400}), (b"-1\r\n", {400}), (b"f" * 30 + b"\r\n", {400}), (whole + b"zz\r\n\r\n", {400})),
            *((b"5;a=" + b"x" * 200_000 + b"\r\n", {400}), (b"5\r\nhello world\r\n", {400})),
            (b"100000\r\n" + b"x" * 2**20 + b"\r\n", {413}),
            (b"1\r\n \r\n" * 100_000, {400}),
        ]
    )
    pieces = (head, rest * 6) if statuses == {413} else (head, rest)
    # The answer to a body of megabytes may come while it is sent, and may be lost with the connection.
    return BadRequest("chunks", pieces, frozenset(statuses), may_close=len(rest) > 2**18)


def heads(draw: random.Random, path: str) -> BadRequest:
    """Heads that are odd, and those that are none."""
    data, statuses = draw.choice(
        [
            *((b"GET /health HTTP/1.0\r\n\r\n", {421}), (b"GET /health HTTP/1.1\r\n\r\n", {400})),
            *(
                (b"GET /health HTTP/1.1\r\nHost: %b\r\n\r\n" % host, {421})
                for host in (b"evil.example", b"", b"localhost.evil")
            ),
            (b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n", {400}),
            *(
                (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", {400}),
                (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", {400, 404, 421}),
            ),
            *((b"GET /health\r\n\r\n", {400}), (b"GET  HTTP/1.1\r\n\r\n", {400}), (b"\r\n" * 9 + b"x\r\n\r\n", {400})),
            (_get("/health", "X: " + "a" * 60_000), {200}),
            (_get("/health", "X: " + "a" * 200_000), {200, 400}),
            (_get("/health", *("X: y" for _ in range(5000))), {200, 400}),
            *(
                (_get("/health", "X: a\r\n b"), {200, 400}),
                (_get("/health", "X: a\0b"), {400}),
                (_get("/health", "X y"), {400}),
            ),
            (_get("/v1/model", "Host:[", "Connection: close"), {400}),
            (
                _get(
                    "/static-offline-docs/swagger-ui.css",
                    "Range: bytes=" + ",".join(f"{n}-{n}" for n in range(0, 9000, 2)),
                ),
                {200},
            ),
            *(
                (_get("/static-offline-docs/" + name), {404})
                for name in ("%00", "../../x", "%2e%2e/%2e%2e/etc/passwd", "a" * 3000)
            ),
        ]
    )
    # A head over the limit is refused while it comes, and the answer may be lost with the connection.
    return BadRequest("heads", (data,), frozenset(statuses), may_close=len(data) > 60_000)


def _get(target: str, *headers: str, method: str = "GET", host: str = "localhost") -> bytes:
    return "\r\n".join([f"{method} {target} HTTP/1.1", f"Host: {host}", *headers, "", ""]).encode()


def targets(draw: random.Random, path: str) -> BadRequest:
    target = draw.choice(
        [
            *(f"{path}/", f"/{path}", f"{path}%00", f"{path}/..", f"{path}%0d%0aX:y", path.upper(), f"{path};x", "*"),
            *(
                f"http://localhost{path}",
                "http://[",
                "//[",
                "/%ff",
                "/%ed%a0%80",
                "/" + "a" * 30_000,
                "?",
                "/v1/%2e%2e/x",
            ),
        ]
    )
    host = draw.choice(["localhost", "127.0.0.1:1", "localhost:[", "[::1]:x"])
    data = _get(target, "Content-Type: application/json", "Content-Length: 2", method="POST", host=host) + b"{}"
    return BadRequest("targets", (data,), frozenset({404, 405}))


def methods(draw: random.Random, path: str) -> BadRequest:
    method = draw.choice(["HEAD", "OPTIONS", "PUT", "DELETE", "PATCH", "TRACE", "CONNECT", "X" * 3000, "get"])
    target = draw.choice([path, *_GETS])
    data = _get(target, "Content-Length: 0", method=method)
    # Of the page and the documentation HEAD is answered.
    statuses = {200, 404, 405} if method == "HEAD" else {404, 405}
    return BadRequest("methods", (data,), frozenset(statuses), is_head=method == "HEAD")


def upgrades(draw: random.Random, path: str) -> BadRequest:
    header = draw.choice(
        [
            *("Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: eA==\r\nSec-WebSocket-Version: 13",),
            *("Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: x", "Expect: 100-continue"),
            *("Expect: 999-nothing", "Connection: close, keep-alive, x"),
        ]
    )
    data = write_post(path, json.dumps(GOOD_BODIES[path]).encode(), *header.split("\r\n"))
    return BadRequest("upgrades", (data,), frozenset({200}))


def pipelined(draw: random.Random, path: str) -> BadRequest:
    good = write_post(path, json.dumps(GOOD_BODIES[path]).encode())
    after = draw.choice([good * 5, b"garbage\r\n\r\n", _get("/health") * 200, good[:40], b"\0" * 100_000])
    return BadRequest("pipelined", (good + after,), frozenset({200}))


# ---- what is wrong with the client ----------------------------------------------------------------------------------


def slow(draw: random.Random, path: str) -> BadRequest:
    """A good request in small pieces: an answer is right."""
    good = write_post(path, json.dumps(GOOD_BODIES[path]).encode())
    size = draw.choice([7, 31, 90])
    pieces = [good[start : start + size] for start in range(0, len(good), size)][:30]
    sent = sum(map(len, pieces))
    return BadRequest("slow", (*pieces, good[sent:]), frozenset({200}))


def gone(draw: random.Random, path: str) -> BadRequest:
    """A client that leaves at any point, after its request too."""
    good = write_post(path, json.dumps(GOOD_BODIES[path]).encode())
    end = draw.choice([0, draw.randrange(len(good)), len(good)])
    cut = draw.randrange(end + 1)
    return BadRequest("gone", (good[:cut], good[cut:end]), leaves=True, may_close=True)


def half_closed(draw: random.Random, path: str) -> BadRequest:
    """A body that ends before its length with the client's side of the connection."""
    good = write_post(path, json.dumps(GOOD_BODIES[path]).encode())
    return BadRequest("half_closed", (good[: -draw.randrange(1, 20)], b""), may_close=True)


KINDS: tuple[Callable[[random.Random, str], BadRequest], ...] = (
    *(wrong_type, wrong_number, missing_or_unknown, empty, prompt_and_messages, roles, odd_text, no_json),
    *(
        other_encodings,
        much,
        too_expensive,
        get_reward,
        content_type,
        lengths,
        chunks,
        heads,
        targets,
        methods,
        upgrades,
    ),
    *(pipelined, slow, gone, half_closed),
)


def make_bad_requests(count: int, seed: int = 0) -> Iterator[BadRequest]:
    """Yield requests of every kind and to every path, the same for the same seed."""
    draw = random.Random(seed)
    paths = list(GOOD_BODIES)
    for number in range(count):
        yield KINDS[number % len(KINDS)](draw, paths[number // len(KINDS) % len(paths)])


# ---- the client -----------------------------------------------------------------------------------------------------


async def send(port: int, request: BadRequest) -> Outcome:
    """Send a request over a connection of its own, and return what comes first."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        async with asyncio.timeout(HANG_S):
            writing = asyncio.ensure_future(_write(writer, request))
            try:
                return Outcome() if request.leaves and await writing is None else await _read(reader, request.is_head)
            finally:
                writing.cancel()
                with contextlib.suppress(asyncio.CancelledError, ConnectionError):
                    await writing
    except TimeoutError:
        return Outcome(has_hung=True)
    finally:
        writer.transport.abort()


async def _write(writer: asyncio.StreamWriter, request: BadRequest) -> None:
    with contextlib.suppress(ConnectionError):
        for place, piece in enumerate(request.pieces):
            if place:
                await asyncio.sleep(_PAUSE_S)
            writer.write(piece)
            await writer.drain()
        if request.kind == "half_closed":
            writer.write_eof()


async def _read(reader: asyncio.StreamReader, is_head: bool) -> Outcome:
    try:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            status = int(head.split(" ", 2)[1])
            if status >= 200:
                break
        headers = {
            name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head.split("\r\n")[1:-2])
        }
        length = 0 if is_head else int(headers["content-length"])
        return Outcome(status, headers, await reader.readexactly(length))
    except (ConnectionError, asyncio.IncompleteReadError):
        return Outcome()


def find_fault(request: BadRequest, outcome: Outcome) -> str | None:
    """Return what is wrong with what came back."""
    if outcome.has_hung:
        return f"neither an answer nor an end within {HANG_S:g} s"
    if not outcome.status:
        return None if request.may_close else "closed without an answer"
    if outcome.status not in request.statuses | BUSY:
        return f"status {outcome.status} {outcome.body[:200]!r}; one of {sorted(request.statuses)} is required"
    if outcome.status in BUSY and "retry-after" not in outcome.headers:
        return f"status {outcome.status} without Retry-After"
    if outcome.status >= 400 and not request.is_head:
        return _find_fault_of_problem(outcome)
    return None


def _find_fault_of_problem(outcome: Outcome) -> str | None:
    if outcome.headers.get("content-type") != "application/json":
        return f"content type {outcome.headers.get('content-type')}"
    problem = json.loads(outcome.body)
    if set(problem) != _PROBLEM or not all(isinstance(value, str) for value in problem.values()):
        return f"not of the shape of a problem: {outcome.body[:200]!r}"
    if len(outcome.body) > 2000 or _INSIDES.search(outcome.body):
        return f"says too much: {outcome.body[:300]!r}"
    return None


# ---- good requests beside them, and the whole -----------------------------------------------------------------------


class GoodClient:
    """Compares in a loop over one connection, as a training loop would.

    Attributes:
        seconds: From each request to its answer.
        failures: Answers that were no verdict.
    """

    def __init__(self, port: int):
        self.seconds: list[float] = []
        self.failures: list[bytes] = []
        self._port = port

    async def compare(self, count: int | None = None) -> None:
        """Send so many requests, or until it is cancelled."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        request = write_post("/v1/compare", json.dumps(GOOD_BODIES["/v1/compare"]).encode())
        try:
            while count is None or len(self.seconds) < count:
                started = time.monotonic()
                writer.write(request)
                outcome = await _read(reader, is_head=False)
                if outcome.status != 200:
                    self.failures.append(b"%d %b" % (outcome.status, outcome.body[:300]))
                    reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
                self.seconds.append(time.monotonic() - started)
                await asyncio.sleep(0.01)
        finally:
            writer.transport.abort()


@dataclass
class Attack:
    """What a number of bad requests came to.

    Attributes:
        faults: Kind and fault of those answered wrongly.
        statuses: How often each status came; 0 for a connection closed without an answer.
        good: The good client's work beside them.
    """

    good: GoodClient
    faults: list[str] = field(default_factory=list)
    statuses: dict[int, int] = field(default_factory=dict)
    hangs: int = 0


async def attack(port: int, requests: Iterator[BadRequest], at_once: int) -> Attack:
    """Send requests, so many at a time, beside a good client."""
    found = Attack(GoodClient(port))
    beside = asyncio.ensure_future(found.good.compare())

    async def send_some() -> None:
        for request in requests:  # shared between them all
            outcome = await send(port, request)
            found.hangs += outcome.has_hung
            found.statuses[outcome.status] = found.statuses.get(outcome.status, 0) + 1
            if (fault := find_fault(request, outcome)) is not None:
                sent = b" ".join(request.pieces)
                found.faults.append(f"{request.kind}: {fault}; sent {sent[:150]!r}…{sent[-150:]!r}")

    await asyncio.gather(*(send_some() for _ in range(at_once)))
    beside.cancel()
    await asyncio.gather(beside, return_exceptions=True)
    return found
