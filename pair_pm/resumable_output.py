"""A file of rows through a model into another file: in blocks, killed at any moment and resumed, to the same bytes.

What is expensive, the results, goes into a journal beside the output as each block is done. What is cheap, rows with
their results, is written from input and journal at the end. Blocks end at the same rows in any run, because a score's
last digits can depend on what it is computed beside.
"""

import json
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import islice

from pair_pm.errors import DataError
from pair_pm.preference_source import RowChunk
from pair_pm.result_journal import ResultJournal
from pair_pm.row_task import (
    RowTask,
    annotate,
    check_head,
    mark_taken,
    open_local_source,
    read_rows,
    refuse_errors,
)
from pair_pm.row_writers import write_blocks
from pair_pm.run_identity import RunPaths, describe_answers, digest_input, find_finished, name_paths, refuse_other_run
from pair_pm.scoring import PairScorer


@dataclass(frozen=True)
class FileRun:
    """A run from file to file.

    Attributes:
        input: Name of a file or folder, see `open_source`.
        output: `x.jsonl` or `x.parquet`; beside it goes `x.summary.json`.
        identity: Model and options, as JSON holds them: what a resumed run must have the same.
        as_preferences: Write the rows that the task exports instead of the input's own with their results.
        strict: Stop at the first bad row, be it one that an earlier run has been through.
        resume: Go on where an interrupted run stopped.
        overwrite: Replace an output, and what an interrupted run left.
    """

    input: str
    output: str
    identity: Mapping[str, object]
    as_preferences: bool = False
    strict: bool = False
    resume: bool = False
    overwrite: bool = False


@dataclass
class FileSummary:
    """What came of a run.

    Attributes:
        rows: Of the input.
        scored: Rows that have a result.
        errors: Rows that have none, by reason.
        written: Rows of the output.
        dropped: Rows that made no preference row though they have a result, by reason.
        resumed_at: How many rows an interrupted run had done.
        seconds: That this run took for the others, without loading the model.
        rows_a_second: Of these; None where there were none.
        was_finished: Whether an earlier run had done all of it.
    """

    input: str
    output: str
    rows: int
    scored: int = 0
    errors: Counter = field(default_factory=Counter)
    written: int = 0
    dropped: Counter = field(default_factory=Counter)
    resumed_at: int = 0
    seconds: float = 0.0
    rows_a_second: float | None = None
    was_finished: bool = False

    def to_dict(self) -> dict:
        """Return the fields as JSON can hold them."""
        return dict(vars(self))


def complete_file(run: FileRun, task: RowTask, load_scorer: Callable[[], PairScorer]) -> FileSummary:
    """Take every row of a file through a task and write what comes of it.

    Raises:
        DataError: the input cannot be read or is of the wrong kind, or `strict` met a bad row.
        OutputExistsError: something is there that may not be replaced, or was made from another input, by other
            options or another model than it is to be resumed with.
        UnwritableError: the disk is full; what was done is kept.
    """
    source = open_local_source(run.input)
    paths = name_paths(run.output, source.path)
    check_head(source, task, keeps_columns=not run.as_preferences)
    if run.overwrite and any(path.exists() for path in (paths.output, paths.summary, paths.journal)):
        # From here on what is there counts as unfinished: `--resume` after an interruption while the model loads must
        # not take it for what was asked for.
        with ResultJournal(paths.journal, anew=True):
            pass
    identity = {**run.identity, "input": digest_input(source.path)}
    if not run.overwrite and (finished := find_finished(paths, identity, resume=run.resume)):
        summary = FileSummary(**finished | {"was_finished": True})
        if run.strict and summary.errors:
            _refuse_finished_errors(run.output, summary)
        return summary
    # Through the whole input once: how long it is, and damage in it is told before the first row is paid for.
    summary = FileSummary(run.input, run.output, rows=sum(len(chunk) for chunk in source.chunks()))
    scorer = load_scorer()
    with ResultJournal(paths.journal) as journal:
        identity |= describe_answers(scorer)
        _claim(journal, identity)
        _fill(journal, run, source, task, scorer, summary)
        if digest_input(source.path) != identity["input"]:
            raise DataError(f"{run.input}: was changed during the run; an input that stays as it is is required")
        _publish(paths, run, source, task, journal, summary, identity)
        paths.journal.unlink()
    return summary


def _refuse_finished_errors(output: str, summary: FileSummary) -> None:
    reasons = ", ".join(f"{reason} {count}" for reason, count in summary.errors.items())
    raise DataError(
        f"{output}: was finished, and {sum(summary.errors.values())} of {summary.rows} rows have no result "
        f"({reasons}); one for each is required (--strict)"
    )


# ---- results --------------------------------------------------------------------------------------------------------


def _claim(journal: ResultJournal, header: Mapping) -> None:
    if journal.rows:
        refuse_other_run(journal.path, journal.header, header)
    else:
        journal.start(header)


def _fill(journal: ResultJournal, run: FileRun, source, task: RowTask, scorer, summary: FileSummary) -> None:
    """Append the results that are not there yet."""
    from tqdm import tqdm

    if run.strict:  # of what an earlier run did, too, which may not have been
        refuse_errors(run.input, islice(read_rows(source), journal.rows), journal.results())
    summary.resumed_at, started = journal.rows, time.monotonic()
    rows = read_rows(source, journal.rows)
    if not run.as_preferences:
        rows = mark_taken(rows, task)
    with tqdm(total=summary.rows, initial=journal.rows, unit=f" {task.unit}", disable=None) as progress:
        for block, results in work_ahead(lambda block: task.work(scorer, block), scorer, task.cut(rows)):
            if run.strict:
                refuse_errors(run.input, block, results)
            journal.append(results)
            progress.update(len(block))
    summary.seconds = round(time.monotonic() - started, 3)
    if done_now := journal.rows - summary.resumed_at:
        summary.rows_a_second = round(done_now / max(summary.seconds, 1e-3), 2)


def work_ahead(work: Callable[[list], list], scorer: PairScorer, blocks: Iterable[list]) -> Iterator[tuple[list, list]]:
    """Yield blocks with their results, in order, as many of them under way as the engine takes at once."""
    calls = getattr(scorer.engine, "calls_at_once", 1)
    if calls == 1:
        yield from ((block, work(block)) for block in blocks)
        return
    under_way: deque[tuple[list, Future]] = deque()
    for block in blocks:
        under_way.append((block, _start(work, block)))
        if len(under_way) == calls:
            done, results = under_way.popleft()
            yield done, results.result()
    for block, results in under_way:
        yield block, results.result()


def _start(work: Callable, *arguments) -> Future:
    """Return what will be the result of a call in a thread that neither Ctrl-C nor the end of the process waits for."""
    future: Future = Future()

    def run() -> None:
        try:
            future.set_result(work(*arguments))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


# ---- rows -----------------------------------------------------------------------------------------------------------


def _publish(paths: RunPaths, run, source, task, journal: ResultJournal, summary: FileSummary, identity) -> None:
    for result in journal.results():
        if "error" in result:
            summary.errors[result["reason"]] += 1
        else:
            summary.scored += 1

    def blocks() -> Iterator:
        summary.written, summary.dropped = 0, Counter()
        results = journal.results()
        for chunk in source.chunks():
            chunk_results = list(islice(results, len(chunk)))
            if run.as_preferences:
                block = _export(chunk, chunk_results, task, summary.dropped)
            else:
                block = annotate(chunk, chunk_results, task, as_table=paths.output.suffix == ".parquet")
            summary.written += len(block)
            yield block

    write_blocks(paths.output, blocks)
    made = json.dumps({**summary.to_dict(), "identity": identity}, indent=2)
    paths.summary.write_text(made + "\n", encoding="utf-8")


def _export(chunk: RowChunk, results: Sequence[Mapping], task: RowTask, dropped: Counter) -> list[dict]:
    exported = []
    for (_, row, _), result in zip(chunk.decode(), results, strict=True):
        rows = [] if "error" in result else task.export(row, result)
        if isinstance(rows, str):
            dropped[rows] += 1
        else:
            exported += rows
    return exported
