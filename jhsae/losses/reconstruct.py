"""Reconstruction: how far ``x_hat``, or the parents alone, is from ``x``."""

from typing import Literal

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from jhsae.errors import UserError
from jhsae.losses.base import AbstractTerm
from jhsae.sae import AbstractSAE, Forward

Over = Literal["sum", "mean"]


def _squared_error(x: Array, x_hat: Array, over_embed: Over) -> Float[Array, ""]:
    squares = (x - x_hat) ** 2
    per_token = jnp.sum(squares, axis=-1) if over_embed == "sum" else jnp.mean(squares, axis=-1)
    return jnp.mean(per_token)


class SquaredError(AbstractTerm):
    """``mean_batch sum_embed (x - x_hat)^2``; `over_embed` "mean" divides by the embed size (PolytopeSAE)."""

    over_embed: Over = eqx.field(static=True, default="sum")

    def __call__(self, sae: AbstractSAE, forward: Forward) -> Float[Array, ""]:
        return _squared_error(forward.x, forward.x_hat, self.over_embed)


class ParentsOnly(AbstractTerm):
    """The squared error of the parents' reconstruction, so that experts mean something without their atoms.

    Weight 0.1 in arXiv 2506.01197 (beta).
    """

    over_embed: Over = eqx.field(static=True, default="sum")

    def __call__(self, sae: AbstractSAE, forward: Forward) -> Float[Array, ""]:
        if forward.coarse is None:
            raise UserError("ParentsOnly needs a hierarchical SAE: a flat one has no parents; drop the term")
        return _squared_error(forward.x, forward.coarse, self.over_embed)
