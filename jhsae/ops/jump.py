"""The jump at a threshold, with a straight-through gradient where there is none.

A rectangle of width `bandwidth` stands in for the derivative of the jump (arXiv 2407.14435, eq. 11 and 12):
``d heaviside / d threshold = -rect((x - t) / bandwidth) / bandwidth`` and, for JumpReLU, that times the threshold. With
`to_input` the pre-activation gets the opposite sign of it, as the jump depends on x - t alone (Anthropic, 2025).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def heaviside(
    x: Float[Array, "*batch n"], threshold: Float[Array, "#n"], bandwidth: float, to_input: bool
) -> Float[Array, "*batch n"]:
    """``1[x > threshold]``.

    Args:
        x: pre-activations, [*batch, n].
        threshold: [n], or one for all.
        bandwidth: the width of the kernel of the gradient.
        to_input: whether `x` has a gradient too.
    """
    over = (x > threshold).astype(x.dtype)
    return over + _estimator(x, threshold, bandwidth, to_input, 1.0 / bandwidth)


def jump_relu(
    x: Float[Array, "*batch n"], threshold: Float[Array, "#n"], bandwidth: float, to_input: bool
) -> Float[Array, "*batch n"]:
    """``x 1[x > threshold]``.

    Args:
        x: pre-activations, [*batch, n].
        threshold: [n], or one for all.
        bandwidth: the width of the kernel of the gradient.
        to_input: whether `x` has a gradient through the jump too.
    """
    return jnp.where(x > threshold, x, 0.0) + _estimator(x, threshold, bandwidth, to_input, threshold / bandwidth)


def _estimator(x: Array, threshold: Array, bandwidth: float, to_input: bool, height: Array | float) -> Array:
    """Exactly 0, with gradient ``height rect`` towards x (if wanted) and minus that towards the threshold."""
    slope = jax.lax.stop_gradient(height * (jnp.abs(x - threshold) < bandwidth / 2))
    line = slope * ((x if to_input else jax.lax.stop_gradient(x)) - threshold)
    return line - jax.lax.stop_gradient(line)
