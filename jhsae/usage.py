"""What a step knows besides parameters and data: running usage statistics, the key, the step number."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jhsae.codes import Codes, TreeCodes


class Usage(eqx.Module):
    """Running statistics of every feature of ``codes.flat()``; not parameters, never differentiated."""

    since_fired: Int[Array, "features"]

    @classmethod
    def init(cls, features: int) -> "Usage":
        """Nothing has fired yet; every counter starts at 0."""
        return cls(jnp.zeros(features, jnp.int32))

    def update(self, codes: Codes | TreeCodes) -> "Usage":
        """Counts one more step for every feature that did not fire in this batch."""
        return Usage(jnp.where(codes.fired() > 0, 0, self.since_fired + 1))

    def dead(self, window: int) -> Float[Array, "features"]:
        """1.0 for every feature that has not fired in the last `window` steps."""
        return (self.since_fired >= window).astype(jnp.float32)


class Context(eqx.Module):
    """The surroundings of one forward pass. ``key=None`` means evaluation: there is no training flag."""

    key: Key[Array, ""] | None = None
    step: Int[Array, ""] | int = 0
    usage: Usage | None = None
