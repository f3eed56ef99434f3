"""The kernels equal `ops.topk` in Pallas' interpreters; on hardware they run through the same code."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gpu_interpreter import InterpretGPUParams

from jhsae import ops
from jhsae.ops.pallas import topk_gpu, topk_tpu

KERNELS = {
    "tpu": partial(topk_tpu, interpret=True),
    "gpu": partial(topk_gpu, interpret=InterpretGPUParams()),
}
TYPES = (jnp.float32, jnp.bfloat16)
run = jax.jit(lambda x, k, kernel: KERNELS[kernel](x, k), static_argnums=(1, 2))
reference = jax.jit(lambda x, k: ops.topk(x, k, "lax"), static_argnums=1)  # traced, it lets NaN pass
both = pytest.mark.parametrize("kernel", KERNELS)


def rows(shape):
    """Cases of one shape, so that each kernel compiles once per type."""
    rng = np.random.default_rng(0)
    normal = rng.normal(size=shape)
    few = np.full(shape, -np.inf)
    few[0, 5], few[1, -1], few[-1, ::7] = 5.0, -1.0, np.inf
    signs = np.where(rng.random(shape) < 0.5, 1.0, -1.0)
    return {
        "distinct": normal,
        "ties": rng.integers(-2, 3, size=shape),
        "all equal": np.full(shape, 0.5),
        "mostly zero": np.maximum(normal - 1.5, 0.0),
        "negative": -1.0 - rng.random(size=shape),
        "half minus infinity": np.where(rng.random(shape) < 0.5, -np.inf, normal),
        "all minus infinity": np.full(shape, -np.inf),
        "few finite": few,
        "signed zeros": 0.0 * signs,
        "not a number": np.where(rng.random(shape) < 0.1, np.nan, few),
        "best in one lane": normal + 9 * (np.arange(shape[1]) % 256 == 3),
        "best in one lane, with ties": rng.integers(-2, 3, size=shape) + 9 * (np.arange(shape[1]) % 256 == 3),
        "increasing": np.broadcast_to(np.arange(shape[1]), shape),
    }


def check(x, k, kernel):
    expected = reference(x, k)
    values, indices = run(x, k, kernel)
    assert values.dtype == x.dtype and indices.dtype == jnp.int32
    np.testing.assert_array_equal(indices, expected[1])
    np.testing.assert_array_equal(values.astype(jnp.float32), expected[0].astype(jnp.float32))


@both
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("case", rows((3, 2100)))
def test_equals_the_reference(case, dtype, kernel):
    check(jnp.asarray(rows((3, 2100))[case], dtype), 32, kernel)


@both
@pytest.mark.parametrize("shape, k", [((2, 1), 1), ((2, 300), 1), ((3, 24), 24), ((1, 300), 256), ((2, 256), 33)])
def test_equals_the_reference_at_odd_sizes(shape, k, kernel):
    check(jnp.asarray(np.random.default_rng(1).integers(0, 40, size=shape), jnp.float32), k, kernel)


@pytest.mark.parametrize("dtype", TYPES)
def test_several_blocks_of_rows(dtype):
    check(jnp.asarray(np.random.default_rng(2).normal(size=(150, 140)), dtype), 5, "tpu")


@both
def test_long_rows_of_bfloat16_do_not_fit_into_packed_keys(kernel):
    late = np.random.default_rng(3).integers(0, 3, size=(1, 65_700))
    late[0, 65_600:] += 5
    check(jnp.asarray(late, jnp.bfloat16), 3, kernel)


@both
def test_the_gradient_of_a_value_flows_to_the_selected_entry(kernel):
    x = jax.random.normal(jax.random.key(0), (3, 300))
    weights = jax.random.normal(jax.random.key(1), (3, 7))
    expected = jax.grad(lambda x: jnp.vdot(weights, ops.topk(x, 7, "lax")[0]))(x)
    np.testing.assert_array_equal(jax.grad(lambda x: jnp.vdot(weights, run(x, 7, kernel)[0]))(x), expected)


@pytest.mark.parametrize("dtype", TYPES)
def test_lowers_for_each_platform(dtype):
    x = jax.ShapeDtypeStruct((256, 1000), dtype)
    for kernel, platform, target in ((topk_gpu, "cuda", "mosaic_gpu"), (topk_tpu, "tpu", "tpu_custom_call")):
        program = jax.jit(kernel, static_argnums=1).trace(x, 32).lower(lowering_platforms=(platform,))
        assert target in program.as_text()


@both
def test_what_a_kernel_cannot_do_is_an_error(kernel):
    topk = KERNELS[kernel]
    with pytest.raises(ValueError, match="k is 25, expected 1 <= k <= 24"):
        topk(jnp.zeros((2, 24)), 25)
    with pytest.raises(ValueError, match=r"at most 256; write ops.topk\(x, 257"):
        topk(jnp.zeros((1, 300)), 257)
    with pytest.raises(ValueError, match="x is float16, expected float32 or bfloat16"):
        topk(jnp.zeros((2, 24), jnp.float16), 3)


def test_a_row_that_does_not_fit_into_fast_memory_is_an_error():
    with pytest.raises(ValueError, match="at most 131072; write"):
        topk_tpu(jnp.zeros((1, 131_073)), 3)
