"""Converted pairs on disk between the two passes, so that memory does not grow with their text."""

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING

from pair_pm.pair_conversion import ConvertedChunk

if TYPE_CHECKING:
    import numpy as np

_LIGHT = ("number", "source", "id", "subset", "prob_a")
_HEAVY = ("lines", "row")


class PairSpool:
    """The converted pairs on disk, chunk by chunk: their light columns, then their text, which a reader may skip.

    Pickles rather than a table format: nothing is faster, and `pyarrow` need not be imported.
    """

    def __init__(self, path: Path):
        self._path = path
        self._chunks = 0

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Open for `append`."""
        with self._path.open("wb") as self._file:
            yield

    def append(self, name: str, converted: ConvertedChunk) -> None:
        """Write the pairs of a chunk of the data set `name`."""
        light, heavy = (
            {column: [getattr(pair, column) for pair in converted.pairs] for column in columns}
            for columns in (_LIGHT, _HEAVY)
        )
        light["name"] = [name] * len(converted.pairs)
        text = pickle.dumps(heavy, pickle.HIGHEST_PROTOCOL)
        pickle.dump((light, len(text)), self._file, pickle.HIGHEST_PROTOCOL)
        self._file.write(text)
        self._chunks += 1

    def batches(self, *columns: str) -> Iterator[tuple[int, dict[str, list]]]:
        """Yield ``(index of its first pair, columns)`` for each chunk, with at least these columns."""
        start = 0
        with self._path.open("rb") as file:
            for _ in range(self._chunks):
                batch, size = pickle.load(file)
                if set(columns) & set(_HEAVY):
                    batch |= pickle.load(file)
                else:
                    file.seek(size, 1)
                yield start, batch
                start += len(batch["name"])

    def read(self, wanted: "np.ndarray", *columns: str) -> Iterator[tuple]:
        """Yield these columns of the wanted pairs; `wanted` is bool, shape (pairs,)."""
        for start, batch in self.batches(*columns):
            members = wanted[start : start + len(batch["name"])].tolist()
            yield from compress(zip(*(batch[column] for column in columns), strict=True), members)
