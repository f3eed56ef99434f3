"""Units of a flat SAE's codes: the decoder row as it stands, or its direction.

With free decoder norms a code is comparable between features only times its row's norm. `DecoderNormUnit` selects and
reports codes in that unit: ``pre_i <- pre_i |W_dec_i|``, ``x_hat = sum_i code_i W_dec_i / |W_dec_i|`` (SAELens's
rescale_acts_by_decoder_norm). Where rows have norm 1 the two are the same.
"""

import abc

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from jhsae import ops
from jhsae.errors import UserError
from jhsae.ranges import Count, Ranged


class AbstractCodeUnit(Ranged, eqx.Module):
    """The norm of a decoder row that a code of 1 stands for."""

    @abc.abstractmethod
    def norms(self, W_dec: Float[Array, "features embed"]) -> Float[Array, "features"] | None:
        """What pre-activations are multiplied and decoder rows divided by; None for 1."""


class PlainUnit(AbstractCodeUnit):
    """A code of 1 adds the decoder row."""

    def norms(self, W_dec: Float[Array, "features embed"]) -> Float[Array, "features"] | None:
        return None


class DecoderNormUnit(AbstractCodeUnit):
    """A code of 1 adds the decoder row's direction; a row of zeros counts as one of norm 1."""

    def norms(self, W_dec: Float[Array, "features embed"]) -> Float[Array, "features"] | None:
        norms = ops.row_norms(W_dec)
        return jnp.where(norms > 0, norms, 1.0)


class SummedNormUnit(AbstractCodeUnit):
    """A code of 1 adds the row divided by the sum over layers of its norms there: the unit of a crosscoder.

    An L1 penalty on such codes is that of Lindsey et al. 2024 ("Sparse Crosscoders"): a feature pays for each layer it
    writes to. A row of zeros counts as one of norm 1.

    Args:
        layers: how many layers, equally wide, a row holds side by side.
    """

    layers: Count = eqx.field(static=True)

    def norms(self, W_dec: Float[Array, "features embed"]) -> Float[Array, "features"]:
        features, width = W_dec.shape
        if width % self.layers:
            raise UserError(
                f"SummedNormUnit: {self.layers} layers cannot share rows of {width} numbers; write a number that "
                f"divides {width}"
            )
        rows = W_dec.reshape(features * self.layers, width // self.layers)
        norms = jnp.sum(ops.row_norms(rows).reshape(features, self.layers), axis=1)
        return jnp.where(norms > 0, norms, 1.0)
