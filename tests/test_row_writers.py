"""Rows of any columns into JSON lines and Parquet: whole or not at all, the same rows to the same bytes."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_result_journal import files_of_at_most

from pair_pm.errors import DataError, UnwritableError
from pair_pm.row_writers import write_blocks

BLOCKS = [
    [{"id": 1, "messages": [{"role": "user", "content": "2026-11-22 10:00:00"}], "error": None}],
    [
        {"id": 2.5, "late": "é", "messages": [{"role": "user", "content": "x", "name": "y"}], "error": None},
        {"id": None},
    ],
]


def test_json_lines_are_the_rows_as_they_are(tmp_path):
    write_blocks(tmp_path / "x.jsonl", lambda: BLOCKS)
    lines = (tmp_path / "x.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [row for block in BLOCKS for row in block]
    assert "é" in lines[1]


def test_half_a_surrogate_pair_is_escaped_in_its_row_alone(tmp_path):
    write_blocks(tmp_path / "x.jsonl", lambda: [[{"text": "é\ud800"}, {"text": "é"}]])
    assert (tmp_path / "x.jsonl").read_bytes() == b'{"text": "\\u00e9\\ud800"}\n{"text": "\xc3\xa9"}\n'


def test_parquet_takes_columns_and_types_that_show_late(tmp_path):
    for name in ("x.parquet", "y.parquet"):
        write_blocks(tmp_path / name, lambda: BLOCKS)
    table = pq.read_table(tmp_path / "x.parquet")
    assert table["id"].to_pylist() == [1.0, 2.5, None]
    assert table["late"].to_pylist() == [None, "é", None]
    # Text that looks like a date stays text.
    assert table["messages"][0].as_py() == [{"role": "user", "content": "2026-11-22 10:00:00", "name": None}]
    assert table.schema.field("error").type == pa.string()
    assert (tmp_path / "x.parquet").read_bytes() == (tmp_path / "y.parquet").read_bytes()


def test_tables_keep_their_types_and_may_lack_values_in_a_block(tmp_path):
    blocks = [
        pa.table({"when": pa.array([0], pa.timestamp("ms")), "prob": pa.array([None])}),
        pa.table({"when": pa.array([1], pa.timestamp("ms")), "prob": pa.array([0.5])}),
    ]
    write_blocks(tmp_path / "x.parquet", lambda: blocks)
    table = pq.read_table(tmp_path / "x.parquet")
    assert (table.schema.field("when").type, table["prob"].to_pylist()) == (pa.timestamp("ms"), [None, 0.5])


def test_no_row_at_all_is_an_empty_file(tmp_path):
    for name in ("x.jsonl", "x.parquet"):
        write_blocks(tmp_path / name, lambda: [[], []])
    assert (tmp_path / "x.jsonl").read_bytes() == b""
    assert pq.read_table(tmp_path / "x.parquet").num_rows == 0


@pytest.mark.parametrize(
    "values", [("text", ["list"]), ({"a": 1}, "text"), (2**80, 1), ({}, {}), ("\ud800", "x"), (["x"], [5])]
)
def test_values_without_a_common_type_are_refused_for_parquet_and_nothing_is_left(tmp_path, values):
    for blocks in ([[{"x": value} for value in values]], [[{"x": value}] for value in values]):
        with pytest.raises(DataError, match=r"x\.parquet: .*; values of one type in each column are required"):
            write_blocks(tmp_path / "x.parquet", lambda blocks=blocks: blocks)
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["x.jsonl", "x.parquet"])
def test_full_disk_leaves_the_file_that_was_there(tmp_path, name):
    (tmp_path / name).write_bytes(b"earlier")
    rows = [[{"text": f"{number} " * 2000} for number in range(50)]]
    with files_of_at_most(5000), pytest.raises(UnwritableError, match="room for the whole of it is required"):
        write_blocks(tmp_path / name, lambda: rows)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {name: b"earlier"}
