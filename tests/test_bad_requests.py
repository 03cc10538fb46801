"""Bad requests to a real service: each is refused in the documented form, and costs nobody else much."""

import asyncio
import contextlib
import json
import socket
import statistics
import time
from dataclasses import dataclass

import bad_requests
import httpx
import hypothesis
import pytest
import schemathesis
from bad_requests import Attack, GoodClient, attack, make_bad_requests, write_post
from conftest import make_small_tokenizer
from schemathesis.checks import CHECKS
from schemathesis.generation import GenerationMode
from service_process import ServiceProcess, run_service
from tiny_models import save_tiny_checkpoint

from pair_pm.recipe import Recipe, write_recipe
from pair_pm.tokens import PromptEncoder

EXAMPLES = 25  # of each operation, of right and of wrong ones
COUNT, AT_ONCE = 12 * len(bad_requests.KINDS), 4
# A good request beside four bad clients and their megabytes of JSON, against one alone. One core does all of it.
MEDIAN_FACTOR, P95_FACTOR, SLOWEST_S = 8, 60, 5.0
MEMORY_FACTOR = 1.15  # after all of it, against after a fourth of it
BODY_TIMEOUT_S = 2


@pytest.fixture(scope="module")
def process(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad_requests")
    checkpoint = save_tiny_checkpoint(folder / "judge")
    write_recipe(checkpoint, PromptEncoder(make_small_tokenizer()), Recipe())
    with run_service(checkpoint, folder / "log", "--body-timeout-s", str(BODY_TIMEOUT_S)) as process:
        yield process


def port_of(process: ServiceProcess) -> int:
    return httpx.URL(process.url).port


class Stalled:
    """A connection whose client stops at a point of its own."""

    def __init__(self, process: ServiceProcess, sent: bytes):
        self.socket = socket.create_connection(("127.0.0.1", port_of(process)))
        self.socket.sendall(sent)
        self.opened = time.monotonic()

    def read_until_closed(self, timeout_s: float) -> bytes:
        """Return what came until the other side closed; raises TimeoutError where it does not."""
        read = b""
        self.socket.settimeout(max(0.1, self.opened + timeout_s - time.monotonic()))
        try:
            while piece := self.socket.recv(65536):
                read += piece
        except ConnectionResetError:
            pass
        self.socket.close()
        return read


REFUSED_AT_ONCE = b"POST /v1/rank HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\n"
LATE = {
    "nothing": b"",
    "half a head": b"POST /v1/compare HTTP/1.1\r\nHost: loc",
    "half a second head": b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET /health HTT",
    "half a refused body": REFUSED_AT_ONCE + b"Content-Length: 99\r\n\r\n{",
    "half a refused chunk": REFUSED_AT_ONCE + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhe",
    "half a body": write_post("/v1/compare", b"{}")[:-1],
}


@dataclass
class Course:
    """What was measured: a good client alone, and beside bad ones; memory before and after most of them.

    Attributes:
        endless_s: How long a client could go on with a body that was refused.
    """

    alone: GoodClient
    attack: Attack
    warm_bytes: int
    last_bytes: int
    endless_s: float


async def send_on(port: int) -> float:
    """Send a body that was refused at its start, until that fails; return the seconds, at most 15."""
    started = time.monotonic()
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(REFUSED_AT_ONCE + b"Transfer-Encoding: chunked\r\n\r\n")
    with contextlib.suppress(ConnectionError):
        while time.monotonic() < started + 15:
            writer.write(b"5\r\nhello\r\n")
            await writer.drain()
            await asyncio.sleep(0.1)
    writer.transport.abort()
    return time.monotonic() - started


@pytest.fixture(scope="module")
def stalled(process):
    """Clients that stop in the middle, from before the others come."""
    return {name: Stalled(process, sent) for name, sent in LATE.items()}


@pytest.fixture(scope="module")
def course(process, stalled):
    """All bad requests, sent once: the tests look at what came of them."""
    port = port_of(process)

    async def run() -> Course:
        endless = asyncio.ensure_future(send_on(port))
        alone = GoodClient(port)
        await alone.compare(100)
        await attack(port, make_bad_requests(COUNT // 4, seed=1), AT_ONCE)
        warm_bytes = process.read_resident_bytes()
        found = await attack(port, make_bad_requests(COUNT), AT_ONCE)
        return Course(alone, found, warm_bytes, process.read_resident_bytes(), await endless)

    return asyncio.run(run())


def test_every_kind_of_bad_request_is_made_and_the_same_for_a_seed():
    count = len(bad_requests.KINDS)
    requests = list(make_bad_requests(count, seed=3))
    assert requests == list(make_bad_requests(count, seed=3)) != list(make_bad_requests(count, seed=4))
    assert {request.kind for request in requests} == {kind.__name__ for kind in bad_requests.KINDS}


def test_bad_requests_get_documented_answers_in_the_documented_form(course):
    assert course.attack.faults == []
    assert sum(course.attack.statuses.values()) == COUNT
    # Most of it is refused by the service itself, and for more than one reason.
    assert {400, 404, 405, 413, 415, 421, 422} <= set(course.attack.statuses)


def test_good_requests_beside_bad_ones_are_all_answered_and_not_much_later(course):
    alone, beside = sorted(course.alone.seconds), sorted(course.attack.good.seconds)
    assert course.alone.failures == course.attack.good.failures == []
    assert len(beside) > 20
    assert statistics.median(beside) < MEDIAN_FACTOR * statistics.median(alone)
    assert beside[int(0.95 * len(beside))] < P95_FACTOR * alone[int(0.95 * len(alone))]
    assert beside[-1] < SLOWEST_S


def test_memory_is_flat_under_bad_requests(course):
    assert course.last_bytes < MEMORY_FACTOR * course.warm_bytes


def test_log_of_bad_requests_holds_no_defect_and_a_line_each(course, process):
    log = process.log.read_text(encoding="utf-8")
    assert "INFO" in log
    for unwanted in ("Traceback", "defect", "ERROR", "never retrieved"):
        assert unwanted not in log
    assert max(map(len, log.splitlines())) < 2000


def test_body_has_no_end_where_two_lengths_are_declared(process):
    """A body that a declared length hides from the limit."""
    head = b"POST /v1/compare HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    answer = Stalled(process, head + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
    assert json.loads(answer.read_until_closed(15).partition(b"\r\n\r\n")[2])["type"] == "invalid_http"


# ---- what the OpenAPI document allows and forbids -------------------------------------------------------------------

KEPT = {
    *("not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance"),
    *("negative_data_rejection", "response_headers_conformance", "unsupported_method"),
}


def test_service_keeps_its_own_document(process):
    document = schemathesis.openapi.from_url(f"{process.url}/openapi.json")
    checks = [check for check in CHECKS.get_all() if check.__name__ in KEPT]
    assert len(checks) == len(KEPT)
    operations = [result.ok() for result in document.get_all_operations()]
    assert {operation.path for operation in operations} >= {*bad_requests.GOOD_BODIES, "/v1/model", "/metrics"}
    for operation in operations:
        # Not by its own decorator: that leans on names inside pytest, which move.
        for mode in GenerationMode:
            if mode is GenerationMode.NEGATIVE and operation.method == "get":  # nothing of it could be wrong
                continue

            @hypothesis.settings(
                max_examples=EXAMPLES,
                derandomize=True,
                database=None,
                suppress_health_check=list(hypothesis.HealthCheck),
            )
            @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
            def check(case):
                case.call_and_validate(checks=checks, timeout=20)

            check()


@pytest.mark.parametrize("name", LATE)
def test_client_that_stops_in_the_middle_is_not_waited_for(course, stalled, name):
    answer = stalled[name].read_until_closed(10 + 5)
    statuses = [int(part[:3]) for part in answer.split(b"HTTP/1.1 ")[1:]]
    expected = {"half a second head": [200], "half a body": [408]}
    assert statuses == expected.get(name, [415] if "refused" in name else [])


def test_client_that_goes_on_with_a_refused_body_is_stopped(course):
    assert 4 < course.endless_s < 10
