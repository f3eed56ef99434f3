"""Which features are dead, as a loss term sees it, and the dead that would fire first."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jhsae import ops
from jhsae.codes import Codes
from jhsae.sae import Forward


def dead_top(forward: Forward) -> Float[Array, "top"]:
    """1.0 for each dead feature among those of ``forward.pre``; nothing is dead in evaluation."""
    size = forward.pre.shape[-1]
    return jnp.zeros(size) if forward.context.dead is None else forward.context.dead[:size]


def first_dead(pre: Float[Array, "batch n"], dead: Float[Array, "n"], k: int) -> Codes:
    """The `k` largest pre-activations of dead features per row; slots beyond the number of dead ones hold 0."""
    size = pre.shape[-1]
    values, indices = ops.topk(jnp.where(dead > 0, pre, -jnp.inf), min(k, size))
    return Codes(jnp.where(jnp.arange(values.shape[-1]) < jnp.sum(dead), values, 0.0), indices, size)


def if_any_dead(
    term: Callable[..., Float[Array, ""]],
    pre: Float[Array, "batch n"],
    dead: Float[Array, "n"],
    rows: Float[Array, "n embed"],
    *more: Any,
) -> Float[Array, ""]:
    """``term(pre, dead, rows, *more)``, which is computed only where a feature is dead; else 0."""
    return jax.lax.cond(
        jnp.any(dead > 0), lambda p, d, r: term(p, d, r, *more), lambda *_: jnp.zeros(()), pre, dead, rows
    )
