"""Which features are dead, as a loss term sees it, and what the dead can explain."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jhsae import ops
from jhsae.sae import Forward

COMPACT = 4  # up to this many times k dead features are gathered into matrices of their own


def dead_top(forward: Forward) -> Float[Array, "top"]:
    """1.0 for each dead feature among those of ``forward.pre``; nothing is dead in evaluation."""
    size = forward.top
    return jnp.zeros(size) if forward.context.dead is None else forward.context.dead[:size]


def explained_by_dead(
    forward: Forward,
    dead: Float[Array, "top"],
    rows: Float[Array, "top embed"],
    k: int,
    code: Callable[[Array], Array] = lambda pre: pre,
) -> Float[Array, "batch embed"]:
    """``sum_i code(pre_i) rows_i`` over the k dead features with the largest pre-activations of each token.

    ``code(0)`` must be 0. Work grows with the number of dead: none costs nothing, up to k need no selection, up to
    `COMPACT` k are encoded and decoded on their own, and more are selected as the router selects.
    """
    size, count = forward.top, jnp.sum(dead > 0).astype(jnp.int32)
    k = min(k, size)
    wide = min(size, COMPACT * k)

    def of_few(width: int) -> Callable[[], Array]:
        def decode() -> Array:
            features = jnp.nonzero(dead > 0, size=width, fill_value=0)[0]
            there = jnp.arange(width) < count
            pre = forward.encoder.rows(features).dense()
            if width <= k:
                return code(jnp.where(there, pre, 0.0)) @ rows[features]
            first = ops.largest_of_rows(jax.lax.stop_gradient(jnp.where(there, pre, -jnp.inf)), k)
            return code(jnp.where(first, pre, 0.0)) @ rows[features]

        return decode

    def of_many() -> Array:
        if forward.encoder.values is None:
            pre, indices, _, _ = ops.route(forward.encoder, lambda pre, _: _first(pre, dead, k), jax.nn.relu)
        else:
            indices = ops.topk_of_batch(jnp.where(dead > 0, forward.pre, -jnp.inf), k)
            pre = jnp.take_along_axis(forward.pre, indices, axis=-1)
        return ops.decode_rows(code(pre), indices, rows)

    nothing = lambda: jnp.zeros_like(forward.x)  # noqa: E731
    branches = [nothing, of_few(k), of_few(wide), of_many]
    return jax.lax.switch(1 * (count > 0) + (count > k) + (count > wide), branches)


def _first(pre: Array, dead: Array, k: int) -> Array:
    return ops.topk(jnp.where(ops.mine(dead, pre.shape[-1]) > 0, pre, -jnp.inf), k)[1]
