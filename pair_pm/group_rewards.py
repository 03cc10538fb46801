"""Rewards for groups of responses to one prompt each: how they do against each other.

A response's reward is its Bradley-Terry log-strength among the responses to its prompt, mean 0 in each group. That is
what group-relative trainers (GRPO, RLOO) use of a reward, and all that a pairwise judge knows: strengths of two groups
have no common zero.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pair_pm.contest import Contest, run_in_lockstep
from pair_pm.errors import DataError, PromptTooLongError
from pair_pm.ranking import METHODS as RANKING_METHODS
from pair_pm.ranking import rank_many
from pair_pm.ranking_methods import knockout
from pair_pm.scoring import (
    Item,
    Message,
    OrderedComparison,
    PairScorer,
    can_be_rendered,
    compare_logprobs,
    render_both_orders,
)
from pair_pm.strengths import clip_shares, fit_strengths

METHODS = (*RANKING_METHODS, "knockout")
DEFAULT_METHOD = "circular"
ON_OVERLONG = ("error", "neutral", "trim_context")
COUNTED = ("overlong_comparisons", "trimmed_comparisons", "unreadable_completions", "lone_completions")

# How far an empty completion stands below the worst that says something: as if it had lost to it with P = 0.73. A
# certain loss would be 14, and drown the differences between the others where a trainer divides by the deviation.
_UNREADABLE_MARGIN = 1.0
_TIE = compare_logprobs(np.log(np.full((2, 2), 0.5)))
_TIE_IN_ORDER = OrderedComparison(prob_a=0.5, log_odds_of_a=0.0, label_mass=1.0, prompt_tokens=0)

Prompt = str | Sequence[Message]


def reward_groups(
    scorer: PairScorer,
    groups: Sequence[tuple[Prompt, Sequence[str]]],
    method: str = DEFAULT_METHOD,
    on_overlong: str = ON_OVERLONG[0],
    seed: int = 0,
) -> tuple[list[list[float]], Counter[str]]:
    """Return a reward for each completion of each group, and the counts of `COUNTED`.

    Equal completions of a group are compared as one and get the same. An empty completion gets 1 less than the worst
    of its group, and a completion without rivals 0.

    Args:
        scorer: A round of all groups is one call of it.
        groups: A prompt each, and the completions of it.
        method: Of `METHODS`.
        on_overlong: Of `ON_OVERLONG`; see `pair_pm.rewards.GroupReward`.
        seed: Of the comparisons' schedule; each group draws from it anew.

    Raises:
        DataError: a prompt is no conversation that ends in a user message.
        PromptTooLongError: a comparison is too long, and `on_overlong` is "error".
    """
    known = [_make_group(*group) for group in groups]
    comparer = _LenientComparer(scorer, on_overlong)
    strengths = iter(_find_strengths(comparer, [group for group in known if group.candidates], method, seed))
    rewards = [_center(group, next(strengths)) if group.candidates else [0.0] * len(group.texts) for group in known]
    comparer.counts["unreadable_completions"] = sum(group.count_unreadable() for group in known)
    comparer.counts["lone_completions"] = sum(len(group.texts) == 1 for group in known)
    return rewards, comparer.counts


@dataclass(frozen=True)
class _Group:
    """The completions of one prompt.

    Attributes:
        messages: The prompt.
        texts: The completions.
        candidates: Each text that can be rendered, once.
    """

    messages: Prompt
    texts: Sequence[str]
    candidates: list[str]

    def count_unreadable(self) -> int:
        """Return how many completions are empty or cannot be rendered for another reason."""
        return sum(text not in self.candidates for text in self.texts)


def _make_group(messages: Prompt, texts: Sequence[str]) -> _Group:
    try:
        render_both_orders(messages, "A response.", "A response.")
    except DataError as problem:
        raise DataError(f"prompt {str(messages)[:60]!r}…: {problem}") from problem
    return _Group(messages, texts, [text for text in dict.fromkeys(texts) if can_be_rendered(messages, text)])


def _find_strengths(
    comparer: "_LenientComparer", groups: Sequence[_Group], method: str, seed: int
) -> list[Sequence[float]]:
    """Return for each group the Bradley-Terry log-strengths of its candidates."""
    if method != "knockout":
        contestants = [(group.messages, group.candidates) for group in groups]
        return [ranking.strengths for ranking in rank_many(comparer, contestants, method, seed, resamples=0)]
    contests = [
        Contest(knockout(len(group.candidates), seed), group.messages, group.candidates, in_both_orders=True)
        for group in groups
    ]
    run_in_lockstep(comparer, contests)
    # The matches are a tree with the winner at its root: each strength is a sum of log-odds on the way there.
    return [fit_strengths(len(one.responses), one.pairs, clip_shares(one.shares)).tolist() for one in contests]


def _center(group: _Group, strengths: Sequence[float]) -> list[float]:
    """Return the rewards of a group's completions, mean 0 over all of them, from the strengths of its candidates."""
    known = dict(zip(group.candidates, strengths, strict=True))
    least = min(known.values()) - _UNREADABLE_MARGIN
    rewards = [known.get(text, least) for text in group.texts]
    mean = sum(rewards) / len(rewards)
    return [reward - mean for reward in rewards]


# ---- comparisons that are too long ----------------------------------------------------------------------------------


class _LenientComparer:
    """A scorer to which a comparison that is too long need not be an error.

    Attributes:
        counts: Comparisons that were ties for their length, and that were made on a trimmed context.
    """

    def __init__(self, scorer: PairScorer, on_overlong: str):
        self.scorer = scorer
        self.on_overlong = on_overlong
        self.counts: Counter[str] = Counter()

    def compare_many(self, items: Sequence[Item]) -> list:
        """Return the comparisons in both orders."""
        return self._compare(self.scorer.compare_many, items, _TIE)

    def compare_in_order(self, items: Sequence[Item]) -> list:
        """Return the comparisons in the order given alone."""
        return self._compare(self.scorer.compare_in_order, items, _TIE_IN_ORDER)

    def _compare(self, compare: Callable, items: Sequence[Item], tie) -> list:
        try:
            return compare(items)
        except PromptTooLongError:
            if self.on_overlong == "error":
                raise
        fitted = [self._fit(*item) for item in items]
        verdicts = iter(self._compare_fitted(compare, [item for item in fitted if item], tie))
        return [next(verdicts) if item else tie for item in fitted]

    def _compare_fitted(self, compare: Callable, items: Sequence[Item], tie) -> list:
        """Return the verdicts; a comparison that the engine's memory does not hold is a tie."""
        try:
            return compare(items)
        except PromptTooLongError:
            if len(items) == 1:
                self.counts["overlong_comparisons"] += 1
                return [tie]
        middle = len(items) // 2
        return [
            *self._compare_fitted(compare, items[:middle], tie),
            *self._compare_fitted(compare, items[middle:], tie),
        ]

    def _fit(self, messages: Prompt, first: str, second: str) -> Item | None:
        """Return the comparison as it can be made, if at all."""
        contexts = [messages, *(_trim(messages) if self.on_overlong == "trim_context" else ())]
        for context in contexts:
            if self.scorer.fits(context, first, second):
                self.counts["trimmed_comparisons"] += context is not messages
                return context, first, second
        self.counts["overlong_comparisons"] += 1
        return None


def _trim(messages: Prompt) -> Iterator[Prompt]:
    """Yield a conversation with ever more of its oldest turns left out, the system message last."""
    if isinstance(messages, str):
        return
    system = [message for message in messages[:1] if message["role"] == "system"]
    turns = list(messages[len(system) :])
    for start in range(2, len(turns), 2):
        yield [*system, *turns[start:]]
    if system:
        yield turns[-1:]
