"""More than two responses: `best_of_n` and `rank` over comparers of a few honest lines."""

import json
import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pair_pm.errors import ConfigError, DataError
from pair_pm.ranking import METHODS, best_of_n, rank, rank_many

STRENGTHS = st.lists(st.floats(-3, 3), min_size=1, max_size=12)
SPARSE = [method for method in METHODS if method != "round_robin"]


@dataclass(frozen=True)
class Verdict:
    """The fields that ranking reads of a verdict in both orders."""

    prob_first: float
    prompt_tokens: tuple[int, int] = (10, 11)


@dataclass(frozen=True)
class OrderedVerdict:
    """The fields that it reads of one in one order."""

    prob_a: float
    prompt_tokens: int = 10


class PlantedComparer:
    """Prefers by Bradley-Terry log-strengths, which are what it is given as responses; and, on request, slot A."""

    def __init__(self, slot_offset=0.0):
        self.slot_offset = slot_offset
        self.calls = []

    def find_log_odds(self, first, second):
        """Return what is for the first."""
        return first - second

    def compare_in_order(self, items):
        """Answer P(A) = sigmoid(strength of A - strength of B + offset)."""
        self.calls.append([(first, second) for _, first, second in items])
        log_odds = [self.find_log_odds(first, second) + self.slot_offset for _, first, second in items]
        return [OrderedVerdict(1 / (1 + math.exp(-one))) for one in log_odds]

    def compare_many(self, items):
        """Answer the mean of both orders."""
        in_a = self.compare_in_order(items)
        in_b = self.compare_in_order([(messages, second, first) for messages, first, second in items])
        del self.calls[-1]
        return [Verdict((one.prob_a + 1 - other.prob_a) / 2) for one, other in zip(in_a, in_b, strict=True)]


class CertainComparer(PlantedComparer):
    """Prefers the larger number without a doubt."""

    def find_log_odds(self, first, second):
        """Return certainty, or nothing for equals."""
        return 700 * np.sign(first - second)


class MoodyComparer(PlantedComparer):
    """Answers each question at random, but always the same."""

    def find_log_odds(self, first, second):
        """Return what the draw for this question is."""
        return 2 * math.sin(1000 * first + 777 * second)


class CircularComparer(PlantedComparer):
    """Rock, paper and scissors, as 0, 1 and 2; all beat 3."""

    def find_log_odds(self, first, second):
        """Return 2 for the winner."""
        if 3 in (first, second):
            return 2.0 * (second == 3) - 2.0 * (first == 3)
        return (0.0, 2.0, -2.0)[(first - second) % 3]


@given(STRENGTHS, st.integers(0, 5))
def test_best_wins_the_knockout_whatever_the_order_and_seed(strengths, seed):
    best = best_of_n(PlantedComparer(), "Q", strengths, seed=seed)
    assert strengths[best.index] == pytest.approx(max(strengths), abs=1e-12)


@given(st.integers(1, 40), st.integers(0, 5))
def test_knockout_makes_n_minus_1_comparisons_in_log2_n_calls(n, seed):
    comparer = PlantedComparer()
    best = best_of_n(comparer, "Q", list(np.linspace(-1, 1, n)), seed=seed)
    assert best.comparisons == sum(map(len, comparer.calls)) == n - 1
    assert len(comparer.calls) == math.ceil(math.log2(n))
    assert (best.calls, best.tokens) == (2 * (n - 1), 21 * (n - 1))


@given(st.integers(2, 40), st.integers(0, 5))
def test_nobody_sits_out_two_rounds_in_a_row(n, seed):
    comparer = PlantedComparer()
    best_of_n(comparer, "Q", list(np.linspace(-1, 1, n)), seed=seed)
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
        best_of_n(comparer, "Q", list(range(8)), seed=seed)
        return comparer.calls

    assert draw(3) == draw(3)
    assert any(draw(3) != draw(seed) for seed in range(4, 8))


@pytest.mark.parametrize("seed", range(5))
def test_smaller_index_wins_a_tie_in_the_knockout(seed):
    assert best_of_n(PlantedComparer(), "Q", [1.0] * 7, seed=seed).index == 0
    assert best_of_n(PlantedComparer(), "Q", [0.0, 1.0, 0.5, 1.0], seed=seed).index == 1


def test_best_of_n_takes_the_methods_of_rank():
    best = best_of_n(PlantedComparer(0.4), "Q", [0.0, 2.0, 1.0, -1.0], method="budget")
    assert (best.index, best.comparisons, best.calls, best.tokens) == (1, 8, 8, 80)


@settings(max_examples=40)
@given(STRENGTHS, st.sampled_from(METHODS), st.sampled_from(["one", "both"]), st.integers(0, 5))
def test_strengths_are_the_planted_ones_less_their_mean_by_every_method(strengths, method, orders, seed):
    ranking = rank(PlantedComparer(), "Q", strengths, method, seed, orders=orders)
    assert ranking.strengths == pytest.approx(np.subtract(strengths, np.mean(strengths)), abs=1e-4)
    assert ranking.cycles == []
    assert np.ptp(ranking.intervals, axis=1) == pytest.approx(0, abs=1e-4)  # nothing contradicts anything
    assert sorted(ranking.order) == list(range(len(strengths)))
    assert all(strengths[better] >= strengths[worse] - 1e-5 for better, worse in pairwise(ranking.order))


@settings(max_examples=40)
@given(STRENGTHS, st.sampled_from(METHODS), st.floats(-3, 3))
def test_verdicts_in_one_order_are_freed_of_the_preference_for_a_slot(strengths, method, slot_offset):
    ranking = rank(PlantedComparer(slot_offset), "Q", strengths, method, orders="one", resamples=0)
    assert ranking.strengths == pytest.approx(np.subtract(strengths, np.mean(strengths)), abs=1e-3)


@settings(max_examples=40)
@given(st.permutations(range(9)), st.sampled_from(METHODS), st.integers(0, 3))
def test_order_is_the_same_whatever_the_order_of_the_input(strengths, method, seed):
    ranking = rank(PlantedComparer(0.5), "Q", strengths, method, seed, resamples=0)
    assert [strengths[index] for index in ranking.order] == list(range(8, -1, -1))


@given(st.lists(st.integers(0, 3), min_size=1, max_size=10), st.sampled_from([PlantedComparer, CertainComparer]))
def test_equal_candidates_stand_in_input_order(strengths, comparer):
    expected = sorted(range(len(strengths)), key=lambda index: (-strengths[index], index))
    assert rank(comparer(), "Q", strengths, resamples=0).order == expected


@pytest.mark.parametrize("method", METHODS)
def test_best_of_certain_verdicts_is_first_and_its_strength_finite(method):
    ranking = rank(CertainComparer(), "Q", [3, 1, 2, 7, 5, 4], method)
    assert ranking.order[0] == 3
    assert np.isfinite(ranking.strengths).all()
    assert np.isfinite(ranking.intervals).all()


@pytest.mark.parametrize("method", METHODS)
def test_identical_candidates_tie_even_where_verdicts_are_contradictory(method):
    ranking = rank(MoodyComparer(), "Q", [0.5, 0.1, 0.5, 0.9, 0.3, 0.5], method)
    assert ranking.strengths[0] == pytest.approx(ranking.strengths[2], abs=1e-9)
    assert ranking.strengths[0] == pytest.approx(ranking.strengths[5], abs=1e-9)
    assert sum(ranking.strengths) == pytest.approx(0, abs=1e-9)
    assert [index for index in ranking.order if index in (0, 2, 5)] == [0, 2, 5]
    assert rank(PlantedComparer(), "Q", [0.7] * 5, method).strengths == pytest.approx([0] * 5, abs=1e-9)


def test_two_candidates_by_hand():
    # Odds of 3 to 1: log-strengths ln 3 apart, mean 0.
    for method in METHODS:
        ranking = rank(PlantedComparer(), "Q", [0.0, math.log(3)], method)
        assert ranking.order == [1, 0]
        assert ranking.strengths == pytest.approx([-math.log(3) / 2, math.log(3) / 2], abs=1e-6)
        assert (ranking.comparisons, ranking.calls) == ((1, 2) if method == "round_robin" else (2, 2))
    assert best_of_n(PlantedComparer(), "Q", [0.0, math.log(3)]).index == 1


@pytest.mark.parametrize("method", ["knockout", *METHODS])
def test_one_candidate_is_not_compared(method):
    comparer = PlantedComparer()
    best = best_of_n(comparer, "Q", ["only"], method)
    assert (best.index, best.comparisons, best.calls, best.tokens) == (0, 0, 0, 0)
    if method != "knockout":
        ranking = rank(comparer, "Q", ["only"], method)
        assert (ranking.order, ranking.strengths, ranking.intervals) == ([0], [0.0], [(0.0, 0.0)])
        assert (ranking.comparisons, ranking.tokens, ranking.cycles) == (0, 0, [])
    assert comparer.calls == []


@given(st.integers(1, 12), st.sampled_from(SPARSE), st.integers(2, 6), st.sampled_from(["one", "both"]))
def test_methods_say_what_they_spent_and_keep_to_the_budget(n, method, calls_each, orders):
    comparer = PlantedComparer()
    ranking = rank(comparer, "Q", list(range(n)), method, orders=orders, budget=calls_each * n, resamples=0)
    assert ranking.comparisons == sum(map(len, comparer.calls))
    assert ranking.calls == ranking.comparisons * (2 if orders == "both" else 1) <= calls_each * n
    assert ranking.tokens == ranking.comparisons * (21 if orders == "both" else 10)
    assert ranking.method == method


@given(st.integers(1, 12))
def test_round_robin_compares_all_pairs(n):
    ranking = rank(PlantedComparer(), "Q", list(range(n)), resamples=0)
    assert (ranking.comparisons, ranking.calls) == (n * (n - 1) // 2, n * (n - 1))


def test_three_comparisons_a_candidate_are_the_default():
    for method in ("circular", "chordal", "swiss"):
        assert rank(MoodyComparer(), "Q", list(range(10)), method, resamples=0).comparisons == 30
        assert rank(MoodyComparer(), "Q", list(range(10)), method, orders="both", resamples=0).comparisons == 30


def test_circles_are_reported():
    ranking = rank(CircularComparer(), "Q", [3, 0, 2, 1])
    assert ranking.cycles == [[1, 2, 3]]  # rock beats scissors, scissors paper, and paper rock
    assert ranking.order == [1, 2, 3, 0]
    assert ranking.strengths[1:] == pytest.approx([ranking.strengths[1]] * 3)


def test_intervals_hold_the_strengths_and_widen_where_verdicts_disagree():
    class Wavering(PlantedComparer):
        def find_log_odds(self, first, second):
            return first - second + math.sin(1000 * first + 777 * second)

    strengths = list(np.linspace(-2, 2, 9))
    ranking = rank(Wavering(), "Q", strengths, "circular")
    assert all(low < one < high for one, (low, high) in zip(ranking.strengths, ranking.intervals, strict=True))
    assert ranking == rank(Wavering(), "Q", strengths, "circular")
    assert ranking.intervals != rank(Wavering(), "Q", strengths, "circular", seed=-1).intervals
    assert rank(Wavering(), "Q", strengths, "circular", resamples=0).intervals == []


@pytest.mark.parametrize("method", METHODS)
def test_groups_advance_together_and_do_not_change_each_other(method):
    groups = [("Q", [0.4, 0.1, 0.2]), ("P", list(np.sin(np.arange(11.0)))), ("R", [1.0]), ("S", [2.0, 1.0, 3.0, 0.5])]
    comparer, calls_alone = MoodyComparer(), []
    together = rank_many(comparer, groups, method)
    for group, ranking in zip(groups, together, strict=True):
        alone = MoodyComparer()
        assert rank(alone, *group, method) == ranking
        calls_alone.append(len(alone.calls))
    assert len(comparer.calls) == max(calls_alone)
    assert rank_many(comparer, [], method) == []


def test_most_informative_comparisons_stop_when_the_top_is_settled():
    # Verdicts that agree with each other settle it as soon as there is anything to check them by: two a candidate.
    assert rank(PlantedComparer(0.3), "Q", list(range(12)), "budget", budget=100).calls == 24
    assert rank(PlantedComparer(0.3), "Q", [*range(11), 10 + 1e-9], "budget", budget=100).calls == 24  # two equals
    assert 24 < rank(MoodyComparer(), "Q", list(range(12)), "budget", budget=60).calls <= 60


def test_ranking_and_best_go_into_json():
    ranking = json.loads(json.dumps(rank(MoodyComparer(), "Q", [0.0, 1.0, 2.0]).to_dict()))
    assert list(ranking) == "order strengths intervals cycles comparisons calls tokens method".split()
    assert best_of_n(PlantedComparer(), "Q", [0.0, 1.0]).to_dict() == {
        "index": 1,
        "comparisons": 1,
        "calls": 2,
        "tokens": 21,
    }


def test_no_candidate_is_an_error():
    for function in (best_of_n, rank):
        with pytest.raises(DataError, match="none were given; at least one is required"):
            function(PlantedComparer(), "Q", [])


def test_what_cannot_be_done_is_said():
    responses = [1.0, 2.0, 3.0, 4.0]
    with pytest.raises(ConfigError, match="method 'elo': unknown; one of round_robin, circular"):
        rank(PlantedComparer(), "Q", responses, "elo")
    with pytest.raises(ConfigError, match="method 'elo': unknown; one of knockout, round_robin"):
        best_of_n(PlantedComparer(), "Q", responses, "elo")
    with pytest.raises(ConfigError, match="orders 'two': unknown; one of one, both is required"):
        rank(PlantedComparer(), "Q", responses, orders="two")
    with pytest.raises(ConfigError, match="budget 12: round_robin compares all pairs; another method is required"):
        rank(PlantedComparer(), "Q", responses, budget=12)
    with pytest.raises(ConfigError, match="budget 3: too small for 4 candidates; at least 4 is required"):
        rank(PlantedComparer(), "Q", responses, "swiss", budget=3)
    with pytest.raises(ConfigError, match="budget 7: too small for 4 candidates; at least 8 is required"):
        rank(PlantedComparer(), "Q", responses, "budget", budget=7, orders="both")
    with pytest.raises(ConfigError, match="knockout: budget given; no option is required"):
        best_of_n(PlantedComparer(), "Q", responses, budget=12)
