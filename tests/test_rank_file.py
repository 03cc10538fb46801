"""Files of candidates through a real, tiny model: rankings, errors, resuming, and preference rows for DPO."""

import json
from itertools import chain

import pytest
from conftest import make_small_tokenizer
from test_score_file import read_lines, write_lines
from test_scripts import assert_fails, run_main
from tiny_models import save_tiny_checkpoint

import serve_pair_rm
from pair_pm import PairScorer, rank_file
from pair_pm.preference import parse_standard
from pair_pm.rank_file import RankOptions, RankTask
from pair_pm.ranking import rank_many
from pair_pm.recipe import Recipe, write_recipe
from pair_pm.resumable_output import FileRun, complete_file
from pair_pm.tokens import PromptEncoder

pytestmark = pytest.mark.usefixtures("no_progress_bars")

ROWS = [
    {"id": str(number), "prompt": f"Question {number}?", "responses": [f"{word} {number}" for word in words.split()]}
    for number, words in enumerate(["yes no maybe", "one two three four five", "alone", "this that", "a b c d e f g"])
]
BAD = [
    {"id": "long", "prompt": "Q", "responses": ["short", "yes " * 150, "no"]},
    {"id": "empty", "prompt": "Q", "responses": ["short", " "]},
    {"id": "none", "prompt": "Q", "responses": []},
    {"id": "turns", "messages": [{"role": "assistant", "content": "Q"}], "responses": ["short", "no"]},
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = save_tiny_checkpoint(tmp_path_factory.mktemp("rank") / "model")
    write_recipe(folder, PromptEncoder(make_small_tokenizer()), Recipe(sequence_len=200))
    return folder


@pytest.fixture(scope="module")
def scorer(checkpoint):
    return PairScorer.from_pretrained(str(checkpoint))


def run_rank(capsys, checkpoint, source, *options):
    code, out, err = run_main(capsys, serve_pair_rm.main, "rank", "--model", checkpoint, "--input", source, *options)
    assert code == 0, err
    return out


@pytest.mark.parametrize("method", ["round_robin", "swiss"])
def test_rows_get_the_ranking_of_their_candidates_printed_or_written(capsys, checkpoint, scorer, tmp_path, method):
    source = write_lines(tmp_path / "in.jsonl", ROWS)
    options = ["--method", method, "--seed", "3"]
    printed = [json.loads(line) for line in run_rank(capsys, checkpoint, source, *options).splitlines()]
    expected = rank_many(scorer, [(row["prompt"], row["responses"]) for row in ROWS], method, 3)
    for row, given, ranking in zip(printed, ROWS, expected, strict=True):
        assert row == {**given, **json.loads(json.dumps(ranking.to_dict())), "error": None}
    summary = json.loads(run_rank(capsys, checkpoint, source, *options, "--output", tmp_path / "x.jsonl"))
    assert (summary["rows"], summary["scored"], summary["errors"]) == (5, 5, {})
    assert read_lines(tmp_path / "x.jsonl") == printed


def test_bad_rows_have_an_error_and_the_others_the_ranking_that_they_have_without_them(capsys, checkpoint, tmp_path):
    mixed = list(chain.from_iterable(zip(ROWS, BAD, strict=False))) + ROWS[len(BAD) :]
    summary = json.loads(
        run_rank(capsys, checkpoint, write_lines(tmp_path / "in.jsonl", mixed), "--output", tmp_path / "x.jsonl")
    )
    assert summary["errors"] == {"too_long": 1, "empty_response": 1, "no_response": 1, "roles_out_of_order": 1}
    by_id = {row["id"]: row for row in read_lines(tmp_path / "x.jsonl")}
    assert {row["id"] for row in by_id.values() if row["error"]} == {row["id"] for row in BAD}
    run_rank(capsys, checkpoint, write_lines(tmp_path / "in.jsonl", ROWS), "--output", tmp_path / "y.jsonl")
    for row in read_lines(tmp_path / "y.jsonl"):
        assert row["order"] == by_id[row["id"]]["order"]
        assert row["strengths"] == pytest.approx(by_id[row["id"]]["strengths"], abs=1e-5)


def test_preference_rows_hold_best_against_worst_or_all_pairs(capsys, checkpoint, tmp_path):
    source = write_lines(tmp_path / "in.jsonl", ROWS)
    run_rank(capsys, checkpoint, source, "--output", tmp_path / "ranked.jsonl")
    ranked = read_lines(tmp_path / "ranked.jsonl")
    output = ["--as-preferences", "--output", tmp_path / "dpo.jsonl", "--overwrite"]
    summary = json.loads(run_rank(capsys, checkpoint, source, *output))
    assert (summary["written"], summary["dropped"]) == (4, {"no_pair": 1})  # one row has one response
    pairs = [parse_standard(row) for row in read_lines(tmp_path / "dpo.jsonl")]
    for pair, row in zip(pairs, [row for row in ranked if len(row["order"]) > 1], strict=True):
        assert pair.id == row["id"]
        assert (pair.chosen, pair.rejected) == (row["responses"][row["order"][0]], row["responses"][row["order"][-1]])
        assert pair.prob_chosen > 0.5
    summary = json.loads(run_rank(capsys, checkpoint, source, *output, "--pairs", "all"))
    assert summary["written"] == 3 + 10 + 0 + 1 + 21
    margin = str(max(row["chosen_score"] - row["rejected_score"] for row in read_lines(tmp_path / "dpo.jsonl")))
    assert json.loads(run_rank(capsys, checkpoint, source, *output, "--min-margin", margin))["written"] == 1
    assert json.loads(run_rank(capsys, checkpoint, source, *output, "--max-length-ratio", "1"))["written"] < 4


def test_interrupted_after_any_block_it_resumes_to_the_same_bytes(scorer, tmp_path, monkeypatch):
    monkeypatch.setattr(rank_file, "_PROMPTS_A_BLOCK", 10)
    source = write_lines(tmp_path / "in.jsonl", [*ROWS, *BAD, *ROWS])

    class Interrupted(RankTask):
        def __init__(self, blocks):
            super().__init__(RankOptions())
            self.left = blocks

        def work(self, scorer, block):
            if not self.left:
                raise KeyboardInterrupt
            self.left -= 1
            return super().work(scorer, block)

    def complete(name, task, **flags):
        return complete_file(FileRun(str(source), str(tmp_path / name), {}, **flags), task, lambda: scorer)

    complete("whole.jsonl", RankTask(RankOptions()))
    for blocks in range(4):
        name = f"{blocks}.jsonl"
        with pytest.raises(KeyboardInterrupt):
            complete(name, Interrupted(blocks))
        assert (complete(name, RankTask(RankOptions()), resume=True).resumed_at > 0) == (blocks > 0)
        assert (tmp_path / name).read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_block_ends_where_its_prompts_are_enough_whatever_stood_before():
    rows = [(number, {"responses": ["x"] * 8}, None) for number in range(100)] + [(100, "no row", None)]
    sizes = [len(block) for block in RankTask(RankOptions()).cut(iter(rows))]
    assert sizes == [36, 36, 29]  # 8 x 7 prompts a row; 36 rows are the first to make 2000
    assert [len(block) for block in RankTask(RankOptions()).cut(iter(rows[36:]))] == sizes[1:]
    assert len(list(RankTask(RankOptions(method="swiss")).cut(iter(rows)))) == 2  # 24 a row
    alone = [(number, {"responses": ["x"]}, None) for number in range(4001)]
    assert [len(block) for block in RankTask(RankOptions()).cut(iter(alone))] == [2000, 2000, 1]


def test_what_cannot_be_ranked_is_one_line_or_wrong_usage(capsys, checkpoint, tmp_path):
    pairs = write_lines(tmp_path / "pairs.jsonl", [{"prompt": "Q", "response_a": "x", "response_b": "y"}])
    model = ["rank", "--model", checkpoint, "--input"]
    code, out, err = run_main(capsys, serve_pair_rm.main, *model, pairs)
    assert (code, out) == (1, "")
    assert "has the columns prompt, response_a, response_b; required are" in err
    source = write_lines(tmp_path / "in.jsonl", [*ROWS, *BAD])
    code, _, err = run_main(capsys, serve_pair_rm.main, *model, source, "--strict")
    assert code == 1
    assert "a valid row is required (--strict)" in err
    assert_fails(capsys, serve_pair_rm.main, *model, tmp_path / "no.jsonl", says="no such file or folder")
    for options in (
        ["--as-preferences"],
        ["--resume"],
        ["--pairs", "all"],
        ["--budget", "9"],
        ["--method", "knockout"],
    ):
        with pytest.raises(SystemExit) as end:
            serve_pair_rm.main([*map(str, model), str(source), *options])
        assert end.value.code == 2
