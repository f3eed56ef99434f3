"""New rows in the slots of a pursuit's forest: for dead ones, and for a level that starts empty."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from jhsae.ranges import Count
from jhsae.resampling.base import check_period, is_due
from jhsae.resampling.dead import LEAST_NORM, bad_directions
from jhsae.resampling.slots import AbstractForestChange, AbstractPeriodicChange, Changed
from jhsae.sae import Forward, PursuitSAE, random_unit_rows


class RestartDead(AbstractForestChange):
    """Every `every` steps until step `until`, each dead row of a pursuit starts again where the dictionary is bad.

    A root becomes the direction of a token, drawn in proportion to its squared error squared, as in `Resample`. A child
    becomes the direction of the residual of such a token, one whose code has its parent; siblings take different
    tokens, and a child stays dead where there are too few. The optimizer forgets the row. An empty slot is not dead.

    Args:
        every: how many steps lie between two restarts.
        until: the last step at which rows may restart.
    """

    every: Count = eqx.field(static=True)
    until: Count = eqx.field(static=True)

    def __check_init__(self) -> None:
        check_period(self, self.every, self.until)

    def due(self, step: Int[Array, ""]) -> Bool[Array, ""]:
        return is_due(step, self.every, self.until)

    def change(self, sae: PursuitSAE, forward: Forward, key: Key[Array, ""]) -> Changed:
        of_roots, of_children = jax.random.split(key)
        roots = sae.forest.roots
        below, found = _residuals(sae, forward, of_children)
        rows = jnp.concatenate([bad_directions(roots, sae, forward, of_roots), below])
        new = (forward.dead > 0) & sae.occupied & jnp.concatenate([jnp.ones(roots, bool), found])
        return _with_new(sae, rows, new)


class GrowLevel(AbstractForestChange):
    """After step `step` the empty slots of the last level are filled, below every row of the level above.

    A row becomes the direction of a token's residual, as in `RestartDead`, or a random one where too few tokens of the
    batch have its parent. A level that competes from the start takes what belongs to the levels above it; so let it
    start empty (``sae.filled``) and grow once those have settled.

    Args:
        step: after how many updates.
    """

    reads_dead = False
    step: Count = eqx.field(static=True)

    def due(self, step: Int[Array, ""]) -> Bool[Array, ""]:
        return step + 1 == self.step

    def change(self, sae: PursuitSAE, forward: Forward, key: Key[Array, ""]) -> Changed:
        last = sae.forest.level_of == len(sae.levels) - 1
        return _filled(sae, forward, key, sae.occupied[sae.forest.parents] & last)


class FillEmpty(AbstractPeriodicChange):
    """Every `every` steps the empty slots below rows are filled, level by level, as in `GrowLevel`.

    Merging leaves a row with fewer children than it may have (`MergeAlike`): here it tries others. In `Several`, write
    it before `MergeAlike`, which takes away again what is like a sibling.

    Args:
        every: how many steps lie between two times.
        begin: the first step at which slots may be filled.
        until: the last one.
    """

    def change(self, sae: PursuitSAE, forward: Forward, key: Key[Array, ""]) -> Changed:
        return _filled(sae, forward, key, sae.occupied[sae.forest.tops])  # a child of an empty row is filled with it


def rows_below(sae: PursuitSAE, forward: Forward, key: Key[Array, ""]) -> Float[Array, "below embed"]:
    """A row for every slot below the roots: a token's residual, as in `RestartDead`, or a random one without any."""
    of_residuals, of_random = jax.random.split(key)
    below, found = _residuals(sae, forward, of_residuals)
    return jnp.where(found[:, None], below, random_unit_rows(of_random, (len(below), sae.embed)))


def _filled(sae: PursuitSAE, forward: Forward, key: Key[Array, ""], slots: Bool[Array, "features"]) -> Changed:
    """New rows in those of these slots below the roots that are empty."""
    rows = jnp.concatenate([sae.rows[: sae.forest.roots], rows_below(sae, forward, key)])
    return _with_new(sae, rows, slots & ~sae.occupied & (sae.forest.parents >= 0))


def _with_new(sae: PursuitSAE, rows: Float[Array, "features embed"], new: Bool[Array, "features"]) -> Changed:
    return jnp.where(new[:, None], rows, sae.rows), jnp.where(new, -1, jnp.arange(sae.features))


def _residuals(
    sae: PursuitSAE, forward: Forward, key: Key[Array, ""]
) -> tuple[Float[Array, "below embed"], Bool[Array, "below"]]:
    """For every slot below the roots the direction of a residual under its parent, and whether there was one."""
    forest, residual = sae.forest, forward.target - forward.x_hat
    codes, error = forward.codes.flat(), jnp.sum(residual**2, axis=-1)
    tokens, found = _drawn(codes.values, codes.slot_indices(), codes.size, error, key, forest.widest)
    place = np.concatenate([np.arange(block.end - block.start) % block.each for block in forest.blocks])
    slots = place[forest.roots :], forest.parents[forest.roots :]
    rows = residual[tokens[slots]] if len(slots[0]) else jnp.zeros((0, sae.embed))
    return rows / jnp.maximum(jnp.linalg.norm(rows, axis=-1, keepdims=True), LEAST_NORM), found[slots]


def _drawn(
    values: Float[Array, "batch slots"],
    features: Int[Array, "batch slots"],
    size: int,
    error: Float[Array, "batch"],
    key: Key[Array, ""],
    most: int,
) -> tuple[Int[Array, "most features"], Bool[Array, "most features"]]:
    """For every feature up to `most` different tokens that have it, drawn in proportion to their error squared.

    The largest of log weight + Gumbel noise are draws without replacement. One per feature is taken at a time, from the
    slots of the codes: tokens x features are never held, and devices that share the tokens exchange numbers of
    features.

    Args:
        values: codes of the batch, slot by slot; 0 in an empty one.
        features: of which feature each slot is.
        size: how many features there are.
        error: squared error of each token; one without any is not drawn, since nothing is left that has a direction.
        key: for the noise.
        most: how many.
    """
    token = jnp.arange(len(error), dtype=jnp.int32)[:, None]
    noise = jax.random.gumbel(key, values.shape)
    weight = 2 * jnp.log(error + LEAST_NORM)[:, None] + noise
    weight = jnp.where((values > 0) & (error > LEAST_NORM)[:, None], weight, -jnp.inf)

    def one(left: Array, _: None) -> tuple[Array, tuple[Array, Array]]:
        best = jnp.full(size, -jnp.inf).at[features].max(left)
        is_best = (left == best[features]) & (left > -jnp.inf)
        drawn = jnp.full(size, len(error), jnp.int32).at[features].min(jnp.where(is_best, token, len(error)))
        return jnp.where(token == drawn[features], -jnp.inf, left), (drawn, best > -jnp.inf)

    _, (drawn, found) = jax.lax.scan(one, weight, None, length=most)
    return jnp.where(found, drawn, 0), found
