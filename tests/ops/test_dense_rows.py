"""The decoder as products with all rows: the values and the gradients of the selected ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jhsae.ops import dense_rows, rows
from jhsae.ops.chunks import sized_for
from jhsae.ops.precision import compute_in

TOKENS, FEATURES, EMBED, K = 23, 40, 6, 5


def draw(*shape):
    return jnp.asarray(np.random.default_rng([0, *shape]).normal(size=shape), jnp.float32)


@pytest.fixture
def selected():
    """Distinct rows, but for the first token, two of whose slots share one, and the second, whose slots are empty."""
    rng = np.random.default_rng(1)
    indices = np.stack([rng.choice(FEATURES, K, replace=False) for _ in range(TOKENS)]).astype(np.int32)
    indices[0, 1], indices[1] = indices[0, 0], 0
    return draw(TOKENS, K).at[1].set(0), jnp.asarray(indices), draw(FEATURES, EMBED)


def by_definition(values, indices, matrix):
    return jnp.einsum("bk,bkd->bd", values, matrix[indices])


@pytest.mark.parametrize("chunk", [TOKENS, 7])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_values_and_gradients_are_those_of_the_selected_rows(selected, chunk, precision, monkeypatch):
    monkeypatch.setattr(dense_rows, "_chunk", lambda *_: chunk)
    values, indices, matrix = selected
    off = 1e-5 if precision == "float32" else 2e-2

    def loss(function, values, matrix):
        out = function(values, indices, matrix)
        return jnp.sum(jnp.sin(out)), out

    with sized_for("tpu"), compute_in(precision):
        assert dense_rows.cheaper(K, FEATURES)
        (_, got), d_got = jax.value_and_grad(loss, (1, 2), has_aux=True)(rows.gather_rows, values, matrix)
    (_, want), d_want = jax.value_and_grad(loss, (1, 2), has_aux=True)(by_definition, values, matrix)
    for a, b in zip((got, *d_got), (want, *d_want), strict=True):
        assert a.dtype == jnp.float32
        np.testing.assert_allclose(a, b, rtol=off, atol=off * float(jnp.abs(b).max()))
    never = np.setdiff1d(np.arange(FEATURES), np.asarray(indices))
    assert not np.asarray(d_got[1])[never].any()


def test_where_products_with_all_rows_are_taken():
    assert not dense_rows.cheaper(32, 16_384)  # this machine
    with sized_for("tpu"):
        assert dense_rows.cheaper(32, 16_384)
        assert not dense_rows.cheaper(32, 65_536)
        assert not dense_rows.cheaper(dense_rows.WRITTEN_OUT + 1, 16_384)
        with compute_in("bfloat16"):
            assert dense_rows.cheaper(32, 16_384)
            assert not dense_rows.cheaper(16, 16_384)
