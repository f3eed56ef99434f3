"""A sparsifier: the k largest pre-activations of either sign."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jhsae import ops
from jhsae.ranges import Count
from jhsae.sparsify import AbstractTopK
from jhsae.usage import Context


class AbsoluteTopK(AbstractTopK):
    """The k entries with the largest ``|pre|``, which keep their sign."""

    k: Count = eqx.field(static=True)

    def activate(self, pre: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
        return pre

    def select(self, pre: Float[Array, "*batch n"], context: Context) -> Int[Array, "*batch k"]:
        return ops.topk(jnp.abs(pre), self.k, self.topk)[1]
