"""The terms of a gated SAE, which train its gate (Rajamanoharan et al., arXiv 2404.16014, eq. 8)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jhsae import ops
from jhsae.errors import UserError
from jhsae.losses.base import AbstractTerm
from jhsae.sae import AbstractSAE, Forward, GatedSAE


class GateL1(AbstractTerm):
    """``mean_batch sum_i ReLU(gate_i) |W_dec_i|``; with unit decoder rows the paper's."""

    def __call__(self, sae: AbstractSAE, forward: Forward) -> Float[Array, ""]:
        norms = ops.row_norms(_gated(sae).W_dec)
        return jnp.mean(jnp.sum(jax.nn.relu(forward.pre) * norms, axis=-1))


class GateReconstruction(AbstractTerm):
    """``mean_batch |x - (ReLU(gate) W_dec + b_dec)|^2`` with the decoder held fixed: it trains the gate alone."""

    def __call__(self, sae: AbstractSAE, forward: Forward) -> Float[Array, ""]:
        sae = _gated(sae)
        return _error(forward, jax.lax.stop_gradient(sae.W_dec), jax.lax.stop_gradient(sae.b_dec))


class GateReconstructionFreeDecoder(AbstractTerm):
    """`GateReconstruction` whose gradient reaches the decoder too: SAELens's form, not the paper's."""

    def __call__(self, sae: AbstractSAE, forward: Forward) -> Float[Array, ""]:
        sae = _gated(sae)
        return _error(forward, sae.W_dec, sae.b_dec)


def _error(forward: Forward, W_dec: Array, b_dec: Array) -> Float[Array, ""]:
    x_hat = jax.nn.relu(forward.pre) @ W_dec + b_dec
    return jnp.mean(jnp.sum((forward.x - x_hat) ** 2, axis=-1))


def _gated(sae: AbstractSAE) -> GatedSAE:
    if not isinstance(sae, GatedSAE):
        raise UserError(f"this term needs the gate of a GatedSAE, got {type(sae).__name__}; drop it")
    return sae
