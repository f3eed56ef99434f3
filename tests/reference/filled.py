"""Modules with random arrays made by numpy: nothing is compiled, and no two arrays are equal."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np


def filled(make, seed=0, scale=1.0):
    """What `make()` would return, with normal entries in the place of its arrays."""
    rng = np.random.default_rng(seed)

    def draw(a):
        return jnp.asarray(scale * rng.normal(size=a.shape), a.dtype)

    return jax.tree.map(draw, eqx.filter_eval_shape(make))
