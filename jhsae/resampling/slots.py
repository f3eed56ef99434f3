"""Changes of the rows in the slots of a pursuit's forest, with the optimizer's memory of them."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree

from jhsae.resampling.base import Marked
from jhsae.sae import AbstractSAE, PursuitSAE, require

Changed = tuple[Float[Array, "features embed"], Int[Array, "features"]]


def changed(
    due: Bool[Array, ""],
    change: Callable[[PursuitSAE], Changed],
    sae: AbstractSAE,
    opt_state: Any,
    optimizer: optax.GradientTransformation,
    part: str,
) -> tuple[AbstractSAE, Any, Marked]:
    """Changes the rows where it is due; elsewhere nothing is computed.

    Args:
        due: whether.
        change: gives the new rows, and the slot in which each was before: the optimizer's moments move with it. -1 for
            a row that is new, whose moments are 0.
        sae: the SAE, which must be a `PursuitSAE`.
        opt_state: the state of the optimizer.
        optimizer: the whole optax chain.
        part: the name of the caller, for the message about another SAE.

    Returns:
        The SAE, the optimizer state, and the slots whose row is another one now.
    """
    require(sae, PursuitSAE, part, "write jhsae.resampling.Resample")
    params, static = eqx.partition(sae, eqx.is_inexact_array)
    here = jnp.arange(sae.features)

    def apply(params: PyTree, opt_state: Any) -> tuple[PyTree, Any, Marked]:
        rows, source = change(eqx.combine(params, static))
        moves = jax.tree.map(lambda a: jnp.zeros(0, jnp.int32), params)  # of a leaf that stays as it is
        moves = eqx.tree_at(lambda p: p.rows, moves, source)
        opt_state = optax.tree_map_params(optimizer, _moved, opt_state, moves)
        return eqx.tree_at(lambda p: p.rows, params, rows), opt_state, source != here

    nothing = jnp.zeros(sae.features, bool)
    params, opt_state, marked = jax.lax.cond(due, apply, lambda p, o: (p, o, nothing), params, opt_state)
    return eqx.combine(params, static), opt_state, marked


def _moved(moment: Array, source: Int[Array, "features"]) -> Array:
    if not source.size:
        return moment
    return jnp.where((source < 0)[:, None], 0, moment[source]).astype(moment.dtype)
