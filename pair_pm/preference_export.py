"""Verdicts into standard-format preference rows: unlabelled pairs to train on, n samples a prompt for DPO."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

_NAMES = ("id", "source", "subset")


@dataclass(frozen=True)
class PairChoice:
    """Which pairs of ranked responses become preference rows.

    Attributes:
        pairs: "best-worst": of each row the pair that lies farthest apart; "all": every pair.
        min_margin: Least difference of the two strengths, in log-odds.
        max_length_ratio: Most times that one response is as long as the other, in characters; None: any.
    """

    pairs: str = "best-worst"
    min_margin: float = 0.0
    max_length_ratio: float | None = None


def export_comparison(
    row: Mapping, messages: Sequence[Mapping], first: str, second: str, verdict: Mapping, min_confidence: float
) -> dict | str:
    """Return the row that a verdict on two responses makes, or why there is none: "tie" or "low_confidence".

    The winner is chosen, whatever label the row had.

    Args:
        row: Where `id`, `source` and `subset` are taken from.
        messages: The conversation.
        first: One response.
        second: The other.
        verdict: The fields of a `Comparison`.
        min_confidence: Least probability of the winner, 0.5 to 1.
    """
    if verdict["winner"] == "tie":
        return "tie"
    first_wins = verdict["winner"] == "first"
    probability = verdict["prob_first"] if first_wins else 1 - verdict["prob_first"]
    if probability < min_confidence:
        return "low_confidence"
    chosen, rejected = (first, second) if first_wins else (second, first)
    consistency = {name: verdict[name] for name in ("is_position_consistent", "position_gap")}
    return _make_row(row, messages, chosen, rejected, probability) | consistency


def export_ranking(
    row: Mapping, messages: Sequence[Mapping], responses: Sequence[str], ranking: Mapping, choice: PairChoice
) -> list[dict]:
    """Return the rows that ranked responses make; the stronger response of each pair is chosen, a repeated one once.

    `prob_chosen` is what the strengths say, the logistic function of their difference, because not every method
    compares every pair.

    Args:
        row: Where `id`, `source` and `subset` are taken from.
        messages: The conversation.
        responses: In input order.
        ranking: With `order` and `strengths`, Bradley-Terry log-strengths by input index.
        choice: Which pairs.
    """
    strengths = ranking["strengths"]
    distinct: dict[str, int] = {}
    for index in ranking["order"]:
        distinct.setdefault(responses[index].strip(), index)
    pairs = [
        (better, worse)
        for better, worse in combinations(distinct.values(), 2)
        if _is_eligible(responses[better], responses[worse], strengths[better] - strengths[worse], choice)
    ]
    if choice.pairs == "best-worst":
        # Of pairs equally far apart the first one, which has the better response.
        pairs = sorted(pairs, key=lambda pair: strengths[pair[1]] - strengths[pair[0]])[:1]
    return [
        _make_row(row, messages, responses[better], responses[worse], _to_probability(strengths, better, worse))
        | {"chosen_score": strengths[better], "rejected_score": strengths[worse]}
        for better, worse in pairs
    ]


def _is_eligible(better: str, worse: str, margin: float, choice: PairChoice) -> bool:
    if margin <= 0 or margin < choice.min_margin:
        return False
    shorter, longer = sorted((len(better), len(worse)))
    return choice.max_length_ratio is None or longer <= choice.max_length_ratio * shorter


def _to_probability(strengths: Sequence[float], better: int, worse: int) -> float:
    return 1 / (1 + math.exp(strengths[worse] - strengths[better]))


def _make_row(row: Mapping, messages: Sequence[Mapping], chosen: str, rejected: str, probability: float) -> dict:
    context = [{"role": message["role"], "content": message["content"]} for message in messages]
    return {
        "chosen": [*context, {"role": "assistant", "content": chosen}],
        "rejected": [*context, {"role": "assistant", "content": rejected}],
        "prob_chosen": probability,
        # Every row has every column: the `datasets` reader gives up a file in which one turns up late.
        **{name: "" if row.get(name) is None else str(row[name]) for name in _NAMES},
    }
