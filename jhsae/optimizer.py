"""One optax chain for every stage; the update is the only way a parameter changes.

``tangent -> freeze -> clip -> optimizer (Adam) -> learning rate -> retract and nonnegative -> freeze``: gradients are
projected and those of frozen leaves dropped before clipping, so that the norm is that of the live leaves; the
constraint is re-imposed on the updated parameters, and leaves declared `NonNegative` (the thresholds of JumpReLU) are
raised to 0; frozen leaves stay bit-identical. The chain's state has one structure for all
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
    """Adam without its learning rate; with `weight_decay` the decoupled decay of AdamW.

    Args:
        b1: the decay of the first moment.
        b2: the decay of the second moment.
        eps: added to the root of the second moment.
        weight_decay: of AdamW; 0 for Adam.
        momentum: the dtype of the first moment; "bfloat16" halves its memory. The second stays float32: with b2 near 1
            its changes are too small for bfloat16, so that it would never change.

    Returns:
        The optax transformation.
    """
    return _decayed(optax.scale_by_adam(b1=b1, b2=b2, eps=eps, mu_dtype=momentum), weight_decay)


@ranged
def adam_mini(
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: Positive = 1e-8,
    weight_decay: NonNegative = 0.0,
    momentum: Literal["float32", "bfloat16"] = "float32",
) -> optax.GradientTransformation:
    """Adam with one second moment for each row, the mean of those of its entries (Zhang et al., arXiv 2406.16793).

    Rows lie along the last axis: the vectors of a feature, an atom's coordinates. Vectors (biases, thresholds) keep one
    for each entry. So the second moments take hardly any memory.

    Args:
        b1: the decay of the first moment.
        b2: the decay of the second moment.
        eps: added to the root of the second moment.
        weight_decay: as of `adam`.
        momentum: as of `adam`.

    Returns:
        The optax transformation.
    """

    def init(params: PyTree) -> optax.ScaleByAdamState:
        nu = jax.tree.map(lambda a: jnp.zeros_like(_of_rows(a)), params)
        mu = optax.tree.zeros_like(params, dtype=jnp.dtype(momentum))
        return optax.ScaleByAdamState(jnp.zeros((), jnp.int32), mu, nu)

    def update(
        grads: PyTree, state: optax.ScaleByAdamState, params: PyTree | None = None
    ) -> tuple[PyTree, optax.ScaleByAdamState]:
        mu = optax.tree.update_moment(grads, state.mu, b1, 1)
        squares = jax.tree.map(lambda g: _of_rows(g * g), grads)
        nu = optax.tree.update_moment(squares, state.nu, b2, 1)
        count = optax.safe_increment(state.count)
        unbiased = (optax.tree.bias_correction(moment, b, count) for moment, b in ((mu, b1), (nu, b2)))
        updates = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), *unbiased)
        return updates, optax.ScaleByAdamState(count, optax.tree.cast(mu, jnp.dtype(momentum)), nu)

    return _decayed(optax.GradientTransformation(init, update), weight_decay)


def _of_rows(a: Float[Array, "*shape"]) -> Float[Array, "..."]:
    """The mean along the last axis, which stays with length 1; of a vector or a number, itself."""
    return a if a.ndim < 2 else jnp.mean(a, axis=-1, keepdims=True)


def _decayed(optimizer: optax.GradientTransformation, weight_decay: float) -> optax.GradientTransformation:
    return optax.chain(optimizer, optax.add_decayed_weights(weight_decay)) if weight_decay else optimizer


def chain(
    optimizer: optax.GradientTransformation,
    learning_rate: Float[Array, ""] | float,
    constraint: AbstractConstraint,
    frozen: PyTree[bool] | None = None,
    clip: float | None = 1.0,
) -> optax.GradientTransformation:
    """The whole update.

    Args:
        optimizer: such as `adam()`, without learning rate.
        learning_rate: that of the step.
        constraint: on the parameters.
        frozen: a tree of bools that marks the leaves that do not change; None for no such leaf.
        clip: the largest global norm of the gradients of the live leaves; None for no clipping.

    Returns:
        The optax transformation; its state has one structure for all stages.
    """
    return optax.chain(
        tangent(constraint),
        freeze(frozen),
        optax.identity() if clip is None else optax.clip_by_global_norm(clip),
        optimizer,
        optax.scale(-learning_rate),
        retract(constraint),
        freeze(frozen),
    )


def tangent(constraint: AbstractConstraint) -> optax.GradientTransformation:
    """Gradient projection as an optax transformation."""
    return optax.stateless(lambda grads, params: constraint.tangent(grads, params))


def retract(constraint: AbstractConstraint) -> optax.GradientTransformation:
    """Renormalisation as an optax transformation: updates after which the constraint, and `nonnegative`, hold."""

    def update(updates: PyTree, params: PyTree) -> PyTree:
        new = nonnegative(constraint.retract(optax.apply_updates(params, updates)))
        return jax.tree.map(lambda new, old: new - old, new, params)

    return optax.stateless(update)


def nonnegative(params: PyTree) -> PyTree:
    """The parameters with the leaves that are declared `NonNegative` raised to 0, whatever the constraint."""
    return jax.tree.map(lambda leaf, a: jnp.maximum(a, 0) if leaf.nonnegative else a, describe(params), params)


def freeze(frozen: PyTree[bool] | None) -> optax.GradientTransformation:
    """Zero updates for the leaves that `frozen` marks."""
    if frozen is None:
        return optax.identity()
    return optax.stateless(lambda updates, _: jax.tree.map(lambda f, u: jnp.zeros_like(u) if f else u, frozen, updates))
