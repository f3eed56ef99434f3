"""The interface of a sparsifier: pre-activations in, sparse codes out.

Three methods make a rule, each of which has a default: ``activate`` is elementwise (also what an L1 term over all
features reads), ``select`` gives the positions of the k entries of each row that count, ``value`` their codes. An entry
that does not survive `activate` has value 0 and is an empty slot, so at most k features are active, and fewer when
fewer than k clear the threshold.

A rule derived from `AbstractSparsifier` gives every feature a slot (ReLU, JumpReLU, BatchTopK): `value` is all of it
and may look at the whole batch. One derived from `AbstractTopK` selects, and reads each row by itself, so that an SAE
may encode a few tokens at a time and never holds an array of batch x features (`jhsae.sae.route_and_encode`).
"""

import abc
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
from jaxtyping import Array, Float, Int

from jhsae import ops
from jhsae.codes import Codes
from jhsae.errors import UserError
from jhsae.ranges import Count, Ranged, violation
from jhsae.schedule import AbstractSchedule
from jhsae.usage import Context


class AbstractRule(Ranged, eqx.Module):
    """How many features a token may have, and what decides it from step to step: the part of every selection."""

    @abc.abstractmethod
    def most_active(self, size: int) -> int:
        """The number of entries it may select among `size`: k, or all of them."""

    def sized(self, size: int) -> "AbstractRule":
        """The rule of an SAE with `size` features; one that owns parameters makes them here."""
        return self

    @property
    def thresholds(self) -> tuple[Any, ...]:
        """Learned thresholds, one per feature, where it has any."""
        return ()

    @property
    def batch_k(self) -> AbstractSchedule | None:
        """The active features per token of a budget that the tokens of a batch share; None where each has its own."""
        return None

    def track(self, threshold: Float[Array, ""], codes: Codes) -> Float[Array, ""]:
        """The running threshold after a training step that gave `codes`; unchanged unless it keeps one."""
        return threshold

    def corrected(self, threshold: Float[Array, ""], steps: int) -> Float[Array, ""]:
        """The running threshold without the influence of its start, after `steps` training steps."""
        return threshold

    def for_inference(self, threshold: Float[Array, ""]) -> "AbstractRule":
        """The rule of the trained SAE: itself, or one that needs no batch and no schedule."""
        return self

    def unmet(self, l0: float) -> str | None:
        """A sentence where an L0 at the end of training is not the one that was asked for; None where all is well."""
        return None

    def starved(self, threshold: float, l0: float, steps: int, distance: Callable[[], float]) -> str | None:
        """A sentence where a threshold has collapsed, so that the rest of the run is of no use; None where it has not.

        Args:
            threshold: the running one, without the influence of its start.
            l0: of the newest step.
            steps: finished steps.
            distance: gives the root mean squared distance of the newest inputs from their mean.
        """
        return None


def without_start(threshold: Float[Array, ""], rate: float, steps: Int[Array, ""] | int) -> Float[Array, ""]:
    """A running mean that started at 0, without the influence of its start (the bias correction of Adam).

    Args:
        threshold: the running mean.
        rate: the share of a step in it.
        steps: how many steps it has seen, at least 1.
    """
    return threshold / (1 - (1 - rate) ** steps)


class AbstractSparsifier(AbstractRule):
    """``sparsifier(pre [*batch, n], context) -> Codes`` over n features. Every feature has a slot; see the module."""

    across_experts: ClassVar[bool] = False
    """Whether, among atoms, it compares the experts of a token; inactive ones have pre-activations of 0 then."""

    def activate(self, pre: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
        """The elementwise activation before any selection: ``max(pre, 0)``."""
        return jax.nn.relu(pre)

    def select(self, pre: Float[Array, "*batch n"], context: Context) -> Int[Array, "*batch k"] | None:
        """The positions of the entries of each row that have a slot; None where every feature has one, in order.

        Positions are found by the row alone, without gradient, wherever `is_dense` is False.
        """
        return None

    def value(self, pre: Float[Array, "*batch k"], context: Context) -> Float[Array, "*batch k"]:
        """The codes of the selected pre-activations: ``activate(pre)``."""
        return self.activate(pre)

    def is_dense(self, context: Context) -> bool:
        """Whether `select` gives None in this context, so that all pre-activations are needed at once."""
        return True

    def sized(self, size: int) -> "AbstractSparsifier":
        return self

    def __call__(self, pre: Float[Array, "*batch n"], context: Context) -> Codes:
        """Selects.

        Args:
            pre: the pre-activations, [*batch, n].
            context: the key of a training step, or None in evaluation; the step; the feature statistics.

        Returns:
            The codes over n features, with k slots or one for each feature.
        """
        indices = self.select(jax.lax.stop_gradient(pre), context)
        selected = pre if indices is None else ops.take(pre, indices)
        return Codes(self.value(selected, context), indices, pre.shape[-1])


class AbstractTopK(AbstractSparsifier):
    """A sparsifier that selects k entries of each row by the row alone: the k largest of ``activate(pre)``."""

    k: eqx.AbstractVar[int]

    def __check_init__(self) -> None:
        if (words := violation(self.k, Count, "k")) is not None:  # also of a subclass that states no range
            raise UserError(f"{type(self).__name__}: {words}")

    def select(self, pre: Float[Array, "*batch n"], context: Context) -> Int[Array, "*batch k"] | None:
        return ops.topk(self.activate(pre), self.most_active(pre.shape[-1]), self.topk)[1]

    @property
    def topk(self) -> ops.Method:
        """How the k largest are found (`ops.topk`); a field of the rules here."""
        return "auto"

    def is_dense(self, context: Context) -> bool:
        return False

    def most_active(self, size: int) -> int:
        return self.k
