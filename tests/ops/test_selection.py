import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jhsae.ops import select

INF = np.inf
SORTED = np.array([-INF, -3e38, -2.5, -1.0, -1e-45, 0.0, 1e-45, 1.0, np.nextafter(np.float32(1), 2), 3e38, INF, np.nan])


def keys(n, seed=0):
    return jnp.asarray(np.random.default_rng(seed).integers(-4, 4, size=(3, n)), jnp.int32)


def test_keys_order_like_their_numbers():
    got = np.asarray(select.ordered(jnp.asarray(SORTED, jnp.float32)), np.int64)
    assert (np.diff(got) > 0).all() and got[0] > select.LEAST


def test_equal_numbers_have_equal_keys():
    same = select.ordered(jnp.array([-0.0, 0.0]))
    assert same[0] == same[1]
    nans = select.ordered(jnp.array([np.nan, -np.nan], jnp.float32))
    assert nans[0] == nans[1]


@pytest.mark.parametrize("n", [1, 7, 32, 48, 257])
def test_the_kth_largest_is_that_of_a_sort(n):
    search = jax.jit(select.kth_largest, static_argnums=1)
    for k in {1, n // 2 + 1, n}:
        np.testing.assert_array_equal(search(keys(n), k), np.sort(keys(n), axis=-1)[:, -k])


@pytest.mark.parametrize("n", [1, 7, 32, 33, 257])
def test_positions_are_those_of_a_stable_sort_in_their_order(n):
    find = jax.jit(select.positions, static_argnums=1)
    for k in {1, n // 2 + 1, n}:
        want = np.sort(np.argsort(-np.asarray(keys(n)), axis=-1, kind="stable")[:, :k], axis=-1)
        np.testing.assert_array_equal(find(keys(n), k), want)


def test_largest_first_is_a_stable_sort_by_key():
    indices = jnp.arange(100, 109) * jnp.ones((3, 1), jnp.int32)
    want = 100 + np.argsort(-np.asarray(keys(9)), axis=-1, kind="stable")
    np.testing.assert_array_equal(select.largest_first(keys(9), indices), want)


def test_the_whole_array_search_leaves_rows_on_their_device():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    x = jax.device_put(
        np.random.default_rng(2).random((16, 64), np.float32), NamedSharding(mesh, PartitionSpec("data"))
    )
    program = jax.jit(lambda x, count: select._search(x, jnp.uint32(count))[1:])
    assert "all-gather" not in str(program.lower(x, 100).compile().as_text())
    assert program(x, 100)[0] == select.ordered(jnp.sort(x, axis=None)[-100])


@pytest.mark.parametrize("k", [1, 7, 30])
@pytest.mark.parametrize("kind", ["numbers", "ties", "equal", "not a number", "infinite"])
def test_the_largest_of_rows_are_those_of_a_stable_sort(kind, k):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(700, 30)).astype(np.float32)  # more rows than one chunk of a CPU
    x = {"ties": np.round(x), "equal": np.full_like(x, -2.0), "infinite": np.where(x < 0, -np.inf, x)}.get(kind, x)
    if kind == "not a number":
        x[3, 4] = np.nan
    want = np.zeros(x.shape, bool)
    first = np.argsort(np.where(np.isnan(x), -np.inf, -x), axis=-1, kind="stable")[:, :k]
    np.put_along_axis(want, first, True, axis=-1)
    np.testing.assert_array_equal(select.largest_of_rows(jnp.asarray(x), k), want)
