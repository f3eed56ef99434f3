"""Raw dictionary rows are what a code adds to the residual stream; cosines and aligned dimensions by NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs

from jhsae.codes import Codes
from jhsae.data import CenterScale, Identity, Scale, Standardize, UnitNorm, Whiten
from jhsae.features import rows
from jhsae.sae import FlatSAE
from jhsae.sparsify import TopK


@pytest.fixture(scope="module")
def sae():
    return FlatSAE(runs.EMBED, 7, TopK(2), key=jax.random.key(0))


@pytest.mark.parametrize("normalizer", [Identity(), Scale(), CenterScale(), Standardize(), Whiten()], ids=repr)
def test_a_code_of_one_adds_its_raw_row(sae, normalizer, tmp_path):
    normalizer = normalizer.fit(runs.store(tmp_path / "store"))
    x = jnp.asarray(runs.activations(7))
    _, token = normalizer(x)
    one, none = (Codes(value, None, 7) for value in (jnp.eye(7), jnp.zeros((7, 7))))
    added = normalizer.undo(sae.decode(one), token) - normalizer.undo(sae.decode(none), token)
    np.testing.assert_allclose(rows.raw_rows(sae, normalizer), added, rtol=1e-4, atol=1e-4)


def test_rows_stand_as_they_are_where_the_scale_is_the_tokens(sae):
    np.testing.assert_array_equal(rows.raw_rows(sae, UnitNorm()), sae.dictionary())


def test_nearest_rows_equal_numpy_for_any_block(monkeypatch):
    table = np.random.default_rng(0).normal(size=(30, 5)).astype(np.float32)
    table[4] = 0
    unit = table / np.maximum(np.linalg.norm(table, axis=1, keepdims=True), 1e-30)
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -np.inf)
    monkeypatch.setattr(rows, "MOST_COSINES", 30 * 4)
    ids, values = rows.nearest(rows.directions(table), np.arange(3, 20), 6)
    np.testing.assert_allclose(values, -np.sort(-cosines[3:20], axis=1)[:, :6], atol=1e-6)
    np.testing.assert_allclose(np.take_along_axis(cosines[3:20], ids, axis=1), values, atol=1e-6)
    assert np.all(values[1] == 0)


def test_aligned_dimensions_are_the_largest_entries():
    dimensions, values, shares = rows.aligned_dimensions(np.array([1.0, -5.0, 3.0, 0.5], np.float32), 2)
    assert dimensions.tolist() == [2, 0] and values.tolist() == [3, 1]
    np.testing.assert_allclose(shares, np.array([3, 1]) / 9.5, rtol=1e-6)
