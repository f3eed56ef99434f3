"""JumpReLU: a feature counts where its pre-activation exceeds a threshold of its own, which is learned.

``code = pre 1[pre > threshold]`` (Rajamanoharan et al., arXiv 2407.14435). Thresholds are trained themselves, not
their logarithms, and kept from falling below 0 after every update (SAELens since 6.5x).
"""

from typing import Annotated, Any, Literal

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from jhsae import ops, ranges
from jhsae.leaf import NonNegative
from jhsae.sparsify.base import AbstractSparsifier

GradientTo = Literal["threshold", "threshold_and_input"]


class JumpReLU(AbstractSparsifier):
    """One learned threshold per feature of the SAE that it is built into.

    The jump has no derivative: a rectangle around it stands in for one (arXiv 2407.14435, eq. 11 and 12).

    Args:
        initial: the value at which all thresholds start, in units of the pre-activations.
        bandwidth: the width of the rectangle, in the same units.
        gradient_to: what the rectangle's gradient reaches: "threshold" alone (DeepMind), or "threshold_and_input", the
            pre-activation too (Anthropic).
    """

    threshold: Annotated[Float[Array, "features"], NonNegative()]
    bandwidth: float = eqx.field(static=True)
    gradient_to: GradientTo = eqx.field(static=True)

    def __init__(
        self,
        initial: ranges.NonNegative = 0.01,
        bandwidth: ranges.Positive = 0.05,
        gradient_to: GradientTo = "threshold",
    ):
        self.threshold = jnp.full(1, initial, jnp.float32)  # 0 would make integers, a bare 0.1 a weak type
        self.bandwidth, self.gradient_to = bandwidth, gradient_to

    def sized(self, size: int) -> "JumpReLU":
        return eqx.tree_at(lambda s: s.threshold, self, jnp.broadcast_to(self.threshold, (size,)))

    @property
    def thresholds(self) -> tuple[Any, ...]:
        return (self.threshold,)

    def activate(self, pre: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
        return ops.jump_relu(pre, self.threshold, self.bandwidth, self.gradient_to == "threshold_and_input")

    def over_threshold(self, pre: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
        """``1[pre > threshold]``, with the gradient that an L0 penalty needs (eq. 12)."""
        return ops.heaviside(pre, self.threshold, self.bandwidth, self.gradient_to == "threshold_and_input")

    def most_active(self, size: int) -> int:
        return size
