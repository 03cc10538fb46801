"""A temperature and an order offset fitted on some prompts and judged on the others, and written into a model's card.

The temperature is fitted to what is served, the probability averaged over both orders. The offset takes from single
orders what the model likes about slot A, so it is fitted to them, with that temperature.

Source of temperature scaling: Guo et al., On Calibration of Modern Neural Networks, arXiv:1706.04599.
"""

import dataclasses
import random
from pathlib import Path

import numpy as np

from pair_pm.calibration import calibrate
from pair_pm.errors import ConfigError
from pair_pm.evaluation_report import Estimate, TemperatureReport
from pair_pm.intervals import PromptBootstrap
from pair_pm.metrics import Verdicts
from pair_pm.predictions import Predictions
from pair_pm.recipe import CARD_NAME, read_recipe, write_recipe
from pair_pm.tokens import PromptEncoder

LOWEST, HIGHEST = 0.01, 100.0
_GRID = 81
_LEAST_GAIN = 1e-9  # nats a row, between temperatures that differ


def fit_temperature(log_odds: np.ndarray, targets: np.ndarray) -> float | str:
    """Return the temperature that makes the targets likeliest, or why there is none.

    Args:
        log_odds: Before temperature, of "A" in both orders, shape (rows, 2).
        targets: How likely the first response is preferred, shape (rows,).
    """
    from scipy.optimize import minimize_scalar

    def loss(log_temperature: float) -> float:
        scaled = Verdicts(log_odds / np.exp(log_temperature), np.empty(0), targets)
        return float(scaled.losses(targets).mean())

    if not len(targets):
        return "no row to fit it on"
    # A grid first: the likelihood of an average of two orders may have more than one maximum.
    grid = np.linspace(np.log(LOWEST), np.log(HIGHEST), _GRID)
    losses = [loss(place) for place in grid]
    best = int(np.argmin(losses))
    if max(losses) - min(losses) < _LEAST_GAIN:
        return "every temperature gives the same likelihood: the verdicts do not depend on the responses"
    if best in (0, _GRID - 1):
        end = f"{LOWEST:g}" if best == 0 else f"{HIGHEST:g}"
        found = "nearly all verdicts are right" if best == 0 else "the verdicts are no better than chance"
        return f"the likelihood still grows at a temperature of {end}: {found}"
    found = minimize_scalar(loss, bounds=(grid[best - 1], grid[best + 1]), method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x))


def fit_order_offset(log_odds: np.ndarray, temperature: float) -> float:
    """Return the log-odds before temperature without which single orders are likeliest.

    One order's target is the complement of the other's, so whatever the labels are, half of all must be "A": the mean
    probability of "A" is one half there.

    Args:
        log_odds: Before temperature, of "A" in both orders, shape (rows, 2), of one row at least.
        temperature: That divides them afterwards.
    """
    from scipy.optimize import brentq
    from scipy.special import expit

    def surplus(offset: float) -> float:
        return float(expit((log_odds - offset) / temperature).mean() - 0.5)

    low, high = log_odds.min() - temperature, log_odds.max() + temperature
    return float(brentq(surplus, low, high, xtol=1e-10))


def draw_fitting_part(prompt_keys: np.ndarray, seed: int) -> np.ndarray:
    """Return which rows are fitted on: those of one half of the prompts, whatever the order of the rows."""
    keys, codes = np.unique(np.asarray(prompt_keys, dtype=str), return_inverse=True)
    drawn = np.random.default_rng(random.Random(seed).getrandbits(64)).permutation(len(keys))
    return (drawn < len(keys) // 2)[codes]


def fit_and_judge(predictions: Predictions, resamples: int, seed: int) -> TemperatureReport:
    """Return a fit on one half of the prompts and what it does to the other.

    Args:
        predictions: Unedited ones, whose label names a winner.
        resamples: Of the intervals.
        seed: Of the halves and of the intervals.
    """
    log_odds, targets = predictions.log_odds(temperature=1.0), predictions["prob_chosen"]
    fitting = draw_fitting_part(predictions["prompt_key"], seed)
    rows = {"fitted_on": int(fitting.sum()), "judged_on": int((~fitting).sum())}
    temperature = fit_temperature(log_odds[fitting], targets[fitting])
    if isinstance(temperature, str):
        return TemperatureReport(None, None, reason=temperature, **rows)
    offset = fit_order_offset(log_odds[fitting], temperature)

    other, in_use = predictions.where(~fitting), predictions.origin
    bootstrap = PromptBootstrap(other["prompt_key"], resamples, seed)
    before, after = _read(other, in_use.temperature), _read(other, temperature)
    single_before, single_after = (
        _read(other, temperature, shift).single_order_losses.mean(axis=1) for shift in (in_use.order_offset, offset)
    )
    estimates = bootstrap.estimate(
        {
            "nll_change": after.losses(after.targets) - before.losses(before.targets),
            "single_order_nll_before": single_before,
            "single_order_nll_after": single_after,
            "single_order_nll_change": single_after - single_before,
        }
    )
    return TemperatureReport(
        temperature,
        offset,
        reason=None,
        **rows,
        before=calibrate(before, bootstrap),
        after=calibrate(after, bootstrap),
        **estimates,
        is_not_worse=_is_not_worse(estimates["nll_change"]),
        offset_is_not_worse=_is_not_worse(estimates["single_order_nll_change"]),
    )


def _read(predictions: Predictions, temperature: float, order_offset: float = 0.0) -> Verdicts:
    log_odds = (predictions.log_odds(temperature=1.0) - order_offset) / temperature
    return Verdicts(log_odds, predictions["label_mass"], predictions["prob_chosen"])


def _is_not_worse(change: Estimate) -> bool:
    return change.value is not None and change.value <= 0


def save_fit(folder: Path, encoder: PromptEncoder, fit: TemperatureReport) -> TemperatureReport:
    """Write a fit into the card of the model in a folder, and return the fit with the card's path.

    The offset that was in use stays where the fitted one is worse.

    Raises:
        ConfigError: there is no card, or the temperature is worse than the one in use.
        RecipeError: the card does not describe the model.
    """
    path = Path(folder) / CARD_NAME
    if fit.temperature is None or not fit.is_not_worse:
        found = fit.reason or f"on the other prompts nll changes by {fit.nll_change.value:+.4f} nats"
        raise ConfigError(f"{path}: not written: {found}; a fit that is no worse is required to be saved")
    if not path.is_file():
        raise ConfigError(
            f"{path}: no such file; the card that training wrote is required to save a temperature; without one, give "
            f"--temperature {fit.temperature:.4f} where the model is used"
        )
    recipe = read_recipe(path, encoder)
    offset = fit.order_offset if fit.offset_is_not_worse else recipe.order_offset
    write_recipe(folder, encoder, dataclasses.replace(recipe, temperature=fit.temperature, order_offset=offset))
    return dataclasses.replace(fit, saved_to=str(path))
