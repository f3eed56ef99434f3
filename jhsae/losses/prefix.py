"""The prefix loss of a forest: every level, with those above it, reconstructs on its own."""

from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from jhsae import ops
from jhsae.codes import Codes
from jhsae.errors import UserError
from jhsae.losses.base import AbstractTerm
from jhsae.sae import PursuitForward, PursuitSAE


class Prefix(AbstractTerm):
    """The squared error of the rows down to a level, summed over all levels but the last, which is `SquaredError`'s.

    The values are those of the chosen rows of these levels, refitted without the rows below and held fixed. It keeps
    the rows of a level general; as the best lone parent is the mean of what lies below it, let its weight fall to 0
    late in the run.
    """

    accepts: ClassVar[type] = PursuitSAE
    instead: ClassVar[str] = "write jhsae.losses.ParentsOnly or jhsae.losses.Prefixes, or drop the term"

    def __call__(self, sae: PursuitSAE, forward: PursuitForward) -> Float[Array, ""]:
        if len(sae.levels) == 1:
            raise UserError("Prefix: the SAE has one level, whose error SquaredError counts; drop the term")
        indices, total = forward.codes.indices, jnp.zeros(())
        for level in range(len(sae.levels) - 1):
            codes = Codes(forward.prefixes[:, level], indices, sae.features)
            x_hat = ops.decode_rows(codes, sae.rows, sae.kernel, sae.chunk) + sae.b_dec
            total = total + jnp.mean(jnp.sum((forward.target - x_hat) ** 2, axis=-1))
        return total
