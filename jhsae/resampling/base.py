"""The interface of a part that moves parameters beside the optimizer, after an update."""

import abc
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from annotated_types import MinLen
from jaxtyping import Array, Bool, Int, Key

from jhsae.errors import UserError
from jhsae.ranges import Ranged
from jhsae.sae import AbstractSAE, Forward

Marked = Bool[Array, "top_level"]


class AbstractResampling(Ranged, eqx.Module):
    """What happens to dead features beside the gradient; with `reads_dead` False, nothing."""

    reads_dead: ClassVar[bool] = True

    @abc.abstractmethod
    def __call__(
        self,
        sae: AbstractSAE,
        opt_state: Any,
        optimizer: optax.GradientTransformation,
        forward: Forward,
        step: Int[Array, ""],
        key: Key[Array, ""],
    ) -> tuple[AbstractSAE, Any, Marked]:
        """Resamples dead features after an update.

        Args:
            sae: the SAE after the update.
            opt_state: the state of `optimizer` after it.
            optimizer: the whole optax chain.
            forward: the forward pass before the update.
            step: the number of the step, from 0.
            key: for the draws.

        Returns:
            The SAE, the optimizer state, and which features of ``forward.pre`` were resampled.
        """


def check_period(part: AbstractResampling, every: int, until: int, begin: int | None = None) -> None:
    """Raises `UserError` for a part that would never be due (`is_due`)."""
    if until < max(every, begin or 0):
        after = "" if begin is None else f", begin {begin}"
        raise UserError(
            f"{type(part).__name__}: every is {every}{after} and until {until}; write an until that is not before "
            f"{'every' if begin is None else 'them'}"
        )


def is_due(step: Int[Array, ""], every: int, until: int, begin: int = 0) -> Bool[Array, ""]:
    """Whether the update of step `step` ends one of every `every` steps, from `begin` to `until` updates."""
    done = step + 1
    return (done % every == 0) & (done >= begin) & (done <= until)


class NoResampling(AbstractResampling):
    """Dead features are left to the loss."""

    reads_dead: ClassVar[bool] = False

    def __call__(
        self,
        sae: AbstractSAE,
        opt_state: Any,
        optimizer: optax.GradientTransformation,
        forward: Forward,
        step: Int[Array, ""],
        key: Key[Array, ""],
    ) -> tuple[AbstractSAE, Any, Marked]:
        return sae, opt_state, jnp.zeros(forward.encoder.size, bool)


class Several(AbstractResampling):
    """Several parts, one after the other; each sees the SAE that the one before it left.

    Args:
        parts: in order.
    """

    parts: Annotated[tuple[AbstractResampling, ...], MinLen(1)]

    def __init__(self, parts: Annotated[Sequence[AbstractResampling], MinLen(1)]):
        self.parts = tuple(parts)

    @property
    def reads_dead(self) -> bool:  # type: ignore[override]
        """Whether one of them does."""
        return any(part.reads_dead for part in self.parts)

    def __call__(
        self,
        sae: AbstractSAE,
        opt_state: Any,
        optimizer: optax.GradientTransformation,
        forward: Forward,
        step: Int[Array, ""],
        key: Key[Array, ""],
    ) -> tuple[AbstractSAE, Any, Marked]:
        resampled = jnp.zeros(forward.encoder.size, bool)
        for number, part in enumerate(self.parts):
            own = jax.random.fold_in(key, number)
            sae, opt_state, marked = part(sae, opt_state, optimizer, forward, step, own)
            resampled = resampled | marked
        return sae, opt_state, resampled
