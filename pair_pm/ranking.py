"""More than two responses: the best of n, or all of them in order; over anything that compares.

Results name candidates by their index in the input. Each says what it spent: `comparisons` are verdicts, `calls` the
prompts fed for them, two where a verdict averages both orders and one where it is of one order alone, and `tokens` are
those of these prompts.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from pair_pm import ranking_methods
from pair_pm.contest import Comparer, Contest, run_in_lockstep
from pair_pm.errors import ConfigError, DataError
from pair_pm.strengths import (
    bootstrap_intervals,
    clip_shares,
    find_cycles,
    fit_strengths,
    remove_slot_offset,
)

METHODS = ("round_robin", "circular", "chordal", "swiss", "budget")
ORDERS = ("one", "both")
COMPARISONS_A_RESPONSE = 3  # where no budget is given

Group = tuple[object, Sequence[str]]  # a conversation, or its one user message, and the responses to it


@dataclass(frozen=True)
class Best:
    """The best of n.

    Attributes:
        index: Of the winner.
        comparisons: How many verdicts were asked for.
        calls: Prompts fed for them.
        tokens: Of these prompts.
    """

    index: int
    comparisons: int
    calls: int
    tokens: int

    def to_dict(self) -> dict:
        """Return the fields as JSON can hold them."""
        return asdict(self)


@dataclass(frozen=True)
class Ranking:
    """Candidates from best to worst.

    Attributes:
        order: Their indices, the best first; equals stand in input order.
        strengths: Bradley-Terry log-strengths by input index, mean 0.
        intervals: The 95% interval of each strength, by a bootstrap over the comparisons; empty where none was asked
            for.
        cycles: Circles of verdicts: each candidate of one beats the next, and the last the first; a shortest one for
            each set of candidates that are entangled. Empty where the verdicts do not contradict each other.
        comparisons: How many verdicts were asked for.
        calls: Prompts fed for them.
        tokens: Of these prompts.
        method: How the comparisons were chosen.
    """

    order: list[int]
    strengths: list[float]
    intervals: list[tuple[float, float]]
    cycles: list[list[int]]
    comparisons: int
    calls: int
    tokens: int
    method: str

    def to_dict(self) -> dict:
        """Return the fields as JSON can hold them."""
        return asdict(self)


def best_of_n(
    comparer: Comparer, messages, responses: Sequence[str], method: str = "knockout", seed: int = 0, **options
) -> Best:
    """Return the best response.

    Args:
        comparer: What compares; every round is one call of it.
        messages: The conversation up to the last user message, or that message alone.
        responses: One or more.
        method: "knockout", which makes n - 1 comparisons in both orders, log2 n rounds of them, and lets the smaller
            index win a tie; or a method of `rank`, for the first of its order.
        seed: Decides the draw, and who sits out where a round is odd.
        options: `budget` and `orders` of `rank_many`, for its methods.

    Raises:
        DataError: there is no response.
        ConfigError: there is no such method, or it cannot do what the options ask for.
    """
    if method in METHODS:
        ranking = rank(comparer, messages, responses, method, seed, resamples=0, **options)
        return Best(ranking.order[0], ranking.comparisons, ranking.calls, ranking.tokens)
    if method != "knockout":
        raise ConfigError(f"method {method!r}: unknown; one of {', '.join(('knockout', *METHODS))} is required")
    if options:
        raise ConfigError(f"knockout: {', '.join(options)} given; no option is required; it makes n - 1 comparisons")
    _check_responses(responses)
    contest = Contest(ranking_methods.knockout(len(responses), seed), messages, responses, in_both_orders=True)
    run_in_lockstep(comparer, [contest])
    return Best(contest.result, len(contest.pairs), contest.calls, contest.tokens)


def rank(
    comparer: Comparer, messages, responses: Sequence[str], method: str = "round_robin", seed: int = 0, **options
) -> Ranking:
    """Return the responses in order; `rank_many` of one group, with its options and errors."""
    return rank_many(comparer, [(messages, responses)], method, seed, **options)[0]


def rank_many(
    comparer: Comparer,
    groups: Sequence[Group],
    method: str = "round_robin",
    seed: int = 0,
    *,
    budget: int | None = None,
    orders: str | None = None,
    resamples: int = 200,
) -> list[Ranking]:
    """Return each group's responses in order; a round of all groups is one call of the comparer.

    Strengths are Bradley-Terry over the shares of a win that the verdicts give; where they are in one order, the
    preference for slot A that the group's own verdicts show is taken off first. All methods but the round robin
    let equal responses stand as one candidate.

    Args:
        comparer: What compares.
        groups: A conversation, or its one user message, and one or more responses to it.
        method: "round_robin" compares all pairs; "circular" each response with its next neighbours on a ring;
            "chordal" with others at spread distances on it; "swiss" with neighbours in the order so far; "budget" asks
            what says most about who is the best, and stops when that is settled.
        seed: Decides what a method draws. Each group draws from it anew, so its result is the same in any company.
        budget: At most so many calls a group, single prompts fed; default: those of three comparisons a response. Not
            for the round robin.
        orders: "both" averages both orders of each pair; "one" asks in one, with the slots balanced. Default:
            "both" for the round robin and "one" for the others.
        resamples: Of the bootstrap; 0 leaves the intervals out.

    Raises:
        DataError: a group has no response.
        ConfigError: there is no such method, or the budget does not reach around a ring.
        What the comparer raises on any group: leave out beforehand what does not fit the model.
    """
    _check_options(method, budget, orders)
    in_both_orders = (orders or ("both" if method == "round_robin" else "one")) == "both"
    contests, places = [], []
    for messages, responses in groups:
        _check_responses(responses)
        candidates = list(responses) if method == "round_robin" else list(dict.fromkeys(responses))
        rounds = _start_rounds(method, len(candidates), seed, budget, in_both_orders)
        contests.append(Contest(rounds, messages, candidates, in_both_orders))
        places.append(
            list(range(len(responses))) if method == "round_robin" else list(map(candidates.index, responses))
        )
    run_in_lockstep(comparer, contests)
    return [_conclude(*one, method, seed, resamples) for one in zip(contests, places, strict=True)]


def _start_rounds(method: str, n: int, seed: int, budget: int | None, in_both_orders: bool) -> ranking_methods.Rounds:
    if method == "round_robin":
        return ranking_methods.round_robin(n, seed, in_both_orders)
    start = {
        "circular": ranking_methods.circular,
        "chordal": ranking_methods.chordal,
        "swiss": ranking_methods.swiss,
        "budget": ranking_methods.most_informative,
    }[method]
    calls = COMPARISONS_A_RESPONSE * n * (2 if in_both_orders else 1) if budget is None else budget
    return start(n, seed, calls, in_both_orders)


def _conclude(contest: Contest, places: Sequence[int], method: str, seed: int, resamples: int) -> Ranking:
    """Return the ranking of all responses, whose candidates stand at the places."""
    n, pairs, shares = len(contest.responses), contest.pairs, clip_shares(contest.shares)
    if pairs and not contest.in_both_orders:
        shares = remove_slot_offset(n, pairs, shares)
    strengths = fit_strengths(n, pairs, shares)
    fitted = n - 1 if contest.in_both_orders else n  # the slot's offset too
    intervals = bootstrap_intervals(strengths, pairs, shares, fitted, resamples, seed) if resamples else []
    strengths = strengths[list(places)]
    shift = float(strengths.mean())  # not 0 where equal responses stood as one
    return Ranking(
        order=sorted(range(len(places)), key=lambda index: (-round(strengths[index], 7), index)),
        strengths=[round(float(strength) - shift, 12) for strength in strengths],
        intervals=[(intervals[place][0] - shift, intervals[place][1] - shift) for place in places] if intervals else [],
        cycles=[[places.index(index) for index in circle] for circle in find_cycles(n, pairs, shares)],
        comparisons=len(pairs),
        calls=contest.calls,
        tokens=contest.tokens,
        method=method,
    )


def _check_options(method: str, budget: int | None, orders: str | None) -> None:
    if method not in METHODS:
        raise ConfigError(f"method {method!r}: unknown; one of {', '.join(METHODS)} is required")
    if orders not in (None, *ORDERS):
        raise ConfigError(f"orders {orders!r}: unknown; one of {', '.join(ORDERS)} is required")
    if budget is not None and method == "round_robin":
        raise ConfigError(
            f"budget {budget}: round_robin compares all pairs; another method is required; "
            "chordal compares as many as the budget pays for"
        )


def _check_responses(responses: Sequence[str]) -> None:
    if not responses:
        raise DataError("responses: none were given; at least one is required")
