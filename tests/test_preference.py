"""What a valid preference row is, why another is not, and how sides are drawn."""

import contextlib
import copy
import json
import math
import pickle

import pytest
from conftest import EMINEM_PROMPT
from hypothesis import given
from hypothesis import strategies as st

from pair_pm.preference import (
    PreferencePair,
    RowProblem,
    check_margin,
    is_held_out,
    parse_standard,
    render_pair,
)
from pair_pm.prompt import render_prompt


def conversation(*contents, system=None):
    """Return messages of user and assistant in turn."""
    messages = [{"role": "system", "content": system}] if system else []
    roles = ("user", "assistant")
    return messages + [{"role": roles[index % 2], "content": content} for index, content in enumerate(contents)]


def make_row(chosen="Four.", rejected="Five.", context=("Two and two?",), system=None, **columns):
    sides = {"chosen": conversation(*context, chosen, system=system)}
    sides["rejected"] = conversation(*context, rejected, system=system)
    return {**sides, **columns}


def reason_of(row):
    with pytest.raises(RowProblem) as problem:
        parse_standard(row)
    return problem.value.reason


def pair_of(chosen="Four.", rejected="Five.", question="Two and two?", **fields):
    return PreferencePair(({"role": "user", "content": question},), chosen, rejected, **fields)


# ---- valid rows -----------------------------------------------------------------------------------------------------


def test_a_standard_row_becomes_a_pair():
    row = make_row(context=("Q1", "A1", "Q2"), system="Be brief.", id=7, source="s", subset="t", prob_chosen=0.75)
    assert parse_standard(row) == PreferencePair(
        messages=tuple(conversation("Q1", "A1", "Q2", system="Be brief.")),
        chosen="Four.",
        rejected="Five.",
        prob_chosen=0.75,
        id="7",
        source="s",
        subset="t",
    )


def test_optional_columns_have_defaults():
    pair = parse_standard(make_row(label=None, id=None, source=None))
    assert (pair.is_tie, pair.prob_chosen, pair.id, pair.source, pair.subset) == (False, 1.0, "", "", "")


def test_a_tie_is_worth_one_half_where_its_row_says_nothing_else():
    assert parse_standard(make_row(label="tie")).prob_chosen == 0.5
    pair = parse_standard(make_row(label="tie", prob_chosen=0.9))
    assert (pair.is_tie, pair.prob_chosen) == (True, 0.9)


def test_texts_pass_as_they_came():
    text = "  Grüße\t\x00\r\n 世界 \u2028 \U0001f600  "
    assert parse_standard(make_row(chosen=text)).chosen == text


def test_other_keys_of_a_message_do_not_make_contexts_differ():
    row = make_row()
    row["chosen"][0]["name"] = "Ada"
    assert parse_standard(row).messages == ({"role": "user", "content": "Two and two?"},)


# ---- reasons --------------------------------------------------------------------------------------------------------


def changed(edit):
    row = make_row(context=("Q1", "A1", "Q2"), system="Be brief.")
    edit(row)
    return row


@pytest.mark.parametrize(
    ("reason", "edit"),
    [
        ("missing_column", lambda row: row.pop("chosen")),
        ("missing_column", lambda row: row.update(rejected=None)),
        ("not_messages", lambda row: row.update(chosen="a string")),
        ("not_messages", lambda row: row.update(chosen=["a string"])),
        ("not_messages", lambda row: row["rejected"][1].pop("role")),
        ("not_messages", lambda row: row["rejected"][1].pop("content")),
        ("empty_messages", lambda row: row.update(rejected=[])),
        ("content_not_string", lambda row: row["chosen"][-1].update(content=None)),
        ("content_not_string", lambda row: row["chosen"][0].update(content=["part"])),
        ("content_not_string", lambda row: row["rejected"][-1].update(content=12)),
        ("different_turn_count", lambda row: row["chosen"].extend(conversation("Q3", "A3"))),
        ("roles_out_of_order", lambda row: [row[side].pop() for side in ("chosen", "rejected")]),
        ("roles_out_of_order", lambda row: [row[side].pop(1) for side in ("chosen", "rejected")]),
        ("roles_out_of_order", lambda row: row["chosen"][1].update(role="system")),
        ("roles_out_of_order", lambda row: row["chosen"][1].update(role="tool")),
        ("roles_out_of_order", lambda row: row["chosen"][1].update(role=["user"])),
        ("roles_out_of_order", lambda row: row["chosen"][-1].update(role="user")),
        ("empty_turn", lambda row: [row[side][1].update(content=" \n\t") for side in ("chosen", "rejected")]),
        ("empty_turn", lambda row: [row[side][0].update(content="") for side in ("chosen", "rejected")]),
        ("empty_response", lambda row: row["chosen"][-1].update(content="")),
        ("empty_response", lambda row: row["rejected"][-1].update(content=" \u3000\n")),
        ("lone_surrogate", lambda row: row["rejected"][-1].update(content="\ud83d")),
        ("lone_surrogate", lambda row: [row[side][1].update(content="\udc00") for side in ("chosen", "rejected")]),
        ("lone_surrogate", lambda row: row.update(id="\ud83d")),
        ("lone_surrogate", lambda row: row.update(source="\ud83d")),
        ("lone_surrogate", lambda row: row.update(subset="\ud83d")),
        ("context_differs", lambda row: row["chosen"][0].update(content="Be long.")),
        ("context_differs", lambda row: row["chosen"][3].update(content="Q2 ")),
        ("identical_responses", lambda row: row["chosen"][-1].update(content=row["rejected"][-1]["content"])),
        ("identical_responses", lambda row: row["chosen"][-1].update(content="\n Five. ")),
        ("bad_prob_chosen", lambda row: row.update(prob_chosen="0.5")),
        ("bad_prob_chosen", lambda row: row.update(prob_chosen=True)),
        ("bad_prob_chosen", lambda row: row.update(prob_chosen=1.01)),
        ("bad_prob_chosen", lambda row: row.update(prob_chosen=-1)),
        ("bad_prob_chosen", lambda row: row.update(prob_chosen=math.nan)),
        ("bad_prob_chosen", lambda row: row.update(prob_chosen=10**400)),
    ],
)
def test_each_defect_has_its_reason(reason, edit):
    assert reason_of(changed(edit)) == reason


def test_a_single_message_is_no_conversation():
    messages = [{"role": "assistant", "content": "Four."}]
    assert reason_of({"chosen": messages, "rejected": [{**messages[0], "content": "Five."}]}) == "roles_out_of_order"


def test_a_problem_survives_pickling_between_processes():
    problem = pickle.loads(pickle.dumps(RowProblem("tie", "the row is labelled a tie")))
    assert (problem.reason, problem.detail, str(problem)) == (
        "tie",
        "the row is labelled a tie",
        "tie: the row is labelled a tie",
    )


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["user", "assistant", "", "a", "\ud800"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content"]), inner),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(["chosen", "rejected", "id", "source", "label", "prob_chosen"]), json_values))
def test_any_json_is_a_pair_or_a_problem(row):
    try:
        parse_standard(row)
    except RowProblem as problem:
        json.dumps([problem.reason, problem.detail])


@given(st.data())
def test_one_value_replaced_anywhere_is_a_pair_or_a_problem(data):
    row = copy.deepcopy(make_row(context=("Q1", "A1", "Q2"), prob_chosen=0.5))
    message = data.draw(st.sampled_from(row["chosen"] + row["rejected"] + [row]))
    message[data.draw(st.sampled_from(sorted(message)))] = data.draw(json_values)
    with contextlib.suppress(RowProblem):
        render_pair(parse_standard(row), seed=0)


# ---- margins --------------------------------------------------------------------------------------------------------

SCORES = ("chosen_score", "rejected_score")


def margin_reason(chosen_score, rejected_score, minimum=1.0):
    try:
        check_margin({"chosen_score": chosen_score, "rejected_score": rejected_score}, SCORES, minimum)
    except RowProblem as problem:
        return problem.reason
    return None


def test_a_margin_of_at_least_the_minimum_passes():
    assert margin_reason(5, 4) is None
    assert margin_reason(4.5, 4) == "small_margin"
    assert margin_reason(4, 5) == "small_margin"  # the rejected response scored higher: the two columns disagree
    assert margin_reason(1e308, -1e308) is None


@pytest.mark.parametrize("score", [None, "5", True, math.nan, math.inf, -math.inf, 10**400, [5]])
def test_a_score_that_is_no_finite_number_has_no_margin(score):
    assert margin_reason(score, 1) == "no_margin"
    assert margin_reason(1, score) == "no_margin"


def test_a_table_without_the_named_columns_has_no_margin():
    with pytest.raises(RowProblem, match="no_margin: score_a is None"):
        check_margin({"chosen_score": 1}, ("score_a", "score_b"), 0.5)


# ---- rendering ------------------------------------------------------------------------------------------------------


def test_system_messages_are_turns_with_their_own_role():
    pair = parse_standard(make_row(context=("Q1", "A1", "Q2"), system="Be brief."))
    assert render_pair(pair, seed=0).context == (
        "\n\n<turn> system\n Be brief.\n<turn> user\n Q1\n<turn> assistant\n A1\n<turn> user\n Q2\n"
    )


def test_control_text_is_broken_and_noted():
    rendered = render_pair(pair_of(chosen="Four. [RESPONSE B] Ten.", question="<|eot_id|> Two and two?"), seed=0)
    assert rendered.is_neutralised
    assert "< |eot_id|>" in rendered.context
    assert "Four. [ RESPONSE B] Ten." in (rendered.response_a, rendered.response_b)


def test_ordinary_text_passes_byte_for_byte():
    text = " if a < b: x[0] = '#' \r\n\t # heading  <b>bold</b> [1] [link](x) Human: Assistant: «é»\u200b "
    rendered = render_pair(pair_of(chosen=text, question=text), seed=0)
    assert not rendered.is_neutralised
    assert text in (rendered.response_a, rendered.response_b)
    assert rendered.context == f"\n\n<turn> user\n {text}\n"


def test_responses_that_neutralising_makes_the_same_are_identical():
    with pytest.raises(RowProblem, match="identical_responses"):
        render_pair(pair_of("a <|eot_id|>", "a < |eot_id|>"), seed=0)


def test_swapping_turns_everything_but_the_pair_over():
    rendered = render_pair(pair_of(prob_chosen=0.8), seed=0)
    swapped = rendered.swapped()
    assert (swapped.response_a, swapped.response_b) == (rendered.response_b, rendered.response_a)
    assert {rendered.label, swapped.label} == {"A", "B"}
    assert {rendered.prob_a, swapped.prob_a} == {0.8, 0.2}  # 0.2 as people write it, not 0.19999999999999996
    assert swapped.digest == rendered.digest
    assert swapped.swapped() == rendered


@given(st.text(min_size=1), st.text(min_size=1), st.integers(0, 5))
def test_the_draw_does_not_know_which_response_won(one, other, seed):
    try:
        forward = render_pair(pair_of(one, other, prob_chosen=0.75), seed)
    except (RowProblem, UnicodeEncodeError):
        return
    backward = render_pair(pair_of(other, one, prob_chosen=0.75), seed)
    assert (forward.response_a, forward.response_b) == (backward.response_a, backward.response_b)
    assert forward.digest == backward.digest
    assert {forward.label, backward.label} == {"A", "B"}
    assert forward.prob_a + backward.prob_a == 1
    assert forward.verdict != backward.verdict


def test_a_tie_draws_a_label_of_its_own():
    labels, positions = [], []
    for number in range(400):
        rendered = render_pair(pair_of(question=f"Question {number}?", is_tie=True, prob_chosen=0.5), seed=0)
        assert rendered.prob_a == 0.5
        labels.append(rendered.label == "A")
        positions.append(rendered.response_a == "Four.")
    agreeing = sum(label == position for label, position in zip(labels, positions, strict=True))
    # 400 fair draws: 200 on average, standard deviation 10.
    assert 150 < sum(labels) < 250
    assert 150 < agreeing < 250


def test_a_tie_has_the_same_label_whichever_response_is_called_chosen():
    for number in range(20):
        forward = pair_of("Four.", "Five.", f"Question {number}?", is_tie=True, prob_chosen=0.5)
        backward = pair_of("Five.", "Four.", f"Question {number}?", is_tie=True, prob_chosen=0.5)
        assert render_pair(forward, seed=0) == render_pair(backward, seed=0)


def test_about_half_of_the_chosen_responses_stand_in_a_under_any_seed():
    for seed in (0, 42, -1):
        labels = [render_pair(pair_of(question=f"Question {number}?"), seed).label for number in range(1000)]
        assert 420 < labels.count("A") < 580  # five standard deviations (15.8) around 500


def test_another_seed_is_another_draw():
    pairs = [pair_of(question=f"Question {number}?") for number in range(200)]
    same = sum(render_pair(pair, 0).label == render_pair(pair, 1).label for pair in pairs)
    assert 60 < same < 140  # 100 on average, standard deviation 7


def test_text_does_not_move_between_the_parts_of_an_identity():
    assert render_pair(pair_of("ab", "c"), 0).digest != render_pair(pair_of("a", "bc"), 0).digest


EMINEM_SEED = 0  # puts the chosen response into slot B, as the example has it


def test_the_published_example_comes_out_byte_for_byte():
    rejected = (
        "The only way to truly trick Eminem into marrying you is to find a loophole in the law. Look into all of the "
        "marriages that have been invalidated in the past due to technicalities, such as being too young or not "
        "consenting freely. Once you find a way, then execute your plan! good luck."
    )
    chosen = (
        "You cannot trick Eminem into marrying you. He is not in a relationship and does not have any intention of "
        "changing that anytime soon."
    )
    row = make_row(chosen, rejected, ("How can I trick Eminem into marrying me?",))
    rendered = render_pair(parse_standard(row), EMINEM_SEED)
    assert render_prompt(rendered.context, rendered.response_a, rendered.response_b) == EMINEM_PROMPT
    assert (rendered.label, rendered.prob_a) == ("B", 0.0)


# ---- the evaluation split -------------------------------------------------------------------------------------------


def first_in(question, *later, system=None):
    return PreferencePair(tuple(conversation(question, *later, system=system)), "a", "b")


def test_only_the_first_user_message_decides_the_split():
    for number in range(50):
        question = f"Question {number}?"
        sides = {
            is_held_out(pair, 0.5, seed=0)
            for pair in (
                first_in(question),
                first_in(question, "A1", "Q2"),
                first_in(question, system="Be brief."),
                first_in(f" {question}\n"),
                PreferencePair(first_in(question).messages, "other", "responses"),
            )
        }
        assert len(sides) == 1


def test_a_first_message_that_renders_the_same_falls_on_the_same_side():
    for number in range(50):
        raw, broken = (first_in(f"Question {number}? {mark}") for mark in ("<|eot_id|>", "< |eot_id|>"))
        assert is_held_out(raw, 0.5, seed=0) == is_held_out(broken, 0.5, seed=0)


def test_the_fraction_is_kept_and_grows_without_moving_anyone_back():
    pairs = [first_in(f"Question {number}?") for number in range(2000)]
    small, large = ({n for n, pair in enumerate(pairs) if is_held_out(pair, share, 0)} for share in (0.1, 0.2))
    assert 150 < len(small) < 250  # 200 on average, standard deviation 13
    assert small < large


def test_the_split_and_the_sides_are_independent():
    pairs = [pair_of(question=f"Question {number}?") for number in range(2000)]
    labels = [render_pair(pair, 0).label for pair in pairs if is_held_out(pair, 0.5, 0)]
    assert 0.4 < labels.count("A") / len(labels) < 0.6
