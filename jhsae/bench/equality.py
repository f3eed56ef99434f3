"""Do both sides of ``jhsae bench step`` compute the same? Loss and gradients of both on one batch.

The error of a leaf's gradient is its greatest absolute difference over the greatest entry of the original's gradient.
"""

from functools import partial
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jhsae.bench import original
from jhsae.bench.original import Original
from jhsae.losses import Objective
from jhsae.sae import HierarchicalSAE
from jhsae.usage import Context

BOUND = 1e-4  # beyond it the two are different functions


class Errors(NamedTuple):
    """`loss` relative; `gradients` of every leaf, by the original's name."""

    loss: float
    gradients: dict[str, float]

    @property
    def gradient(self) -> float:
        """The worst leaf's."""
        return max(self.gradients.values())

    @property
    def equal(self) -> bool:
        """NaN is not equal."""
        return self.loss <= BOUND and all(error <= BOUND for error in self.gradients.values())


def to_original(sae: HierarchicalSAE) -> Original:
    """The same parameters, or gradients, in the original's layouts."""
    router_enc, down, atom_enc = sae.encoders()
    up, atom_dec = jnp.swapaxes(sae.up, 1, 2), jnp.swapaxes(sae.atom_dec, 1, 2)
    leaves = (router_enc, sae.router_dec.T, down, up, atom_enc, atom_dec)
    return Original(*(jnp.array(leaf, copy=True) for leaf in leaves))


def compare(sae: HierarchicalSAE, objective: Objective, x: Float[Array, "batch embed"], k: int) -> Errors:
    """Loss and gradients of our side against the original's, in full float32 also where a device would round."""
    with jax.default_matmul_precision("highest"):
        theirs, gradients = _original_gradients(to_original(sae), x, k)
        ours, here = _our_gradients(sae, objective, x)
        leaves = jax.device_get(_leaf_errors(to_original(here), gradients))
    return Errors(float(abs(ours - theirs) / abs(theirs)), {n: float(e) for n, e in leaves._asdict().items()})


@partial(jax.jit, static_argnums=2)
def _original_gradients(params: Original, x: Array, k: int) -> tuple[Array, Original]:
    (value, _), grads = jax.value_and_grad(original.loss, has_aux=True)(params, x, k)
    return value, grads


@eqx.filter_jit
def _our_gradients(sae: HierarchicalSAE, objective: Objective, x: Array) -> tuple[Array, HierarchicalSAE]:
    def loss(sae: HierarchicalSAE) -> Float[Array, ""]:
        return objective(sae, sae.forward(x, Context(jax.random.key(0))), 0)[0]

    return eqx.filter_value_and_grad(loss)(sae)


@jax.jit
def _leaf_errors(ours: Original, theirs: Original) -> Original:
    return jax.tree.map(lambda a, b: jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(b)), ours, theirs)
