r"""Readers of the formats that preference data comes in, each into the standard one.

Beside the standard format there are an explicit `prompt` (as TRL writes it), Anthropic's transcripts,
`"\n\nHuman: … \n\nAssistant: …"` strings, and the A/B rows that process_pair_data.py writes.
"""

import re
from collections.abc import Iterable, Mapping

from pair_pm.errors import DataError
from pair_pm.preference import PreferencePair, RowProblem, parse_standard
from pair_pm.prompt import LABELS, split_context, split_prompt

ACCEPTED_FORMATS = """\
  standard   chosen, rejected: message lists [{"role": …, "content": …}, …], equal but for the last message
  prompt     prompt, chosen, rejected: each a string or a message list; the responses alone in chosen and rejected
  anthropic  chosen, rejected: strings "\\n\\nHuman: … \\n\\nAssistant: …"
  ab         messages: a prompt and the answer "A" or "B", as process_pair_data.py writes; optional prob_a"""


_TRANSCRIPT_TURN = re.compile(r"\n\n(Human|Assistant):")
_ROLE_MARKER = re.compile(r"\b(?:Human|Assistant):")
_TRANSCRIPT_ROLES = {"Human": "user", "Assistant": "assistant"}


def parse_prompt_row(row: Mapping) -> PreferencePair:
    """Return the pair of a row with an explicit `prompt`: strings, message lists or a mixture of both."""
    prompt = row.get("prompt")
    if isinstance(prompt, str) and prompt.startswith("\n\nHuman:"):
        return parse_anthropic({**row, **{side: _join_transcript(row, side) for side in ("chosen", "rejected")}})
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    if not isinstance(prompt, list):
        reason = "missing_column" if prompt is None else "not_messages"
        raise RowProblem(reason, f"prompt is {type(prompt).__name__}; a string or a list of messages is required")
    standard = dict(row)
    for column in ("chosen", "rejected"):
        response = row.get(column)
        if isinstance(response, str):
            response = [{"role": "assistant", "content": response}]
        standard[column] = prompt + response if isinstance(response, list) and response else response
    return parse_standard(standard)


def _join_transcript(row: Mapping, column: str) -> str:
    if not isinstance(row.get(column), str):
        raise RowProblem("content_not_string", f"prompt is a transcript, {column} is {type(row.get(column)).__name__}")
    return row["prompt"] + row[column]


def parse_anthropic(row: Mapping) -> PreferencePair:
    """Return the pair of a row whose `chosen` and `rejected` are whole transcripts."""
    return parse_standard({**row, **{side: _split_transcript(row, side) for side in ("chosen", "rejected")}})


def _split_transcript(row: Mapping, column: str) -> list[dict[str, str]]:
    text = row.get(column)
    if text is None:
        raise RowProblem("missing_column", f"{column} is absent")
    if not isinstance(text, str):
        raise RowProblem("content_not_string", f"{column} is {type(text).__name__}, not a transcript")
    before, *parts = _TRANSCRIPT_TURN.split(text)
    if before.strip() or not parts:
        raise RowProblem("not_a_transcript", f"{column} does not start with '\\n\\nHuman:'")
    messages = []
    for role, content in zip(parts[::2], parts[1::2], strict=True):
        if _ROLE_MARKER.search(content):
            # Either a turn boundary without its blank line or a model that wrote both sides: nobody can tell which
            # words the human judged.
            raise RowProblem("role_marker_in_turn", f"message {len(messages) + 1} of {column}")
        messages.append({"role": _TRANSCRIPT_ROLES[role], "content": content.strip()})
    return messages


def parse_ab_row(row: Mapping) -> PreferencePair:
    """Return the pair of an A/B row; a target of one half is a tie, whose answer was drawn."""
    messages, prob_a = row.get("messages"), row.get("prob_a")
    try:
        (_, prompt), (_, answer) = ((message["role"], message["content"]) for message in messages)
        context, *responses = split_prompt(prompt)
        turns = split_context(context)
    except (TypeError, KeyError, ValueError) as error:
        raise RowProblem("not_an_ab_row", f"messages is not a prompt and its answer: {error}") from error
    if answer not in LABELS:
        raise RowProblem("not_an_ab_row", f"the answer is {answer!r}, neither A nor B")
    chosen, rejected = responses if answer == "A" else responses[::-1]
    sides = {"chosen": chosen, "rejected": rejected}
    standard = {side: [*turns, {"role": "assistant", "content": text}] for side, text in sides.items()}
    if isinstance(prob_a, int | float) and not isinstance(prob_a, bool):
        standard["prob_chosen"] = prob_a if answer == "A" else round(1 - prob_a, 12)
    names = {name: row.get(name) for name in ("id", "source", "subset")}
    return parse_standard({**standard, **names, "label": "tie" if prob_a == 0.5 else None})


PARSERS = {"standard": parse_standard, "prompt": parse_prompt_row, "anthropic": parse_anthropic, "ab": parse_ab_row}


def parse_row(row: object, format: str) -> PreferencePair:
    """Return the pair that a row of a table of this format, a key of `PARSERS`, holds.

    Raises:
        RowProblem: it is no object, or breaks a rule.
    """
    if not isinstance(row, dict):
        raise RowProblem("not_an_object", f"the row is {type(row).__name__}")
    return PARSERS[format](row)


def recognise_format(where: str, rows: Iterable[object]) -> str:
    """Return the format of a table, a key of `PARSERS`, from the columns and types of its first rows.

    Raises:
        DataError: no row has the columns and types of an accepted format.
    """
    columns: dict[str, None] = {}
    for row in rows:
        if isinstance(row, dict):
            columns.update(dict.fromkeys(row))
            name = _format_of_row(row)
            if name:
                return name
    found = f"has the columns {', '.join(map(str, columns))}" if columns else "has no row that is an object"
    raise DataError(f"{where}: {found}; accepted formats are\n{ACCEPTED_FORMATS}")


def _format_of_row(row: Mapping) -> str | None:
    sides = (row.get("chosen"), row.get("rejected"))
    first_roles = [_first_role(side) for side in sides]
    # Some sets (UltraFeedback's) repeat the first user message in a `prompt` column: the lists say it all.
    if all(role in ("user", "system") for role in first_roles):
        return "standard"
    # A list that is empty or starts otherwise is a bad row of either format: it must not decide for the table.
    if isinstance(row.get("prompt"), str | list) and all(
        isinstance(side, str) or role == "assistant" for side, role in zip(sides, first_roles, strict=True)
    ):
        return "prompt"
    if all(isinstance(side, str) and side.startswith("\n\nHuman:") for side in sides):
        return "anthropic"
    return "ab" if sides == (None, None) and _is_prompt(row.get("messages")) else None


def _is_prompt(messages: object) -> bool:
    return _first_role(messages) == "user" and str(messages[0].get("content")).startswith("[CONTEXT] ")


def _first_role(messages: object) -> str | None:
    has_one = isinstance(messages, list) and messages and isinstance(messages[0], dict)
    return messages[0].get("role") if has_one and isinstance(messages[0].get("role"), str) else None
