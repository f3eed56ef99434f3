import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from reference.hsae import topk as oracle

from jhsae import ops

INF = np.inf
METHODS = ("auto", "lax", "scan", "blocked", "bits", "blocked_bits")  # the exact ones
topk = jax.jit(ops.topk, static_argnums=(1, 2))


def rows():
    """Cases of one shape, so that each method compiles once per k."""
    rng = np.random.default_rng(0)
    few = np.full((4, 24), -INF)
    few[0, 5], few[1, 23], few[3, ::7] = 5.0, -1.0, INF
    return {
        "distinct": rng.normal(size=(4, 24)),
        "ties": rng.integers(-2, 3, size=(4, 24)),
        "all equal": np.full((4, 24), 0.5),
        "mostly zero": np.maximum(rng.normal(size=(4, 24)) - 1.5, 0.0),
        "negative": -1.0 - rng.random(size=(4, 24)),
        "half minus infinity": np.where(rng.random((4, 24)) < 0.5, -INF, rng.normal(size=(4, 24))),
        "few finite": few,
        "signed zeros": np.where(rng.random((4, 24)) < 0.5, -0.0, 0.0),
        "infinities": rng.choice([-INF, -3e38, 0.0, 3e38, INF], size=(4, 24)),
        "neighbours": (-1.0) ** rng.integers(0, 2, (4, 24)) * (1 + 2.0**-23 * rng.integers(0, 5, (4, 24))),
    }


def shapes():
    rng = np.random.default_rng(1)
    late = np.concatenate([np.zeros((1, 1020)), np.arange(7.0)[None]], axis=1)
    return {
        "one row": (rng.normal(size=(7,)), 3),
        "one entry": (rng.normal(size=(2, 1)), 1),
        "batch shape": (rng.normal(size=(2, 3, 11)), 5),
        "wide blocks with ties": (rng.integers(0, 50, size=(3, 1030)), 2),
        "narrow blocks with ties": (rng.integers(0, 50, size=(3, 1030)), 60),
        "best at the end": (late, 32),
        "many words with ties": (rng.integers(0, 9, size=(2, 4099)), 37),
        "large enough that auto searches": (np.maximum(rng.normal(size=(5, 16384)).round(1) - 2.5, 0.0), 32),
    }


def check(x, k, method):
    x = x.astype(np.float32)
    values, indices = topk(x, k, method)
    np.testing.assert_array_equal(indices, oracle(x, k), err_msg=f"k={k}")
    np.testing.assert_array_equal(values, np.take_along_axis(x, oracle(x, k), -1), err_msg=f"k={k}")
    assert indices.dtype == jnp.int32


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", rows())
def test_equals_a_stable_sort(case, method):
    for k in (1, 3, 24):
        check(rows()[case], k, method)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", shapes())
def test_equals_a_stable_sort_for_every_shape(case, method):
    check(*shapes()[case], method)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("nan", [np.nan, -np.nan])
def test_not_a_number_is_selected_first(method, nan):
    """So that it reaches the loss, and the run stops, instead of being passed over."""
    x = rows()["distinct"].astype(np.float32)
    x[:, 7], x[0, 3] = nan, INF
    values, indices = topk(x, 3, method)
    np.testing.assert_array_equal(indices[:, 0], 7)
    np.testing.assert_array_equal(indices[:, 1:], oracle(x, 2))  # numpy puts it last
    assert np.isnan(values[:, 0]).all()
    assert (topk(x, 1, method)[1] == 7).all()


@pytest.mark.parametrize("method", METHODS)
def test_not_a_number_in_a_known_array_is_an_error(method):
    x = jnp.array([[1.0, jnp.nan, 2.0], [jnp.nan, 3.0, 4.0]])
    with pytest.raises(ValueError, match="2 of the 6 entries are NaN"):
        ops.topk(x, 2, method)


def test_a_traced_call_does_not_wait_for_its_input():
    x = jnp.asarray(rows()["distinct"], jnp.float32)
    topk(x, 3, "auto")
    with jax.transfer_guard("disallow"):
        topk(x, 3, "auto")


@pytest.mark.parametrize("method", METHODS)
def test_half_precision_orders_as_its_numbers(method):
    x = jnp.asarray(np.random.default_rng(4).normal(size=(3, 200)), jnp.bfloat16)
    values, indices = topk(x, 60, method)
    np.testing.assert_array_equal(indices, oracle(np.asarray(x, np.float32), 60))
    assert values.dtype == jnp.bfloat16
    np.testing.assert_array_equal(values, jnp.take_along_axis(x, indices, -1))


@pytest.mark.parametrize("method", METHODS)
def test_works_inside_vmap(method):
    x = np.random.default_rng(1).integers(0, 9, size=(2, 3, 30)).astype(np.float32)
    values, indices = jax.jit(jax.vmap(lambda row: ops.topk(row, 4, method)))(x)
    np.testing.assert_array_equal(indices, oracle(x, 4))
    np.testing.assert_array_equal(values, np.take_along_axis(x, oracle(x, 4), -1))


@pytest.mark.parametrize("method", METHODS)
def test_the_gradient_of_a_value_goes_to_its_entry_alone(method):
    rng = np.random.default_rng(2)
    x, w = rng.integers(-3, 4, size=(4, 19)).astype(np.float32), rng.normal(size=(4, 5)).astype(np.float32)
    gradient = jax.jit(jax.grad(lambda x: (w * ops.topk(x, 5, method)[0]).sum()))(jnp.asarray(x))
    expected = np.zeros_like(x)
    np.put_along_axis(expected, oracle(x, 5), w, axis=-1)
    np.testing.assert_array_equal(gradient, expected)


@pytest.mark.parametrize("method", METHODS)
def test_the_gradient_stays_finite_with_minus_infinity_in_the_row(method):
    x = jnp.array([[-jnp.inf, 3.0, 1.0, -jnp.inf, 2.0]])
    gradient = jax.jit(jax.grad(lambda x: (ops.topk(x, 2, method)[0] ** 2).sum()))(x)
    np.testing.assert_array_equal(gradient, [[0, 6.0, 0, 0, 4.0]])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("k", [-1, 0, 8])
def test_k_out_of_range_is_an_error_that_names_k(method, k):
    with pytest.raises(ValueError, match=f"k is {k}.*1 <= k <= 7"):
        ops.topk(jnp.zeros((2, 7)), k, method)


@pytest.mark.parametrize("method", sorted({*METHODS} - {"lax", "blocked"}))
def test_rows_stay_on_their_device(method):
    """Not so for lax.top_k on CPU, where XLA makes it a call into its runtime and gathers the batch for it."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    over = NamedSharding(mesh, PartitionSpec("data"))
    x = jax.device_put(np.random.default_rng(5).integers(0, 99, size=(16, 8192)).astype(np.float32), over)
    program = jax.jit(lambda x: ops.topk(x, 20, method), out_shardings=over)
    assert "all-gather" not in str(program.lower(x).compile().as_text())
    np.testing.assert_array_equal(program(x)[1], oracle(np.asarray(x), 20))


def test_the_method_of_auto_is_chosen_where_the_program_will_run():
    """Lowered here for other platforms: no sort on GPU, for which a wide lax.top_k is one."""
    x = jax.ShapeDtypeStruct((64, 2048), jnp.float32)

    def lowered(platform, k):
        return topk.trace(x, k, "auto").lower(lowering_platforms=(platform,)).as_text()

    assert "top_k" in lowered("cuda", 8)
    for platform in ("cuda", "tpu"):
        assert "top_k" not in lowered(platform, 32) and "stablehlo.sort" not in lowered(platform, 32)


def test_approximate_has_the_exact_values_on_cpu():
    x = np.random.default_rng(6).normal(size=(8, 500)).astype(np.float32)
    values, indices = topk(x, 12, "approx")
    np.testing.assert_array_equal(values, np.take_along_axis(x, oracle(x, 12), -1))
    assert ops.recall(indices, jnp.asarray(oracle(x, 12))) == 1.0


def test_recall_counts_the_exact_positions_that_were_found():
    exact = jnp.array([[0, 1, 2, 3], [4, 5, 6, 7]])
    assert ops.recall(exact[:, ::-1], exact) == 1.0
    assert ops.recall(jnp.array([[3, 9, 1, 8], [10, 11, 12, 7]]), exact) == 3 / 8
