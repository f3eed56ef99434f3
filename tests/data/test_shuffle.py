import numpy as np

from jhsae.data.shuffle import ShufflePool


def through(capacity: int, blocks: list[int], seed: int = 0) -> np.ndarray:
    """Source row numbers in the order in which they leave the pool."""
    pool = ShufflePool(capacity, 2, np.dtype(np.float32), seed)
    out, start = [], 0
    for size in blocks:
        rows = np.arange(start, start + size)
        out.append(
            pool.exchange(rows[:, None].repeat(2, 1).astype(np.float32), rows[:, None].repeat(3, 1).astype(np.int32))
        )
        start += size
    out.append(pool.drain())
    for x, index in out:
        np.testing.assert_array_equal(x[:, 0], index[:, 0])
    return np.concatenate([index[:, 0] for _, index in out])


def test_every_row_leaves_exactly_once_whatever_the_block_sizes():
    for capacity in (1, 7, 100, 1000):
        order = through(capacity, [5, 0, 100, 37, 1, 250, 3])
        np.testing.assert_array_equal(np.sort(order), np.arange(396))


def test_the_order_is_random_and_follows_the_seed():
    blocks = [50] * 20
    order = through(200, blocks)
    np.testing.assert_array_equal(order, through(200, blocks))
    assert not np.array_equal(order, through(200, blocks, seed=1))
    assert abs(np.corrcoef(np.diff(order)[:-1], np.diff(order)[1:])[0, 1] + 0.5) < 0.1  # as for independent draws
    assert np.abs(np.diff(order)).mean() > 100


def test_a_pool_as_large_as_the_data_shuffles_it_completely():
    order = through(1000, [100] * 10)
    assert abs(np.corrcoef(order, np.arange(1000))[0, 1]) < 0.1
