from itertools import pairwise

import numpy as np
import pytest

from jhsae.data.shuffle import Group, groups


@pytest.mark.parametrize(
    ("rows", "shuffle_rows", "shard_rows"),
    [(1, 1, 4), (100, 40, 32), (1000, 64, 32), (1001, 65, 8), (999, 1, 10), (64, 1000, 16), (128, 64, 64)],
)
def test_groups_are_whole_shards_that_cover_the_rows_and_are_large_enough(rows, shuffle_rows, shard_rows):
    found = groups(rows, shuffle_rows, shard_rows)
    assert [g.number for g in found] == list(range(len(found)))
    assert found[0].start == 0 and found[-1].stop == rows
    assert all(a.stop == b.start and b.start % shard_rows == 0 for a, b in pairwise(found))
    least = -(-shuffle_rows // shard_rows) * shard_rows
    if rows >= shuffle_rows:
        assert all(g.rows >= shuffle_rows for g in found)
    assert all(g.rows < 2 * least + shard_rows for g in found)


def test_an_order_is_a_permutation_that_follows_seed_and_group():
    orders = [Group(number, 0, 500).order(seed) for seed, number in ((0, 0), (0, 0), (0, 1), (1, 0))]
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(500))
        assert abs(np.corrcoef(np.diff(order)[:-1], np.diff(order)[1:])[0, 1] + 0.5) < 0.1  # as for independent draws
        assert abs(np.corrcoef(order, np.arange(500))[0, 1]) < 0.2
    np.testing.assert_array_equal(orders[0], orders[1])
    assert not np.array_equal(orders[0], orders[2]) and not np.array_equal(orders[0], orders[3])


def test_a_store_of_one_group_has_the_order_that_stores_had_before_there_were_groups():
    """The stores of the published results were shuffled whole, by this permutation."""
    np.testing.assert_array_equal(Group(0, 0, 1000).order(7), np.random.default_rng(7).permutation(1000))
