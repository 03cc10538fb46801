"""Which rows of training data stand in evaluation data too: by their prompt, or by a long response.

Texts are held against each other as words: no case, no punctuation, no white space. Prompts are a conversation's user
messages, one after another; they are held against prompts, responses against responses. Two texts match where 13 words
in a row are the same. A prompt of fewer matches as a whole or not at all, a response of fewer than 50 never does:
short answers are everybody's. System messages and earlier answers do not count: many data sets share theirs.

Of the evaluation rows every run of 13 words is known by a hash, and so is every run of 7. In a text to be held against
them only each seventh run of 7 words is looked up, which misses nothing, because any 13 words in a row hold one of
those whole; what is found so is looked up word by word.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from pathlib import Path

import numpy as np

from pair_pm.benchmark_rows import COMPLETIONS, parse_completion_row, parse_pair, recognise_evaluation
from pair_pm.errors import DataError
from pair_pm.preference import RowProblem
from pair_pm.preference_source import open_source
from pair_pm.word_runs import hash_runs, hash_whole, split_words

RUN_WORDS = 13
LEAST_RESPONSE_WORDS = 50
_PROBE_WORDS = (RUN_WORDS + 1) // 2
_TEXTS_AT_ONCE = 1000
_PLACE_BITS = 40

# What tells prompts, responses and whole short prompts apart: what their hashes start from.
_PROMPT, _RESPONSE, _WHOLE = 1, 2, 3
_REASONS = {_PROMPT: "contaminated_prompt", _RESPONSE: "contaminated_response"}
CONTAMINATION_REASONS = tuple(_REASONS.values())


@dataclass
class IndexSummary:
    """What an index was made of.

    Attributes:
        rows: Evaluation rows, by data set.
        skipped: Rows that cannot be read, by data set and reason.
        index_bytes: What is held in memory, once for all processes.
    """

    rows: Counter = field(default_factory=Counter)
    skipped: dict[str, Counter] = field(default_factory=dict)
    index_bytes: int = 0

    def to_lines(self) -> list[str]:
        """Return it as text, a line for each data set and one for the memory."""
        lines = []
        for name, reasons in self.skipped.items():
            skipped = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common())
            lines.append(f"held against {name}: {self.rows[name]:,} rows" + (f"; skipped {skipped}" if skipped else ""))
        return [*lines, f"memory for these: {self.index_bytes / max(self.rows.total(), 1):,.0f} bytes a row"]


@dataclass(frozen=True)
class EvaluationIndex:
    """The hashes of evaluation rows.

    Attributes:
        probes: 32-bit hashes of every 7 words in a row, sorted, each once, shape (probes,).
        runs: 64-bit hashes of every 13 words in a row and of whole prompts of fewer, sorted, shape (runs,).
        places: Where each run stands: the data set's number times 2^40 and the row's, shape (runs,).
        names: Of the data sets.
    """

    probes: np.ndarray
    runs: np.ndarray
    places: np.ndarray
    names: Sequence[str]

    def find_problems(self, rows: Sequence[tuple[str, Sequence[str]]]) -> list[RowProblem | None]:
        """Return why each row, a prompt and its responses, is contaminated; None where it is not."""
        problems: list[RowProblem | None] = [None] * len(rows)
        texts = [(row, kind, words) for row, texts in enumerate(rows) for kind, words in _split_row(*texts)]
        long = [text for text in texts if text[1] != _WHOLE]
        _, kinds, words = zip(*long, strict=True) if long else ((), (), ())
        hashes, text_of_probe, starts = hash_runs(words, kinds, _PROBE_WORDS, every=_PROBE_WORDS)
        for probe in np.flatnonzero(_find(self.probes, _shorten(hashes)) >= 0):
            row, kind, words = long[text_of_probe[probe]]
            problems[row] = problems[row] or self._find_run(kind, words, int(starts[probe]))
        short = [text for text in texts if text[1] == _WHOLE]
        wholes = np.array([hash_whole(words, kind) for _, kind, words in short], np.uint64)
        for number, found in enumerate(_find(self.runs, wholes)):
            if found >= 0:
                row, _, words = short[number]
                detail = f"is that of {self._name_place(found)}: {' '.join(words)!r}"
                problems[row] = RowProblem(_REASONS[_PROMPT], detail)
        return problems

    def _find_run(self, kind: int, words: Sequence[str], near: int) -> RowProblem | None:
        """Return the problem of 13 words in a row that are in the index and hold the 7 from `near` on, if any."""
        for start in range(max(near + _PROBE_WORDS - RUN_WORDS, 0), min(near, len(words) - RUN_WORDS) + 1):
            run = words[start : start + RUN_WORDS]
            [found] = _find(self.runs, np.array([hash_whole(run, kind)], np.uint64))
            if found >= 0:
                return RowProblem(_REASONS[kind], f"shares words with {self._name_place(found)}: {' '.join(run)!r}")
        return None

    def _name_place(self, found: int) -> str:
        place = int(self.places[found])
        return f"{self.names[place >> _PLACE_BITS]}:{place & (1 << _PLACE_BITS) - 1}"


def write_index(names: Sequence[str], folder: Path) -> IndexSummary:
    """Read evaluation data and write its index, which `open_index` opens.

    Args:
        names: Paths or hub names of data in any format that can be evaluated on, see `open_source`.
        folder: To be made.
    Raises:
        DataError: a table cannot be read as one of them.
        MissingPathError: a file is not there.
    """
    summary = IndexSummary()
    texts = _read_texts(names, summary)
    parts = [_hash_texts([])]
    while batch := list(islice(texts, _TEXTS_AT_ONCE)):
        parts.append(_hash_texts(batch))
    probes, runs, places = map(np.concatenate, zip(*parts, strict=True))
    order = np.argsort(runs, kind="stable")  # of equal runs the first row is named
    probes = np.sort(probes)
    is_new = np.append(True, probes[1:] != probes[:-1])[: len(probes)]
    folder.mkdir()
    for part, values in (("probes", probes[is_new]), ("runs", runs[order]), ("places", places[order])):
        np.save(folder / f"{part}.npy", values)
        summary.index_bytes += values.nbytes
    (folder / "names.json").write_text(json.dumps(list(names)), encoding="utf-8")
    return summary


@lru_cache(maxsize=1)
def open_index(folder: Path) -> EvaluationIndex:
    """Return the index of a folder; the processes of a machine that open one share its memory."""
    arrays = {part: _open_array(folder / f"{part}.npy") for part in ("probes", "runs", "places")}
    return EvaluationIndex(**arrays, names=json.loads((folder / "names.json").read_text(encoding="utf-8")))


def _open_array(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r")
    except ValueError:  # an empty array cannot be mapped
        return np.load(path)


def join_prompt(messages: Sequence[dict[str, str]]) -> str:
    """Return the user's messages, one after another."""
    return "\n".join(message["content"] for message in messages if message["role"] == "user")


# ---- evaluation rows ------------------------------------------------------------------------------------------------


def _read_texts(names: Sequence[str], summary: IndexSummary) -> Iterator[tuple[int, int, list[str]]]:
    """Yield the place, kind and words of each text that can match, and count rows."""
    for file_number, name in enumerate(names):
        skipped = summary.skipped.setdefault(name, Counter())
        for number, (prompt, responses) in _read_rows(name, skipped):
            summary.rows[name] += 1
            place = file_number << _PLACE_BITS | number
            yield from ((place, *text) for text in _split_row(prompt, responses, least_response_words=RUN_WORDS))


def _read_rows(name: str, skipped: Counter) -> Iterator[tuple[int, tuple[str, Sequence[str]]]]:
    """Yield each row's number, and its prompt and responses; count what cannot be read."""
    format = None
    for chunk in open_source(name).chunks():
        format = format or recognise_evaluation(name, (row for _, row, _ in chunk.decode()))
        for number, row, problem in chunk.decode():
            try:
                if problem:
                    raise problem
                yield number, _read_row(row, format)
            except RowProblem as found:
                skipped[found.reason] += 1
    if format is None:
        raise DataError(f"{name}: holds no row; at least one is required")


def _read_row(row: object, format: str) -> tuple[str, Sequence[str]]:
    if format == COMPLETIONS:
        parsed = parse_completion_row(row)
        return join_prompt(parsed.messages), parsed.completions
    pair = parse_pair(row, format)
    return join_prompt(pair.messages), (pair.chosen, pair.rejected)


def _hash_texts(batch: Sequence[tuple[int, int, list[str]]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the probes of the texts, their runs, and where these stand; whole short prompts are runs of their own."""
    long = [text for text in batch if text[1] != _WHOLE]
    places, kinds, words = zip(*long, strict=True) if long else ((), (), ())
    probes, _, _ = hash_runs(words, kinds, _PROBE_WORDS)
    runs, text_of_run, _ = hash_runs(words, kinds, RUN_WORDS)
    whole = [(hash_whole(words, kind), place) for place, kind, words in batch if kind == _WHOLE]
    return (
        _shorten(probes),
        np.append(runs, np.array([value for value, _ in whole], np.uint64)),
        np.append(np.array(places, np.int64)[text_of_run], np.array([place for _, place in whole], np.int64)),
    )


# ---- texts and hashes -----------------------------------------------------------------------------------------------


def _split_row(
    prompt: str, responses: Sequence[str], least_response_words: int = LEAST_RESPONSE_WORDS
) -> Iterator[tuple[int, list[str]]]:
    """Yield the kind and the words of each text that can match."""
    words = split_words(prompt)
    if words:  # of punctuation alone nothing is left to be the same
        yield _PROMPT if len(words) >= RUN_WORDS else _WHOLE, words
    for response in responses:
        words = split_words(response)
        if len(words) >= least_response_words:
            yield _RESPONSE, words


def _shorten(hashes: np.ndarray) -> np.ndarray:
    return (hashes >> 32).astype("uint32")


def _find(values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return the first place of each in sorted values, -1 where it is not there."""
    if not len(values):
        return np.full(len(wanted), -1)
    places = np.searchsorted(values, wanted)
    is_there = values[np.minimum(places, len(values) - 1)] == wanted
    return np.where(is_there, places, -1)
