"""Micro-batches of pairs: the columns that ride along with the token rows, and both orders of a pair side by side."""

import logging
from collections.abc import Callable, Iterator, Sequence

import torch
from axolotl.utils.samplers import MultipackBatchSampler
from torch.utils.data import Sampler

from pair_pm.errors import DataError
from pair_pm.pair_loss import Targets

logger = logging.getLogger("axolotl.pair_pm")

_COLUMNS = ("prob_a", "pair")


class PairCollator:
    """Takes a batch's targets aside, and leaves the token rows to another collator.

    Args:
        collate: Pads, or packs, what is left of the rows.
    """

    def __init__(self, collate: Callable):
        self._collate = collate

    def __call__(self, features: Sequence) -> dict:
        """Return the batch, with its `Targets` under "targets"; rows come one by one, or in lists that are packed."""
        rows = [row for entry in features for row in (entry if isinstance(entry, list) else [entry])]
        prob_a, pair = ([row.pop(column)[0] for row in rows] for column in _COLUMNS)
        batch = dict(self._collate(features))
        batch["targets"] = Targets(torch.tensor(prob_a, dtype=torch.float32), torch.tensor(pair, dtype=torch.int64))
        return batch


def find_orders(pairs: Sequence[int]) -> tuple[list[tuple[int, int]], list[int]]:
    """Return the row numbers of both orders of each pair, and the rows whose other order is not there.

    Args:
        pairs: Number of each row's pair.
    """
    waiting: dict[int, int] = {}
    both = []
    for row, pair in enumerate(pairs):
        if pair in waiting:
            both.append((waiting.pop(pair), row))
        else:
            waiting[pair] = row
    return both, list(waiting.values())


def pair_up(pairs: Sequence[int]) -> list[tuple[int, int]]:
    """Return all rows two by two: the orders of a pair together, then the rows whose other order is not there.

    Raises:
        DataError: no pair is there in both orders.
    """
    both, alone = find_orders(pairs)
    if not both:
        raise DataError(
            f"symmetry_weight: none of the {len(alone)} training rows has its other order beside it; pairs in both "
            "orders are required; make the data with process_pair_data.py --both-orders"
        )
    if alone:
        logger.warning("symmetry_weight: %d rows have no other order: their loss has no symmetry term", len(alone))
    return both + list(zip(alone[::2], alone[1::2], strict=False))


class UnitSampler(Sampler[int]):
    """Yields the rows of units, such as the two orders of a pair, side by side.

    Args:
        units: Row numbers, unit by unit.
        seed: Of the order of units, together with the epoch, so that a resumed run sees the rows that it has not seen;
            None keeps the order that they have.
    """

    def __init__(self, units: Sequence[tuple[int, ...]], seed: int | None):
        self._units = units
        self._order = UnitOrder(len(units), seed)

    def set_epoch(self, epoch: int) -> None:
        """Shuffle anew."""
        self._order.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        for unit in self._order:
            yield from self._units[unit]

    def __len__(self) -> int:
        return sum(map(len, self._units))


class UnitOrder(Sampler[int]):
    """Yields the numbers below `length` in an order that the seed and the epoch alone decide, or as they are."""

    def __init__(self, length: int, seed: int | None):
        self._length = length
        self._seed = seed
        self.epoch = 0

    def __iter__(self) -> Iterator[int]:
        if self._seed is None:
            yield from range(self._length)
        else:
            generator = torch.Generator().manual_seed(self._seed + self.epoch)
            yield from torch.randperm(self._length, generator=generator).tolist()

    def __len__(self) -> int:
        return self._length


class UnitMultipackSampler(MultipackBatchSampler):
    """Packs units of rows: single rows, or the two orders of a pair, which then share a pack.

    axolotl's own packs follow a random state that a resumed run does not have; these follow seed and epoch.

    Args:
        units: Row numbers, unit by unit.
        lengths: Tokens of each row.
        seed: Of the order in which units are packed, as `UnitSampler` takes it.
        options: As `MultipackBatchSampler` takes them.
    """

    def __init__(self, units: Sequence[tuple[int, ...]], lengths: Sequence[int], seed: int | None, **options):
        self._units = units
        together = [sum(int(lengths[row]) for row in unit) for unit in units]
        longest, room = max(together), options["batch_max_len"]
        if longest > room:
            raise DataError(
                f"symmetry_weight: both orders of one pair have {longest} tokens, a pack {room}; room for both is "
                "required; raise micro_batch_size or sequence_len, or drop long pairs with --max-length"
            )
        super().__init__(UnitOrder(len(units), seed), lengths=together, **options)

    def set_epoch(self, epoch: int) -> None:
        """Shuffle and pack anew."""
        super().set_epoch(epoch)
        self.sampler.epoch = epoch

    def __iter__(self) -> Iterator[list[list[int]]]:
        for batch in super().__iter__():
            yield [[row for unit in pack for row in self._units[unit]] for pack in batch]
