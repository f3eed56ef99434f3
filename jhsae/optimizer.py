"""One optax chain for every stage; the update is the only way a parameter changes.

``tangent -> freeze -> clip -> direction (Adam) -> learning rate -> retract -> freeze``: gradients are projected and
those of frozen leaves dropped before clipping, so that the norm is that of the live leaves; the constraint is
re-imposed on the updated parameters; frozen leaves stay bit-identical. The chain's state has one structure for all
stages, so Adam's moments carry over.
"""

from typing import Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from jhsae.constraint import AbstractConstraint
from jhsae.leaf import describe
from jhsae.ranges import Decay, NonNegative, Positive, ranged


@ranged
def adam(
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: Positive = 1e-8,
    weight_decay: NonNegative = 0.0,
    momentum: Literal["float32", "bfloat16"] = "float32",
) -> optax.GradientTransformation:
    """Adam's direction; with `weight_decay` the decoupled decay of AdamW.

    `momentum` "bfloat16" keeps the first moment in half the memory. The second stays float32: with b2 near 1 its
    changes are too small for bfloat16 and it would stand still.
    """
    direction = optax.scale_by_adam(b1=b1, b2=b2, eps=eps, mu_dtype=momentum)
    return optax.chain(direction, optax.add_decayed_weights(weight_decay)) if weight_decay else direction


def chain(
    direction: optax.GradientTransformation,
    learning_rate: Float[Array, ""] | float,
    constraint: AbstractConstraint,
    frozen: PyTree[bool] | None = None,
    clip: float | None = 1.0,
) -> optax.GradientTransformation:
    """The whole update. `frozen` marks leaves that do not move; `clip` bounds the global norm of live gradients."""
    return optax.chain(
        tangent(constraint),
        freeze(frozen),
        optax.identity() if clip is None else optax.clip_by_global_norm(clip),
        direction,
        optax.scale(-learning_rate),
        retract(constraint),
        freeze(frozen),
    )


def tangent(constraint: AbstractConstraint) -> optax.GradientTransformation:
    """Gradient projection as an optax transformation."""
    return optax.stateless(lambda grads, params: constraint.tangent(grads, params))


def retract(constraint: AbstractConstraint) -> optax.GradientTransformation:
    """Renormalisation as an optax transformation: the update that lands on the constraint.

    Leaves that are declared `NonNegative` land at 0 or above whatever the constraint.
    """

    def update(updates: PyTree, params: PyTree) -> PyTree:
        landed = constraint.retract(optax.apply_updates(params, updates))
        landed = jax.tree.map(lambda leaf, a: jnp.maximum(a, 0) if leaf.nonnegative else a, describe(landed), landed)
        return jax.tree.map(lambda new, old: new - old, landed, params)

    return optax.stateless(update)


def freeze(frozen: PyTree[bool] | None) -> optax.GradientTransformation:
    """Zero updates for the leaves that `frozen` marks."""
    if frozen is None:
        return optax.identity()
    return optax.stateless(lambda updates, _: jax.tree.map(lambda f, u: jnp.zeros_like(u) if f else u, frozen, updates))
