"""Which candidates to compare next: each method is a generator of rounds, and all of a round can be asked at once.

A generator yields a round, a list of pairs of indices (in slot A, in slot B), and is sent the round's shares: of each
pair, how much of a win the first has. It never asks the same pair in the same order twice, because a model repeats its
answer, errors included. What it draws comes from the seed alone.

Methods that compare in one order alone give each candidate slot A as often as slot B, or nearly so: what a slot adds to
one of its verdicts it takes from another.
"""

import functools
import math
import random
from collections.abc import Generator, Sequence
from itertools import combinations, permutations

import numpy as np

from pair_pm.errors import ConfigError
from pair_pm.strengths import Fit, Pair, clip_shares, fit, sigmoid

Round = list[Pair]
Rounds = Generator[Round, Sequence[float], None]

# The leader is settled when it lies this many standard errors above everyone else; equals are settled too.
_SETTLED = 2.0
_SAME_STRENGTH = 1e-6


def knockout(n: int, seed: int) -> Generator[Round, Sequence[float], int]:
    """Play n - 1 matches in log2 n rounds, and return the winner; a tie is won by the smaller index.

    The draw, and who sits out where a round is odd, come from the seed.
    """
    alive = _shuffle(n, seed)
    while len(alive) > 1:
        matches = [(min(match), max(match)) for match in zip(alive[::2], alive[1::2], strict=False)]
        shares = yield matches
        winners = [i if share >= 0.5 else j for (i, j), share in zip(matches, shares, strict=True)]
        alive = alive[2 * len(matches) :] + winners  # who sat out comes first, so that nobody sits out twice running
    return alive[0]


def round_robin(n: int, seed: int, in_both_orders: bool) -> Rounds:
    """Compare all pairs; in one order, each candidate has slot A as often as slot B, give or take one."""
    if in_both_orders or n == 1:
        yield list(combinations(range(n), 2))
    else:
        yield _link_ring(_shuffle(n, seed), range(1, max(n // 2, 1) + 1), each_pair_once=n > 2)


def circular(n: int, seed: int, budget: int, in_both_orders: bool) -> Rounds:
    """Compare each candidate, on a ring in the seed's order, with its k next neighbours; k from the budget."""
    strides = _take_strides(range(1, n), n, budget, in_both_orders)
    yield _link_ring(_shuffle(n, seed), strides, in_both_orders)


def chordal(n: int, seed: int, budget: int, in_both_orders: bool) -> Rounds:
    """Compare each candidate, on a ring in the seed's order, with k others that stand at spread distances after it.

    With near neighbours alone, two candidates on opposite sides of the ring are tied together by a long chain of
    verdicts. Chords make the chains short, and the strengths that much surer for the same number of verdicts.
    """
    strides = _take_strides(spread_strides(n), n, budget, in_both_orders)
    yield _link_ring(_shuffle(n, seed), strides, in_both_orders)


def swiss(n: int, seed: int, budget: int, in_both_orders: bool) -> Rounds:
    """Begin with a ring, which is two rounds in one, and go on with rounds of neighbours in the order so far."""
    record = _Record(n, in_both_orders)
    match_round = _link_ring(_shuffle(n, seed), _take_strides([1], n, budget, in_both_orders), in_both_orders)
    while match_round:
        record.add(match_round, (yield match_round))
        left = (budget - record.calls) // (2 if in_both_orders else 1)
        match_round = _pair_neighbours(record)[:left]


def most_informative(n: int, seed: int, budget: int, in_both_orders: bool) -> Rounds:
    """Begin with chords, then ask what says most about who is the best, and stop when that is settled.

    A round holds the comparisons that, one after the other, take most off the variance of the leader's distance to the
    others, the nearest counting most. The variance is that of a Bradley-Terry fit, times how far verdicts and fit lie
    apart: a model that never contradicts itself is believed at once.
    """
    record = _Record(n, in_both_orders)
    at_first = min(budget, (4 if in_both_orders else 2) * n)
    strides = _take_strides(spread_strides(n), n, at_first, in_both_orders)
    match_round = _link_ring(_shuffle(n, seed), strides, in_both_orders)
    while match_round:
        record.add(match_round, (yield match_round))
        left = (budget - record.calls) // (2 if in_both_orders else 1)
        match_round = _pick_informative(record, min(left, math.ceil(n / 4)))


@functools.cache  # groups of one size are many
def spread_strides(n: int) -> tuple[int, ...]:
    """Return all distances on a ring, each next one that which leaves the least variance with those before it.

    With equally sure verdicts at these distances, the mean variance of the strengths is that of the inverse Laplacian
    of a circulant graph, whose eigenvalues are sums of cosines. The first, 1, joins all; a distance and its
    complement join the same two in opposite orders, as half the ring does by itself, so these come last.
    """
    frequencies = np.arange(1, n)

    def eigenvalues(stride: int) -> np.ndarray:
        return 2 - 2 * np.cos(2 * np.pi * frequencies * stride / n)

    chosen = [1] if n > 1 else []
    for candidates in (range(2, (n + 1) // 2), range(max(2, (n + 1) // 2), n)):
        remaining = list(candidates)
        while remaining:
            total = sum(map(eigenvalues, chosen))
            best = min(remaining, key=lambda stride: (round((1 / (total + eigenvalues(stride))).sum(), 9), stride))
            chosen.append(best)
            remaining.remove(best)
    return tuple(chosen)


class _Record:
    """What was compared so far."""

    def __init__(self, n: int, in_both_orders: bool):
        self.n = n
        self.in_both_orders = in_both_orders
        self.pairs: list[Pair] = []
        self.shares: list[float] = []

    @property
    def calls(self) -> int:
        return len(self.pairs) * (2 if self.in_both_orders else 1)

    def add(self, pairs: Round, shares: Sequence[float]) -> None:
        self.pairs += pairs
        self.shares += shares

    def fit(self) -> Fit:
        return fit(self.n, self.pairs, clip_shares(self.shares), with_offset=not self.in_both_orders)

    def measure_dispersion(self, estimate: Fit) -> float:
        """Return how far verdicts and fit lie apart, as a multiple of what tosses of a coin would give."""
        first, second = np.array(self.pairs).T
        log_odds = estimate.strengths[first] - estimate.strengths[second] + estimate.slot_offset
        expected, curvature = sigmoid(log_odds), _curve(log_odds)
        degrees = len(self.pairs) - (self.n - 1) - (not self.in_both_orders)
        return float(((clip_shares(self.shares) - expected) ** 2 / curvature).sum()) / max(degrees, 1)

    def list_open_pairs(self) -> list[Pair]:
        """Return the pairs that can still be asked."""
        asked = set(self.pairs)
        if self.in_both_orders:
            return [(i, j) for i, j in combinations(range(self.n), 2) if not {(i, j), (j, i)} & asked]
        return [pair for pair in permutations(range(self.n), 2) if pair not in asked]


def _pair_neighbours(record: _Record) -> Round:
    """Return a round in which candidates meet those next to them in the order so far whom they did not meet."""
    met = {frozenset(pair) for pair in record.pairs}
    times_in_a = np.bincount([i for i, _ in record.pairs], minlength=record.n)
    times_in_b = np.bincount([j for _, j in record.pairs], minlength=record.n)
    unpaired = [int(index) for index in np.argsort(-record.fit().strengths, kind="stable")]
    pairs = []
    while unpaired:
        index = unpaired.pop(0)
        opponent = next((other for other in unpaired if frozenset((index, other)) not in met), None)
        if opponent is not None:
            unpaired.remove(opponent)
            # Slot A goes to who had it less often.
            pairs.append(tuple(sorted((index, opponent), key=lambda i: (times_in_a[i] - times_in_b[i], i))))
    return pairs


def _pick_informative(record: _Record, count: int) -> Round:
    """Return the comparisons, at most count, that say most about who is the best; none where that is settled."""
    estimate, open_pairs = record.fit(), record.list_open_pairs()
    covariance = np.linalg.inv(estimate.precision)
    directions, doubts = _doubt_leader(record, estimate, covariance)
    if not open_pairs or not len(doubts):
        return []
    first, second = np.array(open_pairs).T
    units = np.eye(record.n, record.n + 1)
    questions = units[first] - units[second]
    questions[:, record.n] = not record.in_both_orders  # slot A's offset is in the answer
    noise = 1 / _curve(estimate.strengths[first] - estimate.strengths[second])
    chosen: list[int] = []
    while len(chosen) < min(count, len(open_pairs)):
        spread = questions @ covariance
        total = noise + (spread * questions).sum(axis=1)
        gains = doubts @ (directions @ spread.T) ** 2 / total
        gains[chosen] = -1
        best = int(np.argmax(gains))
        chosen.append(best)
        covariance = covariance - np.outer(spread[best], spread[best]) / total[best]  # Sherman and Morrison
    return [open_pairs[index] for index in chosen]


def _doubt_leader(record: _Record, estimate: Fit, covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the directions from each other candidate to the leader, and how likely each is to be the better one.

    Returns: Shapes (n - 1, n + 1), in strengths and offset, and (n - 1,); nothing where the leader is settled.
    """
    leader, units = int(np.argmax(estimate.strengths)), np.eye(record.n, record.n + 1)
    directions = units[leader] - np.delete(units, leader, axis=0)
    gaps = directions[:, : record.n] @ estimate.strengths
    variances = record.measure_dispersion(estimate) * ((directions @ covariance) * directions).sum(axis=1)
    errors = np.sqrt(np.maximum(variances, 0))
    if (gaps + _SAME_STRENGTH >= _SETTLED * errors).all():
        return directions[:0], gaps[:0]
    return directions, np.array(
        [math.erfc(gap / max(error, _SAME_STRENGTH)) for gap, error in zip(gaps, errors, strict=True)]
    )


def _curve(log_odds: np.ndarray) -> np.ndarray:
    """Return p(1 - p), how much a verdict says."""
    return 0.25 / np.cosh(0.5 * np.clip(log_odds, -40, 40)) ** 2


def _shuffle(n: int, seed: int) -> list[int]:
    order = list(range(n))
    random.Random(seed).shuffle(order)
    return order


def _take_strides(strides: Sequence[int], n: int, budget: int, in_both_orders: bool) -> list[int]:
    """Return the first of the strides that the budget pays for, each of which is n calls, or 2n in both orders."""
    k = budget // ((2 if in_both_orders else 1) * n)
    usable = [stride for stride in strides if stride <= (n // 2 if in_both_orders else n - 1)]
    if n > 1 and k < 1:
        required = (2 if in_both_orders else 1) * n
        raise ConfigError(f"budget {budget}: too small for {n} candidates; at least {required} is required")
    return usable[:k]


def _link_ring(ring: list[int], strides: Sequence[int], each_pair_once: bool) -> Round:
    """Return each candidate with those that stand the strides after it, at half the ring no two twice if so asked."""
    n = len(ring)
    return [
        (ring[place], ring[(place + stride) % n])
        for stride in strides
        for place in range(n // 2 if each_pair_once and 2 * stride == n else n)
    ]
