from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jhsae import ops

OPS = {op.__name__: jax.jit(op, static_argnums=(2, 3)) for op in (ops.heaviside, ops.jump_relu)}
WIDTH = 0.5


@partial(jax.jit, static_argnums=(0, 3, 4))
def run(name, x, t, width, to_input, w):
    """The value, and the gradients of sum(w * value) to x and to the threshold."""

    def weighted(x, t):
        value = OPS[name](x, t, width, to_input)
        return jnp.sum(w * value), value

    return jax.value_and_grad(weighted, argnums=(0, 1), has_aux=True)(x, t)


def oracle(name, x, t, width, to_input, w):
    """Value, and the gradients of sum(w * value) to x and to the threshold (arXiv 2407.14435, eq. 11 and 12)."""
    near, over = np.abs(x - t) < width / 2, x > t
    height = (t if name == "jump_relu" else 1.0) / width * near
    own = over if name == "jump_relu" else np.zeros_like(x)
    to_x = w * (own + to_input * height)
    return np.where(over, x if name == "jump_relu" else 1.0, 0.0), to_x, (-w * height).reshape(-1, len(t)).sum(0)


def check(name, x, t, width, to_input, w):
    (_, value), grads = run(name, x, t, width, to_input, w)
    expected = oracle(name, *(np.asarray(a, np.float64) for a in (x, t)), width, to_input, np.asarray(w, np.float64))
    np.testing.assert_array_equal(value, expected[0].astype(np.float32))
    for got, want in zip(grads, expected[1:], strict=True):
        np.testing.assert_allclose(got, want, rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize("to_input", [False, True])
@pytest.mark.parametrize("name", OPS)
def test_value_and_gradients_equal_the_formula(name, to_input):
    rng = np.random.default_rng(0)
    for shape in ((7,), (5, 7), (2, 3, 7)):
        x, w = (jnp.asarray(rng.normal(size=shape), jnp.float32) for _ in range(2))
        t = jnp.asarray(rng.random(7), jnp.float32)
        check(name, x, t, 1.0, to_input, w)
        assert np.any(np.abs(x - t) < 0.5) and np.any(np.abs(x - t) > 0.5)


@pytest.mark.parametrize("to_input", [False, True])
@pytest.mark.parametrize("name", OPS)
def test_at_the_edges_of_the_rectangle(name, to_input):
    """The threshold itself is not over it, and the rectangle is open: no number here is rounded."""
    t = jnp.ones(1)
    below, above = np.nextafter(np.float32(1.25), np.float32(0)), np.nextafter(np.float32(0.75), np.float32(1))
    x = jnp.asarray([[0.75], [above], [1.0], [below], [1.25], [2.0], [-1.0]], jnp.float32)
    w = jnp.asarray(2.0 ** np.arange(7), jnp.float32)[:, None]
    check(name, x, t, WIDTH, to_input, w)
    np.testing.assert_array_equal(run(name, x, t, WIDTH, to_input, w)[1][1], [-(2 + 4 + 8) / WIDTH])


@pytest.mark.parametrize("name", OPS)
def test_the_values_are_exact_whatever_their_size(name):
    """The estimator adds exactly 0, also where x and the threshold are large and near each other."""
    t = jnp.asarray([1e30, 1e6, 3.0, 0.0, 1e-30], jnp.float32)
    x = t * jnp.asarray([[1.0], [1.0000001], [0.99999], [2.0], [-1.0]])
    value = OPS[name](x, t, 0.001, True)
    np.testing.assert_array_equal(value, np.where(x > t, x if name == "jump_relu" else 1.0, 0.0))


@pytest.mark.parametrize("name", OPS)
def test_one_threshold_serves_every_entry(name):
    x, t = jnp.asarray(np.random.default_rng(1).normal(size=(4, 3, 5)), jnp.float32), jnp.asarray([0.2])
    many = jnp.full(5, 0.2)
    np.testing.assert_array_equal(OPS[name](x, t, WIDTH, True), OPS[name](x, many, WIDTH, True))
    one, five = (run(name, x, each, WIDTH, True, jnp.ones(x.shape))[1][1] for each in (t, many))
    np.testing.assert_allclose(one[0], five.sum(), rtol=1e-5)


@pytest.mark.parametrize("name", OPS)
def test_the_two_estimators_differ_in_the_input_alone_and_by_minus_that_of_the_threshold(name):
    rng = np.random.default_rng(2)
    x, t = jnp.asarray(rng.normal(size=(1, 9)), jnp.float32), jnp.asarray(rng.random(9), jnp.float32)
    grads = [run(name, x, t, 1.0, to_input, jnp.ones(x.shape))[1] for to_input in (True, False)]
    np.testing.assert_array_equal(grads[0][1], grads[1][1])
    np.testing.assert_allclose((grads[0][0] - grads[1][0])[0], -grads[0][1], rtol=1e-5, atol=1e-6)
