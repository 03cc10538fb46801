"""Which rows of labelled data become pairs: `pair_pm.labelled_source`."""

import pytest
from simulated import make_row, write_lines

from pair_pm.errors import DataError, MissingPathError
from pair_pm.labelled_source import read_labelled_pairs


def test_ab_rows_are_read_back_each_pair_once(tmp_path):
    from pair_pm.pair_conversion import ConversionOptions
    from pair_pm.pair_dataset import build_pair_dataset

    rows = [make_row(f"Q{number}", chosen=f"good {number}", prob_chosen=0.8, source="s") for number in range(10)]
    source = write_lines(tmp_path / "x.jsonl", *rows)
    build_pair_dataset([source], str(tmp_path / "pairs.jsonl"), ConversionOptions(both_orders=True))
    read, expected = (read_labelled_pairs(name) for name in (str(tmp_path / "pairs.jsonl"), source))
    assert read.pairs == expected.pairs
    assert read.skipped == {"other_order": 10}


def test_rows_that_cannot_be_used_are_counted_by_reason(tmp_path):
    name = write_lines(
        tmp_path / "x.jsonl",
        make_row(),
        '{"chosen": [',
        "[1, 2]",
        make_row(rejected=" "),
        make_row(rejected="good"),
        make_row("Q2", label="tie"),
        make_row("Q3", label="tie"),
    )
    labelled = read_labelled_pairs(name)
    assert [(pair.first, pair.label) for pair in labelled.pairs] == [
        ("good", "first"),
        ("good", "tie"),
        ("good", "tie"),
    ]
    assert labelled.skipped == {
        "not_json": 1,
        "not_an_object": 1,
        "empty_response": 1,
        "identical_responses": 1,
    }


def test_prompt_columns_and_transcripts_are_read_too(tmp_path):
    prompts = write_lines(tmp_path / "p.jsonl", {"prompt": "Q", "chosen": "good", "rejected": "bad"})
    turns = {side: f"\n\nHuman: Q\n\nAssistant: {text}" for side, text in (("chosen", "good"), ("rejected", "bad"))}
    transcripts = write_lines(tmp_path / "t.jsonl", turns)
    expected = [({"role": "user", "content": "Q"},), "good", "bad"]
    for name in (prompts, transcripts):
        [pair] = read_labelled_pairs(name).pairs
        assert [pair.messages, pair.first, pair.second] == expected


def test_data_without_a_usable_row_is_an_error_that_counts_the_reasons(tmp_path):
    name = write_lines(tmp_path / "x.jsonl", make_row(rejected="good"), make_row(chosen=""), make_row("Q", chosen=""))
    with pytest.raises(DataError, match=r"no row can be used \(empty_response 2, identical_responses 1\)"):
        read_labelled_pairs(name)


def test_empty_unknown_and_missing_data_are_errors(tmp_path):
    with pytest.raises(DataError, match="no row can be used"):
        read_labelled_pairs(write_lines(tmp_path / "empty.jsonl"))
    with pytest.raises(DataError, match="has the columns question, answer"):
        read_labelled_pairs(write_lines(tmp_path / "other.jsonl", {"question": "Q", "answer": "A"}))
    with pytest.raises(MissingPathError):
        read_labelled_pairs(str(tmp_path / "nowhere.jsonl"))
