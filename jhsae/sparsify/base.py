"""What a sparsifier is: pre-activations in, sparse codes out.

``activate`` is the elementwise part (also what an L1 term over all features sees); ``__call__`` then selects. An
entry that does not survive `activate` has value 0 and is an empty slot, so at most k features are active, and fewer
when fewer than k clear the threshold.
"""

import abc
from typing import Any

import equinox as eqx
from jaxtyping import Array, Float

from jhsae.codes import Codes
from jhsae.usage import Context


class AbstractSparsifier(eqx.Module):
    """``sparsifier(pre [*batch, n], context) -> Codes`` over n features."""

    @abc.abstractmethod
    def activate(self, pre: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
        """The elementwise activation before any selection."""

    @abc.abstractmethod
    def __call__(self, pre: Float[Array, "*batch n"], context: Context) -> Codes:
        """The selected codes."""

    @abc.abstractmethod
    def most_active(self, size: int) -> int:
        """The number of entries it may select among `size`: k, or all of them."""

    def sized(self, size: int) -> "AbstractSparsifier":
        """The sparsifier of an SAE with `size` features; one that owns parameters makes them here."""
        return self

    @property
    def thresholds(self) -> tuple[Any, ...]:
        """Learned thresholds, one per feature, where it has any."""
        return ()

    def track(self, threshold: Float[Array, ""], codes: Codes) -> Float[Array, ""]:
        """The running threshold after a training step that gave `codes`; unchanged unless it keeps one."""
        return threshold

    def settled(self, threshold: Float[Array, ""]) -> "AbstractSparsifier":
        """What replaces it when training is over: itself, or a rule that needs no batch and no schedule."""
        return self


class AbstractTopK(AbstractSparsifier):
    """A sparsifier that selects the k best entries of each row, with one of the exact `ops.topk` methods."""

    k: eqx.AbstractVar[int]

    def __check_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"{type(self).__name__}: k is {self.k}, expected at least 1 active feature")

    def most_active(self, size: int) -> int:
        return self.k
