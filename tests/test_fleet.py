"""Many small calls at once over several servers, as an HTTP service makes them: shared, and told who is away."""

import socket
import threading
import time

import numpy as np
import pytest
from conftest import make_small_tokenizer
from vllm_stand_in import StandIn, make_logprobs, run_stand_ins

from pair_pm.engines import fleet, vllm_server
from pair_pm.engines.vllm_engine import VLLMEngine
from pair_pm.engines.vllm_server import ExpectedModel, describe_model
from pair_pm.errors import ConfigError, EngineError
from pair_pm.recipe import Recipe
from pair_pm.tokens import PromptEncoder

THREADS = 32


@pytest.fixture(scope="module")
def expected() -> ExpectedModel:
    return describe_model(["judge"], PromptEncoder(make_small_tokenizer()), Recipe())


@pytest.fixture
def pair():
    with run_stand_ins(2, delay_s=0.01) as pair:
        yield pair


@pytest.fixture(autouse=True)
def short_rests(monkeypatch):
    monkeypatch.setattr(fleet, "_SHORTEST_REST_S", 0.05)
    monkeypatch.setattr(fleet, "_LONGEST_REST_S", 0.1)


def connect(expected: ExpectedModel, *stand_ins: StandIn, **options) -> VLLMEngine:
    return VLLMEngine(",".join(stand_in.url for stand_in in stand_ins), expected, **options)


def call_together(engine: VLLMEngine, calls: int) -> None:
    """Make calls of two prompts in each of many threads, and check that each gets its own numbers."""
    failures = []

    def call(thread: int) -> None:
        try:
            for number in range(calls):
                prompts = [[thread, number, side, 9] for side in (0, 1)]
                np.testing.assert_array_equal(engine.label_logprobs(prompts), [make_logprobs(ids) for ids in prompts])
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=call, args=(thread,)) for thread in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def count(stand_in: StandIn) -> int:
    """Return how many calls a server answered, without the examinations."""
    return sum(len(prompts[0]) == 4 for prompts in stand_in.answered)


# ---- the load -------------------------------------------------------------------------------------------------------


def test_small_calls_are_shared_by_equal_servers(expected, pair):
    call_together(connect(expected, *pair), 10)
    assert sum(map(count, pair)) == 10 * THREADS
    assert min(map(count, pair)) >= 0.4 * 10 * THREADS


def test_calls_one_after_the_other_go_to_the_servers_in_turn(expected, pair):
    engine = connect(expected, *pair)
    for number in range(6):
        engine.label_logprobs([[number, 0, 0, 9], [number, 0, 1, 9]])
    assert [count(stand_in) for stand_in in pair] == [3, 3]


def test_slow_server_gets_fewer_calls(expected, pair):
    pair[0].delay_s = 0.2
    pair[1].delay_s = 0.02
    call_together(connect(expected, *pair), 8)
    assert 0 < count(pair[0]) < count(pair[1]) / 2


def test_call_of_one_request_starts_one_thread(expected, pair, monkeypatch):
    engine, started = connect(expected, *pair), []
    start = threading.Thread.start
    monkeypatch.setattr(threading.Thread, "start", lambda thread: (started.append(thread._target), start(thread)))
    engine.label_logprobs([[1, 2, 3, 4], [1, 2, 3, 5]])
    assert [target for target in started if getattr(target, "__self__", None) is engine] == [engine._serve]


def test_more_small_requests_than_large_ones_are_under_way(expected, pair):
    together = threading.Barrier(THREADS)  # all of them at one server, or the barrier breaks
    pair[0].fault = lambda number: together.wait(30) and None if 1 <= number <= THREADS else None
    call_together(connect(expected, pair[0]), 1)
    assert pair[0].busiest == THREADS


def test_large_request_is_not_passed_by_smaller_ones_while_it_waits_for_room(expected):
    servers = fleet.Fleet([vllm_server.VLLMServer("http://127.0.0.1:1", expected, 1.0)], lambda server: None, 2)
    members, order = [servers.claim(1, None, lambda: False) for _ in range(2)], []

    def claim(load: int) -> None:
        member = servers.claim(load, None, lambda: False)
        order.append(load)
        servers.release(member, load)

    threads = [threading.Thread(target=claim, args=(load,), daemon=True) for load in (2, 1)]
    for thread in threads:
        thread.start()
        time.sleep(0.2)  # so that they stand in this order
    for member in members:
        servers.release(member, 1)
        time.sleep(0.2)  # so that the small one would take what the first leaves
    for thread in threads:
        thread.join(30)
    assert order == [2, 1]


def test_call_that_is_given_up_sends_no_more_and_leaves_room_for_others(expected, pair):
    engine, asked = connect(expected, *pair), []

    def give_up() -> None:
        asked.append(sum(len(stand_in.questions) for stand_in in pair))
        raise InterruptedError

    pair[0].delay_s = pair[1].delay_s = 0.8  # so that it is looked at whether anybody waits while the first are open
    many = [[number, side, 0, 9] for number in range(1000) for side in (0, 1)]
    with pytest.raises(InterruptedError):
        engine.label_logprobs(many, give_up)
    pair[0].delay_s = pair[1].delay_s = 0.0
    call_together(engine, 1)
    assert len(asked) == 1
    assert sum(len(stand_in.questions) for stand_in in pair) == asked[0] + THREADS


# ---- absence --------------------------------------------------------------------------------------------------------


def test_one_server_that_dies_costs_no_call(expected, pair):
    engine = connect(expected, *pair)
    pair[0].fault = lambda number: threading.Thread(target=pair[0].kill).start() if number == 40 else None
    call_together(engine, 8)
    known = count(pair[1])
    call_together(engine, 1)
    assert count(pair[1]) == known + THREADS
    engine.check_presence()


def test_absence_of_all_is_said_within_seconds_and_ends_with_the_first_that_is_back(expected, pair):
    engine = connect(expected, *pair, absence_s=0.2)
    engine.check_presence()
    ports = [stand_in.port for stand_in in pair]
    for stand_in in pair:
        stand_in.kill()
    started = time.monotonic()
    with pytest.raises(EngineError) as error:
        engine.label_logprobs([[1, 2, 3, 9]])
    with pytest.raises(EngineError) as asked:
        engine.check_presence()
    assert time.monotonic() - started < 30  # of the 600 that a file waits
    for said in (str(error.value), str(asked.value)):
        assert all(stand_in.url in said for stand_in in pair)
        assert "required" in said
    back = StandIn(None, ports[1])
    try:
        deadline = time.monotonic() + 30
        while not is_present(engine) and time.monotonic() < deadline:
            time.sleep(0.05)
        call_together(engine, 1)
        assert count(back) == THREADS
    finally:
        back.kill()


def is_present(engine: VLLMEngine) -> bool:
    try:
        engine.check_presence()
    except EngineError:
        return False
    return True


def test_calls_under_way_fail_when_the_last_server_dies(expected, pair):
    engine, errors = connect(expected, *pair, absence_s=0.2), []

    def call(thread: int) -> None:
        try:
            while True:
                engine.label_logprobs([[thread, 0, 0, 9], [thread, 0, 1, 9]])
        except EngineError as error:
            errors.append(str(error))

    threads = [threading.Thread(target=call, args=(thread,), daemon=True) for thread in range(THREADS)]
    for thread in threads:
        thread.start()
    for stand_in in pair:
        stand_in.kill()
    for thread in threads:
        thread.join(60)
    assert len(errors) == THREADS
    assert all("no server answers" in error for error in errors)


def test_slow_server_is_not_away(expected, pair):
    engine = connect(expected, *pair, absence_s=0.0)
    pair[0].delay_s = pair[1].delay_s = 1.0
    engine.label_logprobs([[1, 2, 3, 9]])


def test_presence_costs_no_request_while_a_server_is_known_to_answer(expected, pair):
    engine = connect(expected, *pair)
    asked = [len(stand_in.questions) for stand_in in pair]
    pair[0].models = pair[1].models = []
    for _ in range(100):
        engine.check_presence()
    assert [len(stand_in.questions) for stand_in in pair] == asked


def test_presence_after_idleness_is_examined(expected, pair, monkeypatch):
    engine = connect(expected, *pair)
    monkeypatch.setattr(fleet, "_UNSEEN_S", 0.2)
    time.sleep(0.3)
    pair[0].weights = pair[1].weights = "other"
    with pytest.raises(EngineError, match="serves another model"):
        engine.check_presence()


def test_server_that_accepts_and_never_answers_keeps_one_thread_waiting_for_seconds(expected, pair, monkeypatch):
    monkeypatch.setattr(vllm_server, "_SIGN_OF_LIFE_S", 60.0)  # so that the bound of the answer itself is seen
    monkeypatch.setattr(fleet, "PRESENCE_S", 1.0)
    monkeypatch.setattr(fleet, "_UNSEEN_S", 0.1)
    engine = connect(expected, pair[0])
    port = pair[0].port
    pair[0].kill()
    with socket.create_server(("127.0.0.1", port)):  # the kernel accepts, nobody reads
        time.sleep(0.2)
        took: list[float] = []

        def ask() -> None:
            started = time.monotonic()
            with pytest.raises(EngineError, match=r"(?s)open for 1 s"):
                engine.check_presence()
            took.append(time.monotonic() - started)

        ask()
        first = took.pop()
        threads = [threading.Thread(target=ask) for _ in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert 1.0 <= first < 20
    assert len(took) == THREADS
    assert max(took) < first  # they were told what is known


@pytest.mark.parametrize("absence_s", [-1, float("nan"), float("inf")])
def test_absence_must_be_a_time(expected, absence_s):
    with pytest.raises(ConfigError, match="from 0 is required"):
        VLLMEngine("http://127.0.0.1:1", expected, absence_s=absence_s)
