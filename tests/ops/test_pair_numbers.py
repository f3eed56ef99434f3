"""Rows of numbers that several pairs share: every pair's are found again."""

import jax.numpy as jnp
import numpy as np
import pytest

from jhsae.codes import Codes
from jhsae.ops.pallas import pair_numbers as packing

K = 3


def draw(*shape):
    return np.random.default_rng(list(shape)).normal(size=shape).astype(np.float32)


def found(numbers, pairs):
    """What a kernel finds of each pair: its row, and the lanes that are not those of others."""
    pair, count = jnp.arange(pairs), len(numbers.rows)
    rows = numbers.rows[packing.row_of(pair, count, packing.parts_of(numbers.width))]
    own = packing.own_lanes(rows, pair[None], count, numbers.width)
    return np.asarray(packing.added(own, numbers.width)), np.asarray(own)


@pytest.mark.parametrize("batch", [1, 8, 21])
@pytest.mark.parametrize("size, width", [(1, 1), (6, 8), (16, 16), (17, 32), (64, 64), (128, 128), (130, 256)])
def test_every_pair_finds_its_numbers(size, width, batch):
    values = draw(batch, K, size)
    numbers = packing.numbers_of(jnp.asarray(values))
    assert numbers.width == width and numbers.rows.shape[1] == max(width, 128)
    assert len(numbers.rows) == -(-batch // max(1, 128 // width)) * K
    got, own = found(numbers, batch * K)
    np.testing.assert_array_equal(got[:, :size], values.reshape(-1, size))
    assert not got[:, size:].any() and (np.count_nonzero(own, axis=1) == size).all()


def test_the_last_number_stands_behind_the_values():
    values, last = draw(9, K, 6), draw(9, K)
    got, _ = found(packing.numbers_of(jnp.asarray(values), jnp.asarray(last)), 9 * K)
    np.testing.assert_array_equal(got[:, :7], np.concatenate([values, last[..., None]], axis=-1).reshape(-1, 7))


def test_children_stand_at_their_atoms_and_add_up():
    values, atoms = draw(9, K, 2), np.random.default_rng(0).integers(0, 3, (9, K, 2))
    dense = np.zeros((9, K, 6), np.float32)
    for at in np.ndindex(9, K, 2):
        dense[(*at[:2], atoms[at])] += values[at]
    got, _ = found(packing.numbers_at(Codes(jnp.asarray(values), jnp.asarray(atoms), 6)), 9 * K)
    np.testing.assert_allclose(got[:, :6], dense.reshape(-1, 6), rtol=1e-6)
    assert not got[:, 6:].any()


def test_a_pair_beyond_the_last_has_some_row():
    np.testing.assert_array_equal(packing.row_of(jnp.array([0, 3, 4, 7, 8, 20]), 4, 2), [0, 3, 0, 3, 3, 3])


def test_repeated_is_the_transpose_of_added():
    a, b = draw(5, 16), draw(5, 128)
    np.testing.assert_allclose(
        np.sum(np.asarray(packing.repeated(jnp.asarray(a), 16)) * b),
        np.sum(a * np.asarray(packing.added(jnp.asarray(b), 16))),
        rtol=1e-4,
    )
