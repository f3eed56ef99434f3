"""Open rows of a pursuit whose products are taken of gathered rows: where a table of all pairs would cost more.

A score is the product of a row with the residual. Arrays have the tokens last, but for those with the rows of every
token, [..., tokens, embed].
"""

from functools import reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jhsae.ops.forest import Forest
from jhsae.ops.pool import NOWHERE, AbstractPool, Best, best_listed, first_largest
from jhsae.ops.precision import dot, rounded
from jhsae.ops.refit import WRITTEN_OUT, Chosen, Entry
from jhsae.ops.topk import METHODS


class VectorState(NamedTuple):
    """What changes in a `VectorPool`.

    Args:
        open: whether each candidate has not entered.
        children: the numbers of the children of the rows that are in; `size` where there is none, or it has entered.
        entered: the rows that are in.
        of_children: the rows of their children.
        residual: what the rows that are in leave of the token.
    """

    open: Bool[Array, "tokens candidates"]
    children: Int[Array, "open tokens"]
    entered: Float[Array, "picks tokens embed"]
    of_children: Float[Array, "open tokens embed"]
    residual: Float[Array, "tokens embed"]


class VectorPool(AbstractPool[VectorState]):
    """Candidates among the roots, chosen by their products with the residual; products are taken of gathered rows.

    Args:
        x: the tokens, centred.
        vectors: all rows.
        forest: the shape of the rows.
        candidates: how many roots compete.
    """

    def __init__(
        self, x: Float[Array, "tokens embed"], vectors: Float[Array, "rows embed"], forest: Forest, candidates: int
    ):
        self.x, self.vectors, self.forest, self.count = x, vectors, forest, candidates

    def start(self, chosen: Chosen, picks: int) -> VectorState:
        """The state before the first pick, without candidates."""
        (tokens, embed), dtype = self.x.shape, self.vectors.dtype
        below = picks * self.forest.widest
        return VectorState(
            jnp.ones((tokens, 0), bool),
            jnp.full((below, tokens), self.forest.size, jnp.int32),
            jnp.zeros((picks, tokens, embed), dtype),
            jnp.zeros((below, tokens, embed), dtype),
            self.x,
        )

    def screen(self, state: VectorState, chosen: Chosen) -> VectorState:
        """The state at the start of a round, with new candidates."""
        roots = self.forest.roots
        scores = dot("td,nd->tn", state.residual, self.vectors[:roots])
        taken = jnp.where(chosen.there & (chosen.parent < 0), chosen.rows, roots).T
        scores = scores.at[jnp.arange(len(scores))[:, None], taken].set(-jnp.inf, mode="drop")
        self.candidates = METHODS["auto"](scores, self.count)  # not `topk`: this device has all rows
        self.near = self.vectors[self.candidates]
        return state._replace(open=jnp.take_along_axis(scores, self.candidates, axis=1) > -jnp.inf)

    def best_root(self, state: VectorState, chosen: Chosen) -> Best:
        scores = dot("tcd,td->tc", self.near, state.residual)
        place, score = first_largest(jnp.where(state.open, scores, -jnp.inf))
        return score, jnp.take_along_axis(self.candidates, place[:, None], axis=1)[:, 0], place

    def best_child(self, state: VectorState, chosen: Chosen, closed: Array | None) -> Best:
        scores = dot("otd,td->ot", state.of_children, state.residual)
        there = state.children < self.forest.size
        there = there if closed is None else there & ~jnp.repeat(closed, self.forest.widest, axis=0)
        return best_listed(jnp.where(there, scores, -jnp.inf), state.children)

    def products(self, state: VectorState, chosen: Chosen, entry: Entry) -> Array:
        return dot("ptd,td->pt", state.entered, self.vectors[entry.row])

    def entered(self, state: VectorState, chosen: Chosen, t: Array, entry: Entry) -> VectorState:
        is_root, widest, tokens = entry.slot < 0, self.forest.widest, jnp.arange(len(self.x), dtype=jnp.int32)
        root = jnp.where(entry.on & is_root, entry.place, NOWHERE)
        is_open = state.open.at[tokens, root].set(False, mode="drop")
        row = jnp.where(entry.on[:, None], self.vectors[entry.row], 0)
        left = state.residual - rounded(chosen.values[t])[:, None] * row.astype(jnp.float32)
        state = state._replace(open=is_open, entered=state.entered.at[t].set(row), residual=left)
        if not widest:
            return state
        child = jnp.where(entry.on & ~is_root, entry.place, NOWHERE)
        children = state.children.at[child, tokens].set(self.forest.size, mode="drop")
        new = jnp.where(entry.on, self.forest.children(entry.row).T, self.forest.size)
        below = self.vectors.at[new].get(mode="clip")
        return state._replace(
            children=jax.lax.dynamic_update_slice_in_dim(children, new, t * widest, 0),
            of_children=jax.lax.dynamic_update_slice_in_dim(state.of_children, below, t * widest, 0),
        )

    def rescored(self, state: VectorState, chosen: Chosen) -> VectorState:
        if len(chosen.values) > WRITTEN_OUT:
            return state._replace(residual=self.x - dot("pt,ptd->td", chosen.values, state.entered))
        pairs = zip(chosen.values, state.entered, strict=True)
        taken = reduce(jnp.add, (rounded(v)[:, None] * row.astype(jnp.float32) for v, row in pairs))
        return state._replace(residual=self.x - taken)


class EveryRoot(VectorPool):
    """All roots compete: a product of every root with every residual at each pick.

    Args:
        x: the tokens, centred.
        vectors: all rows.
        forest: the shape of the rows.
    """

    def __init__(self, x: Float[Array, "tokens embed"], vectors: Float[Array, "rows embed"], forest: Forest):
        super().__init__(x, vectors, forest, forest.roots)

    def start(self, chosen: Chosen, picks: int) -> VectorState:
        return super().start(chosen, picks)._replace(open=jnp.ones((len(self.x), self.count), bool))

    def best_root(self, state: VectorState, chosen: Chosen) -> Best:
        scores = dot("td,nd->tn", state.residual, self.vectors[: self.count])
        place, score = first_largest(jnp.where(state.open, scores, -jnp.inf))
        return score, place, place
