"""More than two responses: `best_of_n` and `rank` over comparers of a few honest lines."""

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pair_pm.errors import DataError
from pair_pm.ranking import best_of_n, rank

STRENGTHS = st.lists(st.floats(-3, 3), min_size=1, max_size=12)


@dataclass(frozen=True)
class Verdict:
    """The one field that ranking reads."""

    prob_first: float


class PlantedComparer:
    """Prefers by Bradley-Terry log-strengths, which are what it is given as responses."""

    def __init__(self):
        self.calls = []

    def compare_many(self, items):
        """Answer P(first) = sigmoid(strength of first - strength of second)."""
        self.calls.append([(first, second) for _, first, second in items])
        return [Verdict(1 / (1 + math.exp(second - first))) for _, first, second in items]


class CertainComparer(PlantedComparer):
    """Prefers the larger number without a doubt."""

    def compare_many(self, items):
        """Answer 1, 0, or 0.5 for equals."""
        return [Verdict(0.5 + 0.5 * np.sign(first - second)) for _, first, second in items]


@given(STRENGTHS, st.integers(0, 5))
def test_best_wins_the_knockout_whatever_the_order_and_seed(strengths, seed):
    best = best_of_n(PlantedComparer(), "Q", strengths, seed)
    assert strengths[best.index] == pytest.approx(max(strengths), abs=1e-12)


@given(st.integers(1, 40), st.integers(0, 5))
def test_knockout_makes_n_minus_1_comparisons_in_log2_n_calls(n, seed):
    comparer = PlantedComparer()
    best = best_of_n(comparer, "Q", list(np.linspace(-1, 1, n)), seed)
    assert best.comparisons == sum(map(len, comparer.calls)) == n - 1
    assert len(comparer.calls) == math.ceil(math.log2(n))


@given(st.integers(2, 40), st.integers(0, 5))
def test_nobody_sits_out_two_rounds_in_a_row(n, seed):
    comparer = PlantedComparer()
    best_of_n(comparer, "Q", list(np.linspace(-1, 1, n)), seed)
    alive, sat_out_before = set(np.linspace(-1, 1, n)), set()
    for call in comparer.calls:
        sat_out = alive - {response for match in call for response in match}
        assert len(sat_out) <= 1
        assert not sat_out & sat_out_before
        alive, sat_out_before = {max(match) for match in call} | sat_out, sat_out
    assert alive == {1.0}


def test_seed_decides_the_draw_and_the_same_seed_repeats_it():
    def draw(seed: int) -> list:
        comparer = PlantedComparer()
        best_of_n(comparer, "Q", list(range(8)), seed)
        return comparer.calls

    assert draw(3) == draw(3)
    assert any(draw(3) != draw(seed) for seed in range(4, 8))


@pytest.mark.parametrize("seed", range(5))
def test_smaller_index_wins_a_tie_in_the_knockout(seed):
    assert best_of_n(PlantedComparer(), "Q", [1.0] * 7, seed).index == 0
    assert best_of_n(PlantedComparer(), "Q", [0.0, 1.0, 0.5, 1.0], seed).index == 1


@given(STRENGTHS)
def test_strengths_are_the_planted_ones_less_their_mean(strengths):
    ranking = rank(PlantedComparer(), "Q", strengths)
    assert ranking.strengths == pytest.approx(np.subtract(strengths, np.mean(strengths)), abs=1e-4)
    assert ranking.comparisons == len(strengths) * (len(strengths) - 1) // 2


@given(STRENGTHS)
def test_order_is_from_strongest_to_weakest(strengths):
    order = rank(PlantedComparer(), "Q", strengths).order
    assert sorted(order) == list(range(len(strengths)))
    assert all(strengths[better] >= strengths[worse] - 1e-5 for better, worse in pairwise(order))


@given(st.lists(st.integers(0, 3), min_size=1, max_size=10), st.sampled_from([PlantedComparer, CertainComparer]))
def test_equal_candidates_stand_in_input_order(strengths, comparer):
    expected = sorted(range(len(strengths)), key=lambda index: (-strengths[index], index))
    assert rank(comparer(), "Q", strengths).order == expected


def test_identical_candidates_tie():
    ranking = rank(PlantedComparer(), "Q", [0.7] * 5)
    assert ranking.strengths == pytest.approx([0] * 5, abs=1e-9)
    assert ranking.order == [0, 1, 2, 3, 4]


def test_two_candidates_by_hand():
    # Odds of 3 to 1: log-strengths ln 3 apart, mean 0.
    ranking = rank(PlantedComparer(), "Q", [0.0, math.log(3)])
    assert ranking.order == [1, 0]
    assert ranking.strengths == pytest.approx([-math.log(3) / 2, math.log(3) / 2], abs=1e-6)
    assert (best_of_n(PlantedComparer(), "Q", [0.0, math.log(3)]).index, ranking.comparisons) == (1, 1)


def test_one_candidate_is_not_compared():
    comparer = PlantedComparer()
    assert (best_of_n(comparer, "Q", ["only"]).index, best_of_n(comparer, "Q", ["only"]).comparisons) == (0, 0)
    ranking = rank(comparer, "Q", ["only"])
    assert (ranking.order, ranking.strengths, ranking.comparisons) == ([0], [0.0], 0)
    assert comparer.calls == []


def test_certain_verdicts_give_finite_strengths():
    ranking = rank(CertainComparer(), "Q", [3, 1, 2])
    assert ranking.order == [0, 2, 1]
    assert all(map(math.isfinite, ranking.strengths))


def test_no_candidate_is_an_error():
    for function in (best_of_n, rank):
        with pytest.raises(DataError, match="none were given; at least one is required"):
            function(PlantedComparer(), "Q", [])
