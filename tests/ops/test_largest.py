import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jhsae import ops

SHAPE = (4, 24)
TINY = np.finfo(np.float32).smallest_subnormal
largest = jax.jit(ops.largest)


def oracle(x, count):
    """The first `count` of a stable sort of the flattened array."""
    mask = np.zeros(x.size, bool)
    mask[np.argsort(-x.reshape(-1), kind="stable")[:count]] = True
    return mask.reshape(x.shape)


def arrays():
    """Cases of one shape, so that it compiles once."""
    rng = np.random.default_rng(0)
    normal = rng.normal(size=SHAPE)
    ends = np.where(rng.random(SHAPE) < 0.3, np.inf, np.where(rng.random(SHAPE) < 0.5, 3e38, 0.0))
    return {
        "positive": np.abs(normal),
        "after ReLU": np.maximum(normal, 0.0),
        "few positive": np.maximum(normal - 1.8, 0.0),
        "ties": rng.integers(0, 4, SHAPE),
        "all equal": np.full(SHAPE, 0.3),
        "zeros": np.zeros(SHAPE),
        "infinities": ends,
        "subnormal": TINY * rng.integers(0, 50, SHAPE),
        "neighbours": 1.0 + np.finfo(np.float32).eps * rng.integers(0, 9, SHAPE),
        "every magnitude": np.exp(rng.uniform(-100, 88, SHAPE)),
    }


@pytest.mark.parametrize("case", arrays())
def test_equals_a_stable_sort_of_the_whole_array(case):
    x = arrays()[case].astype(np.float32)
    positive = int((x > 0).sum())
    for count in {0, 1, 2, 7, positive, positive + 1, x.size - 1, x.size}:
        np.testing.assert_array_equal(largest(x, count), oracle(x, count), err_msg=f"count={count}")


def test_equals_top_k_of_the_flattened_array():
    rng = np.random.default_rng(1)
    for seed in range(20):
        x = np.round(np.maximum(rng.normal(size=SHAPE), 0.0), seed % 4).astype(np.float32)
        count = int(rng.integers(1, x.size + 1))
        _, chosen = jax.lax.top_k(x.reshape(-1), count)
        np.testing.assert_array_equal(np.flatnonzero(largest(x, count)), np.sort(chosen))


def test_more_than_there_are_is_all_of_them():
    x = arrays()["few positive"].astype(np.float32)
    assert largest(x, x.size + 5).all()


@pytest.mark.parametrize("shape", [(1,), (9,), (2, 3, 4)])
def test_any_shape_with_any_count(shape):
    x = np.random.default_rng(2).integers(0, 5, shape).astype(np.float32)
    for count in range(x.size + 1):
        np.testing.assert_array_equal(largest(x, count), oracle(x, count))


def test_the_count_may_be_a_constant_of_the_program():
    x = arrays()["ties"].astype(np.float32)
    for count in (0, 7):
        np.testing.assert_array_equal(jax.jit(ops.largest, static_argnums=1)(x, count), oracle(x, count))


def test_negative_zero_is_zero():
    x = np.array([-0.0, 0.0, -0.0, 2.0], np.float32)
    for count in range(5):
        np.testing.assert_array_equal(largest(x, count), oracle(np.abs(x), count))


@pytest.mark.parametrize("nan", [np.nan, -np.nan])
def test_not_a_number_comes_first_as_in_topk(nan):
    """So that it reaches the loss and the run stops."""
    x = np.array([[1.0, np.inf, 0.0], [2.0, nan, 3.0]], np.float32)
    np.testing.assert_array_equal(largest(x, 1), [[False, False, False], [False, True, False]])
    np.testing.assert_array_equal(largest(x, 2), [[False, True, False], [False, True, False]])


def test_half_precision_orders_as_its_numbers():
    x = np.random.default_rng(3).random((3, 40))
    half = jnp.asarray(x, jnp.bfloat16)
    np.testing.assert_array_equal(largest(half, 17), oracle(np.asarray(half, np.float32), 17))


def test_it_carries_no_gradient():
    x = jnp.asarray(arrays()["after ReLU"], jnp.float32)
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(jnp.where(ops.largest(x, 5), x**2, 0.0))))(x)
    np.testing.assert_array_equal(gradient, np.where(oracle(np.asarray(x), 5), 2 * np.asarray(x), 0.0))
