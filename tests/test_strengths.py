"""Bradley-Terry over soft verdicts: two fits agree, the slot's offset comes off, circles are found."""

from itertools import combinations, permutations

import networkx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pair_pm.strengths import bootstrap_intervals, clip_shares, find_cycles, fit, fit_strengths, remove_slot_offset

RING = [(0, 1), (1, 2), (2, 3), (3, 4), (4, 0), (0, 2), (1, 3)]


def sigmoid(log_odds):
    return 1 / (1 + np.exp(-np.asarray(log_odds)))


@given(st.lists(st.floats(0.01, 0.99), min_size=7, max_size=7))
def test_fit_takes_from_nobody_and_meets_every_sum_of_shares(shares):
    # At the maximum each candidate's expected shares add up to those that it has: the likelihood's equations.
    strengths = fit_strengths(5, RING, np.array(shares))
    expected = sigmoid([strengths[i] - strengths[j] for i, j in RING])
    for index in range(5):
        surplus = [(s - e) * ((i == index) - (j == index)) for (i, j), s, e in zip(RING, shares, expected, strict=True)]
        assert sum(surplus) == pytest.approx(0, abs=1e-9)
    assert strengths.sum() == pytest.approx(0, abs=1e-9)


def test_certain_verdicts_are_fitted_to_the_end():
    # 0 beats 1 beats 2 without a doubt: each step is the log-odds of the share that clipping leaves.
    strengths = fit_strengths(3, [(0, 1), (1, 2)], clip_shares([1.0, 1.0]))
    step = np.log(1e6 - 1)
    assert strengths == pytest.approx([step, 0, -step], abs=1e-6)


def test_weights_count_as_repeated_verdicts():
    shares = np.array([0.7, 0.6, 0.8, 0.4, 0.1, 0.9, 0.5])
    weighted = fit(5, RING, shares, weights=np.array([3.0, 1, 1, 1, 1, 1, 1]))
    repeated = fit(5, [RING[0], RING[0], *RING], np.array([0.7, 0.7, *shares]))
    assert weighted.strengths == pytest.approx(repeated.strengths)
    assert weighted.slot_offset == pytest.approx(repeated.slot_offset)


def test_precision_is_the_second_derivative():
    shares, step = np.array([0.7, 0.6, 0.8, 0.4, 0.1, 0.9, 0.5]), 1e-4
    estimate = fit(5, RING, shares)

    def loss(solution):
        p = sigmoid([solution[i] - solution[j] + solution[5] for i, j in RING])
        return -(shares * np.log(p) + (1 - shares) * np.log(1 - p)).sum()

    solution = np.append(estimate.strengths, estimate.slot_offset)
    for direction in ([1, -1, 0, 0, 0, 0], [0, 1, 1, -2, 0, 0], [1, 0, -1, 0, 0, 1], [0, 0, 0, 0, 0, 1]):
        move = step * np.array(direction)
        measured = (loss(solution + move) - 2 * loss(solution) + loss(solution - move)) / step**2
        assert np.dot(direction, estimate.precision @ direction) == pytest.approx(measured, rel=1e-4)


@given(st.lists(st.floats(-3, 3), min_size=5, max_size=5), st.floats(-4, 4))
def test_slot_offset_comes_off(strengths, offset):
    fair = np.array([strengths[i] - strengths[j] for i, j in RING])
    assert remove_slot_offset(5, RING, sigmoid(fair + offset)) == pytest.approx(sigmoid(fair), abs=1e-6)


def test_bootstrap_is_as_wide_as_the_verdicts_vary():
    # Two candidates, 400 verdicts around even odds: the strengths' half difference varies as the mean log-odds do.
    log_odds = np.random.default_rng(0).normal(0, 0.2, 400)
    pairs, shares = [(0, 1)] * 400, sigmoid(log_odds)
    strengths = fit_strengths(2, pairs, shares)
    (low, high), _ = bootstrap_intervals(strengths, pairs, shares, 1, 2000, 0)
    assert high - low == pytest.approx(2 * 1.96 * 0.2 / np.sqrt(400) / 2, rel=0.15)
    assert low < strengths[0] < high


def test_intervals_hold_the_true_strengths_about_as_often_as_they_say():
    # Six verdicts on each candidate, each off by the same spread, around nine known strengths, 40 times. Six are few:
    # 0.89 is measured. Without the widening it is 0.80, and with intervals twice as wide 0.99.
    draw, truth, held = np.random.default_rng(0), np.linspace(-1, 1, 9), []
    pairs = [(place, (place + stride) % 9) for stride in (1, 2, 4) for place in range(9)]
    for _ in range(40):
        shares = sigmoid([truth[i] - truth[j] + draw.normal(0, 0.5) for i, j in pairs])
        intervals = bootstrap_intervals(fit_strengths(9, pairs, shares), pairs, shares, 8, 100, 0)
        held += [low <= one <= high for (low, high), one in zip(intervals, truth, strict=True)]
    assert 0.84 < np.mean(held) < 0.97


@given(st.integers(0, 10_000))
def test_circles_are_shortest_ones_of_each_entangled_set(seed):
    draw, n = np.random.default_rng(seed), 7
    pairs = [pair for pair in combinations(range(n), 2) if draw.random() < 0.6]
    shares = draw.choice([0.1, 0.5, 0.9], size=len(pairs))
    beats = networkx.DiGraph()
    for (i, j), share in zip(pairs, shares, strict=True):
        if share != 0.5:
            beats.add_edge(*((i, j) if share > 0.5 else (j, i)))
    entangled = [part for part in networkx.strongly_connected_components(beats) if len(part) > 1]
    found = find_cycles(n, pairs, shares)
    assert len(found) == len(entangled)
    for circle in found:
        part = next(part for part in entangled if circle[0] in part)
        assert circle[0] == min(circle)
        assert all(beats.has_edge(i, j) for i, j in zip(circle, [*circle[1:], circle[0]], strict=True))
        assert len(circle) == min(map(len, networkx.simple_cycles(beats.subgraph(part))))


def test_two_orders_of_a_pair_make_no_circle():
    assert find_cycles(2, [(0, 1), (1, 0)], np.array([0.9, 0.6])) == []
    assert find_cycles(3, list(permutations(range(3), 2)), np.full(6, 0.5)) == []
