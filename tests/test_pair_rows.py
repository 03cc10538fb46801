"""A/B rows into token rows: which token bears loss, what rides along, what is dropped or refused."""

import logging

import numpy as np
import pytest
from conftest import make_small_tokenizer
from datasets import Dataset

from pair_pm.errors import DataError
from pair_pm.pair_rows import PairRows, find_longest_order
from pair_pm.prompt import render_context, render_prompt
from pair_pm.tokens import PromptEncoder


@pytest.fixture(scope="module")
def encoder() -> PromptEncoder:
    return PromptEncoder(make_small_tokenizer())


def make_prompt(question="Q", first="one", second="two") -> str:
    return render_prompt(render_context([{"role": "user", "content": question}]), first, second)


def make_row(label="A", prompt=None, **more) -> dict:
    prompt = prompt or make_prompt()
    return {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": label}], **more}


def tokenize(encoder, rows, sequence_len=1000, in_both_orders=False) -> list[dict]:
    strategy = PairRows(encoder, "pairs.jsonl", sequence_len, in_both_orders)
    return strategy.wrap_dataset(Dataset.from_list(rows)).to_list()


def test_the_label_alone_bears_loss_and_stands_where_it_is_served(encoder):
    (row,) = tokenize(encoder, [make_row("B", prob_a=0.25)])
    (served,) = encoder.encode([make_prompt()])
    assert [at for at, label in enumerate(row["labels"]) if label != -100] == [len(served)]
    assert row["labels"][len(served)] == row["input_ids"][len(served)] == encoder.labels.label_ids[1]
    assert row["input_ids"] == [*served, encoder.labels.label_ids[1], *encoder.labels.closing_ids]
    assert row["attention_mask"] == [1] * len(row["input_ids"])
    assert row["prob_a"] == [0.25]


def test_without_a_target_the_label_is_the_target(encoder):
    assert [row["prob_a"] for row in tokenize(encoder, [make_row("A"), make_row("B")])] == [[1.0], [0.0]]


def test_both_orders_of_a_pair_share_a_number_and_no_other_pair_has_it(encoder):
    rows = [make_row(prompt=make_prompt(first=a, second=b)) for a, b in (("x", "y"), ("y", "x"), ("x", "z"))]
    numbers = [row["pair"][0] for row in tokenize(encoder, rows)]
    assert numbers[0] == numbers[1] != numbers[2]
    assert all(0 <= number < 2**63 for number in numbers)


def test_the_other_order_has_the_responses_the_label_and_the_target_swapped(encoder):
    swapped = make_row("B", make_prompt(first="two", second="one"), prob_a=0.25)
    both = tokenize(encoder, [make_row("A", prob_a=0.75)], in_both_orders=True)
    assert both == [*tokenize(encoder, [make_row("A", prob_a=0.75)]), *tokenize(encoder, [swapped])]


def test_a_pair_goes_whole_where_one_order_is_too_long(encoder):
    lengths, pairs = np.array([9, 11, 5, 7]), np.array([1, 1, 2, 3])
    assert find_longest_order(lengths, pairs).tolist() == [11, 11, 5, 7]


def drop(encoder, long, short, plugin_log):
    rows = [make_row(prompt=make_prompt("Q" * 40 + str(number))) for number in range(long)]
    rows += [make_row(prompt=make_prompt(f"{number:03}")) for number in range(short)]
    limit = len(tokenize(encoder, rows[-1:])[0]["input_ids"])
    assert len(tokenize(encoder, rows, sequence_len=limit)) == short
    return limit, [(r.levelno, r.getMessage()) for r in plugin_log]


def test_more_than_one_row_in_twenty_too_long_is_warned_of_with_counts_and_what_would_keep_them(encoder, plugin_log):
    limit, ((level, message),) = drop(encoder, 6, 94, plugin_log)
    assert level == logging.WARNING
    assert message.startswith("pairs.jsonl: 6 of 100 rows (6.0%) are dropped")
    assert f"longer than sequence_len {limit}; a sequence_len of {limit + 38}" in message


def test_a_few_rows_too_long_are_said_quietly(encoder, plugin_log):
    _, ((level, message),) = drop(encoder, 1, 99, plugin_log)
    assert level == logging.INFO
    assert "1 of 100 rows (1.0%)" in message


def test_rows_that_are_all_too_long_are_refused(encoder):
    with pytest.raises(DataError, match=r"none of its 1 rows fits into sequence_len 10, the longest of \d+ tokens"):
        tokenize(encoder, [make_row()], sequence_len=10)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"text": "x"}, "the columns are text; messages is required"),
        (make_row("C"), 'assistant message "A" or "B"'),
        ({"messages": [{"role": "user", "content": "x"}]}, "a row has the messages"),
        (make_row(prob_a=1.5), "prob_a is 1.5; 0 to 1 is required"),
        (make_row(prompt="no format"), "no format"),
    ],
)
def test_a_row_that_is_no_ab_row_is_refused(encoder, row, says):
    with pytest.raises(DataError, match=says):
        tokenize(encoder, [row])
