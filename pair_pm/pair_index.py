"""What the first pass remembers of each pair: a digest and a few numbers, under 40 bytes; and what follows from it."""

from array import array
from collections.abc import Callable, Iterable

import numpy as np

from pair_pm.pair_conversion import ConvertedPair

_VERDICT, _LABEL_A, _NEUTRALISED, _HELD_OUT = 0b11, 0b100, 0b1000, 0b10000


class PairIndex:
    """Digests, verdicts and lengths of pairs in input order, in arrays; the text itself lies on disk."""

    def __init__(self):
        self._digests = bytearray()
        self._flags = bytearray()
        self._lengths = {"chars": array("I"), "tokens": array("I")}

    def add(self, pairs: Iterable[ConvertedPair]) -> None:
        """Append pairs."""
        for pair in pairs:
            self._digests += pair.digest
            self._flags.append(
                pair.verdict
                | (pair.label == "A") * _LABEL_A
                | pair.is_neutralised * _NEUTRALISED
                | pair.is_held_out * _HELD_OUT
            )
            self._lengths["chars"].append(pair.chars)
            self._lengths["tokens"].append(pair.tokens)

    def __len__(self) -> int:
        return len(self._flags)

    @property
    def held_out(self) -> np.ndarray:
        """Whether each pair belongs to the evaluation split, bool, shape (pairs,)."""
        return self._has(_HELD_OUT)

    @property
    def neutralised(self) -> np.ndarray:
        """Whether control text was broken in each pair, bool, shape (pairs,)."""
        return self._has(_NEUTRALISED)

    @property
    def label_a(self) -> np.ndarray:
        """Whether the label of each pair, in its drawn order, is "A", bool, shape (pairs,)."""
        return self._has(_LABEL_A)

    def _has(self, flag: int) -> np.ndarray:
        return (np.frombuffer(self._flags, np.uint8) & flag) != 0

    def length_percentiles(self, unit: str, kept: np.ndarray) -> dict[str, int]:
        """Return percentiles of the lengths in "chars" or "tokens" over the kept pairs; the last is the maximum."""
        lengths = np.asarray(self._lengths[unit])[kept]
        ranks = (5, 25, 50, 75, 95, 99, 100)
        return {f"p{rank}": int(np.percentile(lengths, rank, method="lower")) for rank in ranks}

    def find_repeats(self, read_keys: Callable[[np.ndarray], Iterable[tuple]]) -> tuple[np.ndarray, np.ndarray]:
        """Return which pairs go because their group contradicts itself, and which because another pair stays.

        A group is one context with the same two responses. With more than one verdict in it the whole group goes;
        otherwise the pair with the smallest key stays, so the order of the input has no say.

        Args:
            read_keys: Given which pairs, bool, shape (pairs,), returns their keys in order, each (source, id, …).
        Returns: Two bool arrays, shape (pairs,).
        """
        order, starts, sizes = self._groups()
        verdicts = (np.frombuffer(self._flags, np.uint8) & _VERDICT)[order]
        contradictory = np.zeros(len(self), bool)
        duplicate = np.zeros(len(self), bool)
        if not len(starts):
            return contradictory, duplicate
        disagrees = np.minimum.reduceat(verdicts, starts) != np.maximum.reduceat(verdicts, starts)
        contradictory[order] = np.repeat(disagrees, sizes)

        in_repeat = np.zeros(len(self), bool)
        in_repeat[order] = np.repeat((sizes > 1) & ~disagrees, sizes)
        keys = dict(zip(np.flatnonzero(in_repeat).tolist(), read_keys(in_repeat), strict=True))
        for group in np.flatnonzero((sizes > 1) & ~disagrees):
            members = order[starts[group] : starts[group] + sizes[group]].tolist()
            kept = min(members, key=lambda member: (keys[member], member))
            duplicate[[member for member in members if member != kept]] = True
        return contradictory, duplicate

    def _groups(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the order that sorts the digests, and each group's start and size in it."""
        digests = np.frombuffer(self._digests, np.uint64).reshape(-1, 2)
        order = np.lexsort((digests[:, 1], digests[:, 0]))
        is_start = np.ones(len(order), bool)
        is_start[1:] = (digests[order[1:]] != digests[order[:-1]]).any(axis=1)
        starts = np.flatnonzero(is_start)
        return order, starts, np.diff(np.append(starts, len(order)))
