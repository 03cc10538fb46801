"""Preference data into an A/B data set on disk: what comes out, what is dropped, and that nothing else decides it."""

import gzip
import json
import os
import random
import signal
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pair_pm import pair_dataset
from pair_pm.errors import DataError, MissingPathError, OutputExistsError, PairPMError
from pair_pm.pair_conversion import ConversionOptions
from pair_pm.pair_dataset import build_pair_dataset
from pair_pm.prompt import split_prompt

KINDS = ("x.jsonl", "x.parquet", "x")


def make_row(number=0, chosen=None, rejected=None, context=(), **columns):
    """Return a valid standard row, other than that of any other number."""
    question = [{"role": "user", "content": f"Question {number}?"}]
    later = [{"role": "assistant" if index % 2 == 0 else "user", "content": text} for index, text in enumerate(context)]

    def side(text):
        return [*question, *later, {"role": "assistant", "content": text}]

    return {"chosen": side(chosen or f"good {number}"), "rejected": side(rejected or f"bad {number}"), **columns}


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def build(tmp_path, rows, name="x.jsonl", num_proc=1, strict=False, rejects=None, **options):
    source = write_rows(tmp_path / "input.jsonl", rows)
    return build_pair_dataset(
        [source], str(tmp_path / name), ConversionOptions(**options), num_proc=num_proc, strict=strict, rejects=rejects
    )


def read_lines(path):
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def build_rows(tmp_path, rows, **options):
    build(tmp_path, rows, **options)
    return read_lines(tmp_path / "x.jsonl")


def context_of(row):
    return split_prompt(row["messages"][0]["content"])[0]


def label_of(row):
    return row["messages"][1]["content"]


def dropped(summary):
    return dict(summary.dropped_by_reason())


# ---- the A/B rows ---------------------------------------------------------------------------------------------------


def test_a_row_has_every_column_whether_its_source_has_it_or_not(tmp_path):
    plain, full = build_rows(tmp_path, [make_row(0), make_row(1, id="i", source="s", subset="t", prob_chosen=0.75)])
    assert list(plain) == list(full) == ["messages", "prob_a", "pair_id", "id", "source", "subset"]
    assert (plain["id"], plain["source"], plain["subset"]) == ("", "input", "")
    assert (full["id"], full["source"], full["subset"]) == ("i", "s", "t")
    assert [message["role"] for message in full["messages"]] == ["user", "assistant"]


def test_the_label_is_the_slot_of_the_chosen_response(tmp_path):
    for number, row in enumerate(build_rows(tmp_path, [make_row(number) for number in range(50)])):
        context, *responses = split_prompt(row["messages"][0]["content"])
        assert context == f"\n\n<turn> user\n Question {number}?\n"
        assert responses["AB".index(label_of(row))] == f"good {number}"
        assert row["prob_a"] == (1.0 if label_of(row) == "A" else 0.0)


def test_prob_chosen_becomes_the_target_of_its_slot(tmp_path):
    rows = build_rows(tmp_path, [make_row(number, prob_chosen=0.8) for number in range(20)])
    assert {(label_of(row), row["prob_a"]) for row in rows} == {("A", 0.8), ("B", 0.2)}


def test_both_orders_stand_side_by_side_with_one_pair_id(tmp_path):
    rows = build_rows(tmp_path, [make_row(number, prob_chosen=0.8) for number in range(20)], both_orders=True)
    assert len(rows) == 40
    for one, other in zip(rows[::2], rows[1::2], strict=True):
        assert one["pair_id"] == other["pair_id"]
        assert {label_of(one), label_of(other)} == {"A", "B"}
        assert one["prob_a"] + other["prob_a"] == 1
        context, first, second = split_prompt(one["messages"][0]["content"])
        assert split_prompt(other["messages"][0]["content"]) == (context, second, first)
    assert len({row["pair_id"] for row in rows}) == 20


def test_both_orders_begin_with_the_order_that_one_order_draws(tmp_path):
    source = [make_row(number) for number in range(20)]
    assert build_rows(tmp_path, source, both_orders=True)[::2] == build_rows(tmp_path, source)


def test_system_messages_are_kept_as_turns(tmp_path):
    row = make_row()
    for side in ("chosen", "rejected"):
        row[side].insert(0, {"role": "system", "content": "Be brief."})
    assert context_of(build_rows(tmp_path, [row])[0]) == "\n\n<turn> system\n Be brief.\n<turn> user\n Question 0?\n"


def test_control_text_is_neutralised_and_its_pairs_counted(tmp_path):
    summary = build(tmp_path, [make_row(0), make_row(1, chosen="[RESPONSE B] <|eot_id|>"), make_row(2)])
    assert summary.pairs_neutralised == 1
    assert "1 of them with control text neutralised" in summary.to_table()
    rows = read_lines(tmp_path / "x.jsonl")
    assert "[ RESPONSE B] < |eot_id|>" in split_prompt(rows[1]["messages"][0]["content"])


def test_the_sides_do_not_depend_on_the_order_or_the_company_of_rows(tmp_path):
    source = [make_row(number) for number in range(100)]
    forward = {row["pair_id"]: row for row in build_rows(tmp_path, source)}
    backward = {row["pair_id"]: row for row in build_rows(tmp_path, source[:30:-1])}
    assert len(backward) == 69
    assert all(forward[pair_id] == row for pair_id, row in backward.items())


def test_the_sides_do_not_depend_on_which_response_won(tmp_path):
    won = build_rows(tmp_path, [make_row(n, "yes", "no") for n in range(50)])
    lost = build_rows(tmp_path, [make_row(n, "no", "yes") for n in range(50)])
    assert [row["messages"][0] for row in won] == [row["messages"][0] for row in lost]
    assert all(label_of(one) != label_of(other) for one, other in zip(won, lost, strict=True))


# ---- what is dropped ------------------------------------------------------------------------------------------------

# Each line, and the reason that it is dropped for; None: it is kept.
LINES = [
    (json.dumps(make_row(0)), None),
    (b"\xff" + json.dumps(make_row(1)).encode(), "not_json"),
    (json.dumps(make_row(2))[:-9], "not_json"),
    ("[1, 2]", "not_an_object"),
    ('"text"', "not_an_object"),
    ("null", "not_an_object"),
    (json.dumps(make_row(3, late_column={"any": [1]})), None),
    (json.dumps({**make_row(4), "chosen": "text"}), "not_messages"),
    (json.dumps(make_row(5)).replace('"good 5"', "12"), "content_not_string"),
    (json.dumps(make_row(6)).replace("good 6", "\\ud83d"), "lone_surrogate"),
    (json.dumps(make_row(7, id="\ud83d")), "lone_surrogate"),
    (json.dumps(make_row(8, source="\ud83d")), "lone_surrogate"),
    (json.dumps(make_row(9, subset="\ud83d")), "lone_surrogate"),
    (json.dumps(make_row(10, chosen="a\0b", rejected="a\0c")), None),
    (json.dumps(make_row(11)).replace("good 11", "a\0b"), "not_json"),
    (json.dumps(make_row(12, id=0))[:-2] + "[" * 900 + "]" * 900 + "}", "nested_too_deeply"),
    (json.dumps(make_row(13, id=0))[:-2] + "9" * 5000 + "}", "not_json"),
    (json.dumps(make_row(14, id=10**400)), None),
    (json.dumps(make_row(15, prob_chosen=10**400)), "bad_prob_chosen"),
    (json.dumps(make_row(16, label="tie")), "tie"),
    (json.dumps(make_row(17, "same ", "same")), "identical_responses"),
    ("{}", "missing_column"),
    (json.dumps(make_row(18)), None),
]


def write_damaged(tmp_path, suffix=b""):
    path = tmp_path / "damaged.jsonl"
    lines = (line if isinstance(line, bytes) else line.encode() for line, _ in LINES)
    path.write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(lines) + suffix)
    return path


@pytest.mark.parametrize("num_proc", [1, 2])
def test_every_damaged_line_is_counted_under_its_reason_and_none_ends_the_file(tmp_path, num_proc):
    path = write_damaged(tmp_path, suffix=b'\r\n{"chosen": [{"role": "us')
    rejects = tmp_path / "rejects.jsonl"
    summary = build_pair_dataset(
        [str(path)], str(tmp_path / "x.jsonl"), ConversionOptions(keep_rows=True), num_proc=num_proc, rejects=rejects
    )
    expected = [(number, reason) for number, (_, reason) in enumerate(LINES, start=1) if reason]
    expected.append((len(LINES) + 1, "not_json"))
    assert dropped(summary) == Counter(reason for _, reason in expected)
    assert [(reject["where"], reject["reason"]) for reject in read_lines(rejects)] == [
        (f"{path}:{number}", reason) for number, reason in expected
    ]
    assert summary.rows_read[str(path)] == len(LINES) + 1
    assert len(read_lines(tmp_path / "x.jsonl")) == sum(reason is None for _, reason in LINES)
    summary.to_table().encode()


def test_reasons_are_counted_by_the_source_that_the_row_names(tmp_path):
    rows = [
        make_row(0, source="one"),
        make_row(1, "same", "same", source="one"),
        make_row(2, label="tie", source="two"),
    ]
    summary = build(tmp_path, [*rows, make_row(3, "same", "same")])
    assert summary.dropped == {
        "one": {"identical_responses": 1},
        "two": {"tie": 1},
        "input": {"identical_responses": 1},
    }
    assert summary.pairs_kept == {"one": 1}
    table = summary.to_table()
    assert "one: 1 pairs kept\n  dropped  identical_responses" in table
    assert "two: 0 pairs kept\n  dropped  tie" in table


def test_a_source_that_is_no_text_is_named_after_its_file(tmp_path):
    rows = build_rows(tmp_path, [make_row(0, source=3), make_row(1, source=""), make_row(2, source=None)])
    assert [row["source"] for row in rows] == ["input"] * 3


def test_rejects_hold_the_rows_as_they_came(tmp_path):
    rejects = tmp_path / "away" / "rejects.jsonl"
    bad = make_row(1, label="tie", extra=[1, {"a": None}])
    repeat = make_row(0, source="z", note="é")
    build(tmp_path, [make_row(0, source="a"), bad, repeat], rejects=rejects, keep_rows=True)
    source = tmp_path / "input.jsonl"
    assert read_lines(rejects) == [
        {"where": f"{source}:2", "source": "input", "reason": "tie", "detail": "the row is labelled a tie", "row": bad},
        {
            "where": f"{source}:3",
            "source": "z",
            "reason": "duplicate",
            "detail": "the same pair stands elsewhere with a smaller source or id",
            "row": repeat,
        },
    ]


def test_rejects_show_dates_and_bytes_of_parquet_rows(tmp_path):
    import datetime

    import pyarrow as pa
    import pyarrow.parquet as pq

    extra = {"when": datetime.datetime(2024, 7, 26), "raw": b"\xff"}
    rows = [make_row(0, **extra), make_row(0, **extra), make_row(1, "same", "same", **extra)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    rejects = tmp_path / "rejects.jsonl"
    options = ConversionOptions(keep_rows=True)
    build_pair_dataset([str(tmp_path / "rows.parquet")], str(tmp_path / "x.jsonl"), options, rejects=rejects)
    assert [row["row"]["when"] for row in read_lines(rejects)] == ["2024-07-26 00:00:00"] * 2


def test_ties_keep_their_votes_on_request_and_one_half_without(tmp_path):
    source = [make_row(0, label="tie", prob_chosen=0.7), make_row(1, label="tie"), make_row(2, prob_chosen=0.7)]
    rows = build_rows(tmp_path, source, ties="votes")
    assert rows[0]["prob_a"] in (0.7, 0.3)
    assert rows[1]["prob_a"] == 0.5
    assert rows[2]["prob_a"] == (0.7 if label_of(rows[2]) == "A" else 0.3)


def test_ties_are_kept_on_request_with_half_a_target(tmp_path):
    source = [make_row(number, label="tie", prob_chosen=0.9) for number in range(200)]
    rows = build_rows(tmp_path, [*source, make_row(200)], ties="keep")
    assert {row["prob_a"] for row in rows[:200]} == {0.5}
    assert 60 < sum(label_of(row) == "A" for row in rows[:200]) < 140  # 100 on average, standard deviation 7


def test_a_minimum_margin_reads_the_named_columns(tmp_path):
    rows = [make_row(0, good=2, bad=1), make_row(1, good=1.4, bad=1), make_row(2, good=None, bad=1), make_row(3)]
    summary = build(tmp_path, rows, min_margin=0.5, margin_columns=("good", "bad"))
    assert dropped(summary) == {"small_margin": 1, "no_margin": 2}
    assert len(read_lines(tmp_path / "x.jsonl")) == 1


@pytest.mark.parametrize("num_proc", [1, 3])
def test_strict_stops_at_the_first_bad_row_in_input_order_and_writes_nothing(tmp_path, num_proc):
    rows = [make_row(number) for number in range(6000)]
    for number in (3456, 3500, 5999):
        rows[number] = make_row(number, "same", "same")
    for number in (10, 20):
        rows[number] = make_row(number, label="tie")  # dropped on purpose: no defect
    with pytest.raises(DataError, match=r"input\.jsonl:3457: identical_responses: .*\(--strict\)"):
        build(tmp_path, rows, num_proc=num_proc, strict=True, rejects=tmp_path / "rejects.jsonl")
    assert [path.name for path in tmp_path.iterdir()] == ["input.jsonl"]


def test_nothing_left_is_an_error_with_the_reasons(tmp_path):
    with pytest.raises(DataError, match=r"no pair is left for train \(dropped: tie 2, identical_responses 1\)"):
        build(tmp_path, [make_row(0, label="tie"), make_row(1, label="tie"), make_row(2, "same", "same")])


def test_rejects_are_written_where_nothing_is_left(tmp_path):
    rejects = tmp_path / "rejects.jsonl"
    with pytest.raises(DataError, match="no pair is left"):
        build(tmp_path, [make_row(0, label="tie")], rejects=rejects)
    assert [reject["reason"] for reject in read_lines(rejects)] == ["tie"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["input.jsonl", "rejects.jsonl"]


def test_an_empty_file_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"input\.jsonl: holds no row"):
        build(tmp_path, [])


# ---- duplicates -----------------------------------------------------------------------------------------------------


def test_of_repeats_the_smallest_source_and_id_stays(tmp_path):
    repeats = [make_row(0, source="b", id="1"), make_row(0, source="a", id="2"), make_row(0, source="a", id="3")]
    for rows in (repeats, repeats[::-1]):
        summary = build(tmp_path, rows)
        (row,) = read_lines(tmp_path / "x.jsonl")
        assert (row["source"], row["id"]) == ("a", "2")
        assert summary.dropped == {"b": {"duplicate": 1}, "a": {"duplicate": 1}}


def test_a_pair_with_both_verdicts_goes_whole(tmp_path):
    rows = [make_row(0, "yes", "no"), make_row(0, "yes", "no"), make_row(0, "no", "yes"), make_row(1)]
    assert dropped(build(tmp_path, rows)) == {"contradictory": 3}


def test_a_tie_contradicts_a_verdict_unless_ties_are_dropped_anyway(tmp_path):
    rows = [make_row(0), make_row(0, label="tie"), make_row(1)]
    assert dropped(build(tmp_path, rows, ties="keep")) == {"contradictory": 2}
    assert dropped(build(tmp_path, rows)) == {"tie": 1}


def test_repeated_ties_are_one_tie_whichever_response_is_called_chosen(tmp_path):
    rows = [make_row(0, "yes", "no", label="tie"), make_row(0, "no", "yes", label="tie")]
    assert dropped(build(tmp_path, rows, ties="keep")) == {"duplicate": 1}


def test_the_same_responses_in_another_context_are_another_pair(tmp_path):
    rows = [make_row(0, "yes", "no"), make_row(1, "yes", "no"), make_row(0, "yes", "no", context=("A", "Q"))]
    assert not dropped(build(tmp_path, rows))


def test_repeats_are_found_after_neutralising(tmp_path):
    assert dropped(build(tmp_path, [make_row(0, "a <|x|>"), make_row(0, "a < |x|>")])) == {"duplicate": 1}


small_rows = st.lists(
    st.builds(
        make_row,
        st.integers(0, 3),
        st.sampled_from(["yes", "no <|x|>"]),
        st.sampled_from(["perhaps", "no < |x|>", "yes"]),
        source=st.sampled_from(["s", "t"]),
        id=st.integers(0, 3),
        subset=st.sampled_from([None, "u"]),
        prob_chosen=st.sampled_from([None, 0.75]),
        label=st.sampled_from([None, None, "tie"]),
    ),
    min_size=1,
    max_size=20,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=small_rows, ties=st.sampled_from(["drop", "keep", "votes"]), data=st.data())
def test_any_order_of_rows_and_files_gives_the_same_set(tmp_path, rows, ties, data):
    shuffled = data.draw(st.permutations(rows))
    cut = data.draw(st.integers(0, len(rows)))
    parts = [part for part in (shuffled[:cut], shuffled[cut:]) if part]

    def outcome(*tables):
        names = [write_rows(tmp_path / f"{number}.jsonl", table) for number, table in enumerate(tables)]
        options = ConversionOptions(ties=ties, eval_fraction=0.5)
        try:
            summary = build_pair_dataset(names, str(tmp_path / "x.jsonl"), options)
        except DataError:  # nothing left for one of the splits
            return None
        splits = [sorted((tmp_path / name).read_text().splitlines()) for name in ("x.jsonl", "x.eval.jsonl")]
        return splits, dropped(summary)

    assert outcome(rows) == outcome(*parts)


# ---- the evaluation split -------------------------------------------------------------------------------------------


def first_messages(path):
    return {context_of(row).split("\n<turn> ")[1].rstrip("\n") for row in read_lines(path)}


def test_no_first_message_stands_on_both_sides(tmp_path):
    rows = [
        make_row(number, f"good {turn}", context=("A", f"Q{turn}") if turn else ())
        for number in range(200)
        for turn in range(3)
    ]
    random.Random(0).shuffle(rows)
    summary = build(tmp_path, rows, eval_fraction=0.2, both_orders=True)
    train, held_out = (first_messages(tmp_path / name) for name in ("x.jsonl", "x.eval.jsonl"))
    assert not train & held_out
    assert len(train) + len(held_out) == 200
    assert 15 < len(held_out) < 65  # 40 on average, standard deviation 5.7
    assert summary.rows_written == {"train": 6 * len(train), "eval": 6 * len(held_out)}
    pair_ids = [{row["pair_id"] for row in read_lines(tmp_path / name)} for name in ("x.jsonl", "x.eval.jsonl")]
    assert not pair_ids[0] & pair_ids[1]


@pytest.mark.parametrize(("name", "held_out"), [("x.jsonl", "x.eval.jsonl"), ("x.parquet", "x.eval.parquet"),
                                                ("x", "x.eval")])  # fmt: skip
def test_a_held_out_file_of_an_earlier_run_is_not_trained_on(tmp_path, name, held_out):
    rows = [make_row(number) for number in range(50)]
    build(tmp_path, rows, name, eval_fraction=0.3)
    build(tmp_path, rows, name, eval_fraction=0.3)  # replaces both
    with pytest.raises(OutputExistsError, match=rf"{held_out}: left from a run with --eval-fraction"):
        build(tmp_path, rows, name)


def test_an_empty_split_is_an_error(tmp_path):
    with pytest.raises(DataError, match="no pair is left for eval"):
        build(tmp_path, [make_row(0)], eval_fraction=1e-9)


# ---- lengths in tokens ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def byte_tokenizer(tmp_path_factory):
    """A folder with a tokenizer of one token a byte, and a template that adds four: <|u|> … <|a|> label <|e|>."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={character: index for index, character in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|u|>", "<|a|>", "<|e|>"])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|e|>", pad_token="<|e|>")
    fast.chat_template = (
        "{% for message in messages %}{{ '<|u|>' if message['role'] == 'user' else '<|a|>' }}{{ message['content'] }}"
        "{{ '<|e|>' if message['role'] == 'assistant' }}{% endfor %}"
    )
    folder = tmp_path_factory.mktemp("byte_tokenizer")
    fast.save_pretrained(folder)
    return str(folder)


def length_of(row):
    return len(row["messages"][0]["content"].encode()) + 4


@pytest.mark.parametrize("both_orders", [False, True])
def test_rows_over_the_maximum_length_are_dropped_whole_and_counted(tmp_path, byte_tokenizer, both_orders):
    source = [make_row(number, "é" * number) for number in range(1, 100)]
    rows = build_rows(tmp_path, source, both_orders=both_orders)
    limit = sorted(map(length_of, rows))[len(rows) // 2]
    summary = build(tmp_path, source, both_orders=both_orders, tokenizer=byte_tokenizer, max_length=limit)
    kept = read_lines(tmp_path / "x.jsonl")
    assert kept == [row for row in rows if length_of(row) <= limit]  # a row of just this length stays
    assert dropped(summary) == {"too_long": 99 - len(kept) // (1 + both_orders)}
    assert summary.lengths["tokens"]["p100"] == limit


def test_a_tokenizer_alone_drops_nothing_and_reports_lengths(tmp_path, byte_tokenizer):
    summary = build(tmp_path, [make_row(number) for number in range(10)], tokenizer=byte_tokenizer)
    (length,) = {length_of(row) for row in read_lines(tmp_path / "x.jsonl")}
    assert set(summary.lengths["tokens"].values()) == {length}
    assert "length in tokens: p5 " in summary.to_table()


def test_strict_does_not_stop_at_a_long_row(tmp_path, byte_tokenizer):
    rows = [make_row(0), make_row(1, "long " * 99)]
    assert dropped(build(tmp_path, rows, strict=True, tokenizer=byte_tokenizer, max_length=150)) == {"too_long": 1}


def test_lengths_are_the_same_from_any_number_of_processes(tmp_path, byte_tokenizer):
    source = [make_row(number, "é" * (number % 90 + 1)) for number in range(1100)]
    outputs = []
    for num_proc in (1, 2):
        summary = build(tmp_path, source, num_proc=num_proc, tokenizer=byte_tokenizer, max_length=200)
        outputs.append((summary.to_table(), (tmp_path / "x.jsonl").read_bytes()))
    assert outputs[0] == outputs[1]


def test_a_tokenizer_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(PairPMError, match="nowhere"):
        build(tmp_path, [make_row(0)], tokenizer=str(tmp_path / "nowhere"))


# ---- outputs --------------------------------------------------------------------------------------------------------


def load(path):
    """Return the rows of an output of any kind."""
    import datasets
    import pyarrow.parquet as pq

    if path.suffix == ".jsonl":
        return read_lines(path)
    return pq.read_table(path).to_pylist() if path.suffix == ".parquet" else datasets.load_from_disk(path).to_list()


def all_bytes(folder):
    """Return what lies under each output name, without the inputs."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "input.jsonl"
    }


def many_rows():
    rows = [make_row(number, "yes" * (number % 7 + 1), "nö", subset="late" if number > 2500 else None)
            for number in range(3500)]  # fmt: skip
    rows[5:5] = rows[100:120]
    rows[1500] = make_row(0, "same", "same")
    return rows


@pytest.mark.parametrize("name", KINDS)
def test_any_number_of_processes_gives_the_same_bytes(tmp_path, name):
    outputs = []
    for num_proc in (1, 2, 3):
        folder = tmp_path / str(num_proc)
        folder.mkdir()
        build(tmp_path, many_rows(), f"{num_proc}/{name}", num_proc, rejects=folder / "rejects.jsonl",
              both_orders=True, eval_fraction=0.1, keep_rows=True)  # fmt: skip
        outputs.append(all_bytes(folder))
    assert len(outputs[0]) >= 4
    assert outputs[0] == outputs[1] == outputs[2]


def test_the_three_kinds_hold_the_same_rows(tmp_path):
    for name in KINDS:
        build(tmp_path, many_rows(), name, eval_fraction=0.1)
    for stem in ("x", "x.eval"):
        lines, parquet, folder = (load(tmp_path / (stem + suffix)) for suffix in (".jsonl", ".parquet", ""))
        assert len(lines) > 200
        assert lines == parquet == folder


def test_the_lines_load_with_datasets_though_a_subset_appears_late(tmp_path):
    import datasets

    rows = [make_row(number, chosen="a\0b \u2028 é") for number in range(2000)] + [make_row(2000, subset="late", id=5)]
    build(tmp_path, rows)
    loaded = datasets.load_dataset(
        "json", data_files=str(tmp_path / "x.jsonl"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert loaded.to_list() == read_lines(tmp_path / "x.jsonl")


def test_parquet_row_groups_are_not_as_small_as_a_chunk_of_the_split(tmp_path):
    import pyarrow.parquet as pq

    build(tmp_path, many_rows(), "x.parquet", eval_fraction=0.01)
    assert pq.ParquetFile(tmp_path / "x.eval.parquet").num_row_groups == 1


def test_folders_of_other_rows_have_other_fingerprints(tmp_path):
    import datasets

    prints = set()
    for number in (0, 1, 1):
        build(tmp_path, [make_row(number)], "x")
        prints.add(datasets.load_from_disk(tmp_path / "x")._fingerprint)
    assert len(prints) == 2


def test_the_summary_says_what_went_in_and_out(tmp_path):
    rows = [*(make_row(number, "<s>" if number == 3 else None) for number in range(100)), make_row(5),
            make_row(0, "same", "same")]  # fmt: skip
    build(tmp_path, rows, both_orders=True, eval_fraction=0.2, seed=7)
    summary = json.loads((tmp_path / "x.summary.json").read_text())
    source = str(tmp_path / "input.jsonl")
    assert summary["formats"] == {source: "standard"}
    assert summary["rows_read"] == {source: 102}
    assert summary["dropped"] == {"input": {"identical_responses": 1, "duplicate": 1}}
    assert summary["pairs_kept"] == {"input": 100}
    assert summary["pairs_neutralised"] == 1
    assert sum(summary["rows_written"].values()) == 200
    assert summary["label_a_share"] == 0.5
    assert summary["options"]["seed"] == 7
    assert set(summary["versions"]) == {"pair_pm", "prompt_format_version", "control_set_version"}
    lengths = sorted(len(row["messages"][0]["content"]) for name in ("x.jsonl", "x.eval.jsonl")
                     for row in read_lines(tmp_path / name))  # fmt: skip
    assert summary["lengths"]["chars"]["p100"] == lengths[-1]
    assert summary["lengths"]["chars"]["p50"] in lengths[90:110]


def test_the_label_share_is_that_of_the_rows(tmp_path):
    summary = build(tmp_path, [make_row(number) for number in range(200)])
    rows = read_lines(tmp_path / "x.jsonl")
    assert summary.label_a_share == sum(label_of(row) == "A" for row in rows) / 200


def test_several_data_sets_of_several_formats_come_together(tmp_path):
    prompts = write_rows(tmp_path / "prompts.jsonl", [{"prompt": "Q", "chosen": "a", "rejected": "b"}])
    standard = write_rows(tmp_path / "standard.jsonl", [make_row(0)])
    summary = build_pair_dataset([prompts, standard], str(tmp_path / "x.jsonl"), ConversionOptions())
    assert summary.formats == {prompts: "prompt", standard: "standard"}
    assert [row["source"] for row in read_lines(tmp_path / "x.jsonl")] == ["prompts", "standard"]
    assert f"{prompts} (prompt format): 1 rows read" in summary.to_table()


def test_an_input_is_never_overwritten(tmp_path):
    rows = write_rows(tmp_path / "rows.jsonl", [make_row(0)])
    held_out = write_rows(tmp_path / "y.eval.jsonl", [make_row(0)])
    options = ConversionOptions(eval_fraction=0.5)
    before = all_bytes(tmp_path)
    for names, output, rejects in (
        ([rows], rows, None),
        ([held_out], str(tmp_path / "y.jsonl"), None),
        ([rows], str(tmp_path / "x.jsonl"), rows),
        ([rows], str(tmp_path / "x.jsonl"), str(tmp_path / "x.jsonl")),
        ([rows], str(tmp_path / "x.jsonl"), str(tmp_path / "x.summary.json")),
    ):
        with pytest.raises(OutputExistsError, match="would replace"):
            build_pair_dataset(names, output, options, rejects=rejects)
    assert all_bytes(tmp_path) == before


def test_only_what_this_program_could_have_written_is_replaced(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.txt").write_text("precious")
    (tmp_path / "x.jsonl").mkdir()
    (tmp_path / "file").write_text("precious")
    for name in ("folder", "x.jsonl", "file"):
        with pytest.raises(OutputExistsError, match="an unused name is required"):
            build(tmp_path, [make_row(0)], name)
    with pytest.raises(DataError, match=r"the ending \.csv names no format"):
        build(tmp_path, [make_row(0)], "x.csv")


def test_a_missing_input_leaves_no_folder_behind(tmp_path):
    with pytest.raises(MissingPathError):
        build_pair_dataset([str(tmp_path / "no.jsonl")], str(tmp_path / "new" / "x.jsonl"), ConversionOptions())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", KINDS)
def test_a_failure_while_writing_leaves_an_earlier_output_whole(tmp_path, name, monkeypatch):
    build(tmp_path, [make_row(0)], name)
    before = all_bytes(tmp_path)

    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr(pair_dataset, "write_summary", fail)  # all rows are written by then
    with pytest.raises(OSError, match="no space left"):
        build(tmp_path, [make_row(number) for number in range(9)], name)
    assert all_bytes(tmp_path) == before


def _kill_worker(chunk):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_is_killed_is_an_error_in_one_line():
    from pair_pm.pair_workers import open_workers

    with pytest.raises(PairPMError, match="--num-proc 2: a process ended"), open_workers(2) as map_in_order:
        list(map_in_order(_kill_worker, range(3)))


# ---- real data ------------------------------------------------------------------------------------------------------


def test_hh_rlhf_comes_out_balanced(shared_dir, tmp_path):
    source = shared_dir / "data" / "hh-rlhf.train.jsonl.gz"
    summary = build_pair_dataset([str(source)], str(tmp_path / "x.jsonl"), ConversionOptions(eval_fraction=0.1))
    assert sum(summary.rows_read.values()) == 2553
    assert sum(summary.pairs_kept.values()) + sum(summary.dropped_by_reason().values()) == 2553
    assert 0.48 <= summary.label_a_share <= 0.52
    assert not first_messages(tmp_path / "x.jsonl") & first_messages(tmp_path / "x.eval.jsonl")


def test_raw_hh_rlhf_keeps_all_but_its_structural_defects(shared_dir, tmp_path):
    source = shared_dir / "data" / "hh-rlhf-raw-defects.jsonl"
    rejects = tmp_path / "rejects.jsonl"
    summary = build_pair_dataset([str(source)], str(tmp_path / "x.jsonl"), ConversionOptions(), rejects=rejects)
    index = read_lines(source.with_name("hh-rlhf-raw-defects.index.jsonl"))
    assert summary.formats == {str(source): "anthropic"}
    assert len(read_lines(tmp_path / "x.jsonl")) == 189
    assert {reject["where"] for reject in read_lines(rejects)} == {
        f"{source}:{entry['line']}" for entry in index if entry["structural"]
    }


def test_the_system_messages_of_dpo_demo_are_turns(shared_dir, tmp_path):
    source = shared_dir / "data" / "dpo-demo-en.jsonl.gz"
    with gzip.open(source, "rt", encoding="utf-8") as file:
        conversations = {json.dumps([row["chosen"], row["rejected"]]) for row in map(json.loads, file)}  # 5 repeats
    with_system = sum(conversation.startswith('[[{"role": "system"') for conversation in conversations)
    summary = build_pair_dataset([str(source)], str(tmp_path / "x.jsonl"), ConversionOptions())
    written = read_lines(tmp_path / "x.jsonl")
    assert with_system > 0
    assert dropped(summary) == {"duplicate": 300 - len(conversations)}
    assert sum(context_of(row).startswith("\n\n<turn> system\n ") for row in written) == with_system


def test_the_excluded_rows_of_pandalm_are_all_dropped(shared_dir, tmp_path):
    source = shared_dir / "data" / "pandalm-testset.excluded.jsonl"
    rejects = tmp_path / "rejects.jsonl"
    with pytest.raises(DataError, match="no pair is left for train"):
        build_pair_dataset([str(source)], str(tmp_path / "x.jsonl"), ConversionOptions(), rejects=rejects)
    reasons = Counter(reject["reason"] for reject in read_lines(rejects))
    assert sum(reasons.values()) == 60
    assert set(reasons) <= {"empty_response", "content_not_string"}


def test_votes_become_targets(shared_dir, tmp_path):
    source = shared_dir / "data" / "pandalm-testset.jsonl"
    options = ConversionOptions(ties="keep")
    summary = build_pair_dataset([str(source)], str(tmp_path / "x.jsonl"), options)
    assert sum(summary.pairs_kept.values()) + sum(summary.dropped_by_reason().values()) == 939
    shares = {row["prob_a"] for row in read_lines(tmp_path / "x.jsonl")}
    assert {0.0, 0.5, 1.0} < shares
