"""Reconstruction: the squared error of ``x_hat``, or of the parents alone, towards ``forward.target``."""

from typing import ClassVar, Literal

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from jhsae.losses.base import AbstractTerm
from jhsae.sae import AbstractHierarchicalSAE, AbstractSAE, Forward, TreeForward

Over = Literal["sum", "mean"]


def _squared_error(target: Array, x_hat: Array, over_embed: Over) -> Float[Array, ""]:
    squares = (target - x_hat) ** 2
    per_token = jnp.sum(squares, axis=-1) if over_embed == "sum" else jnp.mean(squares, axis=-1)
    return jnp.mean(per_token)


class SquaredError(AbstractTerm):
    """``mean_batch sum_embed (target - x_hat)^2``.

    Args:
        over_embed: "sum", or "mean", which divides by the embed size (PolytopeSAE).
    """

    over_embed: Over = eqx.field(static=True, default="sum")

    def __call__(self, sae: AbstractSAE, forward: Forward) -> Float[Array, ""]:
        return _squared_error(forward.target, forward.x_hat, self.over_embed)


class ParentsOnly(AbstractTerm):
    """The squared error of the parents' reconstruction, so that experts mean something without their atoms.

    Weight 0.1 in arXiv 2506.01197 (beta).

    Args:
        over_embed: "sum", or "mean", which divides by the embed size.
    """

    accepts: ClassVar[type] = AbstractHierarchicalSAE
    over_embed: Over = eqx.field(static=True, default="sum")

    def __call__(self, sae: AbstractHierarchicalSAE, forward: TreeForward) -> Float[Array, ""]:
        return _squared_error(forward.target, forward.x_hat_parents, self.over_embed)
