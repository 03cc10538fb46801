"""Files of pairs through a real, tiny model: verdicts, errors, kill -9, and verdicts as training data."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import ROOT, make_small_tokenizer
from test_scripts import assert_fails, run_main
from tiny_models import save_tiny_checkpoint
from workshop import Workshop, losses, make_tokenizer, score

import process_pair_data
import serve_pair_rm
from pair_pm import PairScorer
from pair_pm.recipe import Recipe, write_recipe
from pair_pm.result_journal import ResultJournal
from pair_pm.score_file import ROWS_A_BLOCK
from pair_pm.tokens import PromptEncoder

pytestmark = pytest.mark.usefixtures("no_progress_bars")

ROWS = [
    {"id": "a", "prompt": "What is 2 + 2?", "response_a": "4.", "response_b": "Who knows."},
    {"id": "b", "prompt": "Name a prime.", "response_a": "A long answer, " * 5, "response_b": "17"},
    {"id": "c", "messages": [{"role": "user", "content": "Same?"}], "responses": ["same", "same"]},
    {"id": "d", "prompt": "Too long?", "response_a": "yes " * 200, "response_b": "no"},
    {"id": "e", "prompt": "Empty?", "response_a": " ", "response_b": "no"},
    {"id": "f", "prompt": "Missing?", "response_a": "yes"},
]
TINY = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = save_tiny_checkpoint(tmp_path_factory.mktemp("score") / "model", **TINY, num_key_value_heads=1)
    write_recipe(folder, PromptEncoder(make_small_tokenizer()), Recipe(sequence_len=200))
    return folder


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read_lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def run_score(capsys, checkpoint, source, output, *options):
    """Return the summary that the script prints."""
    arguments = ["score", "--model", checkpoint, "--input", source, "--output", output, *options]
    code, out, err = run_main(capsys, serve_pair_rm.main, *arguments)
    assert code == 0, err
    return json.loads(out)


def test_rows_get_the_verdict_that_comparing_them_gives_and_bad_ones_an_error(capsys, checkpoint, tmp_path):
    source = write_lines(tmp_path / "in.jsonl", ROWS)
    summary = run_score(capsys, checkpoint, source, tmp_path / "x.jsonl")
    assert summary["errors"] == {"too_long": 1, "empty_response": 1, "content_not_string": 1}
    assert (summary["rows"], summary["scored"], summary["written"]) == (6, 3, 6)
    rows = read_lines(tmp_path / "x.jsonl")
    items = [(row["prompt"], row["response_a"], row["response_b"]) for row in ROWS[:2]]
    verdicts = PairScorer.from_pretrained(str(checkpoint)).compare_many([*items, ("Same?", "same", "same")])
    for row, given, verdict in zip(rows, ROWS, verdicts, strict=False):
        assert row == {**given, **json.loads(json.dumps(verdict.to_dict())), "error": None}
    assert [row["id"] for row in rows] == list("abcdef")
    assert rows[2]["winner"] == "tie"
    assert "at most the 200 of sequence_len" in rows[3]["error"]
    assert "empty_response" in rows[4]["error"]
    assert rows[5]["error"] == "content_not_string: response_b is absent; a string is required"
    assert {row["prob_first"] for row in rows[3:]} == {None}
    run_score(capsys, checkpoint, source, tmp_path / "x.parquet", "--overwrite")
    columns = pq.read_table(tmp_path / "x.parquet").select(["prob_first", "log_odds_of_a", "winner"]).to_pylist()
    assert columns == [{name: row[name] for name in ("prob_first", "log_odds_of_a", "winner")} for row in rows]


def test_preference_rows_hold_winner_probability_and_consistency(capsys, checkpoint, tmp_path):
    source = write_lines(tmp_path / "in.jsonl", ROWS)
    run_score(capsys, checkpoint, source, tmp_path / "x.jsonl")
    verdicts = [row for row in read_lines(tmp_path / "x.jsonl") if row["winner"] in ("first", "second")]
    confidences = [max(row["prob_first"], 1 - row["prob_first"]) for row in verdicts]
    between = str(sum(confidences) / 2)  # keeps one of the two
    summary = run_score(
        capsys, checkpoint, source, tmp_path / "p.jsonl", "--as-preferences", "--min-confidence", between
    )
    assert summary["dropped"] == {"low_confidence": 1, "tie": 1}
    (row,) = read_lines(tmp_path / "p.jsonl")
    kept = verdicts[int(np.argmax(confidences))]
    sides = [kept["response_a"], kept["response_b"]]
    assert [row[side][-1]["content"] for side in ("chosen", "rejected")] == (
        sides if kept["winner"] == "first" else sides[::-1]
    )
    assert (row["prob_chosen"], row["id"]) == (max(confidences), kept["id"])
    assert (row["is_position_consistent"], row["position_gap"]) == (
        kept["is_position_consistent"],
        kept["position_gap"],
    )


def test_what_cannot_be_scored_is_one_line(capsys, checkpoint, tmp_path):
    source = write_lines(tmp_path / "in.jsonl", ROWS)
    model = ["score", "--model", checkpoint, "--input"]
    assert_fails(capsys, serve_pair_rm.main, *model, source, "--output", tmp_path / "x.csv", says="names no format")
    output = ["--output", tmp_path / "x.jsonl"]
    assert_fails(capsys, serve_pair_rm.main, *model, tmp_path / "no.jsonl", *output, says="no such file or folder")
    assert_fails(capsys, serve_pair_rm.main, *model, source, *output, "--strict", says="a valid row is required (--st")
    assert_fails(capsys, serve_pair_rm.main, *model, source, *output, says="--resume is required to go on")
    with pytest.raises(SystemExit) as end:
        serve_pair_rm.main([*map(str, model), str(source), *map(str, output), "--min-confidence", "0.9"])
    assert end.value.code == 2


# ---- 20,000 rows in real processes ----------------------------------------------------------------------------------


def start(words):
    return subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_blocks(process, journal, blocks):
    """Return when the journal holds so many blocks of rows."""
    while not journal.exists() or journal.read_bytes().count(b"\n") < blocks + 1:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


def test_interrupted_and_killed_runs_of_20_000_rows_resume_to_the_same_bytes(capsys, checkpoint, tmp_path):
    rows = (
        {"id": str(number), "prompt": f"Q{number}", "response_a": "yes", "response_b": "no " * (number % 5 + 1)}
        for number in range(20_000)
    )
    source, output = write_lines(tmp_path / "in.jsonl", rows), tmp_path / "x.jsonl"
    journal = tmp_path / ".x.jsonl.part"
    run_score(capsys, checkpoint, source, tmp_path / "whole.jsonl")

    words = ["score", "--model", str(checkpoint), "--input", str(source), "--output", str(output)]
    interrupted = start([sys.executable, "serve_pair_rm.py", *words])
    wait_for_blocks(interrupted, journal, 4)
    interrupted.send_signal(signal.SIGINT)
    out, err = interrupted.communicate(timeout=60)
    assert (interrupted.returncode, out) == (130, "")
    last = err.splitlines()[-1]
    assert last == f"interrupted; go on with: {shlex.join(['python', 'serve_pair_rm.py', *words, '--resume'])}"
    assert not any("it/s" in line or "pairs/s" in line for line in err.splitlines())  # no bar without a terminal

    resume = [sys.executable, *shlex.split(last.partition("go on with: ")[2])[1:]]
    killed = start(resume)
    wait_for_blocks(killed, journal, 10)
    os.kill(killed.pid, signal.SIGKILL)
    assert killed.wait(timeout=60) == -signal.SIGKILL
    killed.communicate()
    assert not output.exists()
    with ResultJournal(journal) as left:
        done = left.rows
    assert 10 * ROWS_A_BLOCK <= done < 20_000

    summary = run_score(capsys, checkpoint, source, output, "--resume")
    assert (summary["resumed_at"], summary["scored"]) == (done, 20_000)
    assert output.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert not journal.exists()
    again = run_score(capsys, checkpoint, source, output, "--resume")
    assert again == {**summary, "was_finished": True}


# ---- the semi-supervised loop ---------------------------------------------------------------------------------------


def test_verdicts_on_unlabelled_pairs_become_the_soft_labels_that_a_model_is_trained_on(capsys, tmp_path, axolotl_runs):
    teacher = save_tiny_checkpoint(tmp_path / "teacher", tokenizer=make_tokenizer(), seed=1)
    rows = [
        {"id": str(number), "prompt": f"Say {number}.", "response_a": f"It is {number}.", "response_b": "no " * number}
        for number in range(1, 9)
    ]
    source = write_lines(tmp_path / "unlabelled.jsonl", rows)
    run_score(capsys, teacher, source, tmp_path / "labelled.jsonl", "--as-preferences")
    student = Workshop(tmp_path, axolotl_runs, preferences=tmp_path / "labelled.jsonl")
    process = ["--dataset", tmp_path / "labelled.jsonl", "--output", tmp_path / "by_script.jsonl", "--both-orders"]
    assert run_main(capsys, process_pair_data.main, *process)[0] == 0
    (tmp_path / "by_script.jsonl").replace(tmp_path / "pairs.jsonl")

    targets = np.array([row["prob_a"] for row in student.rows()])
    by_prompt = PairScorer.from_pretrained(str(teacher)).compare_many(
        [(row["prompt"], row["response_a"], row["response_b"]) for row in rows]
    )
    assert sorted(targets) == pytest.approx(
        sorted(probability for verdict in by_prompt for probability in (verdict.prob_first, 1 - verdict.prob_first))
    )
    # One step on all rows at once: its loss is the cross-entropy of the untrained student against the teacher's words.
    output = student.train("student", max_steps=1, save_steps=1, micro_batch_size=len(targets))
    logprobs = score(student.base, student.prompts())
    expected = -(targets * logprobs[:, 0] + (1 - targets) * logprobs[:, 1]).mean()
    assert losses(output, steps=1) == [pytest.approx(expected, rel=1e-3)]
