"""A normaliser: rows longer than `longest` are scaled down to that length."""

import equinox as eqx
import jax.numpy as jnp

from jhsae.data.normalize import AbstractNormalizer
from jhsae.data.normalize.base import PerToken
from jhsae.ranges import Positive


class Clipped(AbstractNormalizer):
    """``x' = x min(1, longest / |x|)``."""

    longest: Positive = eqx.field(static=True)

    def __call__(self, x):
        scale = jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True) / self.longest, 1.0)
        return x / scale, PerToken(scale, jnp.zeros_like(scale))

    def undo(self, x_hat, token):
        return x_hat * token.scale + token.shift

    def affine(self):
        return None
