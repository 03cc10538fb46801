"""The log-odds of beating a reference answer: `pair_pm.reference_reward`."""

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from simulated import RuleEngine, make_scorer

from pair_pm.reference_reward import LEAST_REWARD, known_reward, reward_of_comparison, reward_of_share
from pair_pm.rewards import GroupReward

STRENGTHS = {"good": 1.5, "fair": 0.25, "bad": -1.0}


def by_strength(response_a: str, response_b: str) -> float:
    """Return log-odds of "A" in which slot A has 0.5 too many."""
    return STRENGTHS[response_a] - STRENGTHS[response_b] + 0.5


@pytest.fixture(scope="module")
def engine():
    return RuleEngine(by_strength)


@pytest.fixture(scope="module")
def scorer(engine):
    return make_scorer(engine)


def reward(scorer, *item) -> float:
    """Return the reward of a response beside its reference, as a service gives it."""
    known = known_reward(*item[1:])
    return reward_of_comparison(scorer.compare(*item)) if known is None else known


def test_reward_is_the_log_odds_of_the_mean_over_both_orders(scorer):
    # Slot A adds 0.5, so "good" (1.5) beats "fair" (0.25) with sigmoid(1.75) in A and sigmoid(0.75) in B.
    mean = (1 / (1 + math.exp(-1.75)) + 1 / (1 + math.exp(-0.75))) / 2
    assert reward(scorer, "Q", "good", "fair") == pytest.approx(math.log(mean / (1 - mean)))


def test_reward_is_how_much_stronger_the_response_is_in_a_group_of_two(scorer):
    response, reference = GroupReward(scorer, method="round_robin")(["Q", "Q"], ["bad", "fair"])
    assert reward(scorer, "Q", "bad", "fair") == pytest.approx(response - reference, abs=1e-6)


def test_response_and_reference_changing_places_change_the_sign(scorer):
    one, other = reward(scorer, "Q", "good", "bad"), reward(scorer, "Q", "bad", "good")
    assert one == pytest.approx(-other)
    assert one > 0


def test_the_reference_itself_has_zero_and_silence_the_least_without_a_comparison(engine, scorer):
    before = engine.prompts
    rewards = [reward(scorer, "Q", response, "good") for response in ("good", " good\n", " \n")]
    assert rewards == [0.0, 0.0, LEAST_REWARD]
    assert engine.prompts == before
    assert known_reward("good", "bad") is None


@given(st.floats(0, 1))
@example(0.0)
@example(1.0)
@example(5e-324)
def test_every_probability_has_a_finite_reward_that_changes_sign_with_it(prob):
    reward = reward_of_share(prob)
    assert LEAST_REWARD <= reward <= -LEAST_REWARD
    assert reward == pytest.approx(-reward_of_share(1 - prob), abs=1e-6)
    # log(1e-6 / (1 - 1e-6)): the least share that strengths are fitted with
    assert pytest.approx(-13.8155, abs=1e-4) == LEAST_REWARD
