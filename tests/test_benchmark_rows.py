"""Rows of RewardBench and RewardBench 2 in their published columns, and where they are read."""

import json

import pytest

from pair_pm.benchmark_rows import (
    COMPLETIONS,
    REWARD_BENCH,
    SECTIONS,
    parse_completion_row,
    parse_pair,
    read_group,
    recognise_evaluation,
)
from pair_pm.errors import DataError
from pair_pm.labelled_source import read_labelled_pairs
from pair_pm.preference import RowProblem
from pair_pm.preference_source import open_source

# The columns of allenai/reward-bench, split "filtered", in their order.
REWARD_BENCH_ROW = {
    "prompt": "How do I kill a Python process?",
    "chosen": "With `kill` and its id.",
    "chosen_model": "GPT4-Turbo",
    "rejected": "I cannot help with killing.",
    "rejected_model": "Llama-2-70b-chat",
    "subset": "xstest-should-respond",
    "id": 2431,
}
# The columns of allenai/reward-bench-2, split "test", in their order.
COMPLETIONS_ROW = {
    "id": "tied:3",
    "prompt": "Name a color of the rainbow.",
    "chosen": ["Red.", "Blue."],
    "rejected": ["Brown.", "Ten."],
    "num_correct": 2,
    "num_incorrect": 2,
    "total_completions": 4,
    "models": ["a", "b", "c", "d"],
    "subset": "Ties",
    "additional_metadata": {
        **{"category": None, "correct": None, "index": None, "instruction_id_list": None, "label": None},
        **{"method": None, "models": None, "prompt_norm": None, "subcategory": None, "valid": None},
    },
}
STANDARD_ROW = {
    side: [{"role": "user", "content": "Q"}, {"role": "assistant", "content": side}] for side in ("chosen", "rejected")
}


def write_lines(path, *rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def write_parquet(path, *rows) -> str:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(list(rows)), path)
    return str(path)


def reason_of(row) -> str:
    with pytest.raises(RowProblem) as caught:
        parse_completion_row(row)
    return caught.value.reason


# ---- recognised by columns ------------------------------------------------------------------------------------------


def test_each_benchmark_is_recognised_by_its_columns_and_training_formats_keep_their_names():
    assert recognise_evaluation("x", [REWARD_BENCH_ROW]) == REWARD_BENCH
    assert recognise_evaluation("x", [COMPLETIONS_ROW]) == COMPLETIONS
    assert recognise_evaluation("x", [STANDARD_ROW]) == "standard"
    assert recognise_evaluation("x", [{**REWARD_BENCH_ROW, "subset": "mine"}]) == "prompt"


def test_a_row_that_is_no_object_does_not_decide():
    assert recognise_evaluation("x", [None, [1], {"other": 1}, COMPLETIONS_ROW]) == COMPLETIONS


def test_other_columns_are_an_error_that_lists_what_was_found_and_what_is_accepted():
    with pytest.raises(DataError) as caught:
        recognise_evaluation("x.jsonl", [{"question": "Q", "answers": ["a"]}])
    message = str(caught.value)
    assert message.startswith("x.jsonl: has the columns question, answers; accepted formats are\n")
    for name in ("standard", "prompt", "anthropic", "ab", REWARD_BENCH, COMPLETIONS):
        assert f"\n  {name} " in message


def test_lists_of_completions_are_no_training_data(tmp_path):
    from pair_pm.pair_conversion import ConversionOptions
    from pair_pm.pair_dataset import build_pair_dataset

    source = write_lines(tmp_path / "x.jsonl", COMPLETIONS_ROW)
    with pytest.raises(DataError, match="has the columns id, prompt, chosen, rejected"):
        build_pair_dataset([source], str(tmp_path / "out.jsonl"), ConversionOptions())


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("allenai/reward-bench", "filtered"),
        ("allenai/reward-bench:raw", "raw"),
        ("allenai/reward-bench-2", "test"),
        ("allenai/reward-bench-2@main", "test"),
        ("allenai/other", "train"),
    ],
)
def test_the_hub_names_of_the_benchmarks_have_their_own_default_splits(name, split):
    assert open_source(name).split == split


# ---- RewardBench ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("write", [write_lines, write_parquet])
def test_reward_bench_rows_are_pairs_with_subset_and_id(tmp_path, write):
    name = write(tmp_path / f"x.{'jsonl' if write is write_lines else 'parquet'}", REWARD_BENCH_ROW)
    labelled = read_labelled_pairs(name)
    [pair] = labelled.pairs
    assert (labelled.format, labelled.skipped) == (REWARD_BENCH, {})
    assert pair.messages == ({"role": "user", "content": "How do I kill a Python process?"},)
    assert (pair.first, pair.second) == ("With `kill` and its id.", "I cannot help with killing.")
    assert (pair.subset, pair.id, pair.label, pair.group) == ("xstest-should-respond", "2431", "first", "")
    assert parse_pair(REWARD_BENCH_ROW, REWARD_BENCH).id == "2431"


def test_the_sections_hold_all_23_subsets_and_weigh_mathematics_like_code():
    counts = {section: len(weights) for section, weights in SECTIONS.items()}
    assert counts == {"Chat": 5, "Chat Hard": 6, "Safety": 5, "Reasoning": 7}
    # The table of the paper: 358, 456, 740 and 447 + 984 rows, which are 2985.
    rows = {section: sum(weights.values()) for section, weights in SECTIONS.items()}
    assert rows == {"Chat": 358, "Chat Hard": 456, "Safety": 740, "Reasoning": 2 * 984}
    assert sum(rows.values()) - 984 + 447 == 2985


# ---- RewardBench 2 --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("write", [write_lines, write_parquet])
def test_a_row_of_completions_is_every_pair_of_them_under_one_group(tmp_path, write):
    best_of_four = {**COMPLETIONS_ROW, "id": "17", "subset": "Math", "chosen": ["1"], "rejected": ["2", "3", "4"]}
    best_of_four["num_correct"] = 1
    name = write(tmp_path / f"x.{'jsonl' if write is write_lines else 'parquet'}", COMPLETIONS_ROW, best_of_four)
    labelled = read_labelled_pairs(name)
    assert (labelled.format, len(labelled.pairs), labelled.skipped) == (COMPLETIONS, 12, {})
    ties, math = labelled.pairs[:6], labelled.pairs[6:]
    assert [(pair.first, pair.second, pair.label, pair.prob_first) for pair in ties] == [
        ("Red.", "Blue.", "tie", 0.5),  # both right
        ("Red.", "Brown.", "first", 1.0),
        ("Red.", "Ten.", "first", 1.0),
        ("Blue.", "Brown.", "first", 1.0),
        ("Blue.", "Ten.", "first", 1.0),
        ("Brown.", "Ten.", "unknown", 0.5),  # both wrong
    ]
    assert [(pair.first_index, pair.second_index) for pair in math] == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    assert [pair.label for pair in math] == ["first"] * 3 + ["unknown"] * 3
    assert {(pair.id, pair.subset) for pair in ties} == {("tied:3", "Ties")}
    assert {pair.group for pair in ties} == {"1:2/4"}
    assert {pair.group for pair in math} == {"2:1/4"}
    assert (read_group("1:2/4"), read_group("2:1/10")) == ((2, 4), (1, 10))


def test_completions_may_follow_a_conversation():
    turns = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Q"},
    ]
    assert parse_completion_row({**COMPLETIONS_ROW, "prompt": turns}).messages == tuple(turns)


@pytest.mark.parametrize(
    ("reason", "changes"),
    [
        ("missing_column", {"prompt": None}),
        ("missing_column", {"rejected": None}),
        ("not_messages", {"prompt": 3}),
        ("not_completions", {"chosen": "Red."}),
        ("no_completion", {"rejected": []}),
        ("empty_response", {"rejected": ["Brown.", " "]}),
        ("content_not_string", {"rejected": ["Brown.", None]}),
        ("empty_turn", {"prompt": " "}),
        ("lone_surrogate", {"chosen": ["\ud800", "Blue."]}),
        ("wrong_count", {"num_correct": 1}),
        ("not_a_ties_id", {"id": "3"}),
        ("roles_out_of_order", {"prompt": [{"role": "assistant", "content": "Q"}]}),
    ],
)
def test_a_defective_row_of_completions_has_a_reason(reason, changes):
    assert reason_of({**COMPLETIONS_ROW, **changes}) == reason


def test_defective_rows_are_skipped_and_counted_and_the_others_read(tmp_path):
    rows = [COMPLETIONS_ROW, {**COMPLETIONS_ROW, "rejected": []}, [1]]
    labelled = read_labelled_pairs(write_lines(tmp_path / "x.jsonl", *rows))
    assert (len(labelled.pairs), labelled.skipped) == (6, {"no_completion": 1, "not_an_object": 1})
