import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference.jaxprs import largest
from reference.losses import off_diagonal_mean

from jhsae import ops


def pair(n=7, m=7, d=4, seed=0, batch=()):
    rng = np.random.default_rng(seed)
    return tuple(jnp.asarray(rng.normal(size=(*batch, rows, d)), jnp.float32) for rows in (n, m))


def naive_sum(a, b):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return sum((a[i] @ b[j]) ** 2 for i in range(len(a)) for j in range(len(b)))


@pytest.mark.parametrize("n, m, d", [(7, 5, 4), (3, 3, 9), (1, 1, 2)])
def test_the_sum_over_all_pairs_equals_the_double_loop(n, m, d):
    a, b = pair(n, m, d)
    np.testing.assert_allclose(ops.sum_of_squared_inner(a, b), naive_sum(a, b), rtol=1e-5)


def test_gradients_equal_those_of_the_double_loop():
    a, b = pair(6, 5, 3)
    got = jax.grad(ops.sum_of_squared_inner, argnums=(0, 1))(a, b)
    want = jax.grad(lambda a, b: jnp.sum((a @ b.T) ** 2), argnums=(0, 1))(a, b)
    for g, w in zip(got, want, strict=True):
        np.testing.assert_allclose(g, w, rtol=1e-4, atol=1e-4)


def test_the_off_diagonal_mean_leaves_the_diagonal_out():
    a, b = pair()
    np.testing.assert_allclose(ops.off_diagonal_mean(a, b), off_diagonal_mean(np.asarray(a), np.asarray(b)), rtol=1e-5)
    gradient = jax.grad(ops.off_diagonal_mean)(a, b)
    mask = 1 - np.eye(len(a))
    want = jax.grad(lambda a: jnp.sum(mask * (a @ b.T) ** 2) / mask.sum())(a)
    np.testing.assert_allclose(gradient, want, rtol=1e-4, atol=1e-5)


def test_leading_axes_are_batched():
    a, b = pair(batch=(2, 3))
    for op in (ops.sum_of_squared_inner, ops.off_diagonal_mean):
        batched = op(a, b)
        assert batched.shape == (2, 3)
        for i in np.ndindex(2, 3):
            np.testing.assert_allclose(batched[i], op(a[i], b[i]), rtol=1e-5)


def test_a_single_row_has_no_pairs():
    a, b = pair(1, 1)
    assert abs(float(ops.off_diagonal_mean(a, b))) < 1e-5


def test_no_array_over_pairs_is_made():
    n, d = 64, 3
    a, b = pair(n, n, d)
    for op in (ops.sum_of_squared_inner, ops.off_diagonal_mean):
        assert largest(jax.make_jaxpr(jax.value_and_grad(op, argnums=(0, 1)))(a, b)) < n * n / 4


def test_unit_rows_have_norm_one():
    a, _ = pair()
    np.testing.assert_allclose(np.linalg.norm(ops.unit_rows(a), axis=-1), 1.0, atol=1e-5)


def test_a_zero_row_stays_zero_with_a_finite_gradient():
    a = pair()[0].at[2].set(0.0)
    np.testing.assert_array_equal(ops.unit_rows(a)[2], 0.0)
    gradient = jax.grad(lambda a: jnp.sum(ops.unit_rows(a) ** 2))(a)
    assert np.isfinite(gradient).all(), "one zero row makes the gradient of the whole array NaN"
