"""How sure numbers are, against slow and independent ways: `pair_pm.intervals`."""

import numpy as np
import pytest
from scipy.stats import binomtest, bootstrap
from sklearn.metrics import roc_auc_score

from pair_pm.intervals import PromptBootstrap

RNG = np.random.default_rng(0)
PROMPTS = np.array([f"p{number}" for number in RNG.integers(0, 60, 300)])
RIGHT = (RNG.random(300) < 0.7).astype(float)


def test_every_resample_is_the_mean_over_the_rows_of_the_drawn_prompts():
    drawn = PromptBootstrap(PROMPTS, 50, seed=3)
    names = sorted(set(PROMPTS))
    [counts] = drawn.draw()
    assert (counts.sum(axis=1) == len(names)).all()
    sums = drawn.sum(np.stack([RIGHT, np.ones(300)], axis=1))
    for count, (right, rows) in zip(counts, sums, strict=True):
        taken = [RIGHT[name == PROMPTS] for name, times in zip(names, count, strict=True) for _ in range(int(times))]
        assert np.concatenate(taken).sum() == pytest.approx(right)
        assert len(np.concatenate(taken)) == rows


def test_interval_of_rows_with_prompts_of_their_own_is_scipys():
    rows = [str(row) for row in range(300)]
    found = PromptBootstrap(rows, 4000).estimate({"right": RIGHT})["right"]
    expected = bootstrap((RIGHT,), np.mean, method="percentile", n_resamples=4000, rng=1).confidence_interval
    assert found.value == RIGHT.mean()
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.005)


def test_rows_of_one_prompt_make_the_interval_as_wide_as_one_row_would():
    alone = PromptBootstrap([str(row) for row in range(300)], 4000).estimate({"x": RIGHT})["x"]
    repeated = PromptBootstrap(np.repeat([str(r) for r in range(300)], 4), 4000).estimate({"x": RIGHT.repeat(4)})["x"]
    assert (repeated.low, repeated.high) == pytest.approx((alone.low, alone.high), abs=0.005)
    assert repeated.rows == 1200


def test_interval_holds_the_truth_about_as_often_as_it_says():
    held = 0
    for seed in range(200):
        prompts = np.repeat(np.arange(80), 3)
        chance = np.random.default_rng(seed).beta(7, 3, 80).repeat(3)  # rows of a prompt go together
        right = np.random.default_rng(seed + 1000).random(240) < chance
        found = PromptBootstrap(prompts, 300, seed).estimate({"x": right})["x"]
        held += found.low <= 0.7 <= found.high
    assert 180 <= held <= 198  # 95% of 200 is 190, with a standard deviation of 3


def test_rows_without_a_value_are_in_no_mean():
    values = np.where(np.arange(300) < 100, RIGHT, np.nan)
    found = PromptBootstrap(PROMPTS).estimate({"x": values, "y": RIGHT})
    assert (found["x"].value, found["x"].rows) == (RIGHT[:100].mean(), 100)
    assert found["x"].high - found["x"].low > found["y"].high - found["y"].low


def test_auc_and_its_interval():
    values, is_one = RNG.integers(0, 12, 300) / 12, RNG.random(300) < 0.3
    found = PromptBootstrap([str(row) for row in range(300)], 2000).estimate_auc(values, is_one)
    assert found.value == pytest.approx(roc_auc_score(is_one, values))
    drawn = [RNG.integers(0, 300, 300) for _ in range(500)]
    low, high = np.percentile([roc_auc_score(is_one[rows], values[rows]) for rows in drawn], (2.5, 97.5))
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.02)


def test_share_of_which_all_rows_say_the_same_has_the_interval_of_a_binomial_share():
    found = PromptBootstrap(range(20)).estimate({"all": np.ones(20), "none": np.zeros(20)}, shares=("all", "none"))
    expected = binomtest(20, 20).proportion_ci()
    assert (found["all"].low, found["all"].high) == pytest.approx((expected.low, 1.0))
    assert (found["none"].low, found["none"].high) == pytest.approx((0.0, 1 - expected.low))
    assert "binomial" in found["all"].reason


def test_nothing_and_one_prompt_are_said_rather_than_a_number():
    nothing = PromptBootstrap([]).estimate({"x": np.empty(0)})["x"]
    assert (nothing.value, nothing.low, nothing.rows) == (None, None, 0)
    assert "no row" in nothing.reason
    one = PromptBootstrap(["p"] * 5).estimate({"x": np.array([1, 0, 1, 1, 0])})["x"]
    assert (one.value, one.low, one.high, one.rows) == (0.6, None, None, 5)
    assert "one prompt" in one.reason


def test_same_seed_gives_the_same_interval_in_any_order_of_the_rows():
    shuffled = RNG.permutation(300)
    one, same, other = (
        PromptBootstrap(PROMPTS[order], seed=seed).estimate({"x": RIGHT[order]})["x"]
        for order, seed in ((np.arange(300), -7), (shuffled, -7), (shuffled, 8))
    )
    assert (one.low, one.high) == pytest.approx((same.low, same.high))
    assert (one.low, one.high) != (other.low, other.high)


def test_intervals_do_not_depend_on_how_many_resamples_are_drawn_at_once(monkeypatch):
    whole = PromptBootstrap(PROMPTS, 100).sum(RIGHT[:, None])
    monkeypatch.setattr("pair_pm.intervals._CELLS_A_BLOCK", 7 * 300)
    parts = PromptBootstrap(PROMPTS, 100)
    assert max(len(drawn) for drawn in parts.draw()) == 7
    assert np.array_equal(parts.sum(RIGHT[:, None]), whole)
    found = parts.estimate_auc(RIGHT, PROMPTS < "p3")
    monkeypatch.undo()
    assert found == PromptBootstrap(PROMPTS, 100).estimate_auc(RIGHT, PROMPTS < "p3")
