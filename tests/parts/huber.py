"""A loss term: Huber's error, quadratic near the target and linear beyond `delta`."""

import equinox as eqx
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jhsae.losses import AbstractTerm
from jhsae.ranges import Positive
from jhsae.sae import AbstractSAE, Forward


class Huber(AbstractTerm):
    """``mean_batch sum_embed huber(target - x_hat)``."""

    delta: Positive = eqx.field(static=True, default=1.0)

    def __call__(self, sae: AbstractSAE, forward: Forward) -> Float[Array, ""]:
        return jnp.mean(jnp.sum(optax.huber_loss(forward.x_hat, forward.target, delta=self.delta), axis=-1))
