"""Groups of responses on their way through the rounds of a ranking method, side by side.

A round of one group is often too small a batch for a GPU; the rounds of many groups together are not.
"""

from collections.abc import Generator, Sequence
from typing import Protocol

from pair_pm.strengths import Pair


class Comparer(Protocol):
    """What ranking asks of a scorer."""

    def compare_many(self, items: Sequence[tuple]) -> list:
        """Return for each (messages, first, second) a verdict in both orders, with `prob_first`, `prompt_tokens`."""
        ...

    def compare_in_order(self, items: Sequence[tuple]) -> list:
        """Return for each (messages, response_a, response_b) one in that order: `prob_a`, `prompt_tokens`."""
        ...


class Contest:
    """A group on its way through the rounds of a method.

    Args:
        rounds: Of pair_pm.ranking_methods.
        messages: The conversation up to the last user message, or that message alone.
        responses: To it, one or more.
        in_both_orders: Whether a verdict averages both orders.

    Attributes:
        pairs: Those compared so far, as indices of responses.
        shares: Of a win, that the first of each pair has.
        calls: Prompts fed so far.
        tokens: Of these prompts.
        result: What the rounds returned at their end.
        next_round: The pairs to compare next; empty at the end.
    """

    def __init__(self, rounds: Generator, messages, responses: Sequence[str], in_both_orders: bool):
        self.rounds = rounds
        self.messages = messages
        self.responses = responses
        self.in_both_orders = in_both_orders
        self.pairs: list[Pair] = []
        self.shares: list[float] = []
        self.tokens = 0
        self.result: int | None = None
        self.next_round: list[Pair] = []
        self._advance(None)

    @property
    def calls(self) -> int:
        """Prompts fed so far: a verdict in both orders takes two."""
        return len(self.pairs) * (2 if self.in_both_orders else 1)

    def list_items(self) -> list[tuple]:
        """Return what is to be compared next."""
        return [(self.messages, self.responses[i], self.responses[j]) for i, j in self.next_round]

    def take(self, verdicts: Sequence) -> None:
        """Take the verdicts on the round, and find the next one."""
        shares = [verdict.prob_first if self.in_both_orders else verdict.prob_a for verdict in verdicts]
        self.pairs += self.next_round
        self.shares += shares
        spent = [verdict.prompt_tokens for verdict in verdicts]
        self.tokens += sum(map(sum, spent)) if self.in_both_orders else sum(spent)
        self._advance(shares)

    def _advance(self, shares: list[float] | None) -> None:
        try:
            self.next_round = self.rounds.send(shares)
        except StopIteration as end:
            self.next_round, self.result = [], end.value


def run_in_lockstep(comparer: Comparer, contests: Sequence[Contest]) -> None:
    """Run contests to their end, all in both orders or all in one; a round of all is one call of the comparer."""
    while running := [contest for contest in contests if contest.next_round]:
        items = [item for contest in running for item in contest.list_items()]
        compare = comparer.compare_many if running[0].in_both_orders else comparer.compare_in_order
        verdicts = iter(compare(items))
        for contest in running:
            contest.take([next(verdicts) for _ in contest.next_round])
