"""The terms of a gated SAE, which train its gate (Rajamanoharan et al., arXiv 2404.16014, eq. 8)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jhsae import ops
from jhsae.losses.base import AbstractTerm
from jhsae.sae import Forward, GatedSAE


class GateL1(AbstractTerm):
    """``mean_batch sum_i ReLU(gate_i) |W_dec_i|``; with unit decoder rows the paper's."""

    accepts = GatedSAE

    def __call__(self, sae: GatedSAE, forward: Forward) -> Float[Array, ""]:
        norms = ops.row_norms(sae.W_dec)
        return jnp.mean(jnp.sum(jax.nn.relu(forward.pre) * norms, axis=-1))


class GateReconstruction(AbstractTerm):
    """``mean_batch |target - (ReLU(gate) W_dec + b_dec)|^2`` with the decoder held fixed: it trains the gate alone."""

    accepts = GatedSAE

    def __call__(self, sae: GatedSAE, forward: Forward) -> Float[Array, ""]:
        return _error(forward, jax.lax.stop_gradient(sae.W_dec), jax.lax.stop_gradient(sae.b_dec))


class GateReconstructionFreeDecoder(AbstractTerm):
    """`GateReconstruction` whose gradient reaches the decoder too: SAELens's form, not the paper's."""

    accepts = GatedSAE

    def __call__(self, sae: GatedSAE, forward: Forward) -> Float[Array, ""]:
        return _error(forward, sae.W_dec, sae.b_dec)


def _error(forward: Forward, W_dec: Array, b_dec: Array) -> Float[Array, ""]:
    x_hat = jax.nn.relu(forward.pre) @ W_dec + b_dec
    return jnp.mean(jnp.sum((forward.target - x_hat) ** 2, axis=-1))
