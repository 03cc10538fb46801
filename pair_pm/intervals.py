"""How sure a number is: 95% intervals by a bootstrap that draws prompts.

Pairs of one prompt share what is hard about it, so drawing pairs would give too narrow intervals. A resample is
how often each prompt is drawn; every number that is a mean of rows follows from its sums over each prompt's rows.

Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13; for the interval of a share that is 0
or 1, where resampling shows no spread: Clopper and Pearson, Biometrika 26 (1934).
"""

import random
from collections.abc import Iterator, Mapping

import numpy as np

from pair_pm.evaluation_report import Estimate

RESAMPLES = 1000
FEW_PROMPTS = 20  # a bootstrap of fewer is too narrow: of 6 it holds the truth 85 times of 100
_PERCENTILES = (2.5, 97.5)
_CELLS_A_BLOCK = 5_000_000  # resamples times rows that are drawn at once: 40 MB
NO_ROWS = "no row to take it from"


class PromptBootstrap:
    """Draws the prompts of a set of rows, the same ones each time it is asked.

    Args:
        prompt_keys: Of the rows, shape (rows,).
        resamples: How often to draw; 0 for no intervals.
        seed: To draw with, any integer.
    """

    def __init__(self, prompt_keys: np.ndarray, resamples: int = RESAMPLES, seed: int = 0):
        keys, self._codes = np.unique(np.asarray(prompt_keys, dtype=str), return_inverse=True)
        self.prompts = len(keys)
        self.resamples = resamples
        self._seed = random.Random(seed).getrandbits(64)

    def sum(self, values: np.ndarray) -> np.ndarray:
        """Return the sums of columns over the rows of each resample.

        Args:
            values: Shape (rows, columns).
        Returns: Shape (resamples, columns).
        """
        by_prompt = self._sum_by_prompt(values)
        blocks = [drawn @ by_prompt for drawn in self.draw()]
        return np.concatenate(blocks) if blocks else np.empty((0, values.shape[1]))

    def count_prompts(self, rows: np.ndarray) -> int:
        """Return how many different prompts the rows of a boolean mask have."""
        return len(np.unique(self._codes[rows]))

    def draw(self) -> Iterator[np.ndarray]:
        """Yield how often each prompt is drawn, in blocks of shape (some resamples, prompts)."""
        random_numbers, prompts = np.random.default_rng(self._seed), self.prompts
        a_block = max(1, _CELLS_A_BLOCK // max(len(self._codes), 1))
        for start in range(0, self.resamples if prompts else 0, a_block):
            rows = min(a_block, self.resamples - start)
            places = random_numbers.integers(0, prompts, (rows, prompts)) + np.arange(rows)[:, None] * prompts
            yield np.bincount(places.ravel(), minlength=rows * prompts).reshape(rows, prompts).astype(float)

    def estimate_auc(self, values: np.ndarray, is_one: np.ndarray) -> Estimate:
        """Return the probability that a value of the ones exceeds one of the others, equal values counting half.

        Args:
            values: Shape (rows,).
            is_one: Which rows are the ones; some are, and some are not, shape (rows,).
        """
        order = np.argsort(values, kind="stable")
        values, is_one, codes = values[order], is_one[order], self._codes[order]
        levels = np.flatnonzero(np.append(True, values[1:] != values[:-1]))  # where each different value starts

        def compute(weights: np.ndarray) -> np.ndarray:
            ones = np.add.reduceat(weights * is_one, levels, axis=1)
            others = np.add.reduceat(weights * ~is_one, levels, axis=1)
            exceeded = np.cumsum(others, axis=1) - others / 2
            with np.errstate(invalid="ignore"):  # a resample may lack one of the two
                return (ones * exceeded).sum(axis=1) / (ones.sum(axis=1) * others.sum(axis=1))

        resampled = np.concatenate([compute(drawn[:, codes]) for drawn in self.draw()] or [np.empty(0)])
        value = float(compute(np.ones((1, len(values))))[0])
        return attach_interval(value, len(values), self.prompts, resampled[~np.isnan(resampled)])

    def estimate(self, columns: Mapping[str, np.ndarray], shares: tuple[str, ...] = ()) -> dict[str, Estimate]:
        """Return the mean of each column with its interval.

        Args:
            columns: Arrays of shape (rows,); NaN where a row is not among those that the mean is of.
            shares: Names of those that are means of 0, 0.5 and 1: where all rows have 0, or all 1, they get the
                interval of a binomial share of as many prompts.
        """
        values = np.stack(list(columns.values()), axis=1).astype(float)
        counted = ~np.isnan(values)
        filled, width = np.where(counted, values, 0.0), values.shape[1]
        drawn = self.sum(np.concatenate([filled, counted], axis=1))
        prompts = (self._sum_by_prompt(counted.astype(float)) > 0).sum(axis=0)
        estimates = {}
        for index, name in enumerate(columns):
            rows = int(counted[:, index].sum())
            if not rows:
                estimates[name] = Estimate(None, reason=NO_ROWS)
                continue
            value = float(filled[:, index].sum() / rows)
            weights = drawn[:, width + index]
            resampled = drawn[weights > 0, index] / weights[weights > 0]
            is_one_sided = name in shares and value in (0.0, 1.0)
            estimates[name] = attach_interval(value, rows, int(prompts[index]), resampled, is_share=is_one_sided)
        return estimates

    def _sum_by_prompt(self, values: np.ndarray) -> np.ndarray:
        columns = [np.bincount(self._codes, column, self.prompts) for column in values.T]
        return np.stack(columns, axis=1) if columns else np.empty((self.prompts, 0))


def attach_interval(
    value: float, rows: int, prompts: int, resampled: np.ndarray, *, is_share: bool = False
) -> Estimate:
    """Return a number with the middle 95% of its resamples.

    Args:
        value: The number.
        rows: That it is of.
        prompts: Different ones among them.
        resampled: The number in each resample; none where no interval is asked for.
        is_share: The number is a share, and 0 or 1, of prompts that all say the same.
    """
    if prompts < 2:
        return Estimate(value, rows=rows, reason="one prompt is all there is, so nothing says how sure it is")
    if not len(resampled):
        return Estimate(value, rows=rows, reason="no resamples were asked for")
    if is_share:
        at_least = float(0.025 ** (1 / prompts))  # the share under which as many in a row happen once in 40 times
        low, high = (at_least, 1.0) if value == 1 else (0.0, 1 - at_least)
        return Estimate(value, low, high, rows, reason="all prompts alike: the interval is a binomial share's")
    low, high = np.percentile(resampled, _PERCENTILES)
    few = f"of {prompts} prompts only: the interval holds the truth less often than 95 times of 100"
    return Estimate(value, float(low), float(high), rows, reason=few if prompts < FEW_PROMPTS else None)
