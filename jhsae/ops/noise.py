"""Gumbel noise whose numbers depend on key and token alone: not on chunks, and not on how devices share the batch."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jhsae.ops.spread import mine, shards


def row_noise(
    key: Key[Array, ""], like: Float[Array, "rows n"], numbers: Int[Array, "rows"] | None = None
) -> Float[Array, "rows n"]:
    """Noise for rows with these numbers, 0 to rows - 1 by default; in `spread`, of this device's entries."""
    numbers = jnp.arange(like.shape[0]) if numbers is None else numbers
    size = like.shape[1] * shards()

    def of_row(number: Int[Array, ""]) -> Float[Array, "size"]:
        return jax.random.gumbel(jax.random.fold_in(key, number), (size,), like.dtype)

    return mine(jax.vmap(of_row)(numbers), like.shape[1])
