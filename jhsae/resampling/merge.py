"""Merging of siblings that look alike, in the forest of a pursuit.

With spare slots a root is split into several composites, one for each of its children, which a penalty on their
likeness only pushes apart. Merged, they become one root, and what made them differ is learnt again one level down. That
look-alike siblings are one thing is an assumption about the data: where rows are a continuum, merging costs explained
variance, so it is no part of the recommended configs; `jhsae.evals.likeness` says how many roots it would leave.
"""

from functools import partial
from typing import Annotated, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from annotated_types import Gt, Lt
from jaxtyping import Array, Bool, Float, Int, Key

from jhsae.resampling.slots import AbstractPeriodicChange, Changed
from jhsae.sae import Forward, PursuitSAE

Cosine = Annotated[float, Gt(0), Lt(1)]


class MergeAlike(AbstractPeriodicChange):
    """Every `every` steps siblings (roots are siblings) whose cosine exceeds `cosine` become one row.

    The most alike pair of a family first, until none is left: the mean of both, weighted by how many tokens of the
    current sampling window each fired on, takes the slot of the one that fired more; the slot of the other becomes
    empty. Of the children of both the ones that fired most stay, as many as there are slots, each with all that is
    below it. The optimizer forgets the merged row. In `Several`, write it after the parts that restart rows.

    Args:
        cosine: the least cosine of two siblings that are merged.
        every: how many steps lie between two mergings; with ``feature_sampling_window`` at the same number the weights
            are the firings since the last one.
        begin: the first step at which rows may be merged.
        until: the last one.
    """

    cosine: Cosine = eqx.field(static=True, default=0.4)

    def change(self, sae: PursuitSAE, forward: Forward, key: Key[Array, ""]) -> Changed:
        usage = forward.context.usage
        return _merged(sae, forward.codes.fired() + (0.0 if usage is None else usage.fires), self.cosine)


class _Family(NamedTuple):
    """Siblings: rows and firings, and for the slots below each, which child a slot holds and the firings of that."""

    rows: Float[Array, "siblings embed"]
    fires: Float[Array, "siblings"]
    children: Int[Array, "siblings each"]
    children_fires: Float[Array, "siblings each"]


def _merged(sae: PursuitSAE, fires: Float[Array, "features"], cosine: float) -> Changed:
    """The rows of all levels, merged from the roots down, and the slot that each came from."""
    forest = sae.forest
    split = lambda a: [part.reshape(-1, *part.shape[2:]) for part in forest.split(a)]  # noqa: E731
    rows, sources = split(sae.rows), split(jnp.arange(forest.size))
    use = split(jnp.where(sae.occupied, fires, -1.0))  # a slot without a row comes after all others
    for level in range(len(forest.levels)):
        each = forest.levels[level + 1] if level + 1 < len(forest.levels) else 0
        count, siblings = len(rows[level]), forest.levels[level]
        families = lambda a, siblings=siblings: a.reshape(len(a) // siblings, siblings, *a.shape[1:])  # noqa: E731
        places = jnp.arange(count * each).reshape(count, each)
        below = use[level + 1].reshape(count, each) if each else jnp.zeros((count, 0))
        own = _Family(families(rows[level]), families(use[level]), families(places), families(below))
        new, touched = jax.vmap(partial(_merged_family, cosine=cosine))(own)
        rows[level], use[level] = new.rows.reshape(count, -1), new.fires.reshape(count)
        sources[level] = jnp.where(touched.reshape(count), -1, sources[level])
        place = new.children.reshape(-1)
        for lower in range(level + 1, len(forest.levels)):  # a child moves with all that is below it
            there = place >= 0
            rows[lower] = jnp.where(there[:, None], rows[lower][place], 0.0)
            use[lower] = jnp.where(there, use[lower][place], -1.0)
            sources[lower] = jnp.where(there, sources[lower][place], -1)
            if lower + 1 < len(forest.levels):
                inside = jnp.arange(forest.levels[lower + 1])
                place = jnp.where(there[:, None], place[:, None] * len(inside) + inside, -1).reshape(-1)
    return jnp.concatenate(rows), jnp.concatenate(sources)


def _merged_family(family: _Family, cosine: float) -> tuple[_Family, Bool[Array, "siblings"]]:
    """The family after all mergings, and the slots whose row is another one."""

    def alike(family: _Family) -> Array:
        pairs = jnp.triu(family.rows @ family.rows.T, k=1)
        return jnp.where(jnp.all(family.rows == 0, axis=1)[:, None], 0.0, pairs)

    def merge(state: tuple[_Family, Array]) -> tuple[_Family, Array]:
        (rows, fires, children, below), touched = state
        one, other = jnp.divmod(jnp.argmax(alike(state[0])), len(rows))
        stays, goes = jnp.where(fires[one] >= fires[other], jnp.stack([one, other]), jnp.stack([other, one]))
        weights = jnp.maximum(fires, 0.0) + 1e-6  # two rows that never fired count alike
        row = weights[stays] * rows[stays] + weights[goes] * rows[goes]
        pooled, pooled_fires = (jnp.concatenate([a[stays], a[goes]]) for a in (children, below))
        first = jnp.argsort(-pooled_fires, stable=True)[: children.shape[1]]
        return (
            _Family(
                rows.at[stays].set(row / jnp.linalg.norm(row)).at[goes].set(0.0),
                fires.at[stays].add(jnp.maximum(fires[goes], 0.0)).at[goes].set(-1.0),
                children.at[stays].set(pooled[first]).at[goes].set(-1),
                below.at[stays].set(pooled_fires[first]).at[goes].set(-1.0),
            ),
            touched.at[stays].set(True).at[goes].set(True),
        )

    def some(state: tuple[_Family, Array]) -> Array:
        return jnp.max(alike(state[0]), initial=0.0) > cosine

    return jax.lax.while_loop(some, merge, (family, jnp.zeros(len(family.rows), bool)))
