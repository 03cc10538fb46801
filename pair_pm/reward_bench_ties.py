"""The score of RewardBench 2's Ties: are the right completions above the wrong ones, and close to each other?

Its rows come in twos of one number: a reference with one right completion, and one with several, called tied. The
margin of a row is how far its weakest right completion lies above its strongest wrong one, its spread how far its right
ones lie apart.

Sources: Malik et al., RewardBench 2, arXiv:2506.01937; `rewardbench` 0.1.4, `process_single_model`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pair_pm.benchmark_rows import read_ties_id

SUMS = 9  # columns of `measure_ties`


@dataclass(frozen=True)
class RatedRow:
    """A row's completions with what the published scoring takes for their rewards.

    Attributes:
        id: The row's own; in Ties "ref:3" or "tied:3".
        subset: The row's own.
        prompt_key: Identity of the conversation.
        strengths: Of the completions, the right ones first, at least one of each.
        correct: How many are right.
    """

    id: str
    subset: str
    prompt_key: str
    strengths: Sequence[float]
    correct: int

    @property
    def margin(self) -> float:
        """How far the weakest right completion lies above the strongest wrong one."""
        return min(self.strengths[: self.correct]) - max(self.strengths[self.correct :])

    @property
    def spread(self) -> float | None:
        """How far the right completions lie apart; None where there is one."""
        right = self.strengths[: self.correct]
        return max(right) - min(right) if len(right) > 1 else None


@dataclass(frozen=True)
class TiesReport:
    """What the score is made of, as shares and means; None where there is no row to take one from.

    Attributes:
        score: 0.3 times each accuracy, 0.2 times each preference, 0.01 times `margin_ratio` if there is one.
        reference_accuracy: References whose margin is above 0.
        tied_accuracy: Tied rows whose margin is above 0.
        prefers_right: Tied rows with a reference whose margin exceeds their spread.
        prefers_right_in_both: The same, where the reference's margin must exceed that spread too.
        margin_ratio: tanh(smaller of both margins / spread - 1) where there is a spread.
    """

    score: float | None
    reference_accuracy: float | None
    tied_accuracy: float | None
    prefers_right: float | None
    prefers_right_in_both: float | None
    margin_ratio: float | None


def report_ties(rows: Sequence[RatedRow]) -> TiesReport:
    """Return the score of rows, and what it is made of."""
    means = combine_ties(np.sum(list(measure_ties(rows).values()), axis=0)[None])
    return TiesReport(**{name: None if np.isnan(value[0]) else float(value[0]) for name, value in means.items()})


def measure_ties(rows: Sequence[RatedRow]) -> dict[int, list[float]]:
    """Return what each number adds to the sums that `combine_ties` takes; each mean's sum, and what it is divided by.

    The two preferences are divided by the same, so that there are `SUMS` of them.
    """
    references, tied = {}, {}
    for row in rows:
        is_reference, number = read_ties_id(row.id)
        (references if is_reference else tied)[number] = row
    return {
        number: _measure_number(references.get(number), tied.get(number)) for number in sorted({*references, *tied})
    }


def combine_ties(sums: np.ndarray) -> Mapping[str, np.ndarray]:
    """Return the fields of `TiesReport`, each of shape (resamples,), NaN for None.

    Args:
        sums: Shape (resamples, `SUMS`).
    """
    with np.errstate(invalid="ignore"):
        means = {
            "reference_accuracy": sums[:, 0] / sums[:, 1],
            "tied_accuracy": sums[:, 2] / sums[:, 3],
            "prefers_right": sums[:, 4] / sums[:, 6],
            "prefers_right_in_both": sums[:, 5] / sums[:, 6],
            "margin_ratio": sums[:, 7] / sums[:, 8],
        }
    weighed = zip((0.3, 0.3, 0.2, 0.2), means.values(), strict=False)
    score = sum(weight * mean for weight, mean in weighed) + 0.01 * np.nan_to_num(means["margin_ratio"])
    return {"score": score, **means}


def _measure_number(reference: RatedRow | None, tied: RatedRow | None) -> list[float]:
    sums = [0.0] * SUMS
    if reference:
        sums[:2] = reference.margin > 0, 1
    if tied:
        sums[2:4] = tied.margin > 0, 1
    if reference and tied and tied.spread is not None:
        both = min(reference.margin, tied.margin)
        sums[4:7] = tied.margin > tied.spread, both > tied.spread, 1
        if tied.spread > 0:
            sums[7:] = np.tanh(both / tied.spread - 1), 1
    return [float(value) for value in sums]
