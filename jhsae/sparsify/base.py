"""What a sparsifier is: pre-activations in, sparse codes out.

``activate`` is the elementwise part (also what an L1 term over all features sees); ``__call__`` then selects. An
entry that does not survive `activate` has value 0 and is an empty slot, so at most k features are active, and fewer
when fewer than k clear the threshold.
"""

import abc
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jhsae import ops
from jhsae.codes import Codes
from jhsae.errors import UserError
from jhsae.ranges import Count, Ranged, violation
from jhsae.usage import Context


class Encoded(NamedTuple):
    """The codes of a batch, its encoder, with all pre-activations where they were needed, and the sum of |activate|.

    `atoms` are the pre-activations of the selected experts' atoms, where they were asked for and came cheaper here.
    """

    codes: Codes
    encoder: ops.Encoder
    l1: Float[Array, ""]
    atoms: Float[Array, "batch k atoms"] | None = None


class AbstractSparsifier(Ranged, eqx.Module):
    """``sparsifier(pre [*batch, n], context) -> Codes`` over n features."""

    @abc.abstractmethod
    def activate(self, pre: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
        """The elementwise activation before any selection."""

    @abc.abstractmethod
    def __call__(self, pre: Float[Array, "*batch n"], context: Context) -> Codes:
        """The selected codes."""

    def encode(
        self, encoder: ops.Encoder, context: Context, chunk: int | None = None, inside: ops.Inside | None = None
    ) -> Encoded:
        """The codes of the encoder's batch, `chunk` tokens at a time where rows do not depend on each other.

        `inside` is what the selected experts encode with; a rule that needs every pre-activation leaves it alone.
        """
        full = encoder.evaluated()
        pre = full.dense()
        return Encoded(self(pre, context), full, jnp.sum(jnp.abs(self.activate(pre))))

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

    def corrected(self, threshold: Float[Array, ""], steps: int) -> Float[Array, ""]:
        """The running threshold without the influence of its start, after `steps` training steps."""
        return threshold

    def for_inference(self, threshold: Float[Array, ""]) -> "AbstractSparsifier":
        """What replaces it when training is over: itself, or a rule that needs no batch and no schedule."""
        return self


class AbstractTopK(AbstractSparsifier):
    """A sparsifier that selects entries of each row by itself.

    `select` and `value` are its two halves: where, and what. Between them only k entries of a row exist, which is how
    `encode` does without an array of batch x features.
    """

    k: eqx.AbstractVar[int]

    def __check_init__(self) -> None:
        if (words := violation(self.k, Count, "k")) is not None:  # also of a subclass that states no range
            raise UserError(f"{type(self).__name__}: {words}")

    def most_active(self, size: int) -> int:
        return self.k

    @abc.abstractmethod
    def select(self, pre: Float[Array, "*batch n"], context: Context) -> Int[Array, "*batch k"]:
        """The positions of the selected entries; without gradient."""

    def value(self, pre: Float[Array, "*batch k"], context: Context) -> Float[Array, "*batch k"]:
        """The codes of the selected pre-activations."""
        return self.activate(pre)

    def __call__(self, pre: Float[Array, "*batch n"], context: Context) -> Codes:
        indices = self.select(jax.lax.stop_gradient(pre), context)
        return Codes(self.value(ops.take(pre, indices), context), indices, pre.shape[-1])

    def encode(
        self, encoder: ops.Encoder, context: Context, chunk: int | None = None, inside: ops.Inside | None = None
    ) -> Encoded:
        def select(pre: Array, tokens: Int[Array, "tokens"]) -> Array:
            return self.select(pre, Context(context.key, context.step, context.usage, context.dead, tokens))

        pre, indices, l1, atoms = ops.route(encoder, select, self.activate, chunk, inside)
        return Encoded(Codes(self.value(pre, context), indices, encoder.size), encoder, l1, atoms)
