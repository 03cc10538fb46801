"""Every pair of a file compared: its rows with the verdict on each, or the preference rows that the verdicts make."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from itertools import islice

from pair_pm.preference import RowProblem
from pair_pm.preference_export import export_comparison
from pair_pm.row_task import NumberedRow, to_error
from pair_pm.scorable_rows import read_pair, recognise_pairs
from pair_pm.scoring import Comparison, PairScorer

# The engine sorts what one call holds by length, so calls should be large; what a kill loses, and memory, small.
ROWS_A_BLOCK = 1000


class ScoreTask:
    """Gives a row the fields of a `Comparison`; a `RowTask`.

    Args:
        min_confidence: Least probability of the winner in an exported preference row, 0.5 to 1.
    """

    fields = tuple(field.name for field in fields(Comparison))
    unit = "pairs"

    def __init__(self, min_confidence: float = 0.5):
        self._min_confidence = min_confidence

    def check(self, name: str, rows: Sequence[object]) -> None:
        """Recognise the table's format.

        Raises:
            DataError: it is none that is accepted.
        """
        self._format = recognise_pairs(name, rows)

    def cut(self, rows: Iterator[NumberedRow]) -> Iterator[list[NumberedRow]]:
        """Yield blocks of `ROWS_A_BLOCK` rows."""
        while block := list(islice(rows, ROWS_A_BLOCK)):
            yield block

    def work(self, scorer: PairScorer, block: Sequence[NumberedRow]) -> list[dict]:
        """Return the verdict on each pair, or its error; the whole block is one call of the engine."""
        results, pairs = {}, {}
        for index, (_, row, problem) in enumerate(block):
            try:
                if problem:
                    raise problem
                pairs[index] = read_pair(row, self._format)
            except RowProblem as found:
                results[index] = to_error(found)
        for index, verdict in zip(pairs, scorer.compare_each(list(pairs.values())), strict=True):
            is_verdict = isinstance(verdict, Comparison)
            results[index] = verdict.to_dict() if is_verdict else to_error(verdict)
        return [results[index] for index in range(len(block))]

    def export(self, row: Mapping, result: Mapping) -> list[dict] | str:
        """Return the one preference row of a pair, or why there is none."""
        exported = export_comparison(row, *read_pair(row, self._format), result, self._min_confidence)
        return exported if isinstance(exported, str) else [exported]
