"""How good a model is on labelled pairs: metrics from comparisons in which the first response is the chosen one."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice

from pair_pm.errors import DataError, PromptTooLongError
from pair_pm.preference import PreferencePair, RowProblem
from pair_pm.preference_formats import parse_row, recognise_format
from pair_pm.preference_source import open_source
from pair_pm.scoring import Comparison, PairScorer

_PAIRS_A_CALL = 256


@dataclass
class LabelledPairs:
    """The usable rows of a data set, and how many were not, by reason."""

    pairs: list[PreferencePair] = field(default_factory=list)
    skipped: Counter = field(default_factory=Counter)


@dataclass(frozen=True)
class Metrics:
    """What the comparisons say of the model.

    Attributes:
        pairs: Rows that were compared.
        accuracy: Share of verdicts for the chosen response; a predicted tie counts 0.5.
        predicted_ties: How many those were.
        position_consistency: Share of verdicts that survive the swap of the two responses.
        lowest_label_mass: The least probability that "A" and "B" held together.
    """

    pairs: int
    accuracy: float
    predicted_ties: int
    position_consistency: float
    lowest_label_mass: float


def read_labelled_pairs(name: str) -> LabelledPairs:
    """Return the labelled pairs of a data set; a row labelled a tie names no winner and is skipped.

    Raises:
        DataError: the table is of no known format, or no row can be used.
    """
    source, labelled, format = open_source(name), LabelledPairs(), None
    for chunk in source.chunks():
        format = format or recognise_format(name, (row for _, row, _ in chunk.decode()))
        for _, row, problem in chunk.decode():
            try:
                labelled.pairs.append(_parse(row, problem, format))
            except RowProblem as found:
                labelled.skipped[found.reason] += 1
    if not labelled.pairs:
        reasons = ", ".join(f"{reason} {count}" for reason, count in labelled.skipped.most_common()) or "none was there"
        raise DataError(f"{name}: no row can be used ({reasons}); at least one labelled pair is required")
    return labelled


def _parse(row: object, problem: RowProblem | None, format: str) -> PreferencePair:
    if problem:
        raise problem
    pair = parse_row(row, format)
    if pair.is_tie:
        raise RowProblem("tie", "the row is labelled a tie")
    return pair


def compare_labelled(scorer: PairScorer, labelled: LabelledPairs) -> list[Comparison]:
    """Return the comparison of chosen (first) against rejected for each pair, with a progress bar on stderr.

    A pair that is too long for the model is skipped, and counted among `labelled.skipped`.
    """
    from tqdm import tqdm

    comparisons: list[Comparison] = []
    remaining = iter(labelled.pairs)
    with tqdm(total=len(labelled.pairs), unit=" pairs", disable=None) as progress:
        while batch := [(pair.messages, pair.chosen, pair.rejected) for pair in islice(remaining, _PAIRS_A_CALL)]:
            fitting = _compare_fitting(scorer, batch)
            labelled.skipped["too_long"] += len(batch) - len(fitting)
            comparisons += fitting
            progress.update(len(batch))
    labelled.skipped += Counter()  # drops a count of 0
    if not comparisons:
        raise DataError(
            f"{len(labelled.pairs)} labelled pairs: all are too long for the model; one that fits is required"
        )
    return comparisons


def _compare_fitting(scorer: PairScorer, items: Sequence[tuple]) -> list[Comparison]:
    """Return the comparisons of the items that the model has room for; long ones are rare, so all are tried at once."""
    try:
        return scorer.compare_many(items)
    except PromptTooLongError:
        if len(items) == 1:
            return []
        middle = len(items) // 2
        return _compare_fitting(scorer, items[:middle]) + _compare_fitting(scorer, items[middle:])


def compute_metrics(comparisons: Sequence[Comparison]) -> Metrics:
    """Return the metrics of comparisons whose first response is the chosen one; at least one is required."""
    worth = {"first": 1.0, "tie": 0.5, "second": 0.0}
    return Metrics(
        pairs=len(comparisons),
        accuracy=sum(worth[comparison.winner] for comparison in comparisons) / len(comparisons),
        predicted_ties=sum(comparison.winner == "tie" for comparison in comparisons),
        position_consistency=sum(c.is_position_consistent for c in comparisons) / len(comparisons),
        lowest_label_mass=min(comparison.label_mass for comparison in comparisons),
    )
