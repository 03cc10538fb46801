"""Reading tables of preference rows: names, file formats, and everything a damaged file can hold."""

import gzip
import json

import pytest

from pair_pm.errors import DataError, MissingPathError
from pair_pm.preference_source import CHUNK_ROWS, MAX_NESTING, open_source

ROWS = [{"id": f"row {number}", "text": "Grüße, 世界 [1, {2}]"} for number in range(5)]


def read(path, name=None):
    """Return ``(number, row or text, reason)`` for each row of a source."""
    rows = []
    for chunk in open_source(name or str(path)).chunks():
        rows += [(number, row, problem and problem.reason) for number, row, problem in chunk.decode()]
    return rows


def read_text(tmp_path, content, name="rows.jsonl"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read(path)


def reasons(rows):
    return [reason for _, _, reason in rows]


def to_lines(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


# ---- file formats ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_json_lines_are_read_from_either_name_and_from_gzip(tmp_path, name, suffix):
    data = to_lines(ROWS).encode()
    rows = read_text(tmp_path, gzip.compress(data) if suffix else data, name + suffix)
    assert rows == [(number, row, None) for number, row in enumerate(ROWS, start=1)]


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_json_array_is_read_item_by_item(tmp_path, indent, suffix):
    data = json.dumps(ROWS, indent=indent).encode()
    rows = read_text(tmp_path, gzip.compress(data) if suffix else data, "rows.json" + suffix)
    assert rows == [(number, row, None) for number, row in enumerate(ROWS, start=1)]


def test_parquet_rows_are_numbered_through_all_row_groups(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "rows.parquet", row_group_size=2)
    assert read(tmp_path / "rows.parquet") == [(number, row, None) for number, row in enumerate(ROWS, start=1)]


def test_a_saved_dataset_is_read(tmp_path):
    import datasets

    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "folder")
    assert read(tmp_path / "folder") == [(number, row, None) for number, row in enumerate(ROWS, start=1)]


def save_two_splits(path):
    import datasets

    splits = {"train": datasets.Dataset.from_list(ROWS), "test": datasets.Dataset.from_list(ROWS[:1])}
    datasets.DatasetDict(splits).save_to_disk(path)


def test_a_split_of_a_saved_dataset_dict_is_named_after_a_colon(tmp_path):
    save_two_splits(tmp_path / "folder")
    assert len(read(None, f"{tmp_path}/folder:train")) == 5
    assert len(read(None, f"{tmp_path}/folder:test")) == 1


@pytest.mark.parametrize("ending", ["", ":validation"])
def test_a_dataset_dict_without_that_split_lists_its_splits(tmp_path, ending):
    save_two_splits(tmp_path / "folder")
    with pytest.raises(DataError, match=r"has the splits train, test; one is required; name it as .*folder:SPLIT"):
        read(None, f"{tmp_path}/folder{ending}")


def test_a_split_of_something_without_splits_is_refused(tmp_path):
    import datasets

    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "folder")
    (tmp_path / "rows.jsonl").write_text(to_lines(ROWS))
    for name in ("folder", "rows.jsonl"):
        with pytest.raises(DataError, match="has no splits"):
            read(None, f"{tmp_path}/{name}:test")


def test_an_ordinary_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match="not a folder that save_to_disk wrote"):
        read(tmp_path)


def test_large_files_come_in_chunks(tmp_path):
    (tmp_path / "rows.jsonl").write_text("{}\n" * (2 * CHUNK_ROWS + 1))
    chunks = list(open_source(str(tmp_path / "rows.jsonl")).chunks())
    assert [len(chunk) for chunk in chunks] == [CHUNK_ROWS, CHUNK_ROWS, 1]


@pytest.mark.parametrize("name", ["missing.jsonl", "missing.json.gz", "./missing", "/missing", "a/b/c"])
def test_a_missing_file_is_named(name):
    with pytest.raises(MissingPathError, match=f"{name}: no such file or folder"):
        open_source(name)


@pytest.mark.parametrize("name", ["rows.csv", "rows.parquet.gz", "rows"])
def test_a_file_of_another_kind_is_refused(tmp_path, name):
    (tmp_path / name).write_text("x")
    with pytest.raises(DataError, match="a file of this name cannot be read"):
        open_source(str(tmp_path / name))


# ---- hub names ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "repository", "revision", "split"),
    [
        ("owner/set", "owner/set", None, "train"),
        ("set", "set", None, "train"),
        ("owner/set:test", "owner/set", None, "test"),
        ("owner/set@v1.0", "owner/set", "v1.0", "train"),
        ("owner/set@refs/convert:test_prefs", "owner/set", "refs/convert", "test_prefs"),
        ("HuggingFaceH4/ultrafeedback_binarized:train_prefs", "HuggingFaceH4/ultrafeedback_binarized", None,
         "train_prefs"),
    ],
)  # fmt: skip
def test_hub_names_carry_a_revision_and_a_split(name, repository, revision, split):
    source = open_source(name)
    assert (source.path, source.default_source, source.revision, source.split) == (None, repository, revision, split)


@pytest.mark.parametrize("name", ["a set", "owner/set:a:b", "owner/set:test@v1", "owner/set@"])
def test_what_is_neither_a_path_nor_a_hub_name_is_refused(name):
    with pytest.raises(DataError, match="not a path and not a hub name"):
        open_source(name)


def test_an_unreachable_hub_is_one_line(tmp_path):
    with pytest.raises(DataError) as error:
        read(None, "weqweasdas/preference_dataset_mix2")
    assert str(error.value).startswith("weqweasdas/preference_dataset_mix2: the hub did not give split 'train': ")
    assert "\n" not in str(error.value)


# ---- damaged lines --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        b'{"id": ',
        b"not json",
        b'{"id": "\xff\xfe"}',  # not UTF-8
        b'{"id": ' + b"9" * 5000 + b"}",  # longer than Python converts
        b"\x00\x00\x00",
        b'{"id": "a\x00b"}',  # a raw control character
        b"\xef\xbb\xbf",
    ],
)
def test_a_line_that_is_not_json_is_one_bad_row(tmp_path, line):
    rows = read_text(tmp_path, b'{"id": 1}\n' + line + b'\n{"id": 3}\n')
    assert reasons(rows) == [None, "not_json", None]
    assert [number for number, _, _ in rows] == [1, 2, 3]


@pytest.mark.parametrize("depth", [MAX_NESTING + 1, 980, 100_000])
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
def test_a_row_nested_too_deeply_is_one_bad_row(tmp_path, depth, name):
    deep = '{"id": ' + "[" * depth + "]" * depth + "}"
    text = f'{{"id": 1}}\n{deep}\n{{"id": 3}}\n' if name == "rows.jsonl" else f'[{{"id": 1}},{deep},{{"id": 3}}]'
    rows = read_text(tmp_path, text, name)
    assert reasons(rows) == [None, "nested_too_deeply", None]
    assert rows[1][1].strip() == deep


def test_many_brackets_are_not_deep(tmp_path):
    row = {"text": "[" * 5000, "list": [[{}]] * 5000}
    assert read_text(tmp_path, to_lines([row])) == [(1, row, None)]


def test_a_byte_order_mark_and_dos_line_ends_and_blank_lines_are_no_defect(tmp_path):
    rows = read_text(tmp_path, b'\xef\xbb\xbf{"id": 1}\r\n\r\n  \r\n{"id": 4}\r\n')
    assert rows == [(1, {"id": 1}, None), (4, {"id": 4}, None)]


def test_a_last_line_without_its_end_is_a_row(tmp_path):
    assert reasons(read_text(tmp_path, b'{"id": 1}\n{"id": 2}')) == [None, None]
    assert reasons(read_text(tmp_path, b'{"id": 1}\n{"id": 2')) == [None, "not_json"]


def test_a_line_separator_inside_a_string_does_not_end_the_line(tmp_path):
    row = {"text": "one\u2028two\x85three"}
    assert read_text(tmp_path, to_lines([row])) == [(1, row, None)]


# ---- damaged arrays -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "item",
    [
        b"{oops}",
        b'{"id": \xff}',
        b'{"id": ' + b"9" * 5000 + b"}",
        b'{"id": "a" "b"}',
        b"12 13",
        b"",
    ],
)
def test_an_item_that_is_not_json_is_one_bad_row(tmp_path, item):
    rows = read_text(tmp_path, b'[{"id": 1}, ' + item + b', {"id": 3}]', "rows.json")
    assert reasons(rows) == [None, "not_json", None]
    assert rows[2] == (3, {"id": 3}, None)


@pytest.mark.parametrize("ending", [b"", b', {"id"', b', {"id": "a', b', {"id": "a\\', b", 12 13"])
def test_a_truncated_array_keeps_its_whole_items_and_shows_the_cut(tmp_path, ending):
    rows = read_text(tmp_path, b'[{"id": 1}, {"id": 2}, ' + ending.removeprefix(b", "), "rows.json")
    assert [row for _, row, reason in rows if reason is None] == [{"id": 1}, {"id": 2}]
    assert reasons(rows)[2:] == ["not_json"]


def test_what_follows_an_array_is_not_lost_silently(tmp_path):
    rows = read_text(tmp_path, '[{"id": 1}]\n[{"id": 2}]\n trailing', "rows.json")
    assert reasons(rows) == [None, "not_json"]


def test_an_empty_array_has_no_row_and_a_last_comma_adds_none(tmp_path):
    assert read_text(tmp_path, " [ ] \n", "rows.json") == []
    assert reasons(read_text(tmp_path, '[{"id": 1},]', "rows.json")) == [None]


def test_items_of_any_type_and_size_come_out_of_an_array_as_they_are(tmp_path, monkeypatch):
    monkeypatch.setattr("pair_pm.preference_source._READ_BYTES", 7)
    items = [{"a": '], [\\" {'}, "x,y]", 12, 123.5, None, [1, [2, {"b": "}"}]], {"text": "é" * 50}, True]
    for indent in (None, 1):
        rows = read_text(tmp_path, "\ufeff" + json.dumps(items, indent=indent, ensure_ascii=False), "rows.json")
        assert rows == [(number, item, None) for number, item in enumerate(items, start=1)]


# ---- damaged files --------------------------------------------------------------------------------------------------


def damage(data, how):
    middle = len(data) // 2
    return {"cut": data[:middle], "overwritten": data[:middle] + b"\xff" * 64 + data[middle + 64 :], "text": b"text"}[
        how
    ]


@pytest.mark.parametrize("how", ["cut", "overwritten", "text"])
def test_a_damaged_gzip_file_is_an_error_in_one_line(tmp_path, how):
    data = gzip.compress(b"".join(b'{"id": %d}\n' % (number**5) for number in range(5000)))
    with pytest.raises(DataError, match="a whole gzip file is required"):
        read_text(tmp_path, damage(data, how), "rows.jsonl.gz")


@pytest.mark.parametrize("how", ["cut", "overwritten", "text"])
def test_a_damaged_parquet_file_is_an_error_in_one_line(tmp_path, how):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"text": [f"text {number**5}" for number in range(5000)]}), path, compression="snappy")
    path.write_bytes(damage(path.read_bytes(), how))
    with pytest.raises(DataError, match="a whole Parquet file is required") as error:
        read(path)
    assert "\n" not in str(error.value)


def test_a_parquet_row_that_is_not_utf8_is_one_bad_row(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    broken = pa.array([b"fine", b"\xff\xfe", b"fine"]).view(pa.string())
    pq.write_table(pa.table({"text": broken}), tmp_path / "rows.parquet")
    assert reasons(read(tmp_path / "rows.parquet")) == [None, "unreadable_value", None]
