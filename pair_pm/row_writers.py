"""Rows of any columns into a JSON lines or Parquet file, a block at a time, whole or not at all."""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pair_pm.errors import DataError, UnwritableError

if TYPE_CHECKING:
    import pyarrow as pa

KINDS = (".jsonl", ".parquet")


def write_blocks(path: Path, blocks: Callable[[], Iterable]) -> None:
    """Write rows under a temporary name, then rename; the same blocks give the same bytes.

    Args:
        path: Its ending, one of `KINDS`, is the format.
        blocks: Gives the rows from the start, each time it is called: lists of them, or Arrow tables for Parquet.
    Raises:
        DataError: the values of a column have no common type, which Parquet requires.
        UnwritableError: the disk is full, or the folder may not be written; `path` is as before.
    """
    with written_whole(path) as fresh:
        if path.suffix == ".parquet":
            with _types_explained(path):
                _write_parquet(fresh, blocks)
        else:
            _write_jsonl(fresh, blocks)


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Give a temporary name to write under; the file takes its own name when all is on the disk.

    Raises:
        UnwritableError: the disk is full, or the folder may not be written; `path` is as before.
    """
    fresh = path.with_name(f".{path.name}.fresh")
    try:
        yield fresh
        with fresh.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(fresh, path)
    except OSError as error:
        raise UnwritableError(
            f"{path}: {error.strerror or error}; room for the whole of it is required; make room and add --resume"
        ) from error
    finally:
        fresh.unlink(missing_ok=True)


def to_json(row: dict) -> bytes:
    """Return a row as a line of JSON."""
    try:
        return json.dumps(row, ensure_ascii=False, default=str).encode() + b"\n"
    except UnicodeEncodeError:  # half a surrogate pair, which JSON can hold and UTF-8 cannot
        return json.dumps(row, default=str).encode() + b"\n"


def _write_jsonl(path: Path, blocks: Callable) -> None:
    with path.open("wb") as file:
        for block in blocks():
            file.writelines(map(to_json, block))


@contextmanager
def _types_explained(path: Path) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OverflowError, UnicodeEncodeError) as error:
        found = " ".join(str(error).split())
        raise DataError(
            f"{path}: {found}; values of one type in each column are required for Parquet; .jsonl takes any"
        ) from error


def _write_parquet(path: Path, blocks: Callable) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    # Twice through the rows: what type a column has, or that there is one, may show in the last of them.
    schema = pa.schema([])
    for block in blocks():
        schema = pa.unify_schemas([schema, _to_table(block).schema], promote_options="permissive")
    # A column in which nothing stands, such as `error` of rows that are all well, is text: readers expect a type.
    schema = pa.schema([f.with_type(pa.string()) if pa.types.is_null(f.type) else f for f in schema])
    with pq.ParquetWriter(path, schema) as writer:
        for block in blocks():
            writer.write_table(_to_table(block, schema))


def _to_table(block: "list[dict] | pa.Table", schema: "pa.Schema | None" = None) -> "pa.Table":
    import pyarrow as pa

    if isinstance(block, pa.Table):
        return block.cast(schema) if schema else block
    names = schema.names if schema else dict.fromkeys(name for row in block for name in row)
    return pa.table(
        {
            name: pa.array([row.get(name) for row in block], schema.field(name).type if schema else None)
            for name in names
        }
    )
