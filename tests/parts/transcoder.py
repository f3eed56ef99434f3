"""An SAE whose target is not its input: it reads x and reconstructs the running sum of x along embed."""

from jax import numpy as jnp
from jaxtyping import Array, Float, Key

from jhsae import ops
from jhsae.sae import AbstractSAE, Forward, TopLevel, random_unit_rows, route_and_encode
from jhsae.sparsify import AbstractSparsifier


class Transcoder(AbstractSAE):
    W_enc: Float[Array, "features embed"]
    W_dec: Float[Array, "features embed"]
    rule: AbstractSparsifier
    top_level = property(lambda self: TopLevel(self.W_enc, self.W_dec, ()))
    sparsifiers = property(lambda self: (self.rule,))

    def __init__(self, embed: int, features: int, rule: AbstractSparsifier, *, key: Key[Array, ""]):
        self.W_enc = random_unit_rows(key, (features, embed))
        self.W_dec, self.rule = jnp.cumsum(self.W_enc, axis=-1), rule.sized(features)

    def forward(self, x, context):
        codes, encoder, *_ = route_and_encode(self.rule, ops.Encoder(x, self.W_enc), context)
        return Forward(x, self.decode(codes), codes, encoder, context, y=jnp.cumsum(x, axis=-1))

    def decode(self, codes):
        return ops.decode_rows(codes, self.W_dec)
