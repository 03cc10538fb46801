"""The candidates of every row of a file ranked: its rows with order and strengths, or preference rows for DPO."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields

from pair_pm.errors import ConfigError, DataError, LabelTokenError, PairPMError, PromptTooLongError
from pair_pm.preference import RowProblem
from pair_pm.preference_export import PairChoice, export_ranking
from pair_pm.ranking import Ranking, rank_many
from pair_pm.row_task import (
    NumberedRow,
    annotate_rows,
    check_head,
    mark_taken,
    open_local_source,
    read_rows,
    refuse_errors,
    to_error,
)
from pair_pm.scorable_rows import RESPONSES, check_candidates, read_candidates
from pair_pm.scoring import PairScorer

# A round of a whole block is one call of the engine.
_PROMPTS_A_BLOCK = 2000
_OF_ONE_ROW = (DataError, PromptTooLongError, LabelTokenError, ConfigError)

Group = tuple[list[dict[str, str]], list[str]]


@dataclass(frozen=True)
class RankOptions:
    """How candidates are ranked, and which pairs of them are exported.

    Attributes:
        method, seed, budget, orders, resamples: As `rank_many` takes them.
        choice: Which pairs become preference rows.
    """

    method: str = "round_robin"
    seed: int = 0
    budget: int | None = None
    orders: str | None = None
    resamples: int = 200
    choice: PairChoice = field(default_factory=PairChoice)


class RankTask:
    """Gives a row the fields of a `Ranking`; a `RowTask`."""

    fields = tuple(field.name for field in fields(Ranking))
    unit = "rows"

    def __init__(self, options: RankOptions):
        self._options = options

    def check(self, name: str, rows: Sequence[object]) -> None:
        """Check that the table holds candidates.

        Raises:
            DataError: it does not.
        """
        check_candidates(name, rows)

    def cut(self, rows: Iterator[NumberedRow]) -> Iterator[list[NumberedRow]]:
        """Yield blocks of as many rows as make some number of prompts."""
        block, prompts = [], 0
        for numbered in rows:
            block.append(numbered)
            prompts += self._count_prompts(numbered[1])
            if prompts >= _PROMPTS_A_BLOCK:
                yield block
                block, prompts = [], 0
        if block:
            yield block

    def work(self, scorer: PairScorer, block: Sequence[NumberedRow]) -> list[dict]:
        """Return the ranking of each row, or its error."""
        results, groups = {}, {}
        for index, (_, row, problem) in enumerate(block):
            try:
                if problem:
                    raise problem
                groups[index] = read_candidates(row)
            except RowProblem as found:
                results[index] = to_error(found)
        for index, ranking in zip(groups, self._rank_each(scorer, list(groups.values())), strict=True):
            is_error = isinstance(ranking, PairPMError)
            results[index] = to_error(ranking) if is_error else ranking.to_dict()
        return [results[index] for index in range(len(block))]

    def export(self, row: Mapping, result: Mapping) -> list[dict] | str:
        """Return the preference rows of the pairs that were asked for."""
        return export_ranking(row, *read_candidates(row), result, self._options.choice) or "no_pair"

    def _count_prompts(self, row: object) -> int:
        responses = row.get(RESPONSES) if isinstance(row, dict) else None
        n = len(responses) if isinstance(responses, list) else 1
        prompts = n * (n - 1) if self._options.method == "round_robin" else self._options.budget or 3 * n
        return max(prompts, 1)  # or rows without a prompt would make a block without end

    def _rank_each(self, scorer: PairScorer, groups: list[Group]) -> list[Ranking | PairPMError]:
        """Return each group's ranking, or the error that keeps it from having one; all together where none has."""
        if not groups:
            return []
        try:
            options = asdict(self._options)
            options.pop("choice")
            return rank_many(scorer, groups, **options)
        except _OF_ONE_ROW as error:
            if len(groups) == 1:
                return [error]
        # Halves, because one bad row of many should not cost the others their company.
        half = len(groups) // 2
        return self._rank_each(scorer, groups[:half]) + self._rank_each(scorer, groups[half:])


def rank_rows(name: str, task: RankTask, scorer: PairScorer, *, strict: bool = False) -> Iterator[dict]:
    """Yield the rows of a file with their rankings, a block at a time.

    Raises:
        DataError: the input cannot be read or holds no candidates, or `strict` met a bad row.
    """
    source = open_local_source(name)
    check_head(source, task, keeps_columns=True)
    for block in task.cut(mark_taken(read_rows(source), task)):
        results = task.work(scorer, block)
        if strict:
            refuse_errors(name, block, results)
        yield from annotate_rows(block, results, task)
