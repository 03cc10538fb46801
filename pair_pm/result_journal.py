"""The results of a long run in a file that any interruption leaves readable, so that nothing is done twice.

Each line holds one JSON value behind a digest: the first says what run it is, every other one holds the results of one
block of rows. A line that is not whole, as `kill -9`, a full disk or a power cut leaves it, ends the journal: it is cut
off, and its block is done again.
"""

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from pair_pm.errors import OutputExistsError, UnwritableError


class ResultJournal:
    """The journal of one run, open for appending; a context manager.

    Args:
        path: Of the file, which is made where it is not there.
        anew: Drop what is in it.
    Attributes:
        header: What run it is, None where the file was new or its first line not whole.
        rows: How many rows have their results in it.
    Raises:
        OutputExistsError: another process has it open.
    """

    def __init__(self, path: Path, *, anew: bool = False):
        self.path = path
        self._anew = anew
        self.header: dict | None = None
        self.rows = 0
        self._end = 0

    def __enter__(self) -> "ResultJournal":
        # Unbuffered, or what a full disk did not take would be written when there is room again.
        self._file = self.path.open("ab", buffering=0)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise OutputExistsError(f"{self.path}: another process is writing it; one at a time is required") from None
        # Emptied rather than removed: whoever else had it open would go on writing a file that has no name.
        for rows, value, end in () if self._anew else _whole_lines(self.path):
            if self._end == 0:
                self.header = json.loads(value)
            self.rows, self._end = self.rows + rows, end
        self._file.truncate(self._end)
        return self

    def __exit__(self, *_) -> None:
        self._file.close()

    def start(self, header: Mapping) -> None:
        """Write what run it is, over what it was said to be; there may be no results yet."""
        assert self.rows == 0, self.rows
        self._end = 0
        self._file.truncate(0)
        self._write_line(0, header)
        self.header = dict(header)

    def append(self, results: list) -> None:
        """Write the results of the rows that follow, one each; when this returns they are on the disk.

        Raises:
            UnwritableError: they could not be written, and the journal is as before.
        """
        assert self.header is not None
        self._write_line(len(results), results)
        self.rows += len(results)

    def results(self) -> Iterator:
        """Yield the result of each row, in order."""
        for rows, value, _ in _whole_lines(self.path):
            if rows:
                yield from json.loads(value)

    def _write_line(self, rows: int, value: object) -> None:
        content = b"%d %s" % (rows, json.dumps(value).encode())
        line = b"%s %s\n" % (_digest(content), content)
        try:
            left = memoryview(line)
            while left:
                left = left[self._file.write(left) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            with contextlib.suppress(OSError):  # what stays behind of the line is cut off when it is next opened
                os.truncate(self.path, self._end)
            raise UnwritableError(
                f"{self.path}: {error.strerror}; room for the next results is required; those of {self.rows} rows "
                "are kept: make room and add --resume"
            ) from error
        self._end += len(line)


def read_header(path: Path) -> dict | None:
    """Return what run a journal is of, None where its first line is not whole."""
    for _, value, _ in _whole_lines(path):
        return json.loads(value)
    return None


def _whole_lines(path: Path) -> Iterator[tuple[int, bytes, int]]:
    """Yield ``(rows, JSON, offset of the end)`` of each line, up to the first that is not whole."""
    end = 0
    with path.open("rb") as file:
        for line in file:
            digest, _, content = line.rstrip(b"\n").partition(b" ")
            if not line.endswith(b"\n") or digest != _digest(content):
                return
            rows, _, value = content.partition(b" ")
            end += len(line)
            yield int(rows), value, end


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=8).hexdigest().encode()
