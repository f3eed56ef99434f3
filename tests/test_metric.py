import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.covariance import ledoit_wolf

from jhsae import metric
from jhsae.errors import UserError
from jhsae.metric import (
    Diagonal,
    Euclidean,
    Whitened,
    causal,
    causal_absolute_ridge,
    covariance,
    from_covariance,
    relative_ridge,
    shrunk_covariance,
)


def correlated_unembedding(seed=0, vocab=400, embed=32, scale=1.0):
    rng = np.random.default_rng(seed)
    spectrum = np.diag(np.geomspace(4.0, 0.2, embed))
    return (scale * (rng.normal(size=(vocab, embed)) @ spectrum @ rng.normal(size=(embed, embed)) + 3.0)).astype(
        np.float32
    )


def cosine(metric, u, v):
    return float(metric.inner(u, v) / metric.norm(u) / metric.norm(v))


def test_a_metric_is_the_euclidean_product_of_whitened_vectors():
    rng = np.random.default_rng(1)
    matrix = rng.normal(size=(5, 5))
    u, v = rng.normal(size=(2, 3, 4, 5))
    for product, M in ((Whitened(jnp.asarray(matrix)), matrix), (Euclidean(), np.eye(5))):
        oracle = np.einsum("...i,ji,jk,...k->...", u, M, M, v)
        np.testing.assert_allclose(product.inner(jnp.asarray(u), jnp.asarray(v)), oracle, rtol=2e-5, atol=1e-5)
        np.testing.assert_allclose(jnp.sum(product.dual(jnp.asarray(u)) * v, axis=-1), oracle, rtol=2e-5, atol=1e-5)
        np.testing.assert_allclose(product.norm(jnp.asarray(u)), np.linalg.norm(u @ M.T, axis=-1), rtol=1e-5)


@pytest.mark.parametrize("metric", [Euclidean(), Whitened(jnp.diag(jnp.array([1.0, 2.0])))])
def test_the_norm_of_a_zero_vector_has_no_nan_gradient(metric):
    gradient = jax.grad(lambda u: metric.norm(u).sum())(jnp.zeros((3, 2)))
    np.testing.assert_array_equal(gradient, 0.0)


def test_unembedding_rows_are_white_on_their_own_side():
    U = correlated_unembedding()
    geometry = causal(U, shrinkage=0.0)
    g = np.asarray(geometry.unembedding.whiten(jnp.asarray(U - U.mean(0))), np.float64)
    white = covariance(g)
    np.testing.assert_allclose(white, np.eye(32) * white[0, 0], atol=1e-3 * white[0, 0])


def test_logits_are_the_product_of_the_two_sides():
    U = correlated_unembedding()
    geometry = causal(U)
    gamma, lam = jnp.asarray(U[:7] - U.mean(0)), jax.random.normal(jax.random.key(0), (7, 32))
    unified = jnp.sum(geometry.unembedding.whiten(gamma) * geometry.residual.whiten(lam), axis=-1)
    np.testing.assert_allclose(unified, jnp.sum(gamma * lam, axis=-1), rtol=1e-3, atol=1e-3)


def test_a_residual_pair_is_orthogonal_on_the_residual_side_only():
    geometry = causal(correlated_unembedding())
    rng = np.random.default_rng(0)
    first, second = np.linalg.qr(rng.normal(size=(32, 2)))[0].T
    # A residual vector is Σ^(-1/2) of its unified vector.
    pair = [geometry.unembedding.whiten(jnp.asarray(x, jnp.float32)) for x in (first, second)]
    assert abs(cosine(geometry.residual, *pair)) < 1e-3
    assert abs(cosine(Euclidean(), *pair)) > 0.1
    assert abs(cosine(geometry.unembedding, *pair)) > 0.1


def test_angles_do_not_depend_on_the_scale_of_the_unembedding():
    u, v = jax.random.normal(jax.random.key(1), (2, 32))
    small, large = (causal(correlated_unembedding(scale=s), shrinkage=0.1) for s in (0.01, 10.0))
    assert cosine(small.residual, u, v) == pytest.approx(cosine(large.residual, u, v), abs=1e-5)
    assert np.trace(small.sigma) == pytest.approx(32, rel=1e-5)
    assert small.condition == pytest.approx(large.condition, rel=1e-4)
    # The absolute ridge has no such property: it turns a small unembedding Euclidean.
    assert causal_absolute_ridge(correlated_unembedding(scale=1e-3)).condition < 1.5


def test_absolute_ridge_equals_its_definition():
    U = correlated_unembedding(vocab=60).astype(np.float64)
    geometry = causal_absolute_ridge(U, 0.05)
    sigma = np.cov(U.T) + 0.05 * np.eye(32)
    np.testing.assert_allclose(geometry.sigma, sigma, rtol=1e-5, atol=1e-5 * sigma.max())
    a, b = jax.random.normal(jax.random.key(2), (2, 6, 32))
    oracle = np.einsum("ni,ni->n", a, np.linalg.solve(sigma, np.asarray(b, np.float64).T).T)
    np.testing.assert_allclose(geometry.unembedding.inner(a, b), oracle, rtol=1e-3, atol=1e-4)


def test_covariance_is_numpys_over_more_than_one_block(monkeypatch):
    monkeypatch.setattr(metric, "BLOCK", 37)
    rows = correlated_unembedding()
    np.testing.assert_allclose(covariance(rows), np.cov(rows.astype(np.float64).T), rtol=1e-9, atol=1e-9)


def test_relative_ridge_keeps_the_trace():
    sigma = covariance(correlated_unembedding())
    assert np.trace(relative_ridge(sigma, 0.3)) == pytest.approx(np.trace(sigma))
    np.testing.assert_allclose(relative_ridge(sigma, 1.0), np.trace(sigma) / 32 * np.eye(32))


def test_wrong_input_is_named():
    with pytest.raises(UserError, match=r"shrinkage is 1\.5"):
        causal(correlated_unembedding(), shrinkage=1.5)
    with pytest.raises(UserError, match="shrinkage above 0"):
        from_covariance(np.zeros((3, 3)))
    with pytest.raises(UserError, match="1 rows"):
        covariance(np.zeros((1, 3)))


@pytest.mark.parametrize(("vocab", "embed"), [(400, 32), (20, 32), (3, 4)])
def test_the_shrinkage_of_many_rows_is_that_of_scikit_learn(vocab, embed, monkeypatch):
    monkeypatch.setattr(metric, "BLOCK", 37)
    rows = correlated_unembedding(vocab=vocab, embed=embed)
    expected, weight = ledoit_wolf(rows.astype(np.float64))
    sigma, found = shrunk_covariance(rows, "ledoit_wolf")
    assert found == pytest.approx(weight, abs=1e-10) and 0 < found < 1
    np.testing.assert_allclose(sigma * (vocab - 1) / vocab, expected, rtol=1e-8, atol=1e-8 * np.abs(expected).max())
    geometry = causal(rows, shrinkage="ledoit_wolf")
    assert geometry.shrinkage == found
    np.testing.assert_allclose(geometry.sigma, expected * embed / np.trace(expected), rtol=1e-4, atol=1e-5)
    values = np.linalg.eigvalsh(expected)
    assert geometry.condition == pytest.approx(values[-1] / values[0], rel=1e-4)


def test_equal_rows_have_no_spread_to_estimate():
    with pytest.raises(UserError, match="all rows of the unembedding are equal"):
        causal(np.ones((5, 3), np.float32), shrinkage="ledoit_wolf")
    with pytest.raises(UserError, match="shrinkage is 'oas'"):
        causal(np.ones((5, 3), np.float32), shrinkage="oas")


def test_a_diagonal_metric_is_a_whitened_one():
    scale = jnp.asarray([0.5, 2.0, 3.0])
    u, v = jax.random.normal(jax.random.key(0), (2, 4, 3))
    diagonal, full = Diagonal(scale), Whitened(jnp.diag(scale))
    np.testing.assert_allclose(diagonal.inner(u, v), full.inner(u, v), rtol=1e-5)
    np.testing.assert_allclose(diagonal.dual(u), full.dual(u), rtol=1e-5)
