"""Labelled data of any accepted format, a file, folder or hub name, as the pairs that an evaluation compares."""

from pair_pm.benchmark_rows import COMPLETIONS, parse_completion_row, parse_pair, recognise_evaluation
from pair_pm.errors import DataError
from pair_pm.labelled_pairs import LabelledPair, LabelledPairs
from pair_pm.preference import PreferencePair, RowProblem
from pair_pm.preference_source import open_source


def read_labelled_pairs(name: str) -> LabelledPairs:
    """Return the labelled pairs of a data set, labelled ties among them; of several completions every pair.

    Of A/B rows, which may hold a pair in both orders, each pair counts once: it is compared in both anyway.

    Raises:
        DataError: the table is of no known format, or no row can be used.
    """
    source, labelled = open_source(name), LabelledPairs(name)
    seen: set[tuple] = set()
    for chunk in source.chunks():
        labelled.format = labelled.format or recognise_evaluation(name, (row for _, row, _ in chunk.decode()))
        for number, row, problem in chunk.decode():
            try:
                if problem:
                    raise problem
                if labelled.format == COMPLETIONS:
                    labelled.pairs += parse_completion_row(row).list_pairs(number)
                    continue
                pair = parse_pair(row, labelled.format)
                if labelled.format == "ab":
                    _refuse_seen(pair, seen)
                labelled.pairs.append(LabelledPair.from_preference(pair))
            except RowProblem as found:
                labelled.skipped[found.reason] += 1
    if not labelled.pairs:
        reasons = ", ".join(f"{reason} {count}" for reason, count in labelled.skipped.most_common()) or "none was there"
        raise DataError(f"{name}: no row can be used ({reasons}); at least one labelled pair is required")
    return labelled


def _refuse_seen(pair: PreferencePair, seen: set[tuple]) -> None:
    identity = (*(message["content"] for message in pair.messages), *sorted((pair.chosen, pair.rejected)))
    if identity in seen:
        raise RowProblem("other_order", "the pair was there already")
    seen.add(identity)
