"""Written out or as products: the same sums, on both sides of every limit."""

import jax.numpy as jnp
import numpy as np
import pytest

from jhsae.ops import rows
from jhsae.ops.chunks import sized_for
from jhsae.ops.precision import compute_in
from jhsae.ops.tiles import TERMS, THIN, over_rows, over_sub


def draw(*shape):
    return jnp.asarray(np.random.default_rng([0, *shape]).normal(size=shape), jnp.float32)


def close(got, want):
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.parametrize("thin", [1, THIN, THIN + 1])
@pytest.mark.parametrize("terms", [1, TERMS, TERMS + 1])
def test_over_rows(platform, thin, terms):
    a, b = draw(3, terms, thin), draw(3, terms, 12)
    with sized_for(platform):
        close(over_rows(a, b), np.einsum("ntp,ntq->npq", a, b))
        close(over_rows(b, a), np.einsum("ntp,ntq->npq", b, a))


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.parametrize("sub", [1, THIN, THIN + 1])
def test_over_sub(platform, sub):
    a, b = draw(3, 5, sub), draw(3, sub, 12)
    with sized_for(platform):
        close(over_sub(a, b), np.einsum("nts,nsq->ntq", a, b))


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.parametrize("k", [3, rows.WRITTEN_OUT + 1])
def test_weighted_rows(platform, k):
    values, matrix = draw(4, k), draw(90, 6)
    indices = jnp.asarray(np.random.default_rng(1).integers(0, 90, (4, k)), jnp.int32)
    with sized_for(platform):
        got = rows.weighted_rows(values, indices, matrix)
    close(got, np.einsum("bk,bkd->bd", values, np.asarray(matrix)[np.asarray(indices)]))


def test_operands_are_rounded_and_sums_are_not():
    """Both forms round a and b to bfloat16, and neither the terms nor the sum."""
    a, b = draw(3, 16, 4), draw(3, 16, 12)
    rounded = (np.asarray(array.astype(jnp.bfloat16), np.float64) for array in (a, b))
    want = np.einsum("ntp,ntq->npq", *rounded)
    for platform in ("cpu", "tpu"):
        with sized_for(platform), compute_in("bfloat16"):
            got = over_rows(a, b)
        assert got.dtype == jnp.float32
        close(got, want)
