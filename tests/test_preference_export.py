"""Verdicts into preference rows: which response is chosen, with what probability, and what is left out."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pair_pm.preference import parse_standard
from pair_pm.preference_export import PairChoice, export_comparison, export_ranking

QUESTION = [{"role": "user", "content": "Q"}]


def make_verdict(prob_first):
    winner = "tie" if prob_first == 0.5 else "first" if prob_first > 0.5 else "second"
    return {"prob_first": prob_first, "winner": winner, "is_position_consistent": False, "position_gap": 0.25}


def export(responses, strengths, **choice):
    order = sorted(range(len(strengths)), key=lambda index: (-strengths[index], index))
    ranking = {"order": order, "strengths": strengths}
    rows = export_ranking({}, QUESTION, responses, ranking, PairChoice(**choice))
    return [(row["chosen"][-1]["content"], row["rejected"][-1]["content"]) for row in rows], rows


@given(st.floats(0, 1))
def test_the_likelier_response_is_chosen_and_the_row_is_a_valid_one(prob_first):
    row = export_comparison(
        {"id": 7, "source": "s", "label": "tie"}, QUESTION, "one", "two", make_verdict(prob_first), 0.5
    )
    if prob_first == 0.5:
        assert row == "tie"
        return
    pair = parse_standard(row)
    assert (pair.chosen, pair.rejected) == (("one", "two") if prob_first > 0.5 else ("two", "one"))
    assert pair.prob_chosen == max(prob_first, 1 - prob_first)
    assert (pair.id, pair.source, pair.subset, pair.is_tie) == ("7", "s", "", False)
    assert (row["is_position_consistent"], row["position_gap"]) == (False, 0.25)


@pytest.mark.parametrize(("prob_first", "is_kept"), [(0.8, True), (0.2, True), (0.79, False), (0.21, False)])
def test_verdicts_under_the_least_confidence_make_no_row(prob_first, is_kept):
    row = export_comparison({}, QUESTION, "one", "two", make_verdict(prob_first), 0.8)
    assert (row != "low_confidence") == is_kept


def test_keys_of_a_message_beside_role_and_content_are_left_out():
    messages = [{"role": "user", "content": "Q", "name": "x"}]
    assert export_comparison({}, messages, "one", "two", make_verdict(0.9), 0.5)["chosen"][0] == QUESTION[0]


def test_best_against_worst_by_hand():
    pairs, rows = export(["a", "b", "c"], [0.0, math.log(3), -math.log(3)])
    assert pairs == [("b", "c")]
    # Odds of 3 x 3 to 1.
    assert rows[0]["prob_chosen"] == pytest.approx(0.9)
    assert (rows[0]["chosen_score"], rows[0]["rejected_score"]) == (math.log(3), -math.log(3))
    assert parse_standard(rows[0]).prob_chosen == rows[0]["prob_chosen"]


def test_all_pairs_stand_above_the_margin():
    strengths = [2.0, 0.5, 0.0, -2.5]
    assert len(export("abcd", strengths, pairs="all")[0]) == 6
    assert export("abcd", strengths, pairs="all", min_margin=2)[0] == [("a", "c"), ("a", "d"), ("b", "d"), ("c", "d")]
    assert export("abcd", strengths, min_margin=5)[0] == []


def test_length_ratio_leaves_the_farthest_pair_that_is_within_it():
    responses, strengths = ["long " * 20, "middle", "short", "s"], [3.0, 1.0, 0.0, -1.0]
    assert export(responses, strengths)[0] == [(responses[0], "s")]
    assert export(responses, strengths, max_length_ratio=2)[0] == [("middle", "short")]
    assert export(responses, strengths, pairs="all", max_length_ratio=5)[0] == [("middle", "short"), ("short", "s")]
    assert export(["aaaaaa", "a"], [0.0, 1.0], max_length_ratio=5)[0] == []  # whichever of the two is the longer


def test_equals_make_no_pair():
    assert export("abc", [0.0, 0.0, 0.0], pairs="all")[0] == []
    assert export(["a", " a", "b"], [1.0, 0.5, 0.0], pairs="all")[0] == [("a", "b")]
    assert export(["a"], [0.0])[0] == []
