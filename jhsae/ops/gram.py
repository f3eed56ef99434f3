"""Sums over all pairs of rows without the pairs: the Gram identity.

``sum_ij (a_i . b_j)^2 = <A^T A, B^T B>_F`` costs O(n d^2) and holds d x d numbers, never n x n.
"""

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array, Float

from jhsae.ops.sharding import ShardingKind, constrain, shard_mapped


def unit_rows(a: Float[Array, "*n d"], eps: float = 1e-6) -> Float[Array, "*n d"]:
    """Rows divided by (norm + eps), the original's guard; the gradient at a zero row is finite, which theirs is not.

    Args:
        a: rows, [*n, d].
        eps: added to the norms.
    """
    squares = jnp.sum(a * a, axis=-1, keepdims=True)
    return a / (jnp.sqrt(jnp.maximum(squares, jnp.finfo(a.dtype).tiny)) + eps)


def row_norms(a: Float[Array, "*n d"]) -> Float[Array, "*n"]:
    """Norms of the rows, with gradient 0 at a row of zeros, where that of a norm is not defined.

    Args:
        a: rows, [*n, d].
    """
    squares = jnp.sum(a * a, axis=-1)
    return jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1.0)), 0.0)


@jax.custom_vjp
def sum_of_squared_inner(a: Float[Array, "*batch n d"], b: Float[Array, "*batch m d"]) -> Float[Array, "*batch"]:
    """``sum_ij (a_i . b_j)^2`` over all pairs of rows; its gradient towards A is ``2 A B^T B``."""
    return _forward(a, b)[0]


def _forward(a: Array, b: Array) -> tuple[Array, tuple]:
    gram_a = jnp.einsum("...nd,...ne->...de", a, a)
    gram_b = jnp.einsum("...nd,...ne->...de", b, b)
    return jnp.sum(gram_a * gram_b, axis=(-2, -1)), (a, b, gram_a, gram_b)


def _backward(saved: tuple, g: Float[Array, "*batch"]) -> tuple[Array, Array]:
    # by hand: a Gram matrix is symmetric, so there are half as many products as differentiation finds
    a, b, gram_a, gram_b = saved
    twice = 2 * g[..., None, None]
    return _row_major(a @ (twice * gram_b)), _row_major(b @ (twice * gram_a))


sum_of_squared_inner.defvjp(_forward, _backward)


def _row_major(a: Array) -> Array:
    # The product would rather have columns; the layout would spread to gradients, parameters and moments, with a copy
    # of each. Per device, because the compiler gathers what such a constraint is put on.
    def constrained(a: Array) -> Array:
        return with_layout_constraint(a, Layout(tuple(range(a.ndim))))

    return shard_mapped(constrained, (ShardingKind.SHARE,), ShardingKind.SHARE, a.shape[0])(a)


def off_diagonal_mean(a: Float[Array, "*batch n d"], b: Float[Array, "*batch n d"]) -> Float[Array, "*batch"]:
    """Mean of ``(a_i . b_j)^2`` over i != j; 0 for a single row.

    Args:
        a: rows, [n, d].
        b: rows, [n, d].
    """
    n = a.shape[-2]
    a, b = (constrain(x, ShardingKind.SHARE) for x in (a, b))  # each device has rows of its own
    diagonal = jnp.sum(jnp.sum(a * b, axis=-1) ** 2, axis=-1)
    return (sum_of_squared_inner(a, b) - diagonal) / max(float(n * n - n), 1.0)
