"""Prompts of concurrent calls in common batches: the same answers, fair shares, and nobody's error or absence hurts."""

import threading
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from service_thread import wait_until

from pair_pm.serving.batcher import Batch, Batcher

BUDGET = 100


class SlowEngine:
    """Answers with a pure function of the ids, when it is let; remembers what it was asked together."""

    max_prompt_tokens = 64
    max_batch_tokens = BUDGET

    def __init__(self):
        self.gate = threading.Event()
        self.gate.set()
        self.batches: list[list[tuple[int, ...]]] = []
        self.delay_s = 0.0

    def label_logprobs(self, prompts):
        self.batches.append([tuple(prompt) for prompt in prompts])
        assert self.gate.wait(20)
        time.sleep(self.delay_s)
        if any(666 in prompt for prompt in prompts):
            raise ValueError("a prompt of the beast")
        return np.array([answer(prompt) for prompt in prompts])


def answer(prompt) -> list[float]:
    return [-float(sum(prompt)), -float(len(prompt))]


@pytest.fixture
def engine():
    return SlowEngine()


@pytest.fixture
def batcher(engine):
    batcher = Batcher(engine, window_s=0.02)
    yield batcher
    engine.gate.set()
    batcher.close()


@pytest.fixture
def busy(engine, batcher):
    """Occupy the engine, so that what is submitted next waits together."""
    engine.gate.clear()
    first = batcher.submit([[1]])
    wait_until(lambda: engine.batches)
    yield first
    engine.gate.set()


def make_prompts(count: int, length: int, first: int) -> list[list[int]]:
    """Return prompts that share no beginning."""
    return [[1000 * first + number] * length for number in range(count)]


@given(
    calls=st.lists(
        st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=60), min_size=1, max_size=8), min_size=1, max_size=6
    )
)
def test_each_call_gets_the_answers_to_its_own_prompts_in_its_order(calls):
    batcher = Batcher(SlowEngine(), window_s=0.001)
    with ThreadPoolExecutor(len(calls)) as pool:
        futures = list(pool.map(batcher.submit, calls))
    for call, future in zip(calls, futures, strict=True):
        assert future.result(20).tolist() == [answer(prompt) for prompt in call]
    batcher.close()


def test_what_waits_together_is_asked_together(engine, batcher, busy):
    futures = [batcher.submit(make_prompts(2, 5, client)) for client in range(1, 5)]
    engine.gate.set()
    assert [future.result(20).shape for future in futures] == [(2, 2)] * 4
    assert [len(batch) for batch in engine.batches] == [1, 8]


def test_prompts_of_one_beginning_count_it_once(engine, batcher, busy):
    shared = list(range(80))  # 80 + 10 + 10 of a budget of 100, though it is 180 tokens
    future = batcher.submit([shared + [1] * 10, shared + [2] * 10])
    engine.gate.set()
    future.result(20)
    assert len(engine.batches) == 2


def test_equal_prompts_of_a_call_are_asked_once(engine, batcher):
    assert batcher.submit([[1, 2], [3], [1, 2]]).result(20).tolist() == [answer([1, 2]), answer([3]), answer([1, 2])]
    assert engine.batches == [[(1, 2), (3,)]]


def test_comparison_does_not_wait_for_the_long_ranking_before_it(engine, batcher, busy):
    ranking = batcher.submit(make_prompts(60, 10, 1))  # six batches
    comparison = batcher.submit(make_prompts(2, 10, 2))
    engine.gate.set()
    comparison.result(20)
    ranking.result(20)
    # The ranking came first, and has the first batch; in the next one the comparison has had less.
    assert [sum(ids[0] >= 2000 for ids in batch) for batch in engine.batches[1:]] == [0, 2, 0, 0, 0, 0, 0]


def test_stream_of_comparisons_does_not_keep_a_ranking_from_its_quarter(engine, batcher, busy):
    ranking = batcher.submit(make_prompts(20, 10, 1), served=10_000)
    crowd = [batcher.submit(make_prompts(2, 20, client)) for client in range(2, 20)]  # 40 of 100 tokens each
    engine.gate.set()
    ranking.result(20)
    for future in crowd:
        future.result(20)
    shares = [sum(1000 <= ids[0] < 2000 for ids in batch) for batch in engine.batches[1:]]
    assert shares[:5] == [2] * 5  # 20 tokens: whole prompts within 25


def test_request_that_had_much_comes_after_one_that_had_little(engine, batcher, busy):
    batcher.submit(make_prompts(1, 5, 9))  # the oldest, whose quarter this is not about
    later_rounds = batcher.submit(make_prompts(2, 40, 1), served=5000)
    fresh = batcher.submit(make_prompts(2, 40, 2))
    engine.gate.set()
    fresh.result(20)
    later_rounds.result(20)
    assert [{ids[0] // 1000 for ids in batch} for batch in engine.batches[1:]] == [{9, 2}, {1}]


def test_call_that_is_given_up_costs_nothing(engine, batcher, busy):
    gone = batcher.submit(make_prompts(3, 5, 7))
    kept = batcher.submit(make_prompts(1, 5, 8))
    assert gone.cancel()
    engine.gate.set()
    kept.result(20)
    assert not any(ids[0] // 1000 == 7 for batch in engine.batches for ids in batch)
    assert batcher.waiting_prompts == 0


def test_long_call_that_is_given_up_halfway_is_asked_no_further(engine, batcher, busy):
    gone = batcher.submit(make_prompts(60, 10, 7))
    engine.delay_s = 0.1
    engine.gate.set()
    wait_until(lambda: len(engine.batches) >= 2)
    gone.cancel()
    batcher.submit([[5]]).result(20)
    assert sum(ids[0] // 1000 == 7 for batch in engine.batches for ids in batch) < 60


def test_error_reaches_the_call_that_causes_it_alone(engine, batcher, busy):
    bad = batcher.submit([[666, 1], [2]])
    good = batcher.submit([[3, 4]])
    engine.gate.set()
    with pytest.raises(ValueError, match="beast"):
        bad.result(20)
    assert good.result(20).tolist() == [answer([3, 4])]


def test_defect_beside_the_engine_ends_the_calls_that_wait_and_not_the_batcher(engine):
    seen = []

    def observe(batch):
        seen.append(batch)
        if len(seen) == 1:
            raise RuntimeError("a defect")

    batcher = Batcher(engine, 0.0, observe)
    with pytest.raises(RuntimeError, match="a defect"):
        batcher.submit(make_prompts(30, 10, 1)).result(20)  # several batches
    assert batcher.submit([[1]]).result(20).tolist() == [answer([1])]
    batcher.close()


def test_lone_client_does_not_wait_for_company():
    patient = Batcher(SlowEngine(), window_s=30)
    for _ in range(3):
        patient.submit([[1, 2]]).result(10)
    patient.close()


def test_those_who_came_together_last_time_are_waited_for(engine):
    batcher = Batcher(engine, window_s=10)
    engine.gate.clear()
    first = batcher.submit([[1]])
    wait_until(lambda: engine.batches)
    both = [batcher.submit([[2]]), batcher.submit([[3]])]
    engine.gate.set()
    for future in (first, *both):
        future.result(20)
    alone = batcher.submit([[4]])
    assert len(engine.batches) == 2
    time.sleep(0.05)  # the thread had time to begin, and waits for the other
    assert not alone.done()
    batcher.submit([[5]]).result(5)
    assert engine.batches[2] == [(4,), (5,)]
    batcher.close()


def test_closing_gives_up_what_waits(engine, batcher, busy):
    waiting = batcher.submit([[5]])
    batcher.close()
    with pytest.raises(CancelledError):
        waiting.result(20)
    with pytest.raises(CancelledError):
        batcher.submit([[6]]).result(20)


def test_batches_are_observed_and_waiting_time_estimated(engine):
    seen: list[Batch] = []
    batcher = Batcher(engine, 0.0, seen.append)
    assert batcher.estimate_wait_s() == 0
    batcher.submit([[1, 2, 3], [4]]).result(20)
    assert seen == [Batch(calls=1, prompts=2, tokens=4, tokens_computed=4)]
    engine.gate.clear()
    batcher.submit([[7]])
    wait_until(lambda: len(engine.batches) == 2)
    batcher.submit([[8] * 50])
    assert batcher.estimate_wait_s() > 0
    engine.gate.set()
    batcher.close()
