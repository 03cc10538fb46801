"""Which rows stand in evaluation data too, beside a slow and plain way to say it: `pair_pm.decontamination`."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

import process_pair_data
from pair_pm.decontamination import LEAST_RESPONSE_WORDS, RUN_WORDS, open_index, write_index
from pair_pm.errors import DataError, MissingPathError, OutputExistsError
from pair_pm.pair_conversion import ConversionOptions
from pair_pm.pair_dataset import build_pair_dataset

QUESTION = "Why does the moon look larger near the horizon than it does high up in the sky?"  # 17 words


def count_words(number: int, word: str = "w", start: int = 0) -> str:
    """Return so many different words."""
    return " ".join(f"{word}{index}" for index in range(start, start + number))


def make_row(prompt: str, chosen: str = "good", rejected: str = "bad", **columns) -> dict:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **columns}


def write_lines(path, *rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def find_problems(tmp_path, evaluation: list[dict], rows: list[tuple[str, list[str]]]) -> list:
    """Return for each prompt with its responses the reason why it is contaminated, or None."""
    folder = tmp_path / "index"
    write_index([write_lines(tmp_path / "evaluation.jsonl", *evaluation)], folder)
    return [problem and problem.reason for problem in open_index(folder).find_problems(rows)]


def build(tmp_path, rows: list[dict], evaluation: list[str], name="out.jsonl", num_proc=1, strict=False, rejects=None):
    source = write_lines(tmp_path / "input.jsonl", *rows)
    options = ConversionOptions(decontaminate_against=tuple(evaluation), keep_rows=rejects is not None)
    return build_pair_dataset(
        [source], str(tmp_path / name), options, num_proc=num_proc, strict=strict, rejects=rejects
    )


# ---- prompts --------------------------------------------------------------------------------------------------------


def test_a_short_prompt_matches_as_a_whole_whatever_its_case_punctuation_and_space(tmp_path):
    prompts = [
        "What is 2 + 2?",
        "what is 2+2",
        "  WHAT\n\tis: 2 – 2!",
        "What is 2 + 3?",
        "What is 2 + 2? Please.",
        "Hi",
    ]
    found = find_problems(tmp_path, [make_row("What is 2 + 2?")], [(prompt, []) for prompt in prompts])
    assert found == ["contaminated_prompt"] * 3 + [None] * 3


def test_thirteen_words_in_a_row_are_found_wherever_they_stand_and_twelve_are_not(tmp_path):
    evaluation = make_row(count_words(40))
    for offset in range(20):
        for place in range(28):
            before, after = count_words(offset, "x"), count_words(9, "y")
            found = find_run(tmp_path, evaluation, f"{before} {count_words(13, start=place)} {after}")
            assert found == ["contaminated_prompt"], (offset, place)
        assert find_run(tmp_path, evaluation, f"{before} {count_words(12, start=3)} {after}") == [None]


def find_run(tmp_path, evaluation, prompt):
    folder = tmp_path / "index"
    if not folder.exists():
        write_index([write_lines(tmp_path / "evaluation.jsonl", evaluation)], folder)
    return [problem and problem.reason for problem in open_index(folder).find_problems([(prompt, [])])]


def test_a_prompt_of_punctuation_alone_matches_nothing(tmp_path):
    assert find_problems(tmp_path, [make_row("???")], [("!!!", []), ("???", [])]) == [None, None]


def test_accents_and_widths_are_the_same_in_any_unicode_spelling(tmp_path):
    evaluation = [make_row("Où est le café Ａ１ ?")]
    assert find_problems(tmp_path, evaluation, [("ou\u0300 est le cafe\u0301 a1", []), ("Ou est le cafe a1", [])]) == [
        "contaminated_prompt",
        None,
    ]


def test_an_ideograph_is_a_word_so_that_text_without_spaces_overlaps_too(tmp_path):
    sentence = "为什么月亮在地平线附近看起来更大"  # 16 of them
    found = find_problems(tmp_path, [make_row(sentence)], [(f"请问{sentence[:13]}？", []), (sentence[:12] + "小", [])])
    assert found == ["contaminated_prompt", None]


# ---- responses ------------------------------------------------------------------------------------------------------


def test_a_response_matches_from_fifty_words_on_by_thirteen_in_a_row(tmp_path):
    evaluation = [make_row("Q", chosen=count_words(20), rejected="no")]
    shared = count_words(RUN_WORDS)
    long, short = (
        f"{count_words(size - RUN_WORDS, 'x')} {shared}" for size in (LEAST_RESPONSE_WORDS, LEAST_RESPONSE_WORDS - 1)
    )
    rows = [("R", ["ok", long]), ("R", [long, "ok"]), ("R", ["ok", short]), ("R", [count_words(60, "x")])]
    assert find_problems(tmp_path, evaluation, rows) == ["contaminated_response"] * 2 + [None] * 2


def test_prompts_are_held_against_prompts_and_responses_against_responses(tmp_path):
    evaluation = [make_row(QUESTION, chosen=count_words(60))]
    rows = [(count_words(60), []), ("Q", [QUESTION + " " + count_words(60, "x")])]
    assert find_problems(tmp_path, evaluation, rows) == [None, None]


def test_the_prompt_is_named_where_both_match(tmp_path):
    evaluation = [make_row(QUESTION, chosen=count_words(60))]
    assert find_problems(tmp_path, evaluation, [(QUESTION, [count_words(60)])]) == ["contaminated_prompt"]


def test_system_messages_and_earlier_answers_do_not_count(tmp_path):
    turns = [
        {"role": "system", "content": count_words(30, "s")},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": count_words(60, "a")},
    ]

    def converse(question):
        sides = {"chosen": "good", "rejected": "bad"}
        asked = [*turns, {"role": "user", "content": question}]
        return {side: [*asked, {"role": "assistant", "content": text}] for side, text in sides.items()}

    evaluation = write_lines(tmp_path / "evaluation.jsonl", converse("What now?"))
    summary = build(tmp_path, [converse("And then?"), converse("What now")], [evaluation])
    assert dict(summary.dropped_by_reason()) == {"contaminated_prompt": 1}
    assert sum(summary.pairs_kept.values()) == 1


# ---- beside a plain way ---------------------------------------------------------------------------------------------


def is_contaminated(evaluation: tuple[str, list[str]], row: tuple[str, list[str]]) -> bool:
    """Say it by the definition: every run of words of one against every run of the other."""

    def split(text):
        return re.sub(r"[^a-z0-9]+", " ", text.lower()).split()

    def runs(texts):
        words = map(split, texts)
        return {tuple(one[start : start + 13]) for one in words for start in range(len(one) - 12)}

    prompt, known = split(row[0]), split(evaluation[0])
    is_same = bool(prompt) and prompt == known
    long = [response for response in row[1] if len(split(response)) >= 50]
    return is_same or bool(runs([row[0]]) & runs([evaluation[0]])) or bool(runs(long) & runs(evaluation[1]))


# Of two words there are few runs of thirteen, so that about half the long examples share one.
words = st.sampled_from(["a", "B,"])
texts = st.one_of(st.lists(words, min_size=1, max_size=20), st.lists(words, min_size=40, max_size=70)).map(" ".join)


@given(evaluation=st.tuples(texts, st.tuples(texts, texts)), row=st.tuples(texts, st.tuples(texts, texts)))
def test_a_row_is_contaminated_where_the_definition_says_so(tmp_path_factory, evaluation, row):
    known = make_row(evaluation[0], *(f"{text} {end}" for text, end in zip(evaluation[1], "xy", strict=True)))
    found = find_problems(tmp_path_factory.mktemp("x"), [known], [row])
    assert [is_contaminated((known["prompt"], [known["chosen"], known["rejected"]]), row)] == [
        problem is not None for problem in found
    ]


# ---- in a run -------------------------------------------------------------------------------------------------------

LONG = count_words(70, "long")


@pytest.fixture
def evaluation_files(tmp_path) -> list[str]:
    """Return evaluation data in four formats, one prompt in each and one long response in the last."""
    standard = [{"role": "user", "content": "Standard question?"}]
    sides = {"chosen": "yes", "rejected": "no"}
    ab = write_lines(tmp_path / "ab-source.jsonl", make_row("A/B <|eot_id|> question?", "yes", "no"))
    build_pair_dataset([ab], str(tmp_path / "ab.jsonl"), ConversionOptions(both_orders=True))
    return [
        write_lines(
            tmp_path / "standard.jsonl",
            {side: [*standard, {"role": "assistant", "content": text}] for side, text in sides.items()},
        ),
        str(tmp_path / "ab.jsonl"),
        write_lines(tmp_path / "rb.jsonl", make_row("RewardBench question?", "yes", "no", subset="math-prm", id=1)),
        write_lines(
            tmp_path / "rb2.jsonl",
            {"prompt": "RewardBench 2 question?", "chosen": ["yes"], "rejected": ["no", "nay", LONG], "id": "0"},
            {"prompt": "A row without completions", "chosen": [], "rejected": ["no"], "id": "1"},
        ),
    ]


def make_training_rows() -> list[dict]:
    return [
        make_row("standard question"),
        make_row("a/b < |eot_id|> QUESTION"),
        make_row("RewardBench question"),
        make_row("RewardBench, 2: question"),
        make_row("Another question", rejected=f"Well. {LONG[30:]}"),
        make_row("A row without completions"),
        *(make_row(f"Question {number}", f"good {number}") for number in range(2500)),
    ]


def test_rows_of_every_format_are_found_counted_and_listed_with_where_they_stand(tmp_path, evaluation_files, capsys):
    rejects = tmp_path / "rejects.jsonl"
    source = write_lines(tmp_path / "input.jsonl", *make_training_rows())
    arguments = ["--dataset", source, "--output", str(tmp_path / "out.jsonl"), "--rejects", str(rejects)]
    arguments += ["--decontaminate-against", *evaluation_files[:3], "--decontaminate-against", evaluation_files[3]]
    assert process_pair_data.main(arguments) == 0
    printed = capsys.readouterr().out
    assert re.search(r"dropped +contaminated_prompt +4\n", printed)
    assert re.search(r"dropped +contaminated_response +1\n", printed)
    assert f"held against {evaluation_files[3]}: 1 rows; skipped no_completion 1\n" in printed
    summary = json.loads((tmp_path / "out.summary.json").read_text())
    assert summary["held_against"]["rows"] == dict(zip(evaluation_files, (1, 2, 1, 1), strict=True))
    assert summary["options"]["decontaminate_against"] == evaluation_files
    listed = [json.loads(line) for line in rejects.read_text().splitlines()]
    assert [entry["where"] for entry in listed] == [f"{source}:{number}" for number in range(1, 6)]
    assert [entry["row"]["prompt"] for entry in listed] == [row["prompt"] for row in make_training_rows()[:5]]
    assert listed[2]["detail"] == f"is that of {evaluation_files[2]}:1: 'rewardbench question'"
    assert listed[4]["detail"].startswith(f"shares words with {evaluation_files[3]}:1: 'long")


@pytest.mark.parametrize("num_proc", [2, 3])
def test_any_number_of_processes_drops_the_same_rows(tmp_path, evaluation_files, num_proc):
    for processes, name in ((1, "one.jsonl"), (num_proc, "more.jsonl")):
        build(tmp_path, make_training_rows(), evaluation_files, name, processes, rejects=str(tmp_path / f"{name}.bad"))
    for end in (".jsonl", ".summary.json", ".jsonl.bad"):
        assert (tmp_path / f"one{end}").read_bytes() == (tmp_path / f"more{end}").read_bytes(), end


def test_without_evaluation_data_nothing_is_dropped_and_the_summary_says_so(tmp_path):
    summary = build(tmp_path, make_training_rows(), [])
    assert (dict(summary.dropped_by_reason()), summary.held_against) == ({}, None)


def test_strict_does_not_stop_at_a_contaminated_row(tmp_path, evaluation_files):
    assert sum(build(tmp_path, make_training_rows(), evaluation_files, strict=True).dropped_by_reason().values()) == 5


def test_nothing_but_the_hashes_is_held_in_memory(tmp_path):
    # A prompt of 20 words has 14 runs of 7, 4 bytes each, and 8 of 13, 16 bytes each with where they stand.
    name = write_lines(tmp_path / "x.jsonl", *(make_row(count_words(20, f"p{row}w")) for row in range(50)))
    summary = write_index([name], tmp_path / "index")
    assert summary.index_bytes == 50 * (14 * 4 + 8 * 16)
    assert summary.to_lines()[-1] == "memory for these: 184 bytes a row"


def test_evaluation_data_that_is_missing_empty_of_no_format_or_the_output_is_an_error(tmp_path):
    rows = [make_row("Q")]
    with pytest.raises(MissingPathError):
        build(tmp_path, rows, [str(tmp_path / "nowhere.jsonl")])
    with pytest.raises(DataError, match="holds no row"):
        build(tmp_path, rows, [write_lines(tmp_path / "empty.jsonl")])
    with pytest.raises(DataError, match=r"(?s)accepted formats are.*reward_bench_2"):
        build(tmp_path, rows, [write_lines(tmp_path / "other.jsonl", {"text": "x"})])
    with pytest.raises(OutputExistsError, match="would replace the data set"):
        build(tmp_path, rows, [write_lines(tmp_path / "out.jsonl", *rows)])
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []
