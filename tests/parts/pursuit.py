"""An SAE whose encoder is not one matrix product: matching pursuit, `k` rows of the dictionary one after the other."""

from typing import Annotated

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jhsae import Codes, ops
from jhsae.leaf import Unit
from jhsae.sae import AbstractSAE, Forward, TopLevel, random_unit_rows


class MatchingPursuit(AbstractSAE):
    W: Annotated[Float[Array, "features embed"], Unit("embed")]
    k: int = eqx.field(static=True)
    top_level = property(lambda self: TopLevel(None, self.W, ()))

    def __init__(self, embed: int, features: int, k: int, *, key: Key[Array, ""]):
        self.W, self.k = random_unit_rows(key, (features, embed)), k

    def forward(self, x, context):
        codes = jnp.zeros((len(x), len(self.W)))
        for _ in range(self.k):
            pre = (x - codes @ self.W) @ self.W.T  # of what is left
            codes += jnp.where(jnp.abs(pre) == jnp.abs(pre).max(-1, keepdims=True), pre, 0.0)
        return Forward(x, codes @ self.W, Codes(codes, None, len(self.W)), ops.Encoder(x, self.W), context)

    def decode(self, codes):
        return codes.dense() @ self.W
