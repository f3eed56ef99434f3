"""The gated SAE: a gate decides whether a feature is on, a magnitude how much (Rajamanoharan et al., arXiv 2404.16014).

``gate = W_enc (x - b_dec) + b_gate``, ``magnitude = ReLU(exp(r_mag) * W_enc (x - b_dec) + b_mag)``,
``codes = 1[gate > 0] magnitude``, ``x_hat = codes W_dec + b_dec``. The gate has no gradient of its own: it learns from
the L1 penalty and the reconstruction of `losses.gated`, which read it as ``forward.pre``.
"""

from typing import Annotated

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jhsae import ops
from jhsae.codes import Codes, TreeCodes
from jhsae.leaf import Unit
from jhsae.ops.inputs import check_rows
from jhsae.ranges import Count
from jhsae.sae.base import AbstractSAE, Forward, TopLevel, decodes_any_shape
from jhsae.sae.flat import random_unit_rows
from jhsae.usage import Context


class GatedSAE(AbstractSAE):
    """A gated SAE. Starts with unit decoder rows, ``W_enc = W_dec``, the rest 0.

    Args:
        embed: the size of the vectors.
        features: the number of features.
        apply_b_dec_to_input: whether the decoder bias is subtracted before encoding.
        key: for the starting values.
    """

    W_enc: Float[Array, "features embed"]
    W_dec: Annotated[Float[Array, "features embed"], Unit("embed")]
    b_gate: Float[Array, "features"]
    r_mag: Float[Array, "features"]
    b_mag: Float[Array, "features"]
    b_dec: Float[Array, "embed"]
    apply_b_dec_to_input: bool = eqx.field(static=True)

    def __init__(self, embed: Count, features: Count, *, apply_b_dec_to_input: bool = True, key: Key[Array, ""]):
        self.W_dec = random_unit_rows(key, (features, embed))
        self.W_enc = self.W_dec
        self.b_gate, self.r_mag, self.b_mag = (jnp.zeros(features) for _ in range(3))
        self.b_dec = jnp.zeros(embed)
        self.apply_b_dec_to_input = apply_b_dec_to_input

    @property
    def features(self) -> int:
        return self.W_dec.shape[0]

    @property
    def embed(self) -> int:
        return self.W_dec.shape[1]

    @property
    def top_level(self) -> TopLevel:
        return TopLevel(self.W_enc, self.W_dec, (self.b_gate, self.r_mag, self.b_mag))

    def forward(self, x: Float[Array, "batch embed"], context: Context) -> Forward:
        """``forward.pre`` is the gate before its threshold."""
        check_rows(x, self.embed)
        shared = (x - self.b_dec if self.apply_b_dec_to_input else x) @ self.W_enc.T
        gate = shared + self.b_gate
        magnitude = jax.nn.relu(shared * jnp.exp(self.r_mag) + self.b_mag)
        codes = Codes(jnp.where(gate > 0, magnitude, 0.0), None, self.features)
        return Forward(x, self.decode(codes), codes, ops.Encoder.from_preactivations(gate), context)

    @decodes_any_shape
    def decode(self, codes: Codes | TreeCodes) -> Float[Array, "batch embed"]:
        return codes.dense() @ self.W_dec + self.b_dec
