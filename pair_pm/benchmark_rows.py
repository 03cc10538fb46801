"""Rows to evaluate on: those of any preference data, and those of RewardBench and RewardBench 2.

RewardBench has three strings, `prompt`, `chosen` and `rejected`, and a `subset` that says which of its sections a row
counts in. RewardBench 2 has a prompt with lists of right and wrong completions; no one pair stands for such a row, so
it is no format of training data.

Sources: the data sets allenai/reward-bench (split "filtered") and allenai/reward-bench-2 (split "test").
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations

from pair_pm.errors import DataError
from pair_pm.labelled_pairs import FIRST, TIE, UNKNOWN, LabelledPair
from pair_pm.preference import PreferencePair, RowProblem, check_answered
from pair_pm.preference_formats import ACCEPTED_FORMATS, parse_row, recognise_format

REWARD_BENCH, COMPLETIONS = "reward_bench", "reward_bench_2"
ACCEPTED_EVALUATION = f"""\
{ACCEPTED_FORMATS}
  {REWARD_BENCH}    as prompt, with one of RewardBench's own names in subset
  {COMPLETIONS}  prompt: a string or a message list; chosen, rejected: lists of strings"""

# The subsets of RewardBench by section, each with the number of rows that weighs it. The weight of math-prm is that of
# the six code subsets together, though it has 447 rows: code and mathematics are one half of Reasoning each.
# As in rewardbench 0.1.4, `rewardbench/constants.py`.
SECTIONS = {
    "Chat": {
        **{"alpacaeval-easy": 100, "alpacaeval-length": 95, "alpacaeval-hard": 95},
        **{"mt-bench-easy": 28, "mt-bench-med": 40},
    },
    "Chat Hard": {
        **{"mt-bench-hard": 37, "llmbar-natural": 100, "llmbar-adver-neighbor": 134},
        **{"llmbar-adver-GPTInst": 92, "llmbar-adver-GPTOut": 47, "llmbar-adver-manual": 46},
    },
    "Safety": {
        **{"refusals-dangerous": 100, "refusals-offensive": 100},
        **{"xstest-should-refuse": 154, "xstest-should-respond": 250, "donotanswer": 136},
    },
    "Reasoning": {
        "math-prm": 984,
        **{f"hep-{language}": 164 for language in ("cpp", "go", "java", "js", "python", "rust")},
    },
}
# The subsets of RewardBench 2. In the last, rows come in twos: with one right completion, and with several.
COMPLETION_SUBSETS = ("Factuality", "Precise IF", "Math", "Safety", "Focus", "Ties")
_TIES_ID = re.compile(r"(ref|tied):(\d+)")
_SUBSETS = {subset for weights in SECTIONS.values() for subset in weights}


@dataclass(frozen=True, slots=True)
class CompletionRow:
    """A conversation and its completions, texts as they came.

    Attributes:
        messages: The conversation; its last message is the user's.
        completions: The right ones, then the wrong ones; at least one of each.
        correct: How many are right.
    """

    messages: tuple[dict[str, str], ...]
    completions: tuple[str, ...]
    correct: int
    id: str = ""
    subset: str = ""

    def list_pairs(self, number: int) -> list[LabelledPair]:
        """Return every pair of the completions; of two right ones neither is better, and of two wrong ones who knows.

        Their group says how many completions there are, for the pairs that cannot be compared are left out.

        Args:
            number: Of the row.
        """
        group = f"{number}:{self.correct}/{len(self.completions)}"
        return [
            LabelledPair(
                messages=self.messages,
                first=self.completions[first],
                second=self.completions[second],
                label=self._label(first, second),
                prob_first=1.0 if self._label(first, second) == FIRST else 0.5,
                id=self.id,
                subset=self.subset,
                group=group,
                first_index=first,
                second_index=second,
            )
            for first, second in combinations(range(len(self.completions)), 2)
        ]

    def _label(self, first: int, second: int) -> str:
        if first >= self.correct:
            return UNKNOWN
        return TIE if second < self.correct else FIRST


def read_group(group: str) -> tuple[int, int]:
    """Return how many completions the row of a group has that are right, and how many in all."""
    correct, completions = group.partition(":")[2].split("/")
    return int(correct), int(completions)


def read_ties_id(id: str) -> tuple[bool, int]:
    """Return whether the id of a row of Ties is that of a reference, and the number.

    Raises:
        RowProblem: it is neither.
    """
    match = _TIES_ID.fullmatch(id)
    if not match:
        raise RowProblem("not_a_ties_id", f'the id is {id!r}; "ref:NUMBER" or "tied:NUMBER" is required in Ties')
    return match[1] == "ref", int(match[2])


def is_ties(subset: str) -> bool:
    """Return whether a subset of RewardBench 2 is the one with several right completions."""
    return subset.lower() == "ties"


def recognise_evaluation(where: str, rows: Iterable[object]) -> str:
    """Return the format of a table to evaluate on, from its first rows.

    Returns: `REWARD_BENCH`, `COMPLETIONS`, or as `recognise_format`.
    Raises:
        DataError: no row has the columns and types of an accepted format.
    """
    columns: dict[str, None] = {}
    for row in rows:
        if not isinstance(row, dict):
            continue
        columns.update(dict.fromkeys(row))
        if _has_completions(row):
            return COMPLETIONS
        try:
            format = recognise_format(where, [row])
        except DataError:
            continue
        return REWARD_BENCH if format == "prompt" and row.get("subset") in _SUBSETS else format
    found = f"has the columns {', '.join(map(str, columns))}" if columns else "has no row that is an object"
    raise DataError(f"{where}: {found}; accepted formats are\n{ACCEPTED_EVALUATION}")


def parse_pair(row: object, format: str) -> PreferencePair:
    """Return the pair that a row of any format but `COMPLETIONS` holds.

    Raises:
        RowProblem: it is no object, or breaks a rule.
    """
    return parse_row(row, "prompt" if format == REWARD_BENCH else format)


def parse_completion_row(row: object) -> CompletionRow:
    """Return the completions that a row holds.

    Raises:
        RowProblem: the row breaks a rule; `reason` names the rule.
    """
    if not isinstance(row, dict):
        raise RowProblem("not_an_object", f"the row is {type(row).__name__}")
    prompt = row.get("prompt")
    if prompt is None:
        raise RowProblem("missing_column", "prompt is absent")
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if not isinstance(messages, list):
        raise RowProblem("not_messages", f"prompt is {type(prompt).__name__}; a string or a list is required")
    chosen, rejected = (_read_completions(row, column, messages) for column in ("chosen", "rejected"))
    stated = row.get("num_correct")
    if stated is not None and stated != len(chosen):
        raise RowProblem("wrong_count", f"num_correct is {stated!r}, chosen holds {len(chosen)}")
    id, subset = ("" if row.get(name) is None else str(row[name]) for name in ("id", "subset"))
    if is_ties(subset):
        read_ties_id(id)
    return CompletionRow(
        messages=tuple({"role": message["role"], "content": message["content"]} for message in messages),
        completions=(*chosen, *rejected),
        correct=len(chosen),
        id=id,
        subset=subset,
    )


def _has_completions(row: Mapping) -> bool:
    sides = (row.get("chosen"), row.get("rejected"))
    are_lists = all(isinstance(side, list) and side and isinstance(side[0], str) for side in sides)
    return are_lists and isinstance(row.get("prompt"), str | list)


def _read_completions(row: Mapping, column: str, messages: list) -> list[str]:
    completions = row.get(column)
    if completions is None:
        raise RowProblem("missing_column", f"{column} is absent")
    if not isinstance(completions, list):
        raise RowProblem("not_completions", f"{column} is {type(completions).__name__}; a list of strings is required")
    if not completions:
        raise RowProblem("no_completion", f"{column} is empty; at least one completion is required")
    for number, completion in enumerate(completions, start=1):
        check_answered(f"{column} {number}", [*messages, {"role": "assistant", "content": completion}])
    return completions
