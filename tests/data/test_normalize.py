import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jhsae.data import CenteredUnitNorm, CenterScale, Identity, Scale, Statistics, UnitNorm, write_array

ALL = [Identity(), UnitNorm(), CenteredUnitNorm(), Scale(), CenterScale()]
X = np.random.default_rng(0).normal(size=(500, 6)).astype(np.float32) * 30 + np.arange(6, dtype=np.float32) * 20


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return write_array(tmp_path_factory.mktemp("store") / "s", X).manifest


@pytest.mark.parametrize("part", ALL, ids=lambda part: type(part).__name__)
def test_undo_inverts_and_works_under_jit(part, manifest):
    fitted = part.fit(manifest)
    normal, scale = eqx.filter_jit(fitted)(jnp.asarray(X))
    assert scale.shape == (500, 1)
    np.testing.assert_allclose(fitted.undo(normal, scale), X, rtol=2e-6, atol=2e-5)


@pytest.mark.parametrize("part", ALL, ids=lambda part: type(part).__name__)
def test_undo_is_affine_in_the_reconstruction_so_errors_scale_with_the_row(part, manifest):
    fitted = part.fit(manifest)
    normal, scale = fitted(jnp.asarray(X))
    error = fitted.undo(normal + 0.5, scale) - fitted.undo(normal, scale)
    np.testing.assert_allclose(error, 0.5 * jnp.broadcast_to(scale, X.shape), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("part", ALL, ids=lambda part: type(part).__name__)
def test_statistics_read_back_from_json_fit_the_same(part, manifest):
    again = part.fit(Statistics(**manifest.statistics()))
    np.testing.assert_array_equal(again(jnp.asarray(X))[0], part.fit(manifest)(jnp.asarray(X))[0])


def test_each_does_what_its_equation_says(manifest):
    x = jnp.asarray(X)
    unit = UnitNorm()(x)[0]
    np.testing.assert_allclose(unit, X / (np.linalg.norm(X, axis=1, keepdims=True) + 1e-6), rtol=1e-6)
    centred = X - X.astype(np.float64).mean(0)
    expected = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    np.testing.assert_allclose(CenteredUnitNorm().fit(manifest)(x)[0], expected, rtol=1e-4, atol=1e-6)
    scaled = Scale().fit(manifest)(x)[0]
    np.testing.assert_allclose(jnp.linalg.norm(scaled, axis=1).mean(), 6**0.5, rtol=1e-5)
    both = CenterScale().fit(manifest)(x)[0]
    np.testing.assert_allclose(both.mean(0), np.zeros(6), atol=1e-5)
    np.testing.assert_allclose(jnp.mean(jnp.sum(both**2, axis=1)), 6.0, rtol=1e-5)
    np.testing.assert_array_equal(Identity()(x)[0], x)


def test_a_zero_row_stays_finite():
    normal, scale = UnitNorm()(jnp.zeros((1, 4)))
    assert not normal.any() and not UnitNorm().undo(normal, scale).any()


def test_statistics_get_no_gradient(manifest):
    for part in (CenteredUnitNorm(), Scale(), CenterScale()):
        gradient = eqx.filter_grad(lambda part: jnp.sum(part(jnp.asarray(X))[0] ** 2))(part.fit(manifest))
        assert all(not leaf.any() for leaf in jax.tree.leaves(gradient))


def test_one_that_was_not_fitted_says_so():
    for part in (CenteredUnitNorm(), Scale(), CenterScale()):
        with pytest.raises(ValueError, match=r"no statistics yet; call fit\(store.manifest\)"):
            part(jnp.ones((1, 4)))
