"""Open rows of a pursuit whose products are taken of gathered rows: where a table of all pairs would cost more.

Every row that enters is multiplied with the listed rows, once; after that its products are looked up in the lists, as
those of a `TablePool`. Rows lie token by token, [tokens, ..., embed], as the products of each token's own rows need
them; all other arrays have the tokens last.
"""

import abc
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jhsae.ops.chunks import on_cpu
from jhsae.ops.forest import Forest
from jhsae.ops.pool import NOWHERE, AbstractPool, Best, Listed, first_largest, is_in, most_promising, without_taken
from jhsae.ops.precision import dot, rounded
from jhsae.ops.refit import Chosen, Entry, weighted
from jhsae.ops.topk import METHODS


class Gathered:
    """The rows of tokens, and their products.

    Args:
        x: the tokens, centred.
        vectors: all rows.
        forest: the shape of the rows.
    """

    def __init__(self, x: Float[Array, "tokens embed"], vectors: Float[Array, "rows embed"], forest: Forest):
        self.x, self.vectors, self.forest = x, vectors, forest

    def rows(self, numbers: Int[Array, "some tokens"], there: Bool[Array, "some tokens"]) -> Array:
        """Rows by number, [tokens, some, embed]; zeros where there is none."""
        return jnp.where(there.T[..., None], self.vectors.at[numbers.T].get(mode="clip"), 0)

    def residual(self, chosen: Chosen, entered: Float[Array, "tokens picks embed"]) -> Float[Array, "tokens embed"]:
        """What the rows that are in leave of the token."""
        return self.x - dot("tp,tpd->td", chosen.values.T, entered) if len(chosen.rows) else self.x

    def scored(self, rows: Int[Array, "open tokens"], vectors: Array, entered: Array, chosen: Chosen) -> Listed:
        """A list of rows that are open, but for those with the number `size`."""
        of_token = jnp.where(rows < self.forest.size, dot("tod,td->to", vectors, self.x).T, -jnp.inf)
        products = jnp.transpose(dot("tpd,tod->tpo", entered, vectors), (1, 2, 0))
        return Listed(rows, of_token, products, of_token - weighted(chosen.values, products))

    def listed(
        self, rows: Int[Array, "open tokens"], vectors: Array, entered: Array, chosen: Chosen, picks: int, size: int
    ) -> Listed:
        """A list of these rows, of which those that are in are not open, with `size` places."""
        return self.scored(rows, vectors, entered, chosen).without(chosen).grown(picks, size, self.forest.size)


class VectorState(NamedTuple):
    """What changes in a `VectorPool`.

    Args:
        roots: the open roots.
        children: those of the rows that are in.
        entered: the rows that are in, by slot.
        of_children: the rows of their children.
    """

    roots: Any
    children: Listed
    entered: Float[Array, "tokens picks embed"]
    of_children: Float[Array, "tokens open embed"]


class VectorPool(Gathered, AbstractPool[VectorState]):
    """The children of rows that are in compete at every pick; the arguments are those of `Gathered`."""

    def __init__(self, x: Float[Array, "tokens embed"], vectors: Float[Array, "rows embed"], forest: Forest):
        super().__init__(x, vectors, forest)
        self.widest = forest.widest

    def start(self, chosen: Chosen, picks: int) -> VectorState:
        entered, below = self.rows(chosen.rows, chosen.there), self.forest.below(chosen.rows, chosen.there)
        of_children, size = self.rows(below, below < self.forest.size), picks * self.widest
        children = self.listed(below, of_children, entered, chosen, picks, size)
        more, below_more = picks - entered.shape[1], size - of_children.shape[1]
        return VectorState(
            self.open_roots(chosen, entered, picks),
            children,
            jnp.pad(entered, ((0, 0), (0, more), (0, 0))),
            jnp.pad(of_children, ((0, 0), (0, below_more), (0, 0))),
        )

    def best_child(self, state: VectorState, chosen: Chosen, closed: Array | None) -> Best:
        return state.children.best(None if closed is None else jnp.repeat(closed, self.widest, axis=0))

    def stored(self, state: VectorState, t: Array, entry: Entry) -> VectorState:
        # all arrays of rows are written before they are read: the compiler would copy them otherwise
        row = self.rows(entry.row[None], entry.on[None])
        put = jax.lax.dynamic_update_slice_in_dim
        state = state._replace(entered=put(state.entered, row, t, 1))
        if not self.widest:
            return state
        new = self.new_children(entry)
        below = self.rows(new, new < self.forest.size)
        return state._replace(of_children=put(state.of_children, below, t * self.widest, 1))

    def products(self, state: VectorState, chosen: Chosen, entry: Entry) -> Array:
        return dot("tpd,td->tp", state.entered, self.vectors[entry.row]).T

    def entered(self, state: VectorState, chosen: Chosen, t: Array, entry: Entry) -> VectorState:
        is_root, widest, value = entry.slot < 0, self.widest, chosen.values[t]
        row = self.vectors[entry.row]
        place = jnp.where(entry.on & is_root, entry.place, NOWHERE)
        state = state._replace(roots=self.root_entered(state.roots, t, value, row, place))
        if not widest:
            return state
        child = jnp.where(entry.on & ~is_root, entry.place, NOWHERE)
        old = state.children.entered(t, value, dot("tod,td->to", state.of_children, row).T, child)
        new = self.new_children(entry)
        below = jax.lax.dynamic_slice_in_dim(state.of_children, t * widest, widest, 1)
        added = self.scored(new, below, state.entered, chosen)
        return state._replace(children=old.with_rows(added, t * widest))

    def rescored(self, state: VectorState, chosen: Chosen) -> VectorState:
        roots = self.roots_rescored(state.roots, chosen, state.entered)
        return state._replace(roots=roots, children=state.children.rescored(chosen.values))

    def new_children(self, entry: Entry) -> Int[Array, "widest tokens"]:
        """The children of a row that enters; `size` where there is none."""
        return jnp.where(entry.on, self.forest.children(entry.row).T, self.forest.size)

    @abc.abstractmethod
    def open_roots(self, chosen: Chosen, entered: Float[Array, "tokens filled embed"], picks: int) -> Any:
        """The roots that compete with what is in."""

    @abc.abstractmethod
    def root_entered(
        self, roots: Any, t: Int[Array, ""], value: Float[Array, "tokens"], row: Array, place: Int[Array, "tokens"]
    ) -> Any:
        """The roots after a row has entered in slot t at a value; it is a root if its `place` is one."""

    @abc.abstractmethod
    def roots_rescored(self, roots: Any, chosen: Chosen, entered: Float[Array, "tokens picks embed"]) -> Any:
        """The roots after values have moved."""


class NearRoots(VectorPool):
    """Candidates among the roots compete: those with the largest products with the residual.

    Args:
        candidates: their numbers.
        rest: the arguments of a `VectorPool`.
    """

    def __init__(self, candidates: Int[Array, "candidates tokens"], *rest: Any):
        super().__init__(*rest)
        self.candidates, self.near = candidates, self.vectors[candidates.T]

    def open_roots(self, chosen: Chosen, entered: Array, picks: int) -> Listed:
        return self.listed(self.candidates, self.near, entered, chosen, picks, len(self.candidates))

    def best_root(self, state: VectorState, chosen: Chosen) -> Best:
        return state.roots.best()

    def root_entered(self, roots: Listed, t: Array, value: Array, row: Array, place: Array) -> Listed:
        return roots.entered(t, value, dot("tcd,td->tc", self.near, row).T, place)

    def roots_rescored(self, roots: Listed, chosen: Chosen, entered: Array) -> Listed:
        return roots.rescored(chosen.values)


class NearRows(Gathered, AbstractPool[Listed]):
    """Candidates among all open rows compete, and nothing opens before the next round: the list is the state.

    Args:
        candidates: their numbers; `size` where there is none.
        rest: the arguments of `Gathered`.
    """

    widest = 0

    def __init__(self, candidates: Int[Array, "candidates tokens"], *rest: Any):
        super().__init__(*rest)
        self.candidates = candidates
        self.near = self.rows(candidates, candidates < self.forest.size)
        # the products of all pairs read the rows once, those of each row that enters take fewer multiplications
        self.pairs = None if on_cpu() else jnp.transpose(dot("tcd,ted->tce", self.near, self.near), (1, 2, 0))

    def start(self, chosen: Chosen, picks: int) -> Listed:
        entered = self.rows(chosen.rows, chosen.there)
        return self.listed(self.candidates, self.near, entered, chosen, picks, len(self.candidates))

    def best_root(self, state: Listed, chosen: Chosen) -> Best:
        return state.best()

    def best_child(self, state: Listed, chosen: Chosen, closed: Array | None) -> Best:
        none = jnp.zeros(len(self.x), jnp.int32)
        return jnp.full(len(self.x), -jnp.inf), none, none

    def products(self, state: Listed, chosen: Chosen, entry: Entry) -> Array:
        return jnp.take_along_axis(state.products, entry.place[None, None], axis=1)[:, 0]

    def entered(self, state: Listed, chosen: Chosen, t: Array, entry: Entry) -> Listed:
        if self.pairs is None:
            products = dot("tcd,td->tc", self.near, self.vectors[entry.row]).T
        else:
            products = jnp.take_along_axis(self.pairs, entry.place[None, None], axis=0)[0]
        return state.entered(t, chosen.values[t], products, jnp.where(entry.on, entry.place, NOWHERE))

    def rescored(self, state: Listed, chosen: Chosen) -> Listed:
        return state.rescored(chosen.values)


def near_roots(
    residual: Float[Array, "tokens embed"], roots: Float[Array, "roots embed"], chosen: Chosen, count: int
) -> tuple[Int[Array, "count tokens"], Float[Array, "count tokens"]]:
    """The open roots with the largest products with the residual, and those products.

    Args:
        residual: what the rows that are in leave of each token.
        roots: the rows of the roots.
        chosen: the rows that are in.
        count: how many.
    """
    scores = without_taken(dot("td,nd->tn", residual, roots), chosen)
    best = METHODS["auto"](scores, count)  # not `topk`: this device has all rows
    return best.T, jnp.take_along_axis(scores, best, axis=1).T


def near_rows(
    gathered: Gathered, roots: Float[Array, "roots embed"], chosen: Chosen, count: int, by_round: bool
) -> Int[Array, "count tokens"]:
    """The open rows with the largest products with the residual: roots, and children as well if `by_round`.

    Args:
        gathered: the tokens and all rows.
        roots: the rows of the roots.
        chosen: the rows that are in.
        count: how many.
        by_round: whether children are candidates.
    """
    residual = gathered.residual(chosen, gathered.rows(chosen.rows, chosen.there))
    numbers, of_roots = near_roots(residual, roots, chosen, count)
    if not by_round or not len(chosen.rows) or not gathered.forest.widest:
        return numbers
    below = gathered.forest.below(chosen.rows, chosen.there)
    scores = dot("tod,td->to", gathered.rows(below, below < gathered.forest.size), residual).T
    open_children = jnp.where((below < gathered.forest.size) & ~is_in(below, chosen), scores, -jnp.inf)
    both = jnp.concatenate([of_roots, open_children])
    return most_promising(jnp.concatenate([numbers, below]), both, count)


class Roots(NamedTuple):
    """All roots: which of them are open, and what the rows that are in leave of the token."""

    open: Bool[Array, "tokens roots"]
    residual: Float[Array, "tokens embed"]


class EveryRoot(VectorPool):
    """All roots compete: a product of every root with every residual at each pick."""

    def open_roots(self, chosen: Chosen, entered: Array, picks: int) -> Roots:
        is_open = without_taken(jnp.zeros((len(self.x), self.forest.roots)), chosen) == 0
        return Roots(is_open, self.residual(chosen, entered))

    def best_root(self, state: VectorState, chosen: Chosen) -> Best:
        scores = dot("td,nd->tn", state.roots.residual, self.vectors[: self.forest.roots])
        place, score = first_largest(jnp.where(state.roots.open, scores, -jnp.inf))
        return score, place, place

    def root_entered(self, roots: Roots, t: Array, value: Array, row: Array, place: Array) -> Roots:
        is_open = roots.open.at[jnp.arange(len(place), dtype=jnp.int32), place].set(False, mode="drop")
        return Roots(is_open, roots.residual - rounded(value)[:, None] * row.astype(jnp.float32))

    def roots_rescored(self, roots: Roots, chosen: Chosen, entered: Array) -> Roots:
        return roots._replace(residual=self.residual(chosen, entered))
