"""Converted pairs on disk between the two passes, so that memory does not grow with their text."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pair_pm.pair_conversion import ConvertedChunk

if TYPE_CHECKING:
    import numpy as np


class PairSpool:
    """The text of the converted pairs on disk, one Arrow batch a chunk."""

    def __init__(self, path: Path):
        import pyarrow as pa

        self._path = path
        text = pa.string()
        columns = [("name", text), ("number", pa.int64()), ("source", text), ("id", text), ("subset", text)]
        self._schema = pa.schema([*columns, ("prob_a", pa.float64()), ("row", text), ("lines", pa.large_binary())])

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Open for `append`."""
        import pyarrow as pa

        with pa.OSFile(str(self._path), "wb") as file, pa.ipc.new_file(file, self._schema) as self._writer:
            yield

    def append(self, name: str, converted: ConvertedChunk) -> None:
        """Write the pairs of a chunk of the data set `name`."""
        import pyarrow as pa

        pairs = converted.pairs
        values = {
            "name": [name] * len(pairs),
            "row": [json.dumps(pair.row, default=str) for pair in pairs],
            **{
                column: [getattr(pair, column) for pair in pairs]
                for column in ("number", "source", "id", "subset", "prob_a", "lines")
            },
        }
        self._writer.write_batch(pa.RecordBatch.from_pydict(values, self._schema))

    def batches(self, *columns: str) -> Iterator[tuple]:
        """Yield ``(index of its first pair, batch)``, with these columns or all."""
        import pyarrow as pa

        wanted = [self._schema.get_field_index(column) for column in columns] or None
        start = 0
        with pa.OSFile(str(self._path)) as file:
            reader = pa.ipc.open_file(file, options=pa.ipc.IpcReadOptions(included_fields=wanted))
            for number in range(reader.num_record_batches):
                batch = reader.get_batch(number)
                yield start, batch
                start += batch.num_rows

    def read(self, pairs: "np.ndarray", *columns: str) -> Iterator[tuple]:
        """Yield these columns of the pairs with these ascending indices."""
        import numpy as np
        import pyarrow as pa

        if not len(pairs):
            return
        for start, batch in self.batches(*columns):
            first, last = np.searchsorted(pairs, (start, start + batch.num_rows))
            taken = batch.take(pa.array(pairs[first:last] - start))
            yield from zip(*(taken[column].to_pylist() for column in columns), strict=True)
