"""Formats of preference tables: recognised by columns and types, and read into the same pairs."""

import json

import pytest

from pair_pm.errors import DataError
from pair_pm.preference import RowProblem, parse_standard
from pair_pm.preference_formats import PARSERS, parse_anthropic, parse_prompt_row, parse_row, recognise_format
from pair_pm.prompt import render_context, render_prompt


def turns(*contents, system=None):
    roles = ("user", "assistant")
    messages = [{"content": content, "role": roles[index % 2]} for index, content in enumerate(contents)]
    return [{"content": system, "role": "system"}, *messages] if system else messages


def answer(text):
    return [{"role": "assistant", "content": text}]


STANDARD = {"chosen": turns("Q", "good"), "rejected": turns("Q", "bad")}
EXPECTED = parse_standard(STANDARD)


def parse(row):
    return PARSERS[recognise_format("here", [row])](row)


def reason_of(parser, row):
    with pytest.raises(RowProblem) as problem:
        parser(row)
    return problem.value.reason


# ---- published schemas ----------------------------------------------------------------------------------------------

SCORES = {"chosen_score": 4.0, "rejected_score": 1.5}


@pytest.mark.parametrize(
    ("format", "row"),
    [
        # hendrydong/preference_700K, weqweasdas/preference_dataset_mix2, RLHFlow/*-standard and the like
        ("standard", {"rejected": STANDARD["rejected"], **SCORES, "chosen": STANDARD["chosen"]}),
        ("standard", {**STANDARD, "chosen_score": None, "rejected_score": None}),
        # HuggingFaceH4/ultrafeedback_binarized
        ("standard", {"prompt": "Q", "prompt_id": "1f", **STANDARD, "messages": turns("Q", "good"),
                      "score_chosen": 8.0, "score_rejected": 3.0}),
        # trl-lib/ultrafeedback-prompt, tldr-preference and other sets of TRL: standard and conversational
        ("prompt", {"prompt": "Q", "chosen": "good", "rejected": "bad"}),
        ("prompt", {"prompt": turns("Q"), "chosen": answer("good"), "rejected": answer("bad")}),
        # mixtures
        ("prompt", {"prompt": "Q", "chosen": answer("good"), "rejected": answer("bad")}),
        ("prompt", {"prompt": turns("Q"), "chosen": "good", "rejected": "bad"}),
        ("prompt", {"prompt": turns("Q"), "chosen": "good", "rejected": answer("bad")}),
        # TRL's implicit prompt
        ("standard", STANDARD),
        # Anthropic/hh-rlhf, and Dahoas/full-hh-rlhf, which cuts the response off
        ("anthropic", {"chosen": "\n\nHuman: Q\n\nAssistant: good", "rejected": "\n\nHuman: Q\n\nAssistant: bad"}),
        ("prompt", {"prompt": "\n\nHuman: Q\n\nAssistant:", "chosen": " good", "rejected": " bad"}),
    ],
)  # fmt: skip
def test_published_schemas_are_recognised_and_give_the_same_pair(format, row):
    assert recognise_format("here", [row]) == format
    assert parse(row) == EXPECTED


def test_optional_columns_survive_every_format():
    columns = {"id": 3, "source": "s", "subset": "t", "prob_chosen": 0.75}
    rows = (
        STANDARD,
        {"prompt": "Q", "chosen": "good", "rejected": "bad"},
        {"chosen": "\n\nHuman: Q\n\nAssistant: good", "rejected": "\n\nHuman: Q\n\nAssistant: bad"},
    )
    for row in rows:
        pair = parse({**row, **columns})
        assert (pair.id, pair.source, pair.subset, pair.prob_chosen) == ("3", "s", "t", 0.75)


# ---- recognition ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bad",
    [
        "a string",
        {},
        {"prompt": "Q", "chosen": None, "rejected": None},
        {"prompt": "Q", "chosen": [], "rejected": []},
        {"prompt": "Q", "chosen": turns("Q", "good"), "rejected": []},
        {"prompt": "Q", "chosen": [{"role": ["user"]}], "rejected": ["x"]},
    ],
)
def test_a_bad_first_row_does_not_decide_for_the_table(bad):
    assert recognise_format("here", [bad, {"prompt": "Q", **STANDARD}]) == "standard"


@pytest.mark.parametrize(
    "row",
    [
        {"question": "Q", "answer": "A"},
        {"chosen": "a plain string", "rejected": "another"},
        {"prompt": "Q", "response": "A"},
        {"messages": turns("Q", "A")},
    ],
)
def test_an_unknown_table_is_an_error_with_its_columns_and_the_accepted_formats(row):
    with pytest.raises(DataError) as error:
        recognise_format("x.jsonl", [row])
    message = str(error.value)
    assert message.startswith(f"x.jsonl: has the columns {', '.join(row)}; accepted formats are\n")
    for name in ("standard", "prompt", "anthropic"):
        assert f"\n  {name} " in message


def test_a_table_without_an_object_says_so():
    with pytest.raises(DataError, match="here: has no row that is an object; accepted formats are"):
        recognise_format("here", [1, "two", None])


# ---- explicit prompts -----------------------------------------------------------------------------------------------


def test_a_prompt_may_hold_several_turns_and_a_system_message():
    prompt = turns("Q1", "A1", "Q2", system="Be brief.")
    pair = parse_prompt_row({"prompt": prompt, "chosen": "good", "rejected": "bad"})
    assert list(pair.messages) == prompt


@pytest.mark.parametrize(
    ("reason", "change"),
    [
        ("missing_column", {"prompt": None}),
        ("not_messages", {"prompt": 12}),
        ("empty_turn", {"prompt": " "}),
        ("roles_out_of_order", {"prompt": []}),
        ("roles_out_of_order", {"prompt": turns("Q", "A")}),
        ("missing_column", {"chosen": None}),
        ("empty_messages", {"chosen": []}),
        ("empty_response", {"rejected": "  "}),
        ("not_messages", {"rejected": 12}),
        ("different_turn_count", {"rejected": answer("bad") + turns("Q2", "A2")}),
        ("identical_responses", {"rejected": answer("good ")}),
        ("content_not_string", {"prompt": "\n\nHuman: Q\n\nAssistant:", "chosen": answer("good")}),
    ],
)
def test_defects_of_explicit_prompts_have_reasons(reason, change):
    assert reason_of(parse_prompt_row, {"prompt": "Q", "chosen": "good", "rejected": "bad", **change}) == reason


# ---- transcripts ----------------------------------------------------------------------------------------------------


def transcripts(context, chosen="good", rejected="bad"):
    return {"chosen": f"{context}\n\nAssistant: {chosen}", "rejected": f"{context}\n\nAssistant: {rejected}"}


def test_transcripts_are_cut_into_turns():
    pair = parse_anthropic(transcripts("\n\nHuman: Q1\n\nwith a paragraph \n\nAssistant: A1\n\nHuman: Q2"))
    assert list(pair.messages) == turns("Q1\n\nwith a paragraph", "A1", "Q2")
    assert (pair.chosen, pair.rejected) == ("good", "bad")


@pytest.mark.parametrize(
    ("reason", "row"),
    [
        ("role_marker_in_turn", transcripts("\n\nHuman: Q", chosen="good\nHuman: more")),
        ("role_marker_in_turn", transcripts("\n\nHuman: Q", rejected="The Assistant: said")),
        ("role_marker_in_turn", transcripts("\n\nHuman: Assistant: Q")),
        ("empty_response", transcripts("\n\nHuman: Q", chosen="")),
        ("roles_out_of_order", transcripts("\n\nHuman: Q\n\nHuman: Q2")),
        ("context_differs", {**transcripts("\n\nHuman: Q"), "rejected": "\n\nHuman: R\n\nAssistant: bad"}),
        ("different_turn_count", {**transcripts("\n\nHuman: Q"), "chosen": "\n\nHuman: Q"}),
        ("not_a_transcript", {**transcripts("\n\nHuman: Q"), "chosen": "Q"}),
        ("not_a_transcript", {**transcripts("\n\nHuman: Q"), "chosen": "Hello\n\nHuman: Q\n\nAssistant: good"}),
        ("content_not_string", {**transcripts("\n\nHuman: Q"), "chosen": 12}),
        ("missing_column", {"chosen": "\n\nHuman: Q\n\nAssistant: good"}),
    ],
)
def test_defects_of_transcripts_have_reasons(reason, row):
    assert reason_of(parse_anthropic, row) == reason


@pytest.mark.parametrize("text", ["Superhuman: no", "human: no", "Humans: no", "Human : no", "Human"])
def test_what_only_resembles_a_role_marker_is_text(text):
    assert parse_anthropic(transcripts("\n\nHuman: Q", chosen=text)).chosen == text


# ---- real transcripts -----------------------------------------------------------------------------------------------


def test_raw_hh_rlhf_loses_its_structural_defects_and_nothing_else(shared_dir):
    data = shared_dir / "data"
    index = map(json.loads, (data / "hh-rlhf-raw-defects.index.jsonl").open(encoding="utf-8"))
    structural = {entry["line"] for entry in index if entry["structural"]}
    dropped = {}
    for number, line in enumerate((data / "hh-rlhf-raw-defects.jsonl").open(encoding="utf-8"), start=1):
        try:
            parse_anthropic(json.loads(line))
        except RowProblem as problem:
            dropped[number] = problem.reason
    assert len(structural) == 111
    assert set(dropped) == structural
    assert all(dropped.values())


# ---- A/B rows -------------------------------------------------------------------------------------------------------


def make_ab_row(answer="A", first="good", second="bad", **more) -> dict:
    turns = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Q"}]
    prompt = render_prompt(render_context(turns), first, second)
    return {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}], **more}


def test_an_ab_row_gives_back_the_pair_it_was_made_of():
    assert recognise_format("x", [make_ab_row()]) == "ab"
    pair = parse_row(make_ab_row("B", "bad", "good", prob_a=0.3, subset="s"), "ab")
    assert [message["content"] for message in pair.messages] == ["Be kind.", "Q"]
    assert (pair.chosen, pair.rejected, pair.prob_chosen, pair.is_tie, pair.subset) == ("good", "bad", 0.7, False, "s")


def test_an_ab_row_whose_target_is_one_half_is_a_tie():
    assert parse_row(make_ab_row(prob_a=0.5), "ab").is_tie


@pytest.mark.parametrize(
    "row",
    [make_ab_row("C"), {"messages": []}, {"messages": [{"role": "user", "content": "x"}] * 2}, {"messages": None}],
)
def test_a_row_that_is_no_ab_row_is_dropped_with_the_reason(row):
    with pytest.raises(RowProblem, match="not_an_ab_row"):
        parse_row(row, "ab")
