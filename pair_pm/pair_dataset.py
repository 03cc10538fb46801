"""Preference data into an A/B dataset on disk, with counts of everything that was dropped and why.

Two passes. The first converts rows, in several processes if asked, and spools what is valid to disk; in memory stay
a digest and a few numbers a pair. The second drops repeats and writes. Nothing carries the output's name before
all of it is whole.
"""

import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import chain, compress
from pathlib import Path
from typing import TYPE_CHECKING

from pair_pm.errors import DataError, OutputExistsError, PairPMError
from pair_pm.pair_conversion import BadRow, ConversionOptions, convert_chunk
from pair_pm.pair_output import OutputPaths, name_output, open_output
from pair_pm.pair_spool import PairSpool
from pair_pm.pair_workers import open_workers
from pair_pm.preference import RowProblem
from pair_pm.preference_formats import recognise_format
from pair_pm.preference_source import PreferenceSource, open_source

if TYPE_CHECKING:
    import numpy as np

    from pair_pm.pair_index import PairIndex

# What a user chose to drop is no defect of a row, so --strict does not stop at it.
_CHOSEN_REASONS = {"tie", "small_margin", "too_long"}


@dataclass
class BuildSummary:
    """What went in, what came out, and why the rest did not; written beside the data as JSON.

    Attributes:
        formats: The recognised format of each named data set.
        rows_read: By data set.
        dropped: By source and reason.
        pairs_kept: By source.
        pairs_neutralised: Kept pairs in which control text was broken.
        rows_written: By split; twice the pairs where both orders are written.
        label_a_share: Share of written rows whose label is "A".
        lengths: Percentiles of the prompt in characters and, with a tokenizer, of the training sequence in tokens.
    """

    formats: dict[str, str] = field(default_factory=dict)
    rows_read: Counter = field(default_factory=Counter)
    dropped: dict[str, Counter] = field(default_factory=dict)
    pairs_kept: Counter = field(default_factory=Counter)
    pairs_neutralised: int = 0
    rows_written: dict[str, int] = field(default_factory=dict)
    label_a_share: float = 0.0
    lengths: dict[str, dict[str, int]] = field(default_factory=dict)

    def count_dropped(self, source: str, reason: str) -> None:
        """Count one dropped row."""
        self.dropped.setdefault(source, Counter())[reason] += 1

    def to_table(self) -> str:
        """Return the counts as text, a line each."""
        kept = sum(self.pairs_kept.values())
        lines = [f"{name} ({self.formats[name]} format): {count:,} rows read" for name, count in self.rows_read.items()]
        for source in sorted({*self.pairs_kept, *self.dropped}):
            lines.append(f"{source}: {self.pairs_kept[source]:,} pairs kept")
            lines += [
                f"  dropped  {reason:<20} {count:>9,}"
                for reason, count in self.dropped.get(source, Counter()).most_common()
            ]
        lines.append(f"all: {kept:,} pairs kept, {self.pairs_neutralised:,} of them with control text neutralised")
        lines += [f"{split}: {rows:,} rows written" for split, rows in self.rows_written.items()]
        lines.append(f"label A in {self.label_a_share:.1%} of the rows")
        for unit, percentiles in self.lengths.items():
            shown = "  ".join(f"{name} {value:,}" for name, value in percentiles.items())
            lines.append(f"length in {unit}: {shown}")
        return "\n".join(lines)

    def dropped_by_reason(self) -> Counter:
        """Return how many rows each reason dropped, over all sources."""
        return sum(self.dropped.values(), Counter())


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
    _refuse_overwriting(sources, paths, rejects)
    summary = BuildSummary()
    with _workspace(paths.main) as workspace, ExitStack() as stack:
        reject = stack.enter_context(_open_rejects(rejects and workspace / "rejects.jsonl"))
        spool = PairSpool(workspace / "spool")
        index = _convert_all(sources, options, num_proc, strict, spool, reject, summary)
        kept = _drop_repeats(index, spool, reject, summary)
        try:
            _write_kept(index, kept, spool, paths, workspace, options, summary)
        except DataError:
            stack.close()
            _publish_rejects(workspace, rejects)  # where nothing is left, the reasons are what the user needs
            raise
        stack.close()
        _write_summary(summary, options, command, workspace / "summary.json")
        _publish(workspace, paths, rejects)
    return summary


# ---- first pass -----------------------------------------------------------------------------------------------------


def _convert_all(sources, options, num_proc, strict, spool, reject, summary) -> "PairIndex":
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
            convert = partial(convert_chunk, format=format, default_source=source.default_source, options=options)
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
def _workspace(output: Path) -> Iterator[Path]:
    """Yield a temporary folder beside the output, on the same file system, so that a rename publishes from it."""
    output.parent.mkdir(parents=True, exist_ok=True)
    workspace = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    try:
        yield workspace
    finally:
        shutil.rmtree(workspace)


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


def _write_summary(summary: BuildSummary, options: ConversionOptions, command: str, path: Path) -> None:
    from pair_pm import __version__
    from pair_pm.prompt import CONTROL_SET_VERSION, PROMPT_FORMAT_VERSION

    versions = {
        "pair_pm": __version__,
        "prompt_format_version": PROMPT_FORMAT_VERSION,
        "control_set_version": CONTROL_SET_VERSION,
    }
    content = {**vars(summary), "options": asdict(options), "versions": versions, "command": command}
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def push_to_hub(output: str, name: str, *, private: bool) -> None:
    """Upload a written A/B data set, its held-out split as the split "eval".

    Raises:
        PairPMError: the hub cannot be reached or refuses.
    """
    import datasets

    paths = name_output(output)
    files = {"train": str(paths.main), **({"eval": str(paths.held_out)} if paths.held_out.exists() else {})}
    if paths.kind == "folder":
        splits = datasets.DatasetDict({split: datasets.load_from_disk(path) for split, path in files.items()})
    else:
        splits = datasets.load_dataset("json" if paths.kind == "jsonl" else "parquet", data_files=files)
    try:
        splits.push_to_hub(name, private=private)
    except (OSError, ValueError) as error:
        found = " ".join(str(error).split())
        raise PairPMError(f"{name}: the hub did not take the data set: {found}; it is whole in {output}") from error


def _publish(workspace: Path, paths: OutputPaths, rejects: str | None) -> None:
    """Rename into place, the data last: where it is, all of it is."""
    _publish_rejects(workspace, rejects)
    os.replace(workspace / "summary.json", paths.summary)
    for path in (paths.held_out, paths.main):
        fresh = workspace / path.name
        if fresh.exists():
            if path.is_dir():
                # Aside first, to go with the workspace: removing a large folder in place can be interrupted.
                os.replace(path, workspace / f"{path.name}.earlier")
            os.replace(fresh, path)


def _publish_rejects(workspace: Path, rejects: str | None) -> None:
    if rejects:
        Path(rejects).parent.mkdir(parents=True, exist_ok=True)
        shutil.move(workspace / "rejects.jsonl", rejects)
