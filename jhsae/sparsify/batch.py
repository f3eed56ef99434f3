"""BatchTopK: k active features per token on average over the batch (Bussmann et al., arXiv 2412.06410).

A token's code then depends on the other tokens, so a running threshold is tracked in training and replaces the rule at
inference: `for_inference` gives a `JumpReLU`. ``threshold <- (1 - rate) threshold + rate * least positive code``.
It starts at 0, as in SAELens, so after n steps it is ``1 - (1 - rate)^n`` of a weighted mean of what it has seen; it is
divided by that at the end of training (the bias correction of Adam).
"""

import math
from typing import Annotated

import equinox as eqx
import jax.numpy as jnp
from annotated_types import Gt
from jaxtyping import Array, Float, Int

from jhsae import ops
from jhsae.codes import Codes
from jhsae.ranges import PositiveFraction
from jhsae.schedule import AbstractSchedule, Constant, as_schedule
from jhsae.sparsify.base import AbstractSparsifier, without_start
from jhsae.sparsify.jump import JumpReLU
from jhsae.usage import Context


class BatchTopK(AbstractSparsifier):
    """The ``int(k * batch)`` largest of ``max(pre, 0)`` over the whole batch; `k` may follow a schedule.

    The threshold at inference is a mean over about the last ``1 / threshold_rate`` steps.

    Args:
        k: active features per token, a mean over the batch: a number or a schedule.
        threshold_rate: the share of a step in the running threshold, above 0 to 1.
    """

    k: Annotated[AbstractSchedule, Gt(0)]
    threshold_rate: float = eqx.field(static=True)

    def __init__(self, k: Annotated[float | AbstractSchedule, Gt(0)], threshold_rate: PositiveFraction = 0.01):
        self.k, self.threshold_rate = as_schedule(k), threshold_rate

    def value(self, pre: Float[Array, "*batch k"], context: Context) -> Float[Array, "*batch k"]:
        active = self.activate(pre)
        count = self._count(active.size // active.shape[-1], context.step)
        return jnp.where(ops.largest(active, count), active, 0.0)

    def _count(self, rows: int, step: Int[Array, ""] | int) -> Int[Array, ""] | int:
        k = self.k(step)
        # exact for a constant: in float32 a product such as 4.2 * 15 falls below the whole number that it is
        return int(k * rows) if isinstance(k, float) else jnp.floor(k * rows).astype(jnp.int32)

    def most_active(self, size: int) -> int:
        """Any row may take all `size`; a constant k above that asks for more than there is."""
        return max(size, math.ceil(self.k.value)) if isinstance(self.k, Constant) else size

    @property
    def batch_k(self) -> AbstractSchedule:
        return self.k

    def track(self, threshold: Float[Array, ""], codes: Codes) -> Float[Array, ""]:
        least = jnp.min(jnp.where(codes.values > 0, codes.values, jnp.inf))
        moved = (1 - self.threshold_rate) * threshold + self.threshold_rate * least
        return jnp.where(jnp.isfinite(least), moved, threshold)

    def corrected(self, threshold: Float[Array, ""], steps: int) -> Float[Array, ""]:
        """Steps without a positive code, in which the threshold stays, count as well: the threshold is then too low."""
        return without_start(threshold, self.threshold_rate, steps) if steps else threshold

    def for_inference(self, threshold: Float[Array, ""]) -> AbstractSparsifier:
        return eqx.tree_at(lambda s: s.threshold, JumpReLU(0.0), threshold[None])
