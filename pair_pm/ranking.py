"""More than two responses: the best of n by knockout, or all of them in order; over anything that compares.

Results name candidates by their index in the input.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Protocol

import numpy as np

from pair_pm.errors import DataError

# Keeps a strength finite for a candidate that won or lost everything with certainty.
_LEAST_WIN = 1e-6


class Comparer(Protocol):
    """What ranking asks of a scorer."""

    def compare_many(self, items: Sequence[tuple]) -> list:
        """Return a comparison, with `prob_first`, for each (messages, first, second)."""
        ...


@dataclass(frozen=True)
class Best:
    """The winner of a knockout.

    Attributes:
        index: Of the winner.
        comparisons: How many were made, one less than there are candidates.
    """

    index: int
    comparisons: int


@dataclass(frozen=True)
class Ranking:
    """Candidates from best to worst.

    Attributes:
        order: Their indices, the best first; equals stand in input order.
        strengths: Bradley-Terry log-strengths by input index, mean 0.
        comparisons: How many were made.
    """

    order: list[int]
    strengths: list[float]
    comparisons: int


def best_of_n(comparer: Comparer, messages, responses: Sequence[str], seed: int = 0) -> Best:
    """Return the winner of a knockout with n - 1 comparisons, each round one batch.

    The draw, and who sits out where a round is odd, come from the seed. A tie is won by the smaller index.

    Raises:
        DataError: there is no response.
    """
    alive = _indices(responses)
    random.Random(seed).shuffle(alive)
    while len(alive) > 1:
        matches = [sorted(match) for match in zip(alive[::2], alive[1::2], strict=False)]
        verdicts = comparer.compare_many([(messages, responses[i], responses[j]) for i, j in matches])
        winners = [i if verdict.prob_first >= 0.5 else j for (i, j), verdict in zip(matches, verdicts, strict=True)]
        alive = alive[2 * len(matches) :] + winners  # who sat out comes first, so that nobody sits out twice running
    return Best(alive[0], len(responses) - 1)


def rank(comparer: Comparer, messages, responses: Sequence[str]) -> Ranking:
    """Return all responses in order, from every pair compared and Bradley-Terry over the soft verdicts.

    Raises:
        DataError: there is no response.
    """
    pairs = list(combinations(_indices(responses), 2))
    verdicts = comparer.compare_many([(messages, responses[i], responses[j]) for i, j in pairs]) if pairs else []
    shares = np.clip([verdict.prob_first for verdict in verdicts], _LEAST_WIN, 1 - _LEAST_WIN)
    # Where all pairs meet once, Bradley-Terry orders as the sums of won shares do; these are free of the fit's
    # remaining error, which would tell equals apart.
    won = np.zeros(len(responses))
    for (i, j), share in zip(pairs, shares, strict=True):
        won[i] += share
        won[j] += 1 - share
    order = sorted(range(len(responses)), key=lambda index: (-round(won[index], 9), index))
    return Ranking(order, _fit_strengths(len(responses), pairs, shares), len(pairs))


def _indices(responses: Sequence[str]) -> list[int]:
    if not responses:
        raise DataError("responses: none were given; at least one is required")
    return list(range(len(responses)))


def _fit_strengths(n: int, pairs: Sequence[tuple[int, int]], shares: np.ndarray) -> list[float]:
    """Return Bradley-Terry log-strengths, mean 0, from the share of a win that the first of each pair has."""
    if n == 1:
        return [0.0]
    import evalica

    result = evalica.bradley_terry(
        [i for i, _ in pairs] * 2,
        [j for _, j in pairs] * 2,
        [evalica.Winner.X] * len(pairs) + [evalica.Winner.Y] * len(pairs),
        weights=[*shares, *(1 - shares)],
        tolerance=1e-9,
        limit=100_000,
    )
    log_strengths = np.log(result.scores.sort_index().to_numpy())
    return [round(float(strength), 12) for strength in log_strengths - log_strengths.mean()]
