"""Budgets of a pursuit: how many rows may enter for a token, and the score that a row must exceed.

A pursuit selects against the residual, so that its rule is no function of pre-activations; what it shares with a
sparsifier is `AbstractRule`. Nothing here is differentiated.
"""

import abc
import math
from collections.abc import Callable
from typing import Annotated

import equinox as eqx
import jax.numpy as jnp
from annotated_types import Gt
from jaxtyping import Array, Float

from jhsae import ops
from jhsae.codes import Codes
from jhsae.errors import UserError
from jhsae.ranges import Count, Natural, NonNegative, PositiveFraction
from jhsae.schedule import AbstractSchedule, Constant, Scalar
from jhsae.sparsify.base import AbstractRule, without_start
from jhsae.usage import Context

MISSED = 0.9  # of the L0 that was asked for: less is reported
SETTLED = 3  # time constants of the running threshold
COLLAPSED = 1e-3  # of the inputs' distance from their mean: what enters below explains a millionth of its square
TOO_FEW = "too few rows compete; write more candidates or rounds, more rows, a larger most or a smaller k"


class AbstractBudget(AbstractRule):
    """The budget of a pursuit."""

    @property
    @abc.abstractmethod
    def picks(self) -> int:
        """How many rows may enter for a token."""

    @property
    def keep(self) -> int | None:
        """How many of them stay at most; None for all."""
        return None

    @abc.abstractmethod
    def least(self, context: Context) -> Scalar:
        """The score that a row must exceed to enter."""

    def most_active(self, size: int) -> int:
        return self.picks if self.keep is None else self.keep


class Threshold(AbstractBudget):
    """One threshold for every row of every level: a row enters while it explains more than its square.

    Args:
        threshold: in units of the input after its normaliser.
        most: how many rows may enter for a token.
    """

    threshold: Float[Array, ""]
    most: int = eqx.field(static=True)

    def __init__(self, threshold: NonNegative, most: Count):
        self.threshold, self.most = jnp.asarray(threshold, jnp.float32), most

    @property
    def picks(self) -> int:
        return self.most

    def least(self, context: Context) -> Scalar:
        return self.threshold


class MeanL0(AbstractBudget):
    """One threshold for every row of every level, steered to a mean L0 of k.

    A batch's own threshold is the one at which it would have had k rows per token; in use is the running mean of those
    of earlier steps, ``t <- (1 - rate) t + rate * own``, divided by ``1 - (1 - rate)^steps`` as in `BatchTopK`. Before
    the first step there is none, and `most` rows enter. At inference it is a `Threshold`.

    Args:
        k: active features per token, a mean.
        most: how many may be active for one token; None for 2k. Few tokens should reach it.
        threshold_rate: the share of a step in the running threshold, above 0 to 1.
    """

    k: Annotated[float, Gt(0)] = eqx.field(static=True)
    most: Count | None = eqx.field(static=True, default=None)
    threshold_rate: PositiveFraction = eqx.field(static=True, default=0.05)

    def __check_init__(self) -> None:
        if self.most is not None and self.most < self.k:
            raise UserError(f"MeanL0: most is {self.most} and k {self.k}; write a most of at least k, or null for 2k")

    @property
    def picks(self) -> int:
        return math.ceil(2 * self.k) if self.most is None else self.most

    @property
    def batch_k(self) -> AbstractSchedule:
        return Constant(self.k)

    def least(self, context: Context) -> Scalar:
        if context.usage is None:
            return 0.0
        (running,) = context.usage.thresholds
        steps = jnp.maximum(jnp.asarray(context.step), 1)
        return without_start(running, self.threshold_rate, steps)  # before the first step it is 0

    def track(self, threshold: Float[Array, ""], codes: Codes) -> Float[Array, ""]:
        """`codes` hold the threshold below which each slot is in use (`jhsae.ops.Pursued.scores`)."""
        count = max(1, round(self.k * codes.rows()))
        own = jnp.min(jnp.where(ops.largest(codes.values, count), codes.values, jnp.inf))
        return (1 - self.threshold_rate) * threshold + self.threshold_rate * own

    def corrected(self, threshold: Float[Array, ""], steps: int) -> Float[Array, ""]:
        return without_start(threshold, self.threshold_rate, steps) if steps else threshold

    def for_inference(self, threshold: Float[Array, ""]) -> AbstractRule:
        return eqx.tree_at(lambda s: s.threshold, Threshold(0.0, self.picks), threshold)

    def unmet(self, l0: float) -> str | None:
        if l0 >= MISSED * self.k:
            return None
        return f"{self._missed(l0)}, at any threshold: {TOO_FEW}"

    def starved(self, threshold: float, l0: float, steps: int, distance: Callable[[], float]) -> str | None:
        """Of too few candidates the threshold falls towards 0 without ever letting in k rows.

        Judged from ``3 / threshold_rate`` steps on, when 95 % of the running threshold is of the steps since the start:
        before, a dictionary that is not trained yet may have too few rows of a positive score. A threshold of at most
        `COLLAPSED` lets in every candidate.
        """
        if steps < SETTLED / self.threshold_rate or l0 >= MISSED * self.k or threshold > COLLAPSED * distance():
            return None
        return f"{self._missed(l0)} after {steps} steps, though the threshold has fallen to {threshold:.2g}: {TOO_FEW}"

    def _missed(self, l0: float) -> str:
        return f"MeanL0 was asked for {self.k:g} active features per token and the last batch has {l0:.1f}"


class ExactL0(AbstractBudget):
    """k features per token: k + `extra` rows enter, then the smallest leaves leave one by one; the rest is refitted.

    A token has fewer where fewer rows have a positive score, or where the refit ends at 0.

    Args:
        k: active features per token.
        extra: how many more enter first.
    """

    k: Count = eqx.field(static=True)
    extra: Natural = eqx.field(static=True, default=4)

    @property
    def picks(self) -> int:
        return self.k + self.extra

    @property
    def keep(self) -> int:
        return self.k

    def least(self, context: Context) -> Scalar:
        return 0.0
