"""Decoder rows in the language model's units, their logits, cosines and aligned dimensions, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
from held_out import harvested

from jhsae.codes import Codes
from jhsae.data import CenteredUnitNorm, CenterScale, Identity, Scale, Standardize, UnitNorm, Whiten
from jhsae.data.normalize import LayerNorm
from jhsae.errors import UserError
from jhsae.features import decoder
from jhsae.features.decoder import decoder_in_lm_units, feature_logits
from jhsae.sae import FlatSAE
from jhsae.sparsify import TopK


@pytest.fixture(scope="module")
def sae():
    return FlatSAE(runs.EMBED, 7, TopK(2), key=jax.random.key(0))


@pytest.mark.parametrize("normalizer", [Identity(), Scale(), CenterScale(), Standardize(), Whiten()], ids=repr)
def test_a_code_of_one_adds_its_raw_row(sae, normalizer, tmp_path):
    store = runs.store(tmp_path / "store")
    normalizer = normalizer.fit(store)
    x = jnp.asarray(runs.activations(7))
    _, token = normalizer(x)
    one, none = (Codes(value, None, 7) for value in (jnp.eye(7), jnp.zeros((7, 7))))
    added = normalizer.undo(sae.decode(one), token) - normalizer.undo(sae.decode(none), token)
    np.testing.assert_allclose(decoder_in_lm_units(sae, normalizer, store), added, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("normalizer", [UnitNorm(), CenteredUnitNorm(), LayerNorm()], ids=lambda n: type(n).__name__)
def test_where_every_token_has_its_own_scale_the_row_is_that_of_the_median_token(sae, normalizer, tmp_path):
    store = runs.store(tmp_path / "store", rows=97)  # odd: one token has the median scale
    normalizer = normalizer.fit(store)
    _, token = normalizer(jnp.asarray(store.read(0, 97)))
    at = int(np.argsort(np.asarray(token.scale)[:, 0])[48])
    one = jax.tree.map(lambda a: a[at : at + 1], token)
    found = decoder_in_lm_units(sae, normalizer, store)
    for feature in range(7):
        code = jnp.eye(7)[feature : feature + 1]
        added = normalizer.undo(sae.decode(Codes(code, None, 7)), one)
        added -= normalizer.undo(sae.decode(Codes(0 * code, None, 7)), one)
        np.testing.assert_allclose(found[feature], added[0], rtol=1e-4, atol=1e-4)


def test_nearest_rows_equal_numpy_for_any_block(monkeypatch):
    table = np.random.default_rng(0).normal(size=(30, 5)).astype(np.float32)
    table[4] = 0
    unit = table / np.maximum(np.linalg.norm(table, axis=1, keepdims=True), 1e-30)
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -np.inf)
    monkeypatch.setattr(decoder, "MOST_COSINES", 30 * 4)
    ids, values = decoder.nearest(decoder.directions(table), np.arange(3, 20), 6)
    np.testing.assert_allclose(values, -np.sort(-cosines[3:20], axis=1)[:, :6], atol=1e-6)
    np.testing.assert_allclose(np.take_along_axis(cosines[3:20], ids, axis=1), values, atol=1e-6)
    assert np.all(values[1] == 0)
    with pytest.raises(UserError, match="neighbours is 30, but there are 29 other rows"):
        decoder.nearest(decoder.directions(table), np.arange(3), 30)


def test_aligned_dimensions_are_the_largest_entries():
    dimensions, values, shares = decoder.aligned_dimensions(np.array([1.0, -5.0, 3.0, 0.5], np.float32), 2)
    assert dimensions.tolist() == [2, 0] and values.tolist() == [3, 1]
    np.testing.assert_allclose(shares, np.array([3, 1]) / 9.5, rtol=1e-6)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return harvested(tmp_path_factory.mktemp("held_out"))[1]


@pytest.fixture
def rows():
    return np.random.default_rng(0).normal(size=(7, 16)).astype(np.float32)


def test_logits_are_the_models_own_times_rms(model, rows):
    end = model.model.layers
    x = rows / np.sqrt(np.mean(rows**2, axis=1, keepdims=True) + model.model.config.norm_eps)
    found = feature_logits(x, model.model.unembedding(), 5)
    true = np.asarray(model.model.logits_from(jnp.asarray(rows)[None], end))[0]
    cap = model.model.config.final_cap
    capped = cap * np.tanh(found.top / cap)
    np.testing.assert_allclose(capped, -np.sort(-true, axis=1)[:, :5], rtol=1e-4, atol=1e-5)
    order = np.argsort(-true, axis=1)[:, :5]
    np.testing.assert_array_equal(found.top_ids, order)
    assert np.any(np.asarray(model.model.final_norm) != 0)


def test_ends_and_histograms_equal_numpy_for_any_block(model, rows, monkeypatch):
    unembedding = np.asarray(model.model.unembedding())
    monkeypatch.setattr(decoder, "MOST_LOGITS", 2 * len(unembedding))
    found = feature_logits(rows, jnp.asarray(unembedding), 4, bins=9)
    true = np.float64(rows) @ unembedding.T
    np.testing.assert_allclose(found.bottom, np.sort(true, axis=1)[:, :4], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found.bottom_ids, np.argsort(true, axis=1)[:, :4])
    assert feature_logits(rows, jnp.asarray(unembedding), 4).counts.shape == (len(rows), 0)
    for i, row in enumerate(true.astype(np.float32)):
        counts, edges = np.histogram(row, 9)
        assert np.abs(found.counts[i] - counts).sum() <= 2  # a value on an edge may fall to either side
        np.testing.assert_allclose(found.centres[i], (edges[1:] + edges[:-1]) / 2, rtol=1e-4, atol=1e-5)
    assert np.all(found.counts.sum(axis=1) == len(unembedding))


def test_bad_input_is_refused(model, rows):
    unembedding = model.model.unembedding()
    with pytest.raises(UserError, match="the rows have 15 numbers, but the unembedding has 16"):
        feature_logits(rows[:, :15].copy(), unembedding)
    for k in (0, 41):
        with pytest.raises(UserError, match=f"logits is {k}, but there are 40 tokens in the vocabulary"):
            feature_logits(rows, unembedding, k)
