"""How strong each candidate is, by Bradley-Terry over soft verdicts; how sure that is; where verdicts run in circles.

A verdict is a pair of candidates, (first, second), and the share of a win that the first has of it. A verdict in one
order alone also holds what the model likes about slot A. That is one amount of log-odds for most pairs of a prompt, so
it is estimated together with the strengths, as the advantage of the home team is in sports, and taken off.

Sources: Bradley and Terry, Biometrika 39 (1952); the advantage of a place: Davidson and Beaver, Biometrics 33 (1977);
the bootstrap by weights, which never takes a design apart: Rubin, Annals of Statistics 9 (1981).
"""

import math
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Pair = tuple[int, int]

# Keeps a strength finite for a candidate that won or lost everything with certainty.
_LEAST_SHARE = 1e-6
_SAME_SHARE = 1e-9
_LONGEST_STEP = 2.0  # in log-odds: a full Newton step overshoots where verdicts are nearly certain
_MOST_STEPS = 200
_LEAST_CURVATURE = 1e-9  # against a matrix that cannot be solved while a step has overshot


@dataclass(frozen=True)
class Fit:
    """Bradley-Terry by Newton's method.

    Attributes:
        strengths: Log-strengths, mean 0, shape (n,).
        slot_offset: Log-odds that a candidate has more in slot A; 0 where it is not asked for.
        precision: Second derivative of the negative log-likelihood in the strengths and then the offset, made
            regular, shape (n + 1, n + 1).
    """

    strengths: np.ndarray
    slot_offset: float
    precision: np.ndarray


def clip_shares(shares: Sequence[float]) -> np.ndarray:
    """Return the shares, none quite 0 or 1."""
    return np.clip(np.asarray(shares, dtype=float), _LEAST_SHARE, 1 - _LEAST_SHARE)


def fit(
    n: int,
    pairs: Sequence[Pair],
    shares: np.ndarray,
    weights: np.ndarray | None = None,
    with_offset: bool = True,
    start: np.ndarray | None = None,
) -> Fit:
    """Return the strengths, and where asked for the offset of slot A, that make the shares likeliest.

    Args:
        n: How many candidates there are; the pairs connect them all.
        pairs: Indices (in slot A, in slot B), shape (m, 2).
        shares: Of the first of each pair, strictly between 0 and 1, shape (m,).
        weights: Of the pairs; default: 1 each.
        with_offset: Without it the verdicts are taken to be free of slot preference.
        start: Strengths to start from; default: 0.
    """
    first, second = np.asarray(pairs, dtype=int).T
    weights = np.ones(len(shares)) if weights is None else weights
    solution = np.zeros(n + 1)
    if start is not None:
        solution[:n] = start
    for _ in range(_MOST_STEPS):
        expected = sigmoid(solution[first] - solution[second] + solution[n])
        surplus = weights * (shares - expected)
        gradient = np.append(np.bincount(first, surplus, n) - np.bincount(second, surplus, n), surplus.sum())
        precision = _assemble_precision(n, first, second, weights * expected * (1 - expected))
        if not with_offset:
            gradient[n], precision[n, :n], precision[:n, n] = 0, 0, 0
        step = np.linalg.solve(precision, gradient)
        solution += step * min(1.0, _LONGEST_STEP / max(np.abs(step).max(), _LONGEST_STEP))
        if np.abs(step).max() < 1e-9:
            break
    return Fit(solution[:n] - solution[:n].mean(), float(solution[n]), precision)


def remove_slot_offset(n: int, pairs: Sequence[Pair], shares: np.ndarray) -> np.ndarray:
    """Return the shares of verdicts in one order as they would be if the model did not prefer a slot."""
    return clip_shares(sigmoid(np.log(shares / (1 - shares)) - fit(n, pairs, shares).slot_offset))


def fit_strengths(n: int, pairs: Sequence[Pair], shares: np.ndarray) -> np.ndarray:
    """Return Bradley-Terry log-strengths, mean 0, from shares that count as parts of a win.

    Args:
        n: How many candidates there are; the pairs connect them all.
        pairs: Indices, shape (m, 2).
        shares: Of the first of each pair, strictly between 0 and 1, shape (m,).
    """
    if n == 1:
        return np.zeros(1)
    import evalica

    result = evalica.bradley_terry(
        [i for i, _ in pairs] * 2,
        [j for _, j in pairs] * 2,
        [evalica.Winner.X] * len(pairs) + [evalica.Winner.Y] * len(pairs),
        weights=[*shares, *(1 - shares)],
        tolerance=1e-9,
        limit=10_000,
    )
    # Where verdicts are nearly certain its steps become too small to arrive, which would tell equals apart.
    log_strengths = np.log(result.scores.sort_index().to_numpy())
    return fit(n, pairs, shares, with_offset=False, start=log_strengths).strengths


def bootstrap_intervals(
    strengths: np.ndarray, pairs: Sequence[Pair], shares: np.ndarray, fitted: int, resamples: int, seed: int
) -> list[tuple[float, float]]:
    """Return the middle 95% of each strength when the verdicts are given random weights.

    It is how far the strengths hang on which comparisons were made. Verdicts that agree with each other have none of
    it, nor have verdicts that are no more than the strengths, so that nothing checks them; and what the model gets
    wrong every time, it does not show.

    Args:
        strengths: That were fitted to the shares, shape (n,).
        pairs: Indices, shape (m, 2).
        shares: Of the first of each pair, strictly between 0 and 1, shape (m,).
        fitted: How many numbers were fitted, by which the verdicts lie closer to the fit than they would otherwise:
            intervals are widened accordingly.
        resamples: How often weights are drawn.
        seed: To draw them with.
    """
    n, m = len(strengths), len(pairs)
    if n == 1:
        return [(0.0, 0.0)]
    draw = np.random.default_rng(random.Random(seed).getrandbits(64))  # takes any number, negative ones too
    drawn = [
        fit(n, pairs, shares, draw.exponential(size=m), with_offset=False, start=strengths).strengths
        for _ in range(resamples)
    ]
    widened = strengths + (np.array(drawn) - strengths) * math.sqrt(m / max(m - fitted, 1))
    return [(float(low), float(high)) for low, high in np.round(np.percentile(widened, (2.5, 97.5), axis=0), 12).T]


def find_cycles(n: int, pairs: Sequence[Pair], shares: np.ndarray) -> list[list[int]]:
    """Return a shortest circle from each set of candidates whose verdicts run in circles.

    In a circle each beats the next, and the last the first; it begins with its smallest index. Verdicts on the same
    two are averaged, and equals beat nobody.
    """
    margins = np.zeros((n, n))
    for (i, j), share in zip(pairs, shares, strict=True):
        margins[i, j] += share - 0.5
        margins[j, i] -= share - 0.5
    beats = margins > _SAME_SHARE
    reaches = beats.copy()
    for between in range(n):
        reaches |= np.outer(reaches[:, between], reaches[between])
    circled = reaches & reaches.T  # on the diagonal: who beats himself by a detour
    sets = sorted({tuple(np.flatnonzero(row)) for row in circled if row.any()})
    return [min((_find_circle(beats, int(index)) for index in one), key=lambda c: (len(c), c)) for one in sets]


def _find_circle(beats: np.ndarray, start: int) -> list[int]:
    """Return a shortest circle through a candidate, turned so that it begins with its smallest index."""
    came_from: dict[int, int] = {}
    queue = deque([start])
    while start not in came_from:
        index = queue.popleft()
        for beaten in map(int, np.flatnonzero(beats[index])):
            if beaten not in came_from:
                came_from[beaten] = index
                queue.append(beaten)
    circle = [start]
    while came_from[circle[0]] != start:
        circle.insert(0, came_from[circle[0]])
    smallest = circle.index(min(circle))
    return circle[smallest:] + circle[:smallest]


def _assemble_precision(n: int, first: np.ndarray, second: np.ndarray, curvature: np.ndarray) -> np.ndarray:
    between = np.bincount(first * n + second, curvature, n * n).reshape(n, n)
    at_home, away = between.sum(axis=1), between.sum(axis=0)
    precision = np.zeros((n + 1, n + 1))
    # Strengths are free up to a constant: any amount on that direction makes the matrix regular and changes no step.
    precision[:n, :n] = np.diag(at_home + away) - between - between.T + 1 / n
    precision[:n, n] = precision[n, :n] = at_home - away
    precision[n, n] = curvature.sum()
    return precision + _LEAST_CURVATURE * np.eye(n + 1)


def sigmoid(log_odds: np.ndarray) -> np.ndarray:
    """Return the probabilities of log-odds."""
    return 0.5 * (1 + np.tanh(0.5 * log_odds))  # does not overflow
