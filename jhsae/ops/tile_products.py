"""Products inside a tile: one small matrix per expert, thousands of them.

``over_rows`` sums over the rows of a tile, ``over_sub`` over an expert's directions. On a CPU these sums are written
out term by term where a matrix is thin: XLA then makes one vectorised loop of them, which is faster than its batched
products (`experiments/bench/tile_products.py`). Elsewhere they are products.
"""

from functools import reduce

import jax.numpy as jnp
from jaxtyping import Array, Float

from jhsae.ops.chunks import on_cpu
from jhsae.ops.precision import dot, rounded

THIN = 16  # numbers of the thin side: up to here no sum was clearly slower than a product
TERMS = 16  # terms of a sum that is written out


def over_rows(a: Float[Array, "tiles rows p"], b: Float[Array, "tiles rows q"]) -> Float[Array, "tiles p q"]:
    """``sum_t a[n, t, p] b[n, t, q]``."""
    rows = a.shape[1]
    if not on_cpu() or min(a.shape[2], b.shape[2]) > THIN or rows > TERMS:
        return dot("ntp,ntq->npq", a, b)
    a, b = rounded(a), rounded(b)
    return reduce(jnp.add, (a[:, t, :, None] * b[:, t, None, :] for t in range(rows)))


def over_sub(a: Float[Array, "tiles rows sub"], b: Float[Array, "tiles sub q"]) -> Float[Array, "tiles rows q"]:
    """``sum_s a[n, t, s] b[n, s, q]``."""
    sub = a.shape[2]
    if not on_cpu() or sub > THIN:
        return dot("nts,nsq->ntq", a, b)
    a, b = rounded(a), rounded(b)
    return reduce(jnp.add, (a[:, :, s, None] * b[:, None, s] for s in range(sub)))
