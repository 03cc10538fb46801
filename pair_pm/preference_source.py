"""Where preference rows come from: local files, `save_to_disk` folders, the Hugging Face hub; read in chunks."""

import gzip
import io
import json
import re
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
_READ_CHARACTERS = 1 << 20
_BETWEEN_ITEMS = ", \t\r\n"
_ACCEPTED = ".jsonl, .json or .parquet (the first two also with .gz), a folder from save_to_disk, or a hub name"
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
            first, batch = self.rows
            for offset, row in enumerate(batch.to_pylist()):
                yield first + offset, row, None
            return
        for number, text in self.rows:
            try:
                yield number, json.loads(text), None
            except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError too
                shown = text.decode(errors="backslashreplace")
                yield number, shown, RowProblem("not_json", str(error) or type(error).__name__)

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
            return PreferenceSource(name, _stem(path), path, split)
        if path.is_dir():
            return PreferenceSource(name, path.resolve().name, path, split)
    if name.startswith((".", "/", "~")) or _stem(Path(name)) != Path(name).name or name.count("/") > 1:
        raise MissingPathError(f"{name}: no such file or folder; required is {_ACCEPTED}")
    if not _HUB_NAME.fullmatch(name):
        raise DataError(f"{name}: not a path and not a hub name; required is {_ACCEPTED} (name[@revision][:split])")
    repository, _, split = name.partition(":")
    repository, _, revision = repository.partition("@")
    return PreferenceSource(name, repository, None, split or "train", revision or None)


def _split_off(name: str) -> tuple[Path, str | None]:
    path, _, split = name.rpartition(":")
    return Path(path or name), split if path else None


def _stem(path: Path) -> str:
    return re.sub(r"\.(jsonl|json|parquet)(\.gz)?$", "", path.name)


def _check_suffix(name: str, path: Path) -> None:
    if _stem(path) == path.name or path.name.endswith(".parquet.gz"):
        raise DataError(f"{name}: a file of this name cannot be read; required is {_ACCEPTED}")


# ---- JSON -----------------------------------------------------------------------------------------------------------


def _json_texts(name: str, path: Path) -> Iterator[tuple[int, bytes]]:
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
        try:
            is_array = path.name.removesuffix(".gz").endswith(".json") and _starts_with_bracket(file)
            yield from _array_items(file) if is_array else _lines(file)
        except (EOFError, gzip.BadGzipFile) as error:
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
    """Yield the items of one JSON array without holding it whole; all that follows a syntax error is one bad item."""
    text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape")
    decoder = json.JSONDecoder()
    buffer, is_open, number = text.read(_READ_CHARACTERS).lstrip()[1:], True, 0
    while True:
        buffer = buffer.lstrip(_BETWEEN_ITEMS)
        if buffer.startswith("]"):
            return
        try:
            _, end = decoder.raw_decode(buffer)
        except (ValueError, RecursionError):
            end = 0
        # An item that ends where the buffer does may go on (12 of 123), so it counts only once more was read.
        if end and (end < len(buffer) or not is_open):
            number += 1
            yield number, buffer[:end].encode(errors="surrogateescape")
            buffer = buffer[end:]
        elif is_open:
            # Reading as much again as is held keeps the re-parsing of one long item linear.
            more = text.read(max(len(buffer), _READ_CHARACTERS))
            is_open = bool(more)
            buffer += more
        else:
            yield number + 1, (buffer or "end of file").encode(errors="surrogateescape")
            return


def _chunk_parquet(name: str, path: Path) -> Iterator[RowChunk]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise DataError(f"{name}: {error}; a Parquet file is required") from error
    first = 1
    for batch in file.iter_batches(batch_size=CHUNK_ROWS):
        yield RowChunk(name, (first, batch))
        first += batch.num_rows


# ---- datasets -------------------------------------------------------------------------------------------------------


def _load_from_folder(source: PreferenceSource):
    import datasets

    try:
        loaded = datasets.load_from_disk(str(source.path))
    except FileNotFoundError as error:
        raise DataError(f"{source.name}: not a folder that save_to_disk wrote; required is {_ACCEPTED}") from error
    if isinstance(loaded, datasets.Dataset):
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
    except (OSError, ValueError) as error:
        raise DataError(
            f"{source.name}: the hub did not give split {source.split!r}: {error}; required is {_ACCEPTED}"
        ) from error


def _chunk_dataset(name: str, dataset) -> Iterator[RowChunk]:
    first = 1
    for table in dataset.with_format("arrow").iter(batch_size=CHUNK_ROWS):
        for batch in table.combine_chunks().to_batches():
            yield RowChunk(name, (first, batch))
            first += batch.num_rows
