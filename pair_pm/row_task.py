"""What is done with each row of a file: read, worked on in blocks, and given its result or its error."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Protocol

from pair_pm.errors import DataError, LabelTokenError, MissingPathError, PairPMError, PromptTooLongError
from pair_pm.preference import RowProblem
from pair_pm.preference_source import PreferenceSource, RowChunk, open_source
from pair_pm.scoring import PairScorer

NumberedRow = tuple[int, object, RowProblem | None]  # as `RowChunk.decode` yields it


class RowTask(Protocol):
    """What is done with each row.

    Attributes:
        fields: The columns that a row gains beside `error`.
        unit: What rows are called while they are counted.
    """

    fields: tuple[str, ...]
    unit: str

    def check(self, name: str, rows: Sequence[object]) -> None:
        """Look at the first rows, and raise DataError where the table is of the wrong kind."""
        ...

    def cut(self, rows: Iterator[NumberedRow]) -> Iterator[list[NumberedRow]]:
        """Yield blocks of rows; where a block ends depends on its own rows alone."""
        ...

    def work(self, scorer: PairScorer, block: Sequence[NumberedRow]) -> list[dict]:
        """Return for each row its fields, or an `error` and the `reason` under which it is counted."""
        ...

    def export(self, row: Mapping, result: Mapping) -> list[dict] | str:
        """Return the preference rows that a row makes, or the reason why it makes none."""
        ...


def open_local_source(name: str) -> PreferenceSource:
    """Return the source for a file or folder.

    Raises:
        MissingPathError, DataError: as `open_source`, and for a hub name.
    """
    source = open_source(name)
    if source.path is None:
        raise MissingPathError(f"{name}: no such file or folder; one on this machine is required")
    return source


def check_head(source: PreferenceSource, task: RowTask, *, keeps_columns: bool) -> None:
    """Look at a table's first rows before a model is loaded for it.

    Raises:
        DataError: there are none, or they are of the wrong kind, or have columns that the results take.
    """
    head = next(source.chunks(), None)
    if head is None:
        raise DataError(f"{source.name}: holds no row; at least one is required")
    numbered = list(head.decode())
    task.check(source.name, [row for _, row, _ in numbered])
    for number, row, _ in numbered if keeps_columns else ():
        if taken := _find_taken(row, task):
            raise DataError(
                f"{source.name}:{number}: has {', '.join(taken)} already; columns of other names than those that are "
                "added are required; rename them, or take the file that this one was made from"
            )


def _find_taken(row: object, task: RowTask) -> list[str]:
    return [name for name in (*task.fields, "error") if name in row] if isinstance(row, dict) else []


def read_rows(source: PreferenceSource, start: int = 0) -> Iterator[NumberedRow]:
    """Yield the rows from the one with index `start` on; those before it are not parsed."""
    for chunk in source.chunks():
        if start >= len(chunk):
            start -= len(chunk)
            continue
        yield from islice(chunk.decode(), start, None)
        start = 0


def mark_taken(rows: Iterator[NumberedRow], task: RowTask) -> Iterator[NumberedRow]:
    """Yield the rows, with a problem where they have columns of their own that results take."""
    for number, row, problem in rows:
        taken = _find_taken(row, task)
        if taken and not problem:
            problem = RowProblem("column_taken", f"has {', '.join(taken)} of its own, which gave way to what is added")
        yield number, row, problem


def to_error(problem: RowProblem | PairPMError) -> dict[str, str]:
    """Return the result of a row that cannot have one, under the reason that its problem has or is of a kind."""
    cause = problem if isinstance(problem, RowProblem) else problem.__cause__
    if isinstance(cause, RowProblem):
        reason = cause.reason
    else:
        kinds = {PromptTooLongError: "too_long", LabelTokenError: "label_token"}
        reason = next((name for kind, name in kinds.items() if isinstance(problem, kind)), "not_comparable")
    return {"reason": reason, "error": str(problem)}


def refuse_errors(name: str, block: Iterable[NumberedRow], results: Iterable[Mapping]) -> None:
    """Check that every row has a result.

    Raises:
        DataError: one has none.
    """
    for (number, _, _), result in zip(block, results, strict=True):
        if "error" in result:
            raise DataError(f"{name}:{number}: {result['error']}; a valid row is required (--strict)")


def annotate(chunk: RowChunk, results: Sequence[Mapping], task: RowTask, *, as_table: bool):
    """Return a chunk's rows with their results: a list, or with `as_table` an Arrow table where it came as one.

    A table keeps the types of its columns.
    """
    if as_table and isinstance(chunk.rows, tuple):
        return _annotate_table(chunk.rows[1], _name_columns(results, task))
    return annotate_rows(chunk.decode(), results, task)


def annotate_rows(rows: Iterable[NumberedRow], results: Sequence[Mapping], task: RowTask) -> list[dict]:
    """Return rows with their results: every row has every column, null where nothing is known."""
    return [
        {**(row if isinstance(row, dict) else {}), **added}
        for (_, row, _), added in zip(rows, _name_columns(results, task), strict=True)
    ]


def _name_columns(results: Sequence[Mapping], task: RowTask) -> list[dict]:
    return [{name: result.get(name) for name in (*task.fields, "error")} for result in results]


def _annotate_table(batch, added: Sequence[Mapping]):
    import pyarrow as pa

    table = pa.Table.from_batches([batch])
    for name in added[0]:
        table = table.append_column(name, pa.array([columns[name] for columns in added]))
    return table
