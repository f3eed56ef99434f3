"""Roots that a pursuit's forest lacks, and rows that are no roots, told apart by which rows fire together.

A feature that has no root of its own is learnt several times, below roots that it happens to fire with; a feature that
is a child of another one may have taken a root's slot. Both are assumptions about the data, as merging is
(`MergeAlike`): they are for data with a hierarchy, and no part of the recommended configs.
"""

from typing import Annotated

import equinox as eqx
import jax
import jax.numpy as jnp
from annotated_types import Gt, Le, Lt
from jaxtyping import Array, Float, Int, Key

from jhsae.resampling.merge import Cosine
from jhsae.resampling.restart import rows_below
from jhsae.resampling.slots import AbstractPeriodicChange, Changed
from jhsae.sae import Forward, PursuitSAE

Share = Annotated[float, Gt(0), Le(1)]
Alpha = Annotated[float, Gt(0), Lt(1)]
AT_ONCE = 256  # rows that are compared with all others at a time
FEW = 8  # tokens of a batch with fewer of which no direction is concluded to be there


class RemoveContained(AbstractPeriodicChange):
    """Every `every` steps a root is emptied, with all below it, that fires almost only where a more common one does.

    It is a child of the other, or a child and a grandchild in one: `FillEmpty` and `RestartDead` find it there again.
    `share` or more of its tokens in the batch must be the other's, and so many that a root which fires independently of
    all others would have them with a probability below `alpha` (binomial, divided by the number of roots).

    Args:
        share: of a root's tokens.
        alpha: the probability that a root which fires independently of all others counts as contained in one of them.
        every: how many steps lie between two times.
        begin: the first step at which roots may be emptied.
        until: the last one.
    """

    share: Share = eqx.field(static=True, default=0.6)
    alpha: Alpha = eqx.field(static=True, default=0.001)

    def change(self, sae: PursuitSAE, forward: Forward, key: Key[Array, ""]) -> Changed:
        on = _on(sae, forward)
        tokens = jnp.sum(on, axis=0)
        both, common = on.T @ on, tokens / len(on)
        contained = (both >= self.share * tokens[:, None]) & (common > common[:, None])
        contained &= _at_least(*jnp.broadcast_arrays(both, tokens[:, None], common)) < self.alpha / len(common)
        gone = jnp.any(contained, axis=1)[sae.forest.tops]
        return jnp.where(gone[:, None], 0.0, sae.rows), jnp.where(gone, -1, jnp.arange(sae.features))


class PromoteAlike(AbstractPeriodicChange):
    """Every `every` steps rows that are alike below different roots become one root, the most alike pair first.

    The new root is their mean, weighted by firings, and takes an empty slot; the alike rows, and all below the new
    root, start again (`rows_below`). Without an empty slot there is no new root. Where a root fires on `share` or more
    of the tokens that have the direction, it belongs below that root: the alike rows start again, and there is no new
    root either. A token has the direction if its residual and the alike rows' own part exceed half of their mean value
    along it. Compares all pairs of rows, and holds codes of tokens x rows. In `Several`, write it before `MergeAlike`.

    Args:
        cosine: the least cosine of two rows that are alike.
        share: of the tokens.
        every: how many steps lie between two times.
        begin: the first step at which rows may become roots.
        until: the last one.
    """

    cosine: Cosine = eqx.field(static=True, default=0.6)
    share: Share = eqx.field(static=True, default=0.6)

    def change(self, sae: PursuitSAE, forward: Forward, key: Key[Array, ""]) -> Changed:
        forest, codes, roots = sae.forest, forward.codes.flat().dense(), _on(sae, forward)
        tops, left = jnp.asarray(forest.tops), forward.target - forward.x_hat
        is_child = jnp.arange(forest.size) >= forest.roots
        cosines, nearest = _nearest(sae)
        fires = jnp.sum(codes > 0, axis=0) + 1e-6  # two rows that did not fire count alike

        def most_alike(seen: Array) -> Array:
            return jnp.where(seen | seen[nearest], 0.0, cosines)

        def some(state: tuple[Array, Array, Array]) -> Array:
            return jnp.max(most_alike(state[2])) > self.cosine

        def promote(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            rows, again, seen = state
            one = jnp.argmax(most_alike(seen))
            row = fires[one] * rows[one] + fires[nearest[one]] * rows[nearest[one]]
            row = row / jnp.linalg.norm(row)
            alike = (is_child & (rows @ row > self.cosine)).at[jnp.stack([one, nearest[one]])].set(True)
            own = codes * alike
            height = jnp.sum(own) / jnp.maximum(jnp.sum(own > 0), 1)
            there = ((left + own @ rows) @ row > height / 2).astype(jnp.float32)
            enough = jnp.sum(there) >= FEW
            contained = jnp.any(there @ roots >= self.share * jnp.sum(there))
            empty = ~jnp.any(rows[: forest.roots] != 0, axis=1)
            slot, up = jnp.argmax(empty), enough & ~contained & jnp.any(empty)
            below = up & is_child & (tops == slot)
            start = (alike & enough & (contained | up)) | below
            rows = jnp.where(start[:, None], 0.0, rows).at[slot].set(jnp.where(up, row, rows[slot]))
            return rows, (again | start).at[slot].set(again[slot] | up), seen | alike | below

        nothing = jnp.zeros(forest.size, bool)
        rows, again, _ = jax.lax.while_loop(some, promote, (sae.rows, nothing, nothing))
        fresh = jnp.concatenate([rows[: forest.roots], rows_below(sae, forward, key)])
        rows = jnp.where((again & is_child)[:, None], fresh, rows)
        return rows, jnp.where(again, -1, jnp.arange(forest.size))


def _on(sae: PursuitSAE, forward: Forward) -> Float[Array, "tokens roots"]:
    """Where each root that is still there fired."""
    roots = sae.forest.roots
    return ((forward.codes.flat().dense()[:, :roots] > 0) & sae.occupied[:roots]).astype(jnp.float32)


def _at_least(hits: Float[Array, "*n"], trials: Float[Array, "*n"], p: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """The probability that a binomial variable is `hits` or more; 1 for no hits."""
    tail = jax.scipy.special.betainc(jnp.maximum(hits, 1.0), jnp.maximum(trials - hits, 0.0) + 1, p)
    return jnp.where(hits > 0, tail, 1.0)


def _nearest(sae: PursuitSAE) -> tuple[Float[Array, "features"], Int[Array, "features"]]:
    """The largest cosine of each row below a root with one below another root, and that row; 0 for a root."""
    tops, rows = jnp.asarray(sae.forest.tops), sae.rows
    is_child = jnp.arange(len(rows)) >= sae.forest.roots

    def of_one(row: Array, own: Array, child: Array) -> tuple[Array, Array]:
        cosines = jnp.where((own != tops) & is_child & child, rows @ row, 0.0)
        return jnp.max(cosines), jnp.argmax(cosines).astype(jnp.int32)

    return jax.lax.map(lambda one: of_one(*one), (rows, tops, is_child), batch_size=AT_ONCE)
