"""Changes of the rows in the slots of a pursuit's forest, with the optimizer's memory of them."""

import abc
from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from jhsae.ranges import Count, Natural
from jhsae.resampling.base import AbstractResampling, Marked, check_period, is_due
from jhsae.sae import AbstractSAE, Forward, PursuitSAE, require

Changed = tuple[Float[Array, "features embed"], Int[Array, "features"]]


class AbstractForestChange(AbstractResampling):
    """A part that changes which row a slot of a pursuit's forest holds; elsewhere than where it is due, nothing."""

    @abc.abstractmethod
    def due(self, step: Int[Array, ""]) -> Bool[Array, ""]:
        """Whether the forest changes after the update of step `step`, counted from 0."""

    @abc.abstractmethod
    def change(self, sae: PursuitSAE, forward: Forward, key: Key[Array, ""]) -> Changed:
        """The new rows, and the slot in which each was before: the optimizer's moments move with it.

        Args:
            sae: the SAE after the update.
            forward: the forward pass before the update.
            key: for the draws.

        Returns:
            The rows, and where each was; -1 for a row that is new, whose moments are 0.
        """

    def __call__(
        self,
        sae: AbstractSAE,
        opt_state: Any,
        optimizer: optax.GradientTransformation,
        forward: Forward,
        step: Int[Array, ""],
        key: Key[Array, ""],
    ) -> tuple[AbstractSAE, Any, Marked]:
        require(sae, PursuitSAE, type(self).__name__, "write jhsae.resampling.Resample")
        change = partial(self.change, forward=forward, key=key)
        return _changed(self.due(step), change, sae, opt_state, optimizer)


class AbstractPeriodicChange(AbstractForestChange):
    """A part that changes the forest every so many steps, from a first one to a last; it does not read who is dead.

    Args:
        every: how many steps lie between two changes.
        begin: the first step at which the forest may change.
        until: the last one.
    """

    reads_dead = False
    every: Count = eqx.field(static=True, default=50, kw_only=True)
    begin: Natural = eqx.field(static=True, default=0, kw_only=True)
    until: Count = eqx.field(static=True, kw_only=True)

    def __check_init__(self) -> None:
        check_period(self, self.every, self.until, self.begin)

    def due(self, step: Int[Array, ""]) -> Bool[Array, ""]:
        return is_due(step, self.every, self.until, self.begin)


def _changed(
    due: Bool[Array, ""],
    change: Callable[[PursuitSAE], Changed],
    sae: AbstractSAE,
    opt_state: Any,
    optimizer: optax.GradientTransformation,
) -> tuple[AbstractSAE, Any, Marked]:
    """The SAE, the state of the optimizer, and the slots whose row is another one now."""
    params, static = eqx.partition(sae, eqx.is_inexact_array)
    here = jnp.arange(sae.features)

    def apply(params: PyTree, opt_state: Any) -> tuple[PyTree, Any, Marked]:
        rows, source = change(eqx.combine(params, static))
        moves = jax.tree.map(lambda a: jnp.zeros(0, jnp.int32), params)  # of a leaf that stays as it is
        moves = eqx.tree_at(lambda p: p.rows, moves, source)
        opt_state = optax.tree_map_params(optimizer, _moved, opt_state, moves)
        return eqx.tree_at(lambda p: p.rows, params, rows), opt_state, source != here

    nothing = jnp.zeros(sae.features, bool)
    params, opt_state, marked = jax.lax.cond(due, apply, lambda p, o: (p, o, nothing), params, opt_state)
    return eqx.combine(params, static), opt_state, marked


def _moved(moment: Array, source: Int[Array, "features"]) -> Array:
    if not source.size:
        return moment
    return jnp.where((source < 0)[:, None], 0, moment[source]).astype(moment.dtype)
