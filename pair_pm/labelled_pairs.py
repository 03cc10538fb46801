"""What an evaluation compares: pairs of responses, and what is known of them.

A row of preference data is one pair. A row with several completions, as RewardBench 2 has them, is every pair of its
completions, tied together by `group`: from both orders of all pairs, any ranking of the completions can be computed.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from pair_pm.preference import PreferencePair

FIRST, TIE, UNKNOWN = "first", "tie", "unknown"


@dataclass(frozen=True, slots=True)
class LabelledPair:
    """Two responses to a conversation, and which of them is the better one.

    Attributes:
        messages: The conversation before the response; its last message is the user's.
        first: The response that is labelled the better one, where one is.
        second: The other.
        label: `FIRST`: the first is the better one; `TIE`: the two are labelled equally good; `UNKNOWN`: the labels
            say nothing of the two, as of two wrong completions of one prompt.
        prob_first: How likely people, or a teacher, prefer the first: 1 without a statement, 0.5 for a tie.
        id: The row's own.
        group: Which row of several completions it belongs to, unique in the data set; "" for a pair of its own.
        first_index: Place of the first among the completions of its group; the correct ones come before the others.
        second_index: Place of the second.
    """

    messages: tuple[dict[str, str], ...]
    first: str
    second: str
    label: str = FIRST
    prob_first: float = 1.0
    id: str = ""
    source: str = ""
    subset: str = ""
    group: str = ""
    first_index: int = 0
    second_index: int = 1

    @classmethod
    def from_preference(cls, pair: PreferencePair) -> "LabelledPair":
        """Return a row of preference data, its chosen response first."""
        return cls(
            messages=pair.messages,
            first=pair.chosen,
            second=pair.rejected,
            label=TIE if pair.is_tie else FIRST,
            prob_first=pair.prob_chosen,
            id=pair.id,
            source=pair.source,
            subset=pair.subset,
        )

    @property
    def prompt_key(self) -> str:
        """Identity of the conversation, 32 hexadecimal digits: what a bootstrap draws, and a split keeps together."""
        return _digest(self._conversation)

    @property
    def pair_key(self) -> str:
        """Identity of conversation, first and second response, 32 hexadecimal digits: the same for every model."""
        return _digest([self._conversation, self.first, self.second])

    @property
    def _conversation(self) -> list:
        return [[message["role"], message["content"]] for message in self.messages]


@dataclass
class LabelledPairs:
    """The pairs of a data set.

    Attributes:
        name: Of the data set.
        format: "standard", "prompt", "anthropic", "ab", "reward_bench" or "reward_bench_2".
        pairs: Those that can be compared, in the order of the rows.
        skipped: How many rows could not be used, by reason.
    """

    name: str = ""
    format: str = ""
    pairs: list[LabelledPair] = field(default_factory=list)
    skipped: Counter = field(default_factory=Counter)

    def digest(self) -> str:
        """Return the identity of what is compared: texts, labels, subsets and groups, in their order."""
        hasher = hashlib.blake2b(digest_size=16)
        for pair in self.pairs:
            known = [pair.pair_key, pair.label, pair.prob_first, pair.subset, pair.group]
            hasher.update(json.dumps(known).encode())
        return hasher.hexdigest()


def _digest(value: Sequence) -> str:
    return hashlib.blake2b(json.dumps(value).encode(), digest_size=16).hexdigest()
