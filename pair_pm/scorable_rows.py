"""What a row of a file to be scored or ranked holds: a conversation, and two responses to it or any number."""

from collections.abc import Iterable, Mapping

from pair_pm.errors import DataError
from pair_pm.preference import RowProblem
from pair_pm.preference_formats import ACCEPTED_FORMATS, parse_row, recognise_format

RESPONSES = "responses"
_CONVERSATION = "messages: a message list; or prompt: one too, or the user's message alone"
ACCEPTED_PAIRS = f"""\
  responses  {_CONVERSATION};
             beside it response_a and response_b, strings, or responses, a list of two
{ACCEPTED_FORMATS}"""
ACCEPTED_CANDIDATES = f"""\
  {_CONVERSATION};
  beside it responses: a list of strings, of any number"""

Messages = list[dict[str, str]]


def recognise_pairs(where: str, rows: Iterable[object]) -> str:
    """Return the format of a table of pairs from its first rows: `RESPONSES`, or as `recognise_format`.

    Raises:
        DataError: no row has the columns of an accepted format.
    """
    columns: dict[str, None] = {}
    for row in rows:
        if not isinstance(row, dict):
            continue
        columns.update(dict.fromkeys(row))
        if _has_conversation(row) and (RESPONSES in row or {"response_a", "response_b"} <= row.keys()):
            return RESPONSES
        try:
            return recognise_format(where, [row])
        except DataError:
            continue
    raise DataError(f"{where}: {_describe(columns)}; accepted formats are\n{ACCEPTED_PAIRS}")


def check_candidates(where: str, rows: Iterable[object]) -> None:
    """Check that a table holds conversations with candidates.

    Raises:
        DataError: none of its first rows has the columns.
    """
    columns: dict[str, None] = {}
    for row in rows:
        if isinstance(row, dict):
            columns.update(dict.fromkeys(row))
            if _has_conversation(row) and RESPONSES in row:
                return
    raise DataError(f"{where}: {_describe(columns)}; required are\n{ACCEPTED_CANDIDATES}")


def read_pair(row: object, format: str) -> tuple[Messages, str, str]:
    """Return the conversation and two responses of a row; of a labelled one the chosen response is the first.

    Whether they can be rendered is for the scorer to say.

    Raises:
        RowProblem: the row is no object, or lacks something.
    """
    if format != RESPONSES:
        pair = parse_row(row, format)
        return list(pair.messages), pair.chosen, pair.rejected
    messages = _read_conversation(row)
    if row.get(RESPONSES) is None:
        return messages, *(_read_text(row.get(column), column) for column in ("response_a", "response_b"))
    responses = _read_responses(row)
    if len(responses) != 2:
        raise RowProblem("not_two_responses", f"responses holds {len(responses)}; two are required to be compared")
    return messages, *responses


def read_candidates(row: object) -> tuple[Messages, list[str]]:
    """Return the conversation and responses of a row.

    Raises:
        RowProblem: the row is no object, lacks something, or has no response.
    """
    messages, responses = _read_conversation(row), _read_responses(row)
    if not responses:
        raise RowProblem("no_response", "responses is empty; at least one is required")
    return messages, responses


def _has_conversation(row: Mapping) -> bool:
    return any(isinstance(row.get(column), str | list) for column in ("messages", "prompt"))


def _describe(columns: Mapping[str, None]) -> str:
    return f"has the columns {', '.join(map(str, columns))}" if columns else "has no row that is an object"


def _read_conversation(row: object) -> Messages:
    if not isinstance(row, dict):
        raise RowProblem("not_an_object", f"the row is {type(row).__name__}")
    column = "prompt" if row.get("messages") is None else "messages"
    conversation = row.get(column)
    if conversation is None:
        raise RowProblem("missing_column", "messages and prompt are absent")
    if isinstance(conversation, str):
        if conversation.startswith("\n\nHuman:"):
            raise RowProblem("transcript", f"{column} is a transcript; a message list is required")
        return [{"role": "user", "content": conversation}]
    if not isinstance(conversation, list):
        raise RowProblem("not_messages", f"{column} is {type(conversation).__name__}, not a list of messages")
    return conversation


def _read_responses(row: Mapping) -> list[str]:
    responses = row.get(RESPONSES)
    if not isinstance(responses, list):
        found = "absent" if responses is None else type(responses).__name__
        raise RowProblem("not_responses", f"responses is {found}; a list of strings is required")
    return [_read_text(response, f"response {number}") for number, response in enumerate(responses, start=1)]


def _read_text(value: object, name: str) -> str:
    if not isinstance(value, str):
        found = "absent" if value is None else type(value).__name__
        raise RowProblem("content_not_string", f"{name} is {found}; a string is required")
    return value
