"""The skip connection of a transcoder: what it writes as a linear function of what it reads, beside its features.

``y_hat = codes W_dec + b_dec + W_skip x`` (Paulo et al., arXiv 2501.18823); of several layers each has its own matrix.
"""

import abc

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from jhsae.ranges import Ranged


class AbstractSkip(Ranged, eqx.Module):
    """``part(x [batch, layers, width]) -> [batch, layers, written]``."""

    def sized(self, layers: int, width: int, written: int) -> "AbstractSkip":
        """The part for these sizes; one that owns parameters makes them here."""
        return self

    @abc.abstractmethod
    def __call__(self, x: Float[Array, "batch layers width"]) -> Float[Array, "batch layers written"] | None:
        """What is added to the output; None for nothing."""


class NoSkip(AbstractSkip):
    """Features alone write."""

    def __call__(self, x: Float[Array, "batch layers width"]) -> None:
        return None


class LinearSkip(AbstractSkip):
    """A matrix for each layer, from what is read there to what is written there; it starts at 0.

    Args:
        W_skip: set by `sized`.
    """

    W_skip: Float[Array, "layers written width"] | None = None

    def sized(self, layers: int, width: int, written: int) -> "LinearSkip":
        return LinearSkip(jnp.zeros((layers, written, width)))

    def __call__(self, x: Float[Array, "batch layers width"]) -> Float[Array, "batch layers written"]:
        return jnp.einsum("blw,low->blo", x, self.W_skip)
