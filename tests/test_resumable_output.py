"""From file to file in blocks: interrupted anywhere and resumed, to the same bytes; and what is refused."""

import gzip
import json
import tracemalloc
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_result_journal import files_of_at_most

from pair_pm import preference_source
from pair_pm.errors import DataError, MissingPathError, OutputExistsError, UnwritableError
from pair_pm.preference import RowProblem
from pair_pm.recipe import Recipe
from pair_pm.resumable_output import FileRun, complete_file
from pair_pm.row_task import to_error
from pair_pm.scoring import compare_logprobs

ROWS = [{"id": number, "text": "word " * (number % 7)} for number in range(25)]
KINDS = ("x.jsonl", "x.parquet")


class StandIn:
    """As much of a scorer as tells one model from another."""

    engine = None  # nothing here asks it

    def __init__(self, odds=1.0):
        self.recipe = Recipe()
        self._odds = odds

    def compare_many(self, items):
        """Answer each pair with the same log-odds."""
        return [compare_logprobs(np.array([[0.0, -self._odds]] * 2)) for _ in items]


class WordTask:
    """Counts words; a row without text is a bad one. Stops after some blocks if it is told to."""

    fields = ("words", "block")
    unit = "rows"

    def __init__(self, stop_after=None, rows_a_block=7):
        self.blocks = 0
        self._rows_a_block = rows_a_block
        self._stop_after = stop_after

    def check(self, name, rows):
        """Take any table."""

    def cut(self, rows):
        """Yield blocks of equal size."""
        while block := list(islice(rows, self._rows_a_block)):
            yield block

    def work(self, scorer, block):
        """Count; which rows stood together is in the result, as it is in a score's last digits."""
        if self.blocks == self._stop_after:
            raise KeyboardInterrupt
        self.blocks += 1
        company = " ".join(str(number) for number, *_ in block)
        return [self._count(row, problem, company) for _, row, problem in block]

    def _count(self, row, problem, company):
        if problem or not isinstance(row, dict) or not row["text"]:
            return to_error(problem or RowProblem("no_text", "text is empty"))
        return {"words": len(row["text"].split()), "block": company}

    def export(self, row, result):
        """Export rows of an even number of words, twice."""
        return [{"id": row["id"]}] * 2 if result["words"] % 2 == 0 else "odd"


def write_lines(path, rows=ROWS):
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode(), mtime=0) if path.suffix == ".gz" else text.encode())
    return str(path)


@pytest.fixture
def source(tmp_path):
    return write_lines(tmp_path / "in.jsonl")


def complete(source, output, task=None, odds=1.0, options="", **flags):
    run = FileRun(source, str(output), {"options": options}, **flags)
    return complete_file(run, task or WordTask(), lambda: StandIn(odds))


def interrupt(source, output, blocks=2, **flags):
    with pytest.raises(KeyboardInterrupt):
        complete(source, output, WordTask(stop_after=blocks), **flags)


def journal_of(output):
    return output.with_name(f".{output.name}.part")


def read_lines(path):
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


# ---- what comes out -------------------------------------------------------------------------------------------------


def test_rows_keep_their_columns_and_order_and_every_row_has_every_column(source, tmp_path):
    summary = complete(source, tmp_path / "x.jsonl")
    rows = read_lines(tmp_path / "x.jsonl")
    assert [{"id": row["id"], "text": row["text"]} for row in rows] == ROWS
    assert all(list(row) == ["id", "text", "words", "block", "error"] for row in rows)
    assert [row["words"] for row in rows] == [number % 7 or None for number in range(25)]
    assert rows[0]["error"] == "no_text: text is empty"
    assert rows[1]["error"] is None
    assert (summary.rows, summary.scored, summary.errors, summary.written) == (25, 21, {"no_text": 4}, 25)
    assert json.loads((tmp_path / "x.summary.json").read_text())["errors"] == {"no_text": 4}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "x.jsonl", "x.summary.json"]


def test_lines_that_are_no_rows_are_rows_with_an_error(tmp_path):
    (tmp_path / "in.jsonl").write_bytes(b'{"text": "a b"}\n\nnot json\n5\n')
    summary = complete(str(tmp_path / "in.jsonl"), tmp_path / "x.jsonl")
    rows = read_lines(tmp_path / "x.jsonl")
    assert [row.get("text") for row in rows] == ["a b", None, None]
    assert [row["words"] for row in rows] == [2, None, None]
    assert rows[1]["error"].startswith("not_json: ")
    assert summary.errors == {"not_json": 1, "no_text": 1}


def test_gzip_json_lines_and_parquet_give_the_same_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(preference_source, "CHUNK_ROWS", 4)
    inputs = [write_lines(tmp_path / "in.jsonl"), write_lines(tmp_path / "in.jsonl.gz"), str(tmp_path / "in.parquet")]
    pq.write_table(pa.Table.from_pylist(ROWS, pa.schema([("id", pa.int16()), ("text", pa.large_string())])), inputs[2])
    results = []
    for index, source in enumerate(inputs):
        for suffix in ("jsonl", "parquet"):
            output = tmp_path / f"{index}.{suffix}"
            complete(source, output, overwrite=True)
            results.append(pq.read_table(output).to_pylist() if suffix == "parquet" else read_lines(output))
    assert all(rows == results[0] for rows in results)
    # Of a Parquet file the columns keep their types.
    assert pq.read_schema(tmp_path / "2.parquet").field("id").type == pa.int16()
    assert pq.read_schema(tmp_path / "2.parquet").field("text").type == pa.large_string()


def test_exported_rows_stand_alone_and_the_others_are_counted(source, tmp_path):
    summary = complete(source, tmp_path / "x.jsonl", as_preferences=True)
    assert [row["id"] for row in read_lines(tmp_path / "x.jsonl")] == [
        number for number in range(25) if number % 7 in (2, 4, 6) for _ in range(2)
    ]
    assert (summary.errors, summary.dropped, summary.written) == ({"no_text": 4}, {"odd": 11}, 20)


# ---- interrupted and resumed ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("as_preferences", [False, True])
def test_interrupted_after_any_block_it_resumes_to_the_same_bytes_and_does_no_block_twice(
    source, tmp_path, monkeypatch, name, as_preferences
):
    monkeypatch.setattr(preference_source, "CHUNK_ROWS", 5)  # chunks and blocks end at different rows
    complete(source, tmp_path / "whole" / name, as_preferences=as_preferences)
    whole = (tmp_path / "whole" / name).read_bytes()
    for blocks in range(5):
        output = tmp_path / str(blocks) / name
        if blocks < 4:
            interrupt(source, output, blocks, as_preferences=as_preferences)
            assert not output.exists()
        task = WordTask()
        summary = complete(source, output, task, as_preferences=as_preferences, resume=True)
        assert output.read_bytes() == whole
        done_before = blocks if blocks < 4 else 0  # nothing to resume is a start like any other
        assert (task.blocks, summary.resumed_at) == (4 - done_before, min(7 * done_before, 25))


@pytest.mark.parametrize("name", KINDS)
def test_journal_cut_in_or_between_lines_resumes_to_the_same_bytes(source, tmp_path, name):
    output = tmp_path / name
    interrupt(source, output, blocks=3)
    journal = journal_of(output).read_bytes()
    complete(source, output, resume=True)
    whole = output.read_bytes()
    ends = [index + 1 for index, byte in enumerate(journal) if byte == ord("\n")]
    cuts = {*range(0, len(journal), 97), *(end + shift for end in ends for shift in (-1, 0, 1) if end + shift >= 0)}
    for size in sorted(cuts):
        output.unlink()
        journal_of(output).write_bytes(journal[:size])
        complete(source, output, resume=True)
        assert output.read_bytes() == whole, size


def test_finished_output_is_said_to_be_finished_without_loading_a_model(source, tmp_path):
    first = complete(source, tmp_path / "x.jsonl")
    run = FileRun(source, str(tmp_path / "x.jsonl"), {"options": ""}, resume=True)
    again = complete_file(run, WordTask(), lambda: pytest.fail("a model is loaded"))
    assert again.was_finished
    assert {**again.to_dict(), "was_finished": False} == first.to_dict()


@pytest.mark.parametrize("was_finished", [True, False])
def test_overwriting_that_is_interrupted_while_the_model_loads_is_resumed_with_nothing_of_before(
    source, tmp_path, was_finished
):
    output = tmp_path / "x.jsonl"
    complete(source, output) if was_finished else interrupt(source, output)

    def load():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        complete_file(FileRun(source, str(output), {"options": ""}, overwrite=True), WordTask(), load)
    assert output.exists() == was_finished  # until there is a new one
    task = WordTask()
    summary = complete(source, output, task, odds=5.0, resume=True)
    assert (task.blocks, summary.resumed_at, summary.was_finished) == (4, 0, False)


def test_summary_keeps_what_the_model_answered(source, tmp_path):
    complete(source, tmp_path / "x.jsonl", odds=3.0)
    identity = json.loads((tmp_path / "x.summary.json").read_text())["identity"]
    assert identity["model_answers"] == [3.0] * 4


def test_stopped_between_output_and_summary_it_finishes_without_doing_a_row(source, tmp_path, monkeypatch):
    output = tmp_path / "x.jsonl"
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            complete(source, output)
    assert output.exists()
    task = WordTask()
    summary = complete(source, output, task, resume=True)
    assert (task.blocks, summary.resumed_at, summary.scored) == (0, 25, 21)
    assert json.loads((tmp_path / "x.summary.json").read_text())["scored"] == 21


# ---- what is refused ------------------------------------------------------------------------------------------------


def test_neither_an_output_nor_an_interrupted_run_is_replaced_unasked(source, tmp_path):
    output = tmp_path / "x.jsonl"
    interrupt(source, output)
    kept = journal_of(output).read_bytes()
    with pytest.raises(OutputExistsError, match="--resume is required to go on, --overwrite to start anew"):
        complete(source, output)
    assert journal_of(output).read_bytes() == kept
    assert complete(source, output, overwrite=True).resumed_at == 0
    for flags in ({}, {"options": "other"}):
        with pytest.raises(OutputExistsError, match=r"x\.jsonl: is there already; a new name is required"):
            complete(source, output, **flags)
    output.unlink()  # the summary may be that of x.parquet
    with pytest.raises(OutputExistsError, match=r"x\.summary\.json: is there already"):
        complete(source, output)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"options": "other"}, "was made with options '', now it is 'other'"),
        ({"source": "other.jsonl"}, "was made with input"),
    ],
)
@pytest.mark.parametrize("is_finished", [False, True])
def test_run_of_other_input_or_options_is_not_resumed_finished_or_not(source, tmp_path, change, says, is_finished):
    output = tmp_path / "x.jsonl"
    complete(source, output) if is_finished else interrupt(source, output)
    write_lines(tmp_path / "other.jsonl", [*ROWS, ROWS[0]])
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    change = {key: str(tmp_path / value) if key == "source" else value for key, value in change.items()}
    with pytest.raises(OutputExistsError, match=says):
        complete(**{"source": source, "output": output, "resume": True, **change})
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_model_that_answers_otherwise_is_another_one_and_a_rounding_is_none(source, tmp_path):
    # 0.5 and 5 %: of 8.0 up to 0.9. In bfloat16, numbers from 8 to 16 are 1/16 apart.
    interrupt(source, tmp_path / "x.jsonl", odds=8.0)
    for odds in (8.95, 7.05, -8.0, float("nan")):
        with pytest.raises(
            OutputExistsError, match=r"was made with model_answers \[8.0, 8.0, 8.0, 8.0\], now it is \["
        ):
            complete(source, tmp_path / "x.jsonl", odds=odds, resume=True)
    assert complete(source, tmp_path / "x.jsonl", odds=8.0625, resume=True).resumed_at == 14


def test_output_without_its_summary_is_not_taken_for_finished(source, tmp_path):
    complete(source, tmp_path / "x.jsonl")
    (tmp_path / "x.summary.json").unlink()
    with pytest.raises(OutputExistsError, match=r"x\.summary\.json does not say what made it"):
        complete(source, tmp_path / "x.jsonl", resume=True)


def test_input_that_changes_during_the_run_is_an_error(source, tmp_path):
    class Meddling(WordTask):
        def work(self, scorer, block):
            write_lines(Path(source), ROWS[:-1])
            return super().work(scorer, block)

    with pytest.raises(DataError, match="was changed during the run"):
        complete(source, tmp_path / "x.jsonl", Meddling())
    assert not (tmp_path / "x.jsonl").exists()


def test_columns_of_the_results_names_are_refused_before_the_first_row(tmp_path):
    source = write_lines(tmp_path / "in.jsonl", [ROWS[1], {**ROWS[2], "words": 3, "error": None}])
    with pytest.raises(DataError, match=r"in\.jsonl:2: has words, error already; columns of other names"):
        complete(source, tmp_path / "x.jsonl")
    assert complete(source, tmp_path / "x.jsonl", as_preferences=True).scored == 2  # which keeps no column


def test_late_column_of_such_a_name_gives_way_in_its_row(tmp_path, monkeypatch):
    monkeypatch.setattr(preference_source, "CHUNK_ROWS", 2)
    source = write_lines(tmp_path / "in.jsonl", [*ROWS[1:4], {**ROWS[4], "words": 99}])
    summary = complete(source, tmp_path / "x.jsonl")
    assert summary.errors == {"column_taken": 1}
    last = read_lines(tmp_path / "x.jsonl")[-1]
    assert (last["id"], last["words"]) == (4, None)
    assert last["error"].startswith("column_taken: has words of its own")


def test_strict_stops_at_the_first_bad_row_and_can_be_resumed_without(tmp_path):
    source = write_lines(tmp_path / "in.jsonl", [*ROWS[1:7], *ROWS[1:7], ROWS[0]])
    with pytest.raises(DataError, match=r"in\.jsonl:13: no_text: text is empty; a valid row is required \(--strict\)"):
        complete(source, tmp_path / "x.jsonl", strict=True)
    assert complete(source, tmp_path / "x.jsonl", resume=True).resumed_at == 7


@pytest.mark.parametrize("is_finished", [True, False])
def test_strict_holds_for_what_an_earlier_run_has_been_through(tmp_path, is_finished):
    source, output = write_lines(tmp_path / "in.jsonl", [*ROWS[1:4], ROWS[0], *ROWS[1:7]]), tmp_path / "x.jsonl"
    complete(source, output) if is_finished else interrupt(source, output, blocks=1)
    says = (
        r"x\.jsonl: was finished, and 1 of 10 rows have no result \(no_text 1\)"
        if is_finished
        else r"in\.jsonl:4: no_t"
    )
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    task = WordTask()
    with pytest.raises(DataError, match=says + r".* required \(--strict\)"):
        complete(source, output, task, resume=True, strict=True)
    assert task.blocks == 0
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert complete(source, output, resume=True).errors == {"no_text": 1}


def test_strict_run_without_a_bad_row_is_resumed(tmp_path):
    source, output = write_lines(tmp_path / "in.jsonl", ROWS[1:7] * 3), tmp_path / "x.jsonl"
    interrupt(source, output)
    assert complete(source, output, resume=True, strict=True).resumed_at == 14
    assert complete(source, output, resume=True, strict=True).was_finished


def test_input_and_output_of_other_kinds_are_refused(source, tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "file").touch()
    for one, output, error, says in (
        (source, "x.csv", DataError, "the ending '.csv' names no format; required is .jsonl or .parquet"),
        (source, "in.jsonl", OutputExistsError, "is the input itself"),
        (source, "folder.jsonl", OutputExistsError, "is a folder"),
        (source, "file/x.jsonl", UnwritableError, "a folder that can be written is required"),
        (str(tmp_path / "empty.jsonl"), "x.jsonl", DataError, "holds no row"),
        ("owner/name", "x.jsonl", MissingPathError, "one on this machine is required"),
    ):
        with pytest.raises(error, match=says):
            complete(one, tmp_path / output)


def test_full_disk_keeps_what_was_done(source, tmp_path):
    output = tmp_path / "x.jsonl"
    interrupt(source, output)
    size = journal_of(output).stat().st_size
    with files_of_at_most(size + 40), pytest.raises(UnwritableError, match="those of 14 rows are kept"):
        complete(source, output, resume=True)
    assert journal_of(output).stat().st_size == size
    summary = complete(source, output, resume=True)
    complete(source, tmp_path / "y.jsonl")
    assert summary.resumed_at == 14
    assert output.read_bytes() == (tmp_path / "y.jsonl").read_bytes()


# ---- memory ---------------------------------------------------------------------------------------------------------


def test_memory_does_not_grow_with_the_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(preference_source, "CHUNK_ROWS", 50)
    peaks = []
    for number in (500, 500, 2000):  # the first imports
        source = write_lines(tmp_path / "in.jsonl", ({"text": f"{row} " * 50} for row in range(number)))
        tracemalloc.start()
        for name in KINDS:
            complete(source, tmp_path / name, WordTask(rows_a_block=50), overwrite=True)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] < 1.2 * peaks[1]
