"""Micro-batches of pairs: what is taken aside, and which rows share a batch or a pack."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pair_pm.errors import DataError
from pair_pm.pair_batches import PairCollator, UnitMultipackSampler, UnitSampler, find_orders, pair_up


def test_targets_are_taken_aside_in_the_order_of_the_rows():
    seen = []

    def collate(features):
        seen.extend(features)
        return {"input_ids": torch.zeros(2, 3)}

    rows = [{"input_ids": [1], "prob_a": [0.25], "pair": [7]}, {"input_ids": [2], "prob_a": [1.0], "pair": [2**62]}]
    batch = PairCollator(collate)(rows)
    assert batch["targets"].prob_a.tolist() == [0.25, 1.0]
    assert batch["targets"].pair.tolist() == [7, 2**62]
    assert seen == [{"input_ids": [1]}, {"input_ids": [2]}]


def test_targets_of_packed_rows_stand_in_the_order_of_the_pack():
    packs = [[{"prob_a": [number / 10], "pair": [number]} for number in pack] for pack in ([3, 1], [2])]
    assert PairCollator(lambda features: {})(packs)["targets"].pair.tolist() == [3, 1, 2]


def test_orders_are_found_wherever_they_stand():
    assert find_orders([5, 6, 5, 7, 6]) == ([(0, 2), (1, 4)], [3])


def test_rows_without_their_other_order_come_two_by_two_and_an_odd_one_waits():
    assert pair_up([5, 1, 5, 2, 3]) == [(0, 2), (1, 3)]


def test_data_in_one_order_is_refused_with_the_command_that_makes_both():
    with pytest.raises(DataError, match="--both-orders"):
        pair_up([1, 2, 3])


@given(pairs=st.integers(1, 40), seed=st.integers(0, 5), epoch=st.integers(0, 3), batch=st.sampled_from([2, 4, 8]))
def test_every_batch_holds_whole_pairs_and_every_row_comes_once(pairs, seed, epoch, batch):
    numbers = [number % pairs for number in range(2 * pairs)]
    sampler = UnitSampler(pair_up(numbers), seed)
    sampler.set_epoch(epoch)
    rows = list(sampler)
    assert sorted(rows) == list(range(2 * pairs))
    assert len(rows) == len(sampler)
    for start in range(0, len(rows), batch):
        found = [numbers[row] for row in rows[start : start + batch]]
        assert all(found.count(number) == 2 for number in found)


def test_the_order_is_that_of_seed_and_epoch_alone():
    def order(seed, epoch):
        sampler = UnitSampler(pair_up(list(range(20)) * 2), seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(1, 2) == order(1, 2)
    assert order(1, 2) != order(1, 3)
    assert order(1, 2) != order(2, 2)


def pack(lengths, room, micro_batch=1, epoch=0):
    numbers = [number // 2 for number in range(len(lengths))]
    options = {"batch_max_len": room, "batch_size": micro_batch, "bin_size": 200, "num_processes": 1}
    sampler = UnitMultipackSampler(pair_up(numbers), lengths, seed=0, drop_last=False, **options)
    sampler.set_epoch(epoch)
    return numbers, sampler


@pytest.mark.parametrize("micro_batch", [1, 2])
def test_both_orders_of_a_pair_share_a_pack_and_no_pack_overflows(micro_batch):
    lengths = [10 + (number // 2) * 3 % 17 for number in range(60)]
    numbers, sampler = pack(lengths, room=100, micro_batch=micro_batch)
    batches = list(sampler)
    assert sorted(row for batch in batches for bin in batch for row in bin) == list(range(60))
    for batch in batches:
        for bin in batch:
            assert sum(lengths[row] for row in bin) <= 100
            assert all([numbers[row] for row in bin].count(numbers[row]) == 2 for row in bin)
    assert len(sampler) == len(batches)
    assert list(sampler) == batches  # a second look at the same epoch
    sampler.set_epoch(1)
    assert list(sampler) != batches


def test_a_pair_that_fills_more_than_a_pack_is_refused():
    with pytest.raises(DataError, match=r"both orders of one pair have 120 tokens, a pack 100"):
        pack([10, 10, 60, 60], room=100)
