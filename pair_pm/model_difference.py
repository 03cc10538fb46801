"""Two models on the same rows: by how much one is better, how sure that is, and where they disagree."""

from collections import Counter

import numpy as np

from pair_pm.errors import DataError
from pair_pm.evaluation_report import DifferenceReport, RowNote
from pair_pm.intervals import PromptBootstrap
from pair_pm.predictions import Predictions

LISTED_ROWS = 20
_EXCERPT = 300


def compare_models(one: Predictions, other: Predictions, resamples: int, seed: int) -> DifferenceReport:
    """Return how far one model is from another on the pairs that both compared and whose label names a winner.

    Args:
        one: Unedited predictions of this model.
        other: Of the other one.
        resamples: Of the intervals.
        seed: Of the intervals.
    Raises:
        DataError: they have no row in common.
    """
    here, there = _match(one, other)
    if not len(here):
        raise DataError(
            f"{other.origin.model}: none of its {len(other)} pairs is one of the {len(one)} of {one.origin.model}; "
            "predictions on the same data are required"
        )
    unmatched = len(one) + len(other) - 2 * len(here)
    decided = one.is_decided[here]
    rows, mine, its = here[decided], one.where(here[decided]), other.where(there[decided])
    first, second = mine.verdicts, its.verdicts
    difference = first.right - second.right
    columns = {
        "accuracy": first.right,
        "accuracy_of_other": second.right,
        "accuracy_difference": difference,
        "nll_difference": first.losses() - second.losses(),
        "consistency_difference": first.is_consistent.astype(float) - second.is_consistent,
    }
    bootstrap = PromptBootstrap(mine["prompt_key"], resamples, seed)
    estimates = bootstrap.estimate(columns, shares=("accuracy", "accuracy_of_other"))
    subsets = {}
    for subset in sorted(set(mine["subset"])):
        is_inside = mine["subset"] == subset
        inside = PromptBootstrap(mine["prompt_key"][is_inside], resamples, seed)
        subsets[subset] = inside.estimate({"difference": difference[is_inside]})["difference"]
    probabilities = {"prob_first": first.prob_first, "prob_first_of_other": second.prob_first}
    farthest = np.argsort(-np.abs(first.prob_first - second.prob_first), kind="stable")[:LISTED_ROWS]
    return DifferenceReport(
        model=other.origin.model,
        rows=len(rows),
        unmatched=unmatched,
        **estimates,
        subsets=subsets,
        disagreements=[
            note_row(one, int(rows[place]), {name: float(column[place]) for name, column in probabilities.items()})
            for place in farthest
        ],
    )


def note_row(predictions: Predictions, row: int, numbers: dict[str, float]) -> RowNote:
    """Return the beginning of a row's texts and what it is listed for."""
    texts = {name: str(predictions[name][row])[:_EXCERPT] for name in ("prompt", "first", "second")}
    return RowNote(row, predictions["id"][row], predictions["subset"][row], **texts, numbers=numbers)


def _match(one: Predictions, other: Predictions) -> tuple[np.ndarray, np.ndarray]:
    """Return the places of the rows of one that the other has too, and where; the n-th of equal pairs is the n-th."""
    place_of = {key: place for place, key in enumerate(_number_repeats(other["pair_key"]))}
    numbered = list(_number_repeats(one["pair_key"]))
    here = [place for place, key in enumerate(numbered) if key in place_of]
    return np.array(here, dtype=int), np.array([place_of[numbered[place]] for place in here], dtype=int)


def _number_repeats(keys: np.ndarray):
    seen: Counter = Counter()
    for key in keys:
        yield key, seen[key]
        seen[key] += 1
