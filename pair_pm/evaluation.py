"""How good a model is on labelled pairs: metrics from comparisons in which the first response is the chosen one."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

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
    """What the comparisons say of the model, both orders of each pair being scored.

    Attributes:
        pairs: Rows that were compared.
        accuracy: Share of verdicts for the chosen response; a predicted tie counts 0.5.
        predicted_ties: How many those were.
        position_consistency: Share of verdicts that survive the swap of the two responses.
        label_loss: Mean cross-entropy of the two labels, in nats, renormalised over the two; chance is ln 2 = 0.693.
        prob_a: Share of the prompts that are answered "A"; 0.5 where no slot is preferred.
        order_bias: Mean log-odds of "A" against "B"; 0 where no slot is preferred.
        label_mass: Mean of the comparisons' label mass.
        lowest_label_mass: The least probability that "A" and "B" held together.
    """

    pairs: int
    accuracy: float
    predicted_ties: int
    position_consistency: float
    label_loss: float
    prob_a: float
    order_bias: float
    label_mass: float
    lowest_label_mass: float


def read_labelled_pairs(name: str) -> LabelledPairs:
    """Return the labelled pairs of a data set; a row labelled a tie names no winner and is skipped.

    Of A/B rows, which may hold a pair in both orders, each pair counts once: it is compared in both anyway.

    Raises:
        DataError: the table is of no known format, or no row can be used.
    """
    source, labelled, format = open_source(name), LabelledPairs(), None
    seen: set[tuple] = set()
    for chunk in source.chunks():
        format = format or recognise_format(name, (row for _, row, _ in chunk.decode()))
        for _, row, problem in chunk.decode():
            try:
                pair = _parse(row, problem, format)
                if format == "ab":
                    _refuse_seen(pair, seen)
                labelled.pairs.append(pair)
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


def _refuse_seen(pair: PreferencePair, seen: set[tuple]) -> None:
    identity = (*(message["content"] for message in pair.messages), *sorted((pair.chosen, pair.rejected)))
    if identity in seen:
        raise RowProblem("other_order", "the pair was there already")
    seen.add(identity)


def compare_labelled(scorer: PairScorer, labelled: LabelledPairs) -> tuple[list[PreferencePair], list[Comparison]]:
    """Return the pairs and the comparison of chosen (first) against rejected for each, with a progress bar on stderr.

    A pair that is too long for the model is skipped, and counted among `labelled.skipped`.
    """
    from tqdm import tqdm

    compared: list[tuple[PreferencePair, Comparison]] = []
    remaining = iter(labelled.pairs)
    with tqdm(total=len(labelled.pairs), unit=" pairs", disable=None) as progress:
        while batch := list(islice(remaining, _PAIRS_A_CALL)):
            results = scorer.compare_each([(pair.messages, pair.chosen, pair.rejected) for pair in batch])
            for pair, result in zip(batch, results, strict=True):
                if isinstance(result, Comparison):
                    compared.append((pair, result))
                elif isinstance(result, PromptTooLongError):
                    labelled.skipped["too_long"] += 1
                else:
                    raise result
            progress.update(len(batch))
    if not compared:
        raise DataError(
            f"{len(labelled.pairs)} labelled pairs: all are too long for the model; one that fits is required"
        )
    pairs, comparisons = zip(*compared, strict=True)
    return list(pairs), list(comparisons)


def compute_metrics(comparisons: Sequence[Comparison], prob_first: Sequence[float] | None = None) -> Metrics:
    """Return the metrics of comparisons whose first response is the chosen one; at least one is required.

    Args:
        comparisons: The model's.
        prob_first: How likely people, or a teacher, prefer the first response; default: 1 everywhere.
    """
    targets = np.ones(len(comparisons)) if prob_first is None else np.asarray(prob_first, dtype=float)
    worth = {"first": 1.0, "tie": 0.5, "second": 0.0}
    right = np.array([worth[comparison.winner] for comparison in comparisons])
    log_odds = np.array([comparison.log_odds_of_a for comparison in comparisons])
    # In nats, against the target t of each order: -t log s(d) - (1 - t) log s(-d) = log(1 + exp d) - t d.
    losses = np.logaddexp(0, log_odds) - np.stack([targets, 1 - targets], axis=1) * log_odds
    masses = np.array([comparison.label_mass for comparison in comparisons])
    return Metrics(
        pairs=len(comparisons),
        accuracy=float(right.mean()),
        predicted_ties=sum(comparison.winner == "tie" for comparison in comparisons),
        position_consistency=sum(c.is_position_consistent for c in comparisons) / len(comparisons),
        label_loss=float(losses.mean()),
        prob_a=float((np.sign(log_odds) + 1).mean() / 2),
        order_bias=float(log_odds.mean()),
        label_mass=float(masses.mean()),
        lowest_label_mass=float(masses.min()),
    )
