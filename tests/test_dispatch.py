"""Batches over several servers: each answered once, neighbours together, failures elsewhere."""

import random
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pair_pm.engines.dispatch import Dispatch, split_neighbours

PROMPTS = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=6), max_size=30)


def answer(number: int) -> np.ndarray:
    return np.array([[number, -number]])


@given(PROMPTS, st.integers(1, 5), st.integers(1, 12))
def test_every_prompt_is_in_one_batch_within_both_limits(prompts, most_prompts, most_tokens):
    batches = split_neighbours(prompts, most_prompts, most_tokens)
    assert sorted(index for batch in batches for index in batch) == list(range(len(prompts)))
    for batch in batches:
        assert len(batch) <= most_prompts
        assert len(batch) == 1 or sum(len(prompts[index]) for index in batch) <= most_tokens


def test_prompts_that_share_a_beginning_share_a_batch():
    prompts = [[1, 1, 5], [2, 2, 5], [1, 1, 6], [2, 2, 6], [1, 1, 7], [2, 2, 7]]
    assert split_neighbours(prompts, 3, 100) == [[0, 2, 4], [1, 3, 5]]


def test_lane_begins_with_its_own_neighbours_and_then_takes_the_end_of_the_longest():
    dispatch = Dispatch(6, lanes=2)
    taken = [dispatch.take(0), dispatch.take(1)]
    assert taken == [0, 3]
    assert [dispatch.take(1), dispatch.take(1), dispatch.take(1)] == [4, 5, 2]
    assert dispatch.take(0) == 1


def test_batch_of_a_failed_server_goes_to_a_waiting_one():
    dispatch = Dispatch(1, lanes=2)
    assert dispatch.take(0) == 0
    taken = []
    waiting = threading.Thread(target=lambda: taken.append(dispatch.take(1)))
    waiting.start()
    dispatch.give_back(0, 0)
    waiting.join(10)
    assert taken == [0]
    dispatch.finish(0, answer(0))
    assert dispatch.take(1) is None
    assert [found.tolist() for found in dispatch.wait(0)] == [[[0, 0]]]


@settings(max_examples=20)
@given(st.integers(0, 30), st.integers(1, 4), st.integers(0, 10**6))
def test_all_batches_are_answered_once_and_in_order_by_threads_that_fail_at_random(batches, lanes, seed):
    draw, dispatch = random.Random(seed), Dispatch(batches, lanes)

    def serve(lane: int) -> None:
        while (number := dispatch.take(lane)) is not None:
            if draw.random() < 0.3:
                dispatch.give_back(lane, number)
            else:
                dispatch.finish(number, answer(number))  # asserts that it is the first answer

    for lane in [*range(lanes), *range(lanes)]:
        threading.Thread(target=serve, args=(lane,), daemon=True).start()
    found = dispatch.wait(60)
    assert [table.tolist() for table in found] == [answer(number).tolist() for number in range(batches)]


def test_silence_of_all_servers_ends_the_call():
    dispatch = Dispatch(3, lanes=1)
    dispatch.finish(dispatch.take(0), answer(0))
    with pytest.raises(TimeoutError, match="2 of 3 requests"):
        dispatch.wait(0.05)
    assert dispatch.is_over
    assert dispatch.take(0) is None  # nothing is sent after it


def test_error_of_one_thread_is_the_calls():
    dispatch = Dispatch(2, lanes=1)
    dispatch.fail(ValueError("wrong"))
    dispatch.fail(ValueError("later"))
    with pytest.raises(ValueError, match="wrong"):
        dispatch.wait(10)
