"""Each number by hand: `pair_pm.metrics`."""

import math

import numpy as np
import pytest
from sklearn.metrics import log_loss

from pair_pm.metrics import Verdicts, compute_metrics
from pair_pm.scoring import compare_logprobs


def judge(*probs: tuple[float, float], label_mass=1.0, targets=1.0) -> Verdicts:
    """Return the verdicts in which the first response has these probabilities in slot A and slot B."""
    in_a, in_b = np.array(probs, dtype=float).T
    log_odds = np.stack([np.log(in_a / (1 - in_a)), -np.log(in_b / (1 - in_b))], axis=1)
    return Verdicts(log_odds, np.broadcast_to(label_mass, len(in_a)), np.broadcast_to(targets, len(in_a)))


def test_metrics_by_hand():
    metrics = compute_metrics(
        judge(
            (0.9, 0.8),  # right in both orders
            (0.9, 0.2),  # right on average, 0.55, but the orders disagree
            (0.5, 0.5),  # a tie in both orders
            (0.1, 0.4),  # wrong in both orders
            label_mass=[1.0, 1.0, 0.4, 1.0],
        )
    )
    # (1 + 1 + 0.5 + 0) / 4 = 0.625; three of four verdicts survive the swap.
    assert (metrics.pairs, metrics.accuracy, metrics.predicted_ties) == (4, 0.625, 1)
    assert metrics.position_consistency == 0.75
    assert metrics.lowest_label_mass == pytest.approx(0.4)


def test_metrics_of_a_slot_by_hand():
    # P(A) is 0.9 and 0.2, then 0.9 and 0.8: A is answered three times of four.
    metrics = compute_metrics(judge((0.9, 0.8), (0.9, 0.2), label_mass=[1.0, 0.5]))
    assert metrics.prob_a == 0.75
    log_odds = [math.log(p / (1 - p)) for p in (0.9, 0.2, 0.9, 0.8)]
    assert metrics.order_bias == pytest.approx(sum(log_odds) / 4)
    # The first response is wanted: A in the first order of each pair, B in the second.
    assert metrics.label_loss == pytest.approx(-(math.log(0.9) + math.log(0.8) + math.log(0.9) + math.log(0.2)) / 4)
    assert metrics.label_mass == pytest.approx(0.75)


def test_label_loss_of_a_coin_is_ln_2_whatever_the_targets():
    metrics = compute_metrics(judge(*[(0.5, 0.5)] * 3, targets=[1.0, 0.3, 0.5]))
    assert metrics.label_loss == pytest.approx(math.log(2))


def test_label_loss_is_taken_against_the_votes_and_is_least_where_they_are_met():
    def loss(prob):
        return compute_metrics(judge((prob, prob), targets=0.8)).label_loss

    assert loss(0.8) == pytest.approx(-(0.8 * math.log(0.8) + 0.2 * math.log(0.2)))
    assert loss(0.8) < min(loss(0.7), loss(0.9))


def test_no_row_gives_no_number_rather_than_0():
    metrics = compute_metrics(Verdicts(np.empty((0, 2)), np.empty(0), np.empty(0)))
    assert metrics.pairs == 0
    assert metrics.accuracy is metrics.position_consistency is metrics.label_loss is metrics.label_mass is None


def test_losses_are_those_of_scikit_learn():
    probs = np.random.default_rng(0).uniform(0.01, 0.99, (200, 2))
    verdicts = judge(*probs)
    average = probs.mean(axis=1)
    assert verdicts.losses().mean() == pytest.approx(log_loss(np.ones(200), average, labels=[0, 1]))
    flat = np.concatenate([probs[:, 0], 1 - probs[:, 1]])
    expected = log_loss(np.repeat([1, 0], 200), flat, labels=[0, 1])
    assert verdicts.single_order_losses.mean() == pytest.approx(expected)


def test_loss_is_exact_where_probabilities_underflow():
    # Both orders give the better response e^-800: the mean does too.
    verdicts = Verdicts(np.array([[-800.0, 800.0]]), np.ones(1), np.ones(1))
    assert verdicts.losses() == pytest.approx(800)


def test_verdicts_are_those_of_the_scorer():
    log_odds = np.random.default_rng(1).normal(0, 2, (300, 2))
    log_odds[:5] = [[0, 0], [1e-6, -1e-6], [1e-5, -1e-5], [1, 1], [40, 40]]
    verdicts = Verdicts(log_odds, np.ones(300), np.ones(300))
    logprobs = np.stack([-np.logaddexp(0, -log_odds), -np.logaddexp(0, log_odds)], axis=2)
    compared = [compare_logprobs(orders) for orders in logprobs]
    worth = {"first": 1.0, "tie": 0.5, "second": 0.0}
    assert [worth[comparison.winner] for comparison in compared] == verdicts.right.tolist()
    assert [comparison.is_position_consistent for comparison in compared] == verdicts.is_consistent.tolist()
    assert np.allclose([comparison.prob_first for comparison in compared], verdicts.prob_first, atol=1e-12)
