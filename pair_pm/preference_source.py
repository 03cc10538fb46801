"""Where preference rows come from: local files, `save_to_disk` folders, the Hugging Face hub; read in chunks."""

import gzip
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from pair_pm.errors import DataError, MissingPathError
from pair_pm.preference import RowProblem

if TYPE_CHECKING:
    import pyarrow as pa

CHUNK_ROWS = 1000
MAX_NESTING = 200
_READ_BYTES = 1 << 20
_SPACE = b" \t\r\n"
# What JSON's structure hangs on: whole strings, brackets, commas; and the quote of a string that does not end.
_STRUCTURE = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[\]{},"]', re.DOTALL)
_ACCEPTED = ".jsonl, .json or .parquet (the first two also with .gz), a folder from save_to_disk, or a hub name"
# Where a hub name says no split. RewardBench's other split holds what was left out of it.
_DEFAULT_SPLITS = {"allenai/reward-bench": "filtered", "allenai/reward-bench-2": "test"}
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?(@[\w./-]+)?(:[\w.-]+)?")


@dataclass(frozen=True)
class PreferenceSource:
    """A table of preference rows that the user named.

    Attributes:
        name: As the user named it.
        default_source: The `source` of its rows that state none.
    """

    name: str
    default_source: str
    path: Path | None
    split: str | None
    revision: str | None = None

    def chunks(self) -> Iterator["RowChunk"]:
        """Yield the rows, in order, `CHUNK_ROWS` at a time; JSON is not yet parsed."""
        if self.path is None:
            yield from _chunk_dataset(self.name, _load_from_hub(self))
        elif self.path.is_dir():
            yield from _chunk_dataset(self.name, _load_from_folder(self))
        elif self.path.name.endswith(".parquet"):
            yield from _chunk_parquet(self.name, self.path)
        else:
            numbered = _json_texts(self.name, self.path)
            while rows := list(islice(numbered, CHUNK_ROWS)):
                yield RowChunk(self.name, rows)


@dataclass(frozen=True)
class RowChunk:
    """Some rows of one source, each with its number: its line in a file of lines, else its place in the table."""

    name: str
    rows: "list[tuple[int, bytes]] | tuple[int, pa.RecordBatch]"

    def decode(self) -> Iterator[tuple[int, object, RowProblem | None]]:
        """Yield ``(number, row, None)``, or ``(number, text, problem)`` for text that is not JSON."""
        if isinstance(self.rows, tuple):
            yield from _decode_batch(*self.rows)
            return
        for number, text in self.rows:
            try:
                _check_nesting(text)
                yield number, json.loads(text), None
            except RowProblem as problem:
                yield number, text.decode(errors="backslashreplace"), problem
            except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError too
                yield number, text.decode(errors="backslashreplace"), RowProblem("not_json", str(error))

    def __len__(self) -> int:
        return self.rows[1].num_rows if isinstance(self.rows, tuple) else len(self.rows)


def open_source(name: str) -> PreferenceSource:
    """Return the source for a path, or for a hub name ``name[@revision][:split]``.

    Raises:
        MissingPathError: a name that can only be a local path is not there.
        DataError: the name is neither a readable path nor a hub name.
    """
    for path, split in ((Path(name), None), _split_off(name)):
        if path.is_file():
            _check_suffix(name, path)
            _refuse_split(name, split)
            return PreferenceSource(name, _stem(path), path, split)
        if path.is_dir():
            return PreferenceSource(name, path.resolve().name, path, split)
    if (
        name.startswith((".", "/", "~"))
        or _stem(Path(name)) != Path(name).name
        or name.partition("@")[0].count("/") > 1
    ):
        raise MissingPathError(f"{name}: no such file or folder; required is {_ACCEPTED}")
    if not _HUB_NAME.fullmatch(name):
        raise DataError(f"{name}: not a path and not a hub name; required is {_ACCEPTED} (name[@revision][:split])")
    repository, _, split = name.partition(":")
    repository, _, revision = repository.partition("@")
    return PreferenceSource(name, repository, None, split or _DEFAULT_SPLITS.get(repository, "train"), revision or None)


def _split_off(name: str) -> tuple[Path, str | None]:
    path, _, split = name.rpartition(":")
    return Path(path or name), split if path else None


def _stem(path: Path) -> str:
    return re.sub(r"\.(jsonl|json|parquet)(\.gz)?$", "", path.name)


def _check_suffix(name: str, path: Path) -> None:
    if _stem(path) == path.name or path.name.endswith(".parquet.gz"):
        raise DataError(f"{name}: a file of this name cannot be read; required is {_ACCEPTED}")


def _refuse_split(name: str, split: str | None) -> None:
    if split:
        raise DataError(f"{name}: has no splits; a split is required of folders and hub names with several alone")


# ---- JSON -----------------------------------------------------------------------------------------------------------


def _json_texts(name: str, path: Path) -> Iterator[tuple[int, bytes]]:
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
        try:
            is_array = path.name.removesuffix(".gz").endswith(".json") and _starts_with_bracket(file)
            yield from _array_items(file) if is_array else _lines(file)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise DataError(f"{name}: {error}; a whole gzip file is required") from error


def _starts_with_bracket(file) -> bool:
    head = file.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n")
    file.seek(0)
    return head.startswith(b"[")


def _lines(file) -> Iterator[tuple[int, bytes]]:
    for number, line in enumerate(file, start=1):
        if not line.isspace():
            yield number, line


def _array_items(file) -> Iterator[tuple[int, bytes]]:
    """Yield the items of one JSON array without holding it whole.

    Only the structure is looked at, so an item that is not JSON is one bad item and the next one follows. What
    stands after the array is one item more.
    """
    buffer, number = file.read(_READ_BYTES), 0
    position = buffer.index(b"[") + 1
    while True:
        end = _find_item_end(buffer, position)
        if end is None:
            # Reading as much again as is held keeps the re-scanning of one long item linear.
            more = file.read(max(len(buffer) - position, _READ_BYTES))
            buffer, position = buffer[position:] + more, 0
            if not more:
                yield number + 1, buffer.strip(_SPACE)  # the array is not closed
                return
            continue
        is_last = buffer[end : end + 1] == b"]"
        item = buffer[position:end].strip(_SPACE)
        position = end + 1
        if item or not is_last:
            number += 1
            yield number, item
        if is_last:
            rest = (buffer[position:] + file.read(_READ_BYTES)).strip(_SPACE)
            if rest:
                yield number + 1, rest
            return


def _find_item_end(buffer: bytes, start: int) -> int | None:
    """Return where the comma or bracket stands that ends an array's item, None if it is not in the buffer yet."""
    depth = 0
    for match in _STRUCTURE.finditer(buffer, start):
        token = match.group()
        if token in (b"[", b"{"):
            depth += 1
        elif depth == 0 and token in (b",", b"]"):
            return match.start()
        elif token in (b"]", b"}"):
            depth = max(0, depth - 1)
        elif token == b'"':
            return None
    return None


def _check_nesting(text: bytes) -> None:
    """Refuse what recursion elsewhere, in pickling or printing a row, might not survive."""
    if text.count(b"[") + text.count(b"{") <= MAX_NESTING:
        return
    depth = 0
    for token in _STRUCTURE.findall(text):
        depth += (token in (b"[", b"{")) - (token in (b"]", b"}"))
        if depth > MAX_NESTING:
            raise RowProblem("nested_too_deeply", f"over {MAX_NESTING} levels of lists and objects")


# ---- Parquet --------------------------------------------------------------------------------------------------------


def _chunk_parquet(name: str, path: Path) -> Iterator[RowChunk]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    first = 1
    try:
        for batch in pq.ParquetFile(path).iter_batches(batch_size=CHUNK_ROWS):
            yield RowChunk(name, (first, batch))
            first += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{name}: {_one_line(error)}; a whole Parquet file is required") from error


def _decode_batch(first: int, batch) -> Iterator[tuple[int, object, RowProblem | None]]:
    try:
        yield from [(first + offset, row, None) for offset, row in enumerate(batch.to_pylist())]
    except ValueError:  # Writers of Parquet need not check that text is UTF-8, or that a date exists.
        for offset in range(batch.num_rows):
            try:
                row, problem = batch.slice(offset, 1).to_pylist()[0], None
            except ValueError as error:
                row, problem = None, RowProblem("unreadable_value", str(error))
            yield first + offset, row, problem


# ---- datasets -------------------------------------------------------------------------------------------------------


def _load_from_folder(source: PreferenceSource):
    import datasets

    try:
        loaded = datasets.load_from_disk(str(source.path))
    except FileNotFoundError as error:
        raise DataError(f"{source.name}: not a folder that save_to_disk wrote; required is {_ACCEPTED}") from error
    if isinstance(loaded, datasets.Dataset):
        _refuse_split(source.name, source.split)
        return loaded
    split = source.split or (next(iter(loaded)) if len(loaded) == 1 else None)
    if split not in loaded:
        raise DataError(
            f"{source.name}: has the splits {', '.join(loaded)}; one is required; name it as {source.path}:SPLIT"
        )
    return loaded[split]


def _load_from_hub(source: PreferenceSource):
    import datasets

    try:
        return datasets.load_dataset(source.default_source, split=source.split, revision=source.revision)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"{source.name}: the hub did not give split {source.split!r}: {_one_line(error)}; required is {_ACCEPTED}"
        ) from error


def _chunk_dataset(name: str, dataset) -> Iterator[RowChunk]:
    first = 1
    for table in dataset.with_format("arrow").iter(batch_size=CHUNK_ROWS):
        for batch in table.combine_chunks().to_batches():
            yield RowChunk(name, (first, batch))
            first += batch.num_rows


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
