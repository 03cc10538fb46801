"""What a row to be compared or ranked holds: every accepted form, and what is said of others."""

import json

import pytest
from test_pair_dataset import make_row

from pair_pm.errors import DataError
from pair_pm.preference import RowProblem
from pair_pm.scorable_rows import RESPONSES, check_candidates, read_candidates, read_pair, recognise_pairs

QUESTION = [{"role": "user", "content": "Q"}]
HUMAN = "\n\nHuman: Q\n\nAssistant:"
TURNS = [{"role": "system", "content": "S"}, *QUESTION]


@pytest.mark.parametrize(
    ("row", "format", "conversation"),
    [
        ({"messages": TURNS, "response_a": "one", "response_b": "two"}, RESPONSES, TURNS),
        ({"messages": QUESTION, "responses": ["one", "two"], "response_a": None}, RESPONSES, QUESTION),
        ({"prompt": "Q", "response_a": "one", "response_b": "two"}, RESPONSES, QUESTION),
        ({"prompt": TURNS, "responses": ["one", "two"]}, RESPONSES, TURNS),
        ({"messages": TURNS, "prompt": "Q", "response_a": "one", "response_b": "two"}, RESPONSES, TURNS),
        ({"prompt": "Q", "chosen": "one", "rejected": "two"}, "prompt", QUESTION),
        ({"chosen": f"{HUMAN} one", "rejected": f"{HUMAN} two"}, "anthropic", QUESTION),
    ],
)
def test_every_accepted_form_gives_conversation_and_both_responses(row, format, conversation):
    assert recognise_pairs("x", [5, None, {"other": 1}, row]) == format
    assert read_pair(row, format) == (conversation, "one", "two")


def test_standard_and_ab_rows_give_the_chosen_response_first():
    row = make_row(1, chosen="one", rejected="two")
    assert recognise_pairs("x", [row]) == "standard"
    assert read_pair(row, "standard") == (row["chosen"][:-1], "one", "two")
    prompt = "[CONTEXT] \n\n<turn> user\n Q\n [RESPONSE A] two [RESPONSE B] one \n"
    row = {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": "B"}]}
    assert recognise_pairs("x", [row]) == "ab"
    assert read_pair(row, "ab") == (QUESTION, "one", "two")


def test_equal_responses_may_be_compared():
    assert read_pair({"prompt": "Q", "responses": ["one", "one"]}, RESPONSES) == (QUESTION, "one", "one")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (5, "not_an_object"),
        ({"response_a": "one", "response_b": "two"}, "missing_column"),
        ({"prompt": 5, "response_a": "one", "response_b": "two"}, "not_messages"),
        ({"prompt": HUMAN, "response_a": "one", "response_b": "two"}, "transcript"),
        ({"prompt": "Q", "response_a": "one"}, "content_not_string"),
        ({"prompt": "Q", "response_a": "one", "response_b": ["two"]}, "content_not_string"),
        ({"prompt": "Q", "responses": "one two"}, "not_responses"),
        ({"prompt": "Q", "responses": ["one", None]}, "content_not_string"),
        ({"prompt": "Q", "responses": ["one", "two", "three"]}, "not_two_responses"),
    ],
)
def test_row_that_lacks_something_is_refused_with_a_reason(row, reason):
    with pytest.raises(RowProblem) as found:
        read_pair(row, RESPONSES)
    assert found.value.reason == reason


def test_table_without_pairs_is_refused_with_what_it_has_and_what_is_accepted():
    with pytest.raises(DataError) as error:
        recognise_pairs("x.jsonl", [{"prompt": "Q", "completion": "one"}, 5])
    text = str(error.value)
    assert text.startswith("x.jsonl: has the columns prompt, completion; accepted formats are\n")
    for accepted in ("response_a", "standard", "prompt", "anthropic", "ab"):
        assert accepted in text
    with pytest.raises(DataError, match="has no row that is an object"):
        recognise_pairs("x.jsonl", [json.loads("5")])


def test_candidates_are_of_any_number():
    check_candidates("x", [5, {"prompt": "Q", "responses": []}])
    for responses in (["one"], ["one", "two", "three"]):
        assert read_candidates({"messages": TURNS, "responses": responses}) == (TURNS, responses)
    for row, reason in (({"prompt": "Q", "responses": []}, "no_response"), ({"prompt": "Q"}, "not_responses")):
        with pytest.raises(RowProblem) as found:
            read_candidates(row)
        assert found.value.reason == reason
    with pytest.raises(DataError, match=r"x: has the columns prompt, chosen; required are\n(?s:.*)responses: a list"):
        check_candidates("x", [{"prompt": "Q", "chosen": "one"}])
