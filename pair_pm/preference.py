"""Preference rows: what a valid one is, why another is not, and which side of the prompt each response takes.

The standard format has `chosen` and `rejected`, message lists that are equal but for the last message, which is
the assistant's; optional are `id`, `source`, `subset`, `label: "tie"` and `prob_chosen`.
"""

import hashlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pair_pm.prompt import neutralise, render_context


class RowProblem(Exception):
    """Why one row cannot be used: a `reason` that is counted, and a `detail` for the person who looks at it."""

    def __init__(self, reason: str, detail: str):
        super().__init__(reason, detail)  # both, so that it survives pickling between processes
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """A valid comparison: a conversation and two different responses to it, texts as they came.

    Attributes:
        messages: The conversation before the response; its last message is the user's.
        prob_chosen: How likely `chosen` is preferred, 0 to 1; without a statement 1, and 0.5 for a tie.
    """

    messages: tuple[dict[str, str], ...]
    chosen: str
    rejected: str
    is_tie: bool = False
    prob_chosen: float = 1.0
    id: str = ""
    source: str = ""
    subset: str = ""


@dataclass(frozen=True, slots=True)
class RenderedPair:
    """A pair as one prompt holds it: contents neutralised, context rendered, sides drawn.

    Attributes:
        label: "A" or "B": the slot of the chosen response; for a tie it is drawn.
        prob_a: The target probability of "A", 0 to 1.
        digest: Identity of context and unordered responses, 16 bytes: equal for both orders and all verdicts.
        verdict: Which response won: 0 the one that sorts first, 1 the other, 2 neither (a tie).
        is_neutralised: Whether control text was broken in it.
    """

    context: str
    response_a: str
    response_b: str
    label: str
    prob_a: float
    digest: bytes
    verdict: int
    is_neutralised: bool

    def swapped(self) -> "RenderedPair":
        """Return the same pair in the other order."""
        return replace(
            self,
            response_a=self.response_b,
            response_b=self.response_a,
            label="B" if self.label == "A" else "A",
            prob_a=_complement(self.prob_a),
        )


# ---- the standard format ------------------------------------------------------------------------------------------


def parse_standard(row: Mapping) -> PreferencePair:
    """Return the pair that a standard-format row holds.

    Raises:
        RowProblem: the row breaks a rule; `reason` names the rule.
    """
    chosen, rejected = (_read_turns(column, row.get(column)) for column in ("chosen", "rejected"))
    if len(chosen) != len(rejected):
        raise RowProblem("different_turn_count", f"chosen has {len(chosen)} messages, rejected {len(rejected)}")
    for column, turns in (("chosen", chosen), ("rejected", rejected)):
        _check_roles(column, turns)
        _check_contents(column, turns)
    for index, (one, other) in enumerate(zip(chosen[:-1], rejected[:-1], strict=True)):
        if one != other:
            raise RowProblem("context_differs", f"chosen and rejected differ at message {index + 1}")
    if chosen[-1][1].strip() == rejected[-1][1].strip():
        raise RowProblem("identical_responses", "chosen and rejected end in the same response")
    is_tie = row.get("label") == "tie"
    return PreferencePair(
        messages=tuple({"role": role, "content": content} for role, content in chosen[:-1]),
        chosen=chosen[-1][1],
        rejected=rejected[-1][1],
        is_tie=is_tie,
        prob_chosen=_read_probability(row, absent=0.5 if is_tie else 1.0),
        id=_read_name(row, "id"),
        source=_read_name(row, "source"),
        subset=_read_name(row, "subset"),
    )


def check_answered(name: str, messages: object) -> None:
    """Check a conversation that ends in a response, as a side of a row is checked; `name` is what errors call it.

    Raises:
        RowProblem: it breaks a rule.
    """
    turns = _read_turns(name, messages)
    _check_roles(name, turns)
    _check_contents(name, turns)


def _read_turns(name: str, messages: object) -> list[tuple[str, str]]:
    if messages is None:
        raise RowProblem("missing_column", f"{name} is absent")
    if not isinstance(messages, list):
        raise RowProblem("not_messages", f"{name} is {type(messages).__name__}, not a list of messages")
    if not messages:
        raise RowProblem("empty_messages", f"{name} has no message")
    turns = []
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or "role" not in message or "content" not in message:
            raise RowProblem("not_messages", f"message {index + 1} of {name} lacks role or content")
        if not isinstance(message["content"], str):
            found = type(message["content"]).__name__
            raise RowProblem("content_not_string", f"the content of message {index + 1} of {name} is {found}")
        turns.append((message["role"], message["content"]))
    return turns


def _check_roles(name: str, turns: Sequence[tuple[str, str]]) -> None:
    roles = [role for role, _ in turns]
    start = 1 if roles[0] == "system" else 0
    length = len(roles) - start
    if length < 2 or length % 2 or roles[start:] != ["user", "assistant"] * (length // 2):
        shown = ", ".join(map(str, roles[:6])) + (", …" if len(roles) > 6 else "")
        raise RowProblem(
            "roles_out_of_order",
            f"{name} has the roles {shown}; required are an optional system message, then user and assistant in turn",
        )


def _check_contents(name: str, turns: Sequence[tuple[str, str]]) -> None:
    for index, (_, content) in enumerate(turns):
        if not content.strip():
            is_response = index == len(turns) - 1
            raise RowProblem("empty_response" if is_response else "empty_turn", f"message {index + 1} of {name}")
        _check_unicode(content, f"message {index + 1} of {name}")


def _check_unicode(text: str, where: str) -> None:
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise RowProblem("lone_surrogate", f"{where}, character {error.start + 1}") from None


def _read_probability(row: Mapping, absent: float) -> float:
    value = row.get("prob_chosen")
    if value is None:
        return absent
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise RowProblem("bad_prob_chosen", f"prob_chosen is {value!r}; a number from 0 to 1 is required")
    return float(value)


def _read_name(row: Mapping, column: str) -> str:
    value = row.get(column)
    if value is None:
        return ""
    name = str(value)
    _check_unicode(name, column)
    return name


def check_margin(row: Mapping, columns: tuple[str, str], minimum: float) -> None:
    """Check that the scores of the two responses, in these columns, differ by at least `minimum`.

    Raises:
        RowProblem: a score is missing or no finite number, or the margin is smaller.
    """
    scores = [row.get(column) for column in columns]
    for column, score in zip(columns, scores, strict=True):
        is_number = isinstance(score, int | float) and not isinstance(score, bool)
        if not is_number or not abs(score) <= sys.float_info.max:  # JSON has NaN, and integers beyond any float
            raise RowProblem("no_margin", f"{column} is {score!r}; a number is required")
    margin = float(scores[0]) - float(scores[1])
    if margin < minimum:
        raise RowProblem("small_margin", f"{columns[0]} - {columns[1]} = {margin:g}, under {minimum:g}")


# ---- rendering and draws --------------------------------------------------------------------------------------------


def render_pair(pair: PreferencePair, seed: int) -> RenderedPair:
    """Neutralise and render a pair, and draw the sides.

    The draw depends on the seed, the context and the two responses in sorted order: not on the order of rows,
    shards or workers, and not on which response won.

    Raises:
        RowProblem: the responses are the same once control text is broken.
    """
    messages = [{"role": m["role"], "content": neutralise(m["content"])} for m in pair.messages]
    chosen, rejected = neutralise(pair.chosen), neutralise(pair.rejected)
    if chosen.strip() == rejected.strip():
        raise RowProblem("identical_responses", "chosen and rejected are the same once control text is neutralised")
    context = render_context(messages)
    first, second = sorted((chosen, rejected))
    digest = digest_pair(context, first, second)
    response_a, response_b = (first, second) if _draw(digest, seed, b"position") % 2 else (second, first)
    label = "A" if response_a == chosen else "B"
    if pair.is_tie:
        # Which response a tie calls chosen is an accident of its source, so the label is drawn too.
        label = "A" if _draw(digest, seed, b"tie label") % 2 else "B"
    return RenderedPair(
        context=context,
        response_a=response_a,
        response_b=response_b,
        label=label,
        prob_a=pair.prob_chosen if response_a == chosen else _complement(pair.prob_chosen),
        digest=digest,
        verdict=2 if pair.is_tie else int(chosen == second),
        is_neutralised=(chosen, rejected) != (pair.chosen, pair.rejected)
        or any(new["content"] != old["content"] for new, old in zip(messages, pair.messages, strict=True)),
    )


def _complement(probability: float) -> float:
    return round(1 - probability, 12)  # 1 - 0.8 would be written as 0.19999999999999996


def digest_pair(context: str, first: str, second: str) -> bytes:
    """Return the 16-byte identity of a context and two responses, these in sorted order."""
    hasher = hashlib.blake2b(digest_size=16, person=b"pair")
    for text in (context, first, second):
        data = text.encode()
        hasher.update(len(data).to_bytes(8, "little"))  # without lengths, text could move between the parts
        hasher.update(data)
    return hasher.digest()


def is_held_out(pair: PreferencePair, fraction: float, seed: int) -> bool:
    """Return whether the pair belongs to the evaluation split: decided by its first user message alone.

    Splitting by whole contexts would leak: one opening message stands in front of several conversations. It counts
    as the prompt shows it, so that no spelling of it falls on the other side.
    """
    first_user = next(message["content"] for message in pair.messages if message["role"] == "user")
    return _draw(neutralise(first_user).strip().encode(), seed, b"held out") < fraction * 2**64


def _draw(data: bytes, seed: int, domain: bytes) -> int:
    key = seed.to_bytes(8, "little", signed=True)
    return int.from_bytes(hashlib.blake2b(data, digest_size=8, key=key, person=domain).digest(), "little")
