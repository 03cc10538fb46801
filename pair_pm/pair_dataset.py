"""Preference data into an A/B dataset on disk, with counts of everything that was dropped and why.

Two passes. The first converts rows, in several processes if asked, and spools what is valid to disk; in memory stay
a digest and a few numbers a pair. The second drops repeats and writes. Nothing carries the output's name before
all of it is whole.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import chain, compress
from pathlib import Path
from typing import TYPE_CHECKING

from pair_pm.decontamination import CONTAMINATION_REASONS, write_index
from pair_pm.errors import DataError, OutputExistsError
from pair_pm.pair_conversion import BadRow, ConversionOptions, convert_chunk
from pair_pm.pair_output import OutputPaths, name_output, open_output, open_workspace, publish, publish_rejects
from pair_pm.pair_spool import PairSpool
from pair_pm.pair_summary import BuildSummary, write_summary
from pair_pm.pair_workers import open_workers
from pair_pm.preference import RowProblem
from pair_pm.preference_formats import recognise_format
from pair_pm.preference_source import PreferenceSource, open_source

if TYPE_CHECKING:
    import numpy as np

    from pair_pm.pair_index import PairIndex

# What a user chose to drop is no defect of a row, so --strict does not stop at it.
_CHOSEN_REASONS = {"tie", "small_margin", "too_long", *CONTAMINATION_REASONS}


def build_pair_dataset(
    names: Sequence[str],
    output: str,
    options: ConversionOptions,
    *,
    num_proc: int = 1,
    strict: bool = False,
    rejects: str | None = None,
    command: str = "",
) -> BuildSummary:
    """Convert preference data sets into one A/B data set and its summary.

    Args:
        names: Paths or hub names, see `open_source`.
        output: `x.jsonl`, `x.parquet` or a folder; the held-out split goes beside it as `x.eval…`.
        num_proc: Processes that convert; the bytes that come out are the same for any number.
        strict: Stop at the first defective row.
        rejects: File for the dropped rows with their reasons, JSON lines.
        command: What the summary gives as its origin.
    Raises:
        DataError: a table cannot be read, nothing is left, or `strict` met a defective row.
        OutputExistsError: an output's name is taken by something else, or by an input.
    """
    paths = name_output(output)
    if not options.eval_fraction and paths.held_out.exists():
        raise OutputExistsError(
            f"{paths.held_out}: left from a run with --eval-fraction, and some of its rows would now be trained on; "
            "no held-out file is required where none is written; remove it or choose another --output"
        )
    sources = [open_source(name) for name in names]
    _refuse_overwriting([*sources, *map(open_source, options.decontaminate_against)], paths, rejects)
    summary = BuildSummary()
    with open_workspace(paths.main) as workspace, ExitStack() as stack:
        reject = stack.enter_context(_open_rejects(rejects and workspace / "rejects.jsonl"))
        spool = PairSpool(workspace / "spool")
        evaluation_index = _index_evaluation(options, workspace / "evaluation", summary)
        index = _convert_all(sources, options, evaluation_index, num_proc, strict, spool, reject, summary)
        kept = _drop_repeats(index, spool, reject, summary)
        try:
            _write_kept(index, kept, spool, paths, workspace, options, summary)
        except DataError:
            stack.close()
            publish_rejects(workspace, rejects)  # where nothing is left, the reasons are what the user needs
            raise
        stack.close()
        write_summary(summary, options, command, workspace / "summary.json")
        publish(workspace, paths, rejects)
    return summary


# ---- first pass -----------------------------------------------------------------------------------------------------


def _index_evaluation(options: ConversionOptions, folder: Path, summary: BuildSummary) -> Path | None:
    if not options.decontaminate_against:
        return None
    summary.held_against = write_index(options.decontaminate_against, folder)
    return folder


def _convert_all(sources, options, evaluation_index, num_proc, strict, spool, reject, summary) -> "PairIndex":
    from tqdm import tqdm

    from pair_pm.pair_index import PairIndex

    index = PairIndex()
    with open_workers(num_proc) as map_in_order, spool.writing(), tqdm(unit=" rows", disable=None) as progress:
        for source in sources:
            progress.set_description(source.default_source)
            chunks = source.chunks()
            head = next(chunks, None)
            if head is None:
                raise DataError(f"{source.name}: holds no row; at least one is required")
            format = recognise_format(source.name, (row for _, row, _ in head.decode()))
            summary.formats[source.name] = format
            convert = partial(
                convert_chunk,
                format=format,
                default_source=source.default_source,
                options=options,
                evaluation_index=evaluation_index,
            )
            for converted in map_in_order(convert, chain([head], chunks)):
                summary.rows_read[source.name] += converted.rows
                _account_bad_rows(source.name, converted.bad, strict, reject, summary)
                index.add(converted.pairs)
                spool.append(source.name, converted)
                progress.update(converted.rows)
    return index


def _account_bad_rows(name: str, bad_rows: Sequence[BadRow], strict: bool, reject, summary: BuildSummary) -> None:
    for bad in bad_rows:
        if strict and bad.problem.reason not in _CHOSEN_REASONS:
            raise DataError(f"{name}:{bad.number}: {bad.problem}; a valid row is required (--strict)")
        summary.count_dropped(bad.source, bad.problem.reason)
        reject(name, bad.number, bad.source, bad.problem, bad.row)


# ---- second pass ----------------------------------------------------------------------------------------------------


def _drop_repeats(index: "PairIndex", spool: PairSpool, reject, summary: BuildSummary) -> "np.ndarray":
    """Return which pairs stay, bool, shape (pairs,); count and report those that do not."""
    contradictory, duplicate = index.find_repeats(lambda wanted: spool.read(wanted, "source", "id", "subset", "prob_a"))
    dropped = contradictory | duplicate
    rows = spool.read(dropped, "name", "number", "source", "row")
    for pair, (name, number, source, row) in zip(dropped.nonzero()[0], rows, strict=True):
        problem = (
            RowProblem("contradictory", "the same pair stands elsewhere with another verdict")
            if contradictory[pair]
            else RowProblem("duplicate", "the same pair stands elsewhere with a smaller source or id")
        )
        summary.count_dropped(source, problem.reason)
        reject(name, number, source, problem, row)
    return ~dropped


def _write_kept(index, kept, spool, paths, workspace, options, summary) -> None:
    held_out = index.held_out
    rows_a_pair = 2 if options.both_orders else 1
    splits = {"train": (kept & ~held_out, paths.main.name)}
    if options.eval_fraction:
        splits["eval"] = (kept & held_out, paths.held_out.name)
    for split, (members, _) in splits.items():
        if not members.any():
            reasons = ", ".join(f"{reason} {count}" for reason, count in summary.dropped_by_reason().most_common())
            raise DataError(
                f"{paths.main}: no pair is left for {split} (dropped: {reasons or 'none'}); one is required"
            )
        summary.rows_written[split] = int(members.sum()) * rows_a_pair
    with ExitStack() as stack:
        writers = [
            (members, stack.enter_context(open_output(paths.kind, workspace / name)))
            for members, name in splits.values()
        ]
        for start, batch in spool.batches("lines"):
            chunk = slice(start, start + len(batch["lines"]))
            summary.pairs_kept.update(compress(batch["source"], kept[chunk].tolist()))
            for members, write in writers:
                if members[chunk].any():
                    write(b"".join(compress(batch["lines"], members[chunk].tolist())))
    summary.pairs_neutralised = int((kept & index.neutralised).sum())
    summary.label_a_share = 0.5 if options.both_orders else float(index.label_a[kept].mean())
    for unit in ("chars", "tokens") if options.tokenizer else ("chars",):
        summary.lengths[unit] = index.length_percentiles(unit, kept)


# ---- files ----------------------------------------------------------------------------------------------------------


def _refuse_overwriting(sources: Sequence[PreferenceSource], paths: OutputPaths, rejects: str | None) -> None:
    taken = {source.path.resolve(): f"the data set {source.name}" for source in sources if source.path}
    written = {"--output": paths.main, "the held-out split": paths.held_out, "the summary": paths.summary}
    for what, path in {**written, **({"--rejects": Path(rejects)} if rejects else {})}.items():
        other = taken.setdefault(path.resolve(), what)
        if other != what:
            raise OutputExistsError(f"{path}: {what} would replace {other}; a name of its own is required")


@contextmanager
def _open_rejects(path: Path | None) -> Iterator:
    if path is None:
        yield lambda *_: None
        return
    with path.open("w", encoding="utf-8") as file:

        def reject(name: str, number: int, source: str, problem: RowProblem, row: object) -> None:
            where = {"where": f"{name}:{number}", "source": source, "reason": problem.reason, "detail": problem.detail}
            # Escaped, because a rejected row may hold what UTF-8 cannot: a lone surrogate.
            file.write(json.dumps({**where, "row": row}, default=str) + "\n")  # Parquet rows may hold dates and bytes

        yield reject
