"""Metrics on labelled pairs, by hand, and which rows are skipped: `pair_pm.evaluation`."""

import json
import math

import numpy as np
import pytest
from conftest import make_small_tokenizer

from pair_pm.errors import DataError, MissingPathError
from pair_pm.evaluation import compare_labelled, compute_metrics, read_labelled_pairs
from pair_pm.scoring import PairScorer, compare_logprobs
from pair_pm.tokens import PromptEncoder


def judge(in_a: float, in_b: float, label_mass: float = 1.0):
    """Return the comparison in which the first response has these probabilities in slot A and slot B."""
    return compare_logprobs(np.log(np.array([[in_a, 1 - in_a], [1 - in_b, in_b]]) * label_mass))


def make_row(question: str = "Q", chosen: str = "good", rejected: str = "bad", **more) -> dict:
    turns = [{"role": "user", "content": question}]
    sides = {"chosen": chosen, "rejected": rejected}
    return {side: [*turns, {"role": "assistant", "content": text}] for side, text in sides.items()} | more


def write_lines(path, *rows) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


class AlwaysA:
    """An engine with nothing but position bias."""

    max_prompt_tokens = None

    def __init__(self):
        self.batches = []

    def label_logprobs(self, prompts):
        """Answer "A" with 0.9 to everything."""
        self.batches.append(len(prompts))
        return np.log([[0.9, 0.1]] * len(prompts))


def test_metrics_by_hand():
    metrics = compute_metrics(
        [
            judge(0.9, 0.8),  # right in both orders
            judge(0.9, 0.2),  # right on average, 0.55, but the orders disagree
            judge(0.5, 0.5, label_mass=0.4),  # a tie in both orders
            judge(0.1, 0.4),  # wrong in both orders
        ]
    )
    # (1 + 1 + 0.5 + 0) / 4 = 0.625; three of four verdicts survive the swap.
    assert (metrics.pairs, metrics.accuracy, metrics.predicted_ties) == (4, 0.625, 1)
    assert metrics.position_consistency == 0.75
    assert metrics.lowest_label_mass == pytest.approx(0.4)


def test_metrics_of_a_slot_by_hand():
    # P(A) is 0.9 and 0.2, then 0.9 and 0.8: A is answered three times of four.
    metrics = compute_metrics([judge(0.9, 0.8), judge(0.9, 0.2, label_mass=0.5)])
    assert metrics.prob_a == 0.75
    log_odds = [math.log(p / (1 - p)) for p in (0.9, 0.2, 0.9, 0.8)]
    assert metrics.order_bias == pytest.approx(sum(log_odds) / 4)
    # The first response is wanted: A in the first order of each pair, B in the second.
    assert metrics.label_loss == pytest.approx(-(math.log(0.9) + math.log(0.8) + math.log(0.9) + math.log(0.2)) / 4)
    assert metrics.label_mass == pytest.approx(0.75)


def test_label_loss_of_a_coin_is_ln_2_whatever_the_targets():
    metrics = compute_metrics([judge(0.5, 0.5)] * 3, prob_first=[1.0, 0.3, 0.5])
    assert metrics.label_loss == pytest.approx(math.log(2))


def test_label_loss_is_taken_against_the_votes_and_is_least_where_they_are_met():
    def loss(prob):
        return compute_metrics([judge(prob, prob)], prob_first=[0.8]).label_loss

    assert loss(0.8) == pytest.approx(-(0.8 * math.log(0.8) + 0.2 * math.log(0.2)))
    assert loss(0.8) < min(loss(0.7), loss(0.9))


def test_comparer_that_always_says_a_has_accuracy_one_half_and_no_consistency(tmp_path):
    rows = [make_row(f"Q{number}", "good" * (number % 3 + 1)) for number in range(20)]
    labelled = read_labelled_pairs(write_lines(tmp_path / "x.jsonl", *rows))
    scorer = PairScorer(AlwaysA(), PromptEncoder(make_small_tokenizer()))
    _, comparisons = compare_labelled(scorer, labelled)
    metrics = compute_metrics(comparisons)
    assert (metrics.pairs, metrics.accuracy, metrics.position_consistency) == (20, 0.5, 0.0)
    assert metrics.predicted_ties == 20


def test_ab_rows_are_read_back_each_pair_once(tmp_path):
    from pair_pm.pair_conversion import ConversionOptions
    from pair_pm.pair_dataset import build_pair_dataset

    rows = [make_row(f"Q{number}", chosen=f"good {number}", prob_chosen=0.8, source="s") for number in range(10)]
    source = write_lines(tmp_path / "x.jsonl", *rows)
    build_pair_dataset([source], str(tmp_path / "pairs.jsonl"), ConversionOptions(both_orders=True))
    read, expected = (read_labelled_pairs(name) for name in (str(tmp_path / "pairs.jsonl"), source))
    assert read.pairs == expected.pairs
    assert read.skipped == {"other_order": 10}


def test_chosen_response_is_the_first_and_all_pairs_are_compared_in_order(tmp_path):
    rows = [make_row(f"Q{number}", chosen=f"good {number}") for number in range(300)]  # more than one call's worth
    labelled = read_labelled_pairs(write_lines(tmp_path / "x.jsonl", *rows))
    asked = []

    class Recorder:
        def compare_each(self, items):
            asked.extend(items)
            return [judge(0.9, 0.9) for _ in items]

    pairs, comparisons = compare_labelled(Recorder(), labelled)
    assert pairs == labelled.pairs
    assert len(comparisons) == 300
    assert [(list(messages), first, second) for messages, first, second in asked] == [
        ([{"role": "user", "content": f"Q{number}"}], f"good {number}", "bad") for number in range(300)
    ]


def test_a_pair_too_long_for_the_model_is_skipped_and_counted(tmp_path):
    from pair_pm.recipe import Recipe

    rows = [make_row(f"Q{number}", chosen="good " * (500 if number in (3, 11) else 1)) for number in range(20)]
    labelled = read_labelled_pairs(write_lines(tmp_path / "x.jsonl", *rows))
    scorer = PairScorer(AlwaysA(), PromptEncoder(make_small_tokenizer()), Recipe(sequence_len=400))
    pairs, comparisons = compare_labelled(scorer, labelled)
    assert [pair.chosen for pair in pairs] == ["good "] * 18
    assert len(comparisons) == 18
    assert labelled.skipped == {"too_long": 2}


def test_pairs_that_are_all_too_long_are_an_error(tmp_path):
    from pair_pm.recipe import Recipe

    labelled = read_labelled_pairs(write_lines(tmp_path / "x.jsonl", make_row()))
    scorer = PairScorer(AlwaysA(), PromptEncoder(make_small_tokenizer()), Recipe(sequence_len=5))
    with pytest.raises(DataError, match="all are too long"):
        compare_labelled(scorer, labelled)


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
    assert [pair.chosen for pair in labelled.pairs] == ["good"]
    assert labelled.skipped == {
        "not_json": 1,
        "not_an_object": 1,
        "empty_response": 1,
        "identical_responses": 1,
        "tie": 2,
    }


def test_prompt_columns_and_transcripts_are_read_too(tmp_path):
    prompts = write_lines(tmp_path / "p.jsonl", {"prompt": "Q", "chosen": "good", "rejected": "bad"})
    turns = {side: f"\n\nHuman: Q\n\nAssistant: {text}" for side, text in (("chosen", "good"), ("rejected", "bad"))}
    transcripts = write_lines(tmp_path / "t.jsonl", turns)
    expected = [({"role": "user", "content": "Q"},), "good", "bad"]
    for name in (prompts, transcripts):
        [pair] = read_labelled_pairs(name).pairs
        assert [pair.messages, pair.chosen, pair.rejected] == expected


def test_data_without_a_usable_row_is_an_error_that_counts_the_reasons(tmp_path):
    name = write_lines(tmp_path / "x.jsonl", make_row(label="tie"), make_row("Q2", label="tie"), make_row(chosen=""))
    with pytest.raises(DataError, match=r"no row can be used \(tie 2, empty_response 1\)"):
        read_labelled_pairs(name)


def test_empty_unknown_and_missing_data_are_errors(tmp_path):
    with pytest.raises(DataError, match="no row can be used"):
        read_labelled_pairs(write_lines(tmp_path / "empty.jsonl"))
    with pytest.raises(DataError, match="has the columns question, answer"):
        read_labelled_pairs(write_lines(tmp_path / "other.jsonl", {"question": "Q", "answer": "A"}))
    with pytest.raises(MissingPathError):
        read_labelled_pairs(str(tmp_path / "nowhere.jsonl"))
