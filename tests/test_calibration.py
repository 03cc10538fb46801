"""How far probabilities can be trusted, and the temperature that makes them so: known answers and scikit-learn's."""

import dataclasses
import json

import numpy as np
import pytest
from conftest import make_small_tokenizer
from simulated import make_predictions
from sklearn.calibration import calibration_curve
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, log_loss

from pair_pm.calibration import calibrate, compute_debiased_error, compute_ece, cut_into_bins
from pair_pm.errors import ConfigError
from pair_pm.intervals import PromptBootstrap
from pair_pm.metrics import Verdicts
from pair_pm.predictions import Origin
from pair_pm.recipe import Recipe, read_recipe, write_recipe
from pair_pm.temperature_fit import draw_fitting_part, fit_and_judge, fit_order_offset, fit_temperature, save_fit
from pair_pm.tokens import PromptEncoder


def simulate(rows: int, temperature: float = 1.0, order_offset: float = 0.0, seed: int = 0):
    """Return predictions of a model whose log-odds are right but for a temperature and a liking for slot A.

    The first response is the one that won, so it is the likelier one as often as its probability says.
    """
    draw = np.random.default_rng(seed)
    true = draw.normal(0, 2, rows)
    of_winner = np.where(draw.random(rows) < 1 / (1 + np.exp(-true)), true, -true)
    log_odds = temperature * of_winner[:, None] * [1, -1] + order_offset
    return make_predictions(log_odds, prob_chosen=1.0)


def calibrate_alone(predictions, resamples: int = 0):
    return calibrate(predictions.verdicts, PromptBootstrap(predictions["prompt_key"], resamples))


def test_perfectly_calibrated_model_has_no_calibration_error():
    report = calibrate_alone(simulate(100_000))
    assert report.ece.value < 0.01
    assert report.debiased_error.value < 0.01
    assert len(report.reliability) == 15
    for place in report.reliability:
        assert place.accuracy.rows == pytest.approx(100_000 / 15, abs=2)
        assert place.accuracy.value == pytest.approx(place.confidence, abs=0.03)


@pytest.mark.parametrize("planted", [0.4, 1.0, 2.5])
def test_planted_temperature_is_found_within_2_percent(planted):
    predictions = simulate(100_000, planted)
    assert fit_temperature(predictions.log_odds(), predictions["prob_chosen"]) == pytest.approx(planted, rel=0.02)


def test_temperature_is_that_of_an_unpenalised_regression():
    log_odds = simulate(5000, 1.6, seed=4).log_odds()
    signs = np.where(np.arange(5000) % 2, -1, 1)  # two classes: every other pair with the sides exchanged
    model = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10).fit(log_odds[:, :1] * signs[:, None], signs)
    assert fit_temperature(log_odds, np.ones(5000)) == pytest.approx(1 / model.coef_[0, 0], rel=1e-3)


def test_order_offset_is_where_single_orders_are_likeliest_whatever_the_votes():
    draw = np.random.default_rng(3)
    log_odds, votes = draw.normal(0.4, 2, (800, 2)), draw.random(800)
    offsets = np.linspace(-1, 2, 3001)
    losses = [Verdicts((log_odds - offset) / 1.3, np.ones(800), votes).single_order_losses.mean() for offset in offsets]
    assert fit_order_offset(log_odds, 1.3) == pytest.approx(offsets[np.argmin(losses)], abs=0.001)


def test_planted_order_offset_is_found_in_log_odds_before_temperature():
    predictions = simulate(100_000, temperature=2.0, order_offset=0.7)
    assert fit_order_offset(predictions.log_odds(), 2.0) == pytest.approx(0.7, abs=0.02)


def test_overconfident_model_is_mended_on_the_prompts_that_it_was_not_fitted_on():
    fit = fit_and_judge(simulate(20_000, temperature=3.0), resamples=200, seed=1)
    assert fit.fitted_on + fit.judged_on == 20_000
    assert fit.before.debiased_error.value > 0.1
    assert fit.after.debiased_error.value < 0.03
    assert fit.nll_change.high < 0
    assert fit.nll_change.value == pytest.approx(fit.after.nll.value - fit.before.nll.value)
    assert fit.is_not_worse


def test_offset_is_judged_beside_the_temperature_that_it_goes_with():
    fit = fit_and_judge(simulate(20_000, temperature=3.0, order_offset=1.0), resamples=200, seed=1)
    assert fit.order_offset == pytest.approx(1.0, abs=0.1)
    assert fit.single_order_nll_change.high < 0
    assert fit.offset_is_not_worse
    known = make_predictions(simulate(20_000, 3.0, 1.0).log_odds(), Origin(temperature=3.0, order_offset=1.0))
    again = fit_and_judge(known, resamples=200, seed=1)
    assert again.single_order_nll_change.value == pytest.approx(0, abs=1e-3)


def test_temperature_meets_the_votes_where_rows_carry_them():
    draw = np.random.default_rng(0)
    true = draw.normal(0, 2, 20_000)
    votes = 1 / (1 + np.exp(-true))
    predictions = make_predictions(1.7 * true[:, None] * [1, -1], prob_chosen=votes)
    assert fit_temperature(predictions.log_odds(), predictions["prob_chosen"]) == pytest.approx(1.7, rel=1e-3)
    report = calibrate_alone(make_predictions(true[:, None] * [1, -1], prob_chosen=votes))
    assert report.vote_nll.value == pytest.approx(report.vote_entropy.value)
    assert report.vote_entropy.value == pytest.approx(-(votes * np.log(votes) + (1 - votes) * np.log(1 - votes)).mean())


@pytest.mark.parametrize(
    ("log_odds", "says"),
    [
        ([[3.0, 3.0]] * 10, "do not depend on the responses"),  # always A
        ([[3.0, -3.0]] * 10, "nearly all verdicts are right"),
        ([[-3.0, 3.0]] * 10, "no better than chance"),
        (np.empty((0, 2)), "no row"),
    ],
)
def test_temperature_that_the_data_cannot_tell_is_none_with_the_reason(log_odds, says):
    log_odds = np.array(log_odds, dtype=float)
    assert says in fit_temperature(log_odds, np.ones(len(log_odds)))
    report = fit_and_judge(make_predictions(log_odds), resamples=10, seed=0)
    assert report.temperature is report.order_offset is None
    assert report.reason


def test_errors_and_losses_are_scikit_learns():
    draw = np.random.default_rng(2)
    predictions = make_predictions(draw.normal(1, 2, (3000, 1)) * [1, -1])
    report = calibrate_alone(predictions)
    prob = predictions.verdicts.prob_first
    ones = np.ones(3000)
    assert report.nll.value == pytest.approx(log_loss(ones, prob, labels=[0, 1]))
    assert report.brier.value == pytest.approx(brier_score_loss(ones, prob, pos_label=1))
    confidence, right = np.maximum(prob, 1 - prob), prob > 0.5
    accuracy, mean_confidence = calibration_curve(right, confidence, n_bins=15, strategy="quantile")
    assert [place.accuracy.value for place in report.reliability] == pytest.approx(accuracy.tolist())
    assert [place.confidence for place in report.reliability] == pytest.approx(mean_confidence.tolist())
    assert report.ece.value == pytest.approx(np.abs(accuracy - mean_confidence) @ np.full(15, 1 / 15))


def test_calibration_errors_by_hand():
    # Bins of 4 and 2 rows: 3 of 4 right at 0.6, 1 of 2 at 0.9. Gaps are 0.15 and -0.4.
    confidence, right = np.array([0.6] * 4 + [0.9] * 2), np.array([1, 1, 1, 0, 1, 0], dtype=float)
    codes = cut_into_bins(confidence, 2)
    assert codes.tolist() == [0, 0, 0, 0, 1, 1]
    assert compute_ece(confidence, right, codes).value == pytest.approx((4 * 0.15 + 2 * 0.4) / 6)
    # Chance: 0.75 * 0.25 / 3 and 0.5 * 0.5 / 1; the squared gaps 0.0225 and 0.16 exceed it by -0.04 and -0.09.
    assert compute_debiased_error(confidence, right, codes).value == 0.0
    more = np.array([1, 1, 1, 1, 0, 0], dtype=float)  # no chance: gaps of 0.4 and -0.9
    assert compute_debiased_error(confidence, more, codes).value == pytest.approx(((4 * 0.16 + 2 * 0.81) / 6) ** 0.5)


def test_debiased_error_of_few_rows_is_nearer_to_the_truth_than_the_plain_one():
    found = [calibrate_alone(simulate(300, seed=seed)) for seed in range(30)]
    assert np.mean([report.ece.value for report in found]) > 0.04
    assert np.mean([report.debiased_error.value for report in found]) < 0.03


def test_equal_values_stay_in_one_bin_and_no_bin_is_empty():
    values = np.array([0.5] * 90 + [0.6, 0.7, 0.8, 0.9] + [1.0] * 6)
    codes = cut_into_bins(values, 10)
    assert np.unique(codes).tolist() == list(range(codes.max() + 1))
    for value in set(values):
        assert len(set(codes[values == value])) == 1
    assert cut_into_bins(np.empty(0), 10).tolist() == []


def test_nothing_to_calibrate_is_none_with_a_reason():
    report = calibrate_alone(make_predictions(np.empty((0, 2))))
    for estimate in (report.nll, report.brier, report.ece, report.debiased_error, report.vote_nll):
        assert (estimate.value, bool(estimate.reason)) == (None, True)
    one = calibrate_alone(make_predictions(np.array([[2.0, -1.0]])))
    assert one.nll.value > 0
    assert (one.debiased_error.value, one.debiased_error.reason) == (None, "no bin has two rows")


def test_halves_are_of_prompts_and_do_not_depend_on_the_order_of_rows():
    prompts = np.array([f"p{number}" for number in np.random.default_rng(0).integers(0, 50, 400)])
    fitting = draw_fitting_part(prompts, seed=5)
    assert not set(prompts[fitting]) & set(prompts[~fitting])
    order = np.random.default_rng(1).permutation(400)
    assert (draw_fitting_part(prompts[order], seed=5) == fitting[order]).all()
    assert (draw_fitting_part(prompts, seed=6) != fitting).any()


# ---- the card -------------------------------------------------------------------------------------------------------


@pytest.fixture
def encoder():
    return PromptEncoder(make_small_tokenizer())


def test_fit_goes_into_the_card_which_is_valid_and_else_the_same(tmp_path, encoder):
    write_recipe(tmp_path, encoder, Recipe(sequence_len=512, training={"base_model": "x"}))
    fit = fit_and_judge(simulate(4000, temperature=2.0, order_offset=0.3), resamples=0, seed=0)
    saved = save_fit(tmp_path, encoder, fit)
    recipe = read_recipe(tmp_path / "pair_pm.json", encoder)  # checks the digest
    assert (recipe.temperature, recipe.order_offset) == (fit.temperature, fit.order_offset)
    assert (recipe.sequence_len, recipe.training) == (512, {"base_model": "x"})
    assert saved.saved_to == str(tmp_path / "pair_pm.json")


def test_fit_that_is_worse_on_the_other_prompts_is_not_saved(tmp_path, encoder):
    card = write_recipe(tmp_path, encoder, Recipe())
    before = card.read_text()
    # Half of the prompts want another temperature than the other half, and the one in use suits the other half.
    halves = draw_fitting_part(np.array([f"{row:08}" for row in range(4000)]), seed=0)
    sharp, right = simulate(4000, 4.0), simulate(4000, 1.0)
    log_odds = np.where(halves[:, None], sharp.log_odds(), right.log_odds())
    fit = fit_and_judge(make_predictions(log_odds, Origin(temperature=1.0)), resamples=100, seed=0)
    assert fit.temperature > 3
    assert fit.nll_change.low > 0
    assert not fit.is_not_worse
    with pytest.raises(ConfigError, match=r"nll changes by \+"):
        save_fit(tmp_path, encoder, fit)
    assert card.read_text() == before


def test_offset_that_is_worse_on_the_other_prompts_stays_as_it_was(tmp_path, encoder):
    card = write_recipe(tmp_path, encoder, Recipe(order_offset=0.25))
    fit = fit_and_judge(simulate(4000, temperature=2.0), resamples=0, seed=0)
    save_fit(tmp_path, encoder, dataclasses.replace(fit, order_offset=9.0, offset_is_not_worse=False))
    recipe = read_recipe(card, encoder)
    assert (recipe.temperature, recipe.order_offset) == (fit.temperature, 0.25)


def test_fit_without_a_card_to_save_it_in_is_refused(tmp_path, encoder):
    fit = fit_and_judge(simulate(1000, temperature=2.0), resamples=0, seed=0)
    with pytest.raises(ConfigError, match="--temperature"):
        save_fit(tmp_path, encoder, fit)
    assert json.dumps(fit.reason) == "null"
