"""Normalisers do what their equations say, are undone, fold as they say, and equal SAELens's."""

from types import SimpleNamespace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jhsae.data import (
    ArrayRows,
    CenteredUnitNorm,
    CenterScale,
    ConstantNorm,
    Identity,
    LayerNorm,
    Scale,
    Standardize,
    UnitNorm,
    Whiten,
    times,
    write_array,
)
from jhsae.data.normalize.moments import BLOCK, _blocks
from jhsae.errors import UserError

AFFINE = [Identity(), Scale(), CenterScale(), Standardize(), Whiten()]
PER_TOKEN = [UnitNorm(), CenteredUnitNorm(), ConstantNorm(), LayerNorm()]
ALL = AFFINE + PER_TOKEN
FITTED = [CenteredUnitNorm(), Scale(), CenterScale(), Standardize(), Whiten()]
EMBED = 6
MIX = np.random.default_rng(1).normal(size=(EMBED, EMBED))
X = np.random.default_rng(0).normal(size=(500, EMBED)) @ MIX * 30 + np.arange(EMBED) * 20
X = X.astype(np.float32)


def name(part) -> str:
    return type(part).__name__


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_array(tmp_path_factory.mktemp("store") / "s", X)


@pytest.mark.parametrize("part", ALL, ids=name)
def test_undo_inverts_and_works_under_jit(part, store):
    fitted = part.fit(store)
    normal, token = eqx.filter_jit(fitted)(jnp.asarray(X))
    assert token.scale.shape == token.shift.shape == (500, 1)
    np.testing.assert_allclose(fitted.undo(normal, token), X, rtol=5e-5, atol=1e-3)


@pytest.mark.parametrize("part", ALL, ids=name)
def test_undo_is_affine_in_the_reconstruction_so_errors_keep_their_direction(part, store):
    fitted = part.fit(store)
    normal, token = fitted(jnp.asarray(X))
    error = fitted.undo(normal + 0.5, token) - fitted.undo(normal, token)
    twice = fitted.undo(normal + 1.0, token) - fitted.undo(normal, token)
    np.testing.assert_allclose(twice, 2 * error, rtol=1e-3, atol=1e-3)
    assert np.abs(error).max() > 0.01


@pytest.mark.parametrize("part", AFFINE, ids=name)
def test_affine_says_what_the_call_and_its_undoing_do(part, store):
    fitted = part.fit(store)
    affine = fitted.affine().over(EMBED)
    assert affine.shift.shape == (EMBED,)
    normal, token = fitted(jnp.asarray(X))
    np.testing.assert_allclose(times(X - affine.shift, affine.matrix), normal, rtol=1e-5, atol=1e-5)
    y = np.random.default_rng(2).normal(size=(7, EMBED)).astype(np.float32)
    token = jax.tree.map(lambda a: a[:7], token)
    np.testing.assert_allclose(
        times(y, affine.inverse) + affine.shift, fitted.undo(jnp.asarray(y), token), rtol=1e-5, atol=1e-4
    )
    back = times(times(np.eye(EMBED, dtype=np.float32), affine.matrix), affine.inverse)
    np.testing.assert_allclose(back, np.eye(EMBED), atol=1e-5)


@pytest.mark.parametrize("part", PER_TOKEN, ids=name)
def test_where_the_scale_depends_on_the_token_there_is_no_affine_map(part, store):
    assert part.fit(store).affine() is None


@pytest.mark.parametrize("part", ALL, ids=name)
def test_an_array_in_memory_fits_the_same(part, store):
    again = part.fit(ArrayRows(X))
    np.testing.assert_allclose(again(jnp.asarray(X))[0], part.fit(store)(jnp.asarray(X))[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("part", ALL, ids=name)
def test_shapes_names_what_fit_makes(part, store):
    shapes, fitted = part.shapes(EMBED), part.fit(store)
    assert {n: getattr(fitted, n).shape for n in shapes} == shapes
    assert all(getattr(part, n) is None for n in shapes)
    assert len(jax.tree.leaves(eqx.filter(fitted, eqx.is_array))) == len(shapes)


def test_each_does_what_its_equation_says(store):
    x, exact = jnp.asarray(X), X.astype(np.float64)
    np.testing.assert_allclose(UnitNorm()(x)[0], X / (np.linalg.norm(X, axis=1, keepdims=True) + 1e-6), rtol=1e-6)
    centred = exact - exact.mean(0)
    expected = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    np.testing.assert_allclose(CenteredUnitNorm().fit(store)(x)[0], expected, rtol=1e-4, atol=1e-6)
    scaled = Scale().fit(store)(x)[0]
    np.testing.assert_allclose(jnp.linalg.norm(scaled, axis=1).mean(), EMBED**0.5, rtol=1e-5)
    both = CenterScale().fit(store)(x)[0]
    np.testing.assert_allclose(both.mean(0), np.zeros(EMBED), atol=1e-5)
    np.testing.assert_allclose(jnp.mean(jnp.sum(both**2, axis=1)), EMBED, rtol=1e-5)
    np.testing.assert_allclose(jnp.linalg.norm(ConstantNorm()(x)[0], axis=1), EMBED**0.5, rtol=1e-6)
    standard = Standardize(eps=0.5).fit(store)(x)[0]
    np.testing.assert_allclose(standard, centred / (exact.std(0) + 0.5), rtol=1e-4, atol=1e-5)
    own = (exact - exact.mean(1, keepdims=True)) / (exact.std(1, ddof=1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(LayerNorm()(x)[0], own, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(Identity()(x)[0], x)


def test_whitened_rows_have_mean_zero_and_covariance_one(store):
    white = np.asarray(Whiten(eps=0.0).fit(store)(jnp.asarray(X))[0], np.float64)
    np.testing.assert_allclose(white.mean(0), np.zeros(EMBED), atol=1e-5)
    np.testing.assert_allclose(np.cov(white.T), np.eye(EMBED), atol=1e-4)


def test_whitening_does_not_depend_on_the_signs_that_the_eigensolver_happens_to_return(monkeypatch, store):
    plain, solve = Whiten().fit(store), np.linalg.eigh
    monkeypatch.setattr(np.linalg, "eigh", lambda c: (lambda v, e: (v, e * [1, -1, -1, 1, 1, -1]))(*solve(c)))
    flipped = Whiten().fit(store)
    np.testing.assert_array_equal(flipped.matrix, plain.matrix)
    np.testing.assert_array_equal(flipped.inverse, plain.inverse)


def test_a_singular_covariance_is_held_off_by_eps():
    flat = ArrayRows(np.outer(np.arange(20), [1, 2, 0]).astype(np.float32))
    white, _ = Whiten().fit(flat)(jnp.asarray(flat.x))
    assert np.isfinite(white).all() and np.abs(white).max() < 3


def test_rows_of_zeros_stay_finite(store):
    for part in (UnitNorm(), ConstantNorm(), LayerNorm()):
        normal, token = part(jnp.zeros((1, 4)))
        assert not normal.any() and not part.undo(normal, token).any()
    constant = ArrayRows(np.ones((10, EMBED), np.float32))
    normal, _ = Standardize().fit(constant)(jnp.ones((2, EMBED)))
    assert not normal.any()


def test_a_large_mean_costs_the_covariance_no_digits():
    x = X.astype(np.float64) / 100 + 3000
    fitted = Standardize().fit(ArrayRows(x))
    np.testing.assert_allclose(fitted.std, x.astype(np.float32).astype(np.float64).std(0), rtol=1e-6)


@pytest.mark.parametrize(("rows", "expected"), [(10**6, 5000), (5000, 5000), (2048, 1928), (1500, 1500), (2, 2)])
def test_at_most_so_many_rows_are_read_evenly_spread(rows, expected):
    source = ArrayRows(np.arange(5000, dtype=np.float32)[:, None])
    read = np.concatenate(list(_blocks(source, rows, "test")))[:, 0].astype(int)
    assert len(read) == len(set(read)) == expected
    if BLOCK < rows < 5000:
        assert {0, 4} <= set(read // BLOCK), "first and last block"


def test_fewer_rows_give_another_estimate(store):
    half, everything = Standardize(rows=250).fit(store), Standardize().fit(store)
    expected = store.read(0, 250).astype(np.float64).std(0)
    np.testing.assert_allclose(half.std, expected, rtol=1e-5)
    assert not np.allclose(half.std, everything.std, rtol=1e-5)


def test_statistics_get_no_gradient(store):
    for part in FITTED:
        gradient = eqx.filter_grad(lambda part: jnp.sum(part(jnp.asarray(X))[0] ** 2))(part.fit(store))
        assert all(not leaf.any() for leaf in jax.tree.leaves(gradient))


def test_one_that_was_not_fitted_says_so():
    for part in FITTED:
        with pytest.raises(ValueError, match=r"no statistics yet; call fit\(store\)"):
            part(jnp.ones((1, 4)))


def test_too_few_rows_are_a_sentence():
    for part in (Standardize, Whiten):
        with pytest.raises(ValueError, match=f"{part.__name__}: rows is 1, expected at least 2"):
            part(rows=1)
    with pytest.raises(UserError, match="covariance was asked of 1 row"):
        Whiten().fit(ArrayRows(np.ones((1, 3), np.float32)))


def saelens(kind: str):
    """SAELens's own functions before the encoder and after the decoder."""
    pytest.importorskip("sae_lens")
    sae = pytest.importorskip("sae_lens.saes.sae")
    holder = SimpleNamespace(cfg=SimpleNamespace(normalize_activations=kind, d_in=EMBED))
    sae.SAE._setup_activation_normalization(holder)
    return holder


@pytest.mark.parametrize(("part", "kind"), [(ConstantNorm(), "constant_norm_rescale"), (LayerNorm(), "layer_norm")])
def test_per_token_normalisers_equal_those_of_saelens_both_ways(part, kind):
    theirs, torch = saelens(kind), pytest.importorskip("torch")
    small = X * 1e-6  # where LayerNorm's eps counts, and that it is undone without it
    for x in (X, small):
        normal, token = part(jnp.asarray(x))
        np.testing.assert_allclose(normal, theirs.run_time_activation_norm_fn_in(torch.tensor(x)), rtol=2e-5, atol=2e-6)
        back = theirs.run_time_activation_norm_fn_out(torch.tensor(np.asarray(normal)) + 0.25)
        np.testing.assert_allclose(part.undo(normal + 0.25, token), back, rtol=1e-5, atol=1e-5 * np.abs(x).max())


def saelens_scaler(method: str):
    scaler = pytest.importorskip("sae_lens.training.activation_scaler").ActivationScaler()
    torch = pytest.importorskip("torch")
    getattr(scaler, method)(EMBED, iter(torch.tensor(X).split(100)), 5)
    return scaler


def test_scale_equals_that_of_saelens_both_ways(store):
    theirs, torch = saelens_scaler("estimate_scaling_factor"), pytest.importorskip("torch")
    fitted = Scale().fit(store)
    normal, token = fitted(jnp.asarray(X))
    np.testing.assert_allclose(normal, theirs.scale(torch.tensor(X)), rtol=1e-6)
    back = theirs.unscale(torch.tensor(np.asarray(normal)) + 0.25)
    np.testing.assert_allclose(fitted.undo(normal + 0.25, token), back, rtol=1e-5, atol=1e-5)


def test_whitening_equals_that_of_saelens_both_ways(store):
    """Up to the signs of eigenvectors, which are arbitrary there."""
    theirs, torch = saelens_scaler("estimate_whitening"), pytest.importorskip("torch")
    fitted = Whiten().fit(store)
    normal, token = fitted(jnp.asarray(X))
    expected = theirs.scale(torch.tensor(X)).numpy()
    signs = np.sign(np.sum(expected * np.asarray(normal), axis=0))
    np.testing.assert_allclose(normal, expected * signs, rtol=1e-4, atol=2e-5)
    np.testing.assert_allclose(fitted.matrix, theirs.whitening.matrix.numpy() * signs, rtol=1e-4, atol=1e-7)
    y = np.random.default_rng(3).normal(size=(500, EMBED)).astype(np.float32)
    back = theirs.unscale(torch.tensor(y * signs.astype(np.float32)))
    np.testing.assert_allclose(fitted.undo(jnp.asarray(y), token), back, rtol=1e-4, atol=1e-3)
