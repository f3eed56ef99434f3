"""The open rows of a pursuit and their scores: the roots, or candidates among them, and the children of what is in.

A pool holds what stays during the picks; its state, which `entered` changes, is a value of its own. Scores of roots
have the tokens first, those of children last: [picks, slots below a row, tokens].
"""

import abc
from functools import reduce
from typing import Generic, NamedTuple, TypeVar

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jhsae.ops.forest import Forest
from jhsae.ops.precision import dot, rounded
from jhsae.ops.refit import WRITTEN_OUT, Chosen, Entry, weighted
from jhsae.ops.topk import METHODS

S = TypeVar("S")


class Children(NamedTuple):
    """The children of the row in each slot.

    Args:
        rows: their numbers.
        there: whether there is such a child, and it has not entered.
    """

    rows: Int[Array, "picks widest tokens"]
    there: Bool[Array, "picks widest tokens"]

    @classmethod
    def none(cls, forest: Forest, picks: int, tokens: int) -> "Children":
        """Before the first pick."""
        rows = jnp.zeros((picks, forest.widest, tokens), jnp.int32)
        return cls(rows, rows > 0)

    def with_those_of(self, entry: Entry, t: Int[Array, ""], forest: Forest) -> "Children":
        """Those of the row that entered in slot t too, without that row itself."""
        picks, widest, _ = self.rows.shape
        places = jnp.arange(picks * widest, dtype=jnp.int32).reshape(picks, widest, 1)
        stay = self.there & ~((places == entry.place) & (entry.slot >= 0) & entry.on)
        rows = forest.children(entry.row).T
        there = (rows < forest.size) & entry.on
        return Children(self.rows.at[t].set(jnp.where(there, rows, 0)), stay.at[t].set(there))


class AbstractPool(abc.ABC, Generic[S]):
    """The open rows; see the module."""

    @abc.abstractmethod
    def scores(
        self, state: S, chosen: Chosen
    ) -> tuple[Float[Array, "tokens open"], Float[Array, "picks widest tokens"]]:
        """The product of each open row with the residual, of roots and of children; -inf where there is none."""

    @abc.abstractmethod
    def rows(self, state: S, place: Int[Array, "tokens"]) -> Int[Array, "tokens"]:
        """The numbers of the roots at these places."""

    @abc.abstractmethod
    def children(self, state: S) -> Int[Array, "picks widest tokens"]:
        """The numbers of the children."""

    @abc.abstractmethod
    def products(self, state: S, chosen: Chosen, entry: Entry) -> Float[Array, "picks tokens"]:
        """The products of a row with those that are in."""

    @abc.abstractmethod
    def entered(self, state: S, chosen: Chosen, t: Int[Array, ""], entry: Entry) -> S:
        """The state after the row of `entry` has entered in slot t; `chosen` has it already."""


class TableState(NamedTuple):
    """What changes in a `TablePool`.

    Args:
        roots: the product of each open root with the token; -inf for one that has entered.
        children: those of the rows that are in.
        of_children: their products with the token; -inf where there is none.
        products: of the rows that are in with those children, [picks, picks, widest, tokens].
    """

    roots: Float[Array, "tokens roots"]
    children: Children
    of_children: Float[Array, "picks widest tokens"]
    products: Float[Array, "picks picks widest tokens"]


class TablePool(AbstractPool[TableState]):
    """All roots, by a table of the products of all pairs of rows.

    Args:
        scores: the product of each row with the token.
        table: the products.
        forest: the shape of the rows.
        picks: how many rows may enter.
    """

    def __init__(
        self, scores: Float[Array, "tokens rows"], table: Float[Array, "rows rows"], forest: Forest, picks: int
    ):
        self.of_rows, self.table, self.forest, self.picks = scores, table, forest, picks
        self.of_roots = table[:, : forest.roots]

    def start(self) -> TableState:
        """The state before the first pick."""
        tokens, picks, widest = len(self.of_rows), self.picks, self.forest.widest
        children = Children.none(self.forest, picks, tokens)
        none = jnp.zeros((picks, picks, widest, tokens))
        return TableState(self.of_rows[:, : self.forest.roots], children, none[0] - jnp.inf, none)

    def scores(self, state: TableState, chosen: Chosen) -> tuple[Array, Array]:
        picks, values = len(chosen.rows), chosen.values
        if picks > WRITTEN_OUT:
            lost = jnp.einsum("pt,ptn->tn", values, self.of_roots[chosen.rows])
        else:  # one loop over the numbers, without gathered rows in between
            lost = reduce(jnp.add, (values[s, :, None] * self.of_roots[chosen.rows[s]] for s in range(picks)))
        if not self.forest.widest:
            return state.roots - lost, state.of_children
        return state.roots - lost, state.of_children - weighted(values, state.products)

    def rows(self, state: TableState, place: Array) -> Array:
        return place

    def children(self, state: TableState) -> Array:
        return state.children.rows

    def products(self, state: TableState, chosen: Chosen, entry: Entry) -> Array:
        return self.table[chosen.rows, entry.row]

    def entered(self, state: TableState, chosen: Chosen, t: Array, entry: Entry) -> TableState:
        own = jnp.arange(self.forest.roots) == entry.place[:, None]
        roots = jnp.where(own & (entry.on & (entry.slot < 0))[:, None], -jnp.inf, state.roots)
        if not self.forest.widest:
            return state._replace(roots=roots)
        children = state.children.with_those_of(entry, t, self.forest)
        new = children.rows[t]
        of_new = jnp.take_along_axis(self.of_rows, new.T, axis=1).T
        of_children = jnp.where(children.there, state.of_children.at[t].set(of_new), -jnp.inf)
        with_new = self.table[chosen.rows[:, None], new]
        products = state.products.at[:, t].set(with_new).at[t].set(self.table[entry.row, children.rows])
        return TableState(roots, children, of_children, products)


class VectorState(NamedTuple):
    """What changes in a `VectorPool`.

    Args:
        open: whether each candidate has not entered.
        children: those of the rows that are in.
        entered: the rows that are in.
        of_children: the rows of their children.
    """

    open: Bool[Array, "tokens candidates"]
    children: Children
    entered: Float[Array, "picks tokens embed"]
    of_children: Float[Array, "picks tokens widest embed"]


class VectorPool(AbstractPool[VectorState]):
    """Candidates among the roots, chosen by their products with the residual; products are taken of gathered rows.

    Args:
        x: the tokens, centred.
        vectors: all rows.
        forest: the shape of the rows.
        picks: how many rows may enter.
    """

    def __init__(
        self, x: Float[Array, "tokens embed"], vectors: Float[Array, "rows embed"], forest: Forest, picks: int
    ):
        self.x, self.vectors, self.forest, self.picks = x, vectors, forest, picks

    def start(self) -> VectorState:
        """The state before the first round."""
        (tokens, embed), picks, widest = self.x.shape, self.picks, self.forest.widest
        entered = jnp.zeros((picks, tokens, embed), self.vectors.dtype)
        below = jnp.zeros((picks, tokens, widest, embed), self.vectors.dtype)
        return VectorState(jnp.ones((tokens, 0), bool), Children.none(self.forest, picks, tokens), entered, below)

    def screen(self, state: VectorState, chosen: Chosen, count: int) -> VectorState:
        """The state at the start of a round with `count` new candidates."""
        roots = self.forest.roots
        scores = dot("td,nd->tn", self._residual(state, chosen), self.vectors[:roots])
        taken = jnp.where(chosen.there & (chosen.parent < 0), chosen.rows, roots).T
        scores = scores.at[jnp.arange(len(scores))[:, None], taken].set(-jnp.inf, mode="drop")
        self.candidates = METHODS["auto"](scores, count)  # not `topk`: this device has all rows
        self.near = self.vectors[self.candidates]
        return state._replace(open=jnp.take_along_axis(scores, self.candidates, axis=1) > -jnp.inf)

    def scores(self, state: VectorState, chosen: Chosen) -> tuple[Array, Array]:
        residual = self._residual(state, chosen)
        of_roots = jnp.where(state.open, dot("tcd,td->tc", self.near, residual), -jnp.inf)
        if not self.forest.widest:
            return of_roots, jnp.zeros((self.picks, 0, len(residual)))
        of_children = dot("ptcd,td->pct", state.of_children, residual)
        return of_roots, jnp.where(state.children.there, of_children, -jnp.inf)

    def rows(self, state: VectorState, place: Array) -> Array:
        return jnp.take_along_axis(self.candidates, place[:, None], axis=1)[:, 0]

    def children(self, state: VectorState) -> Array:
        return state.children.rows

    def products(self, state: VectorState, chosen: Chosen, entry: Entry) -> Array:
        return dot("ptd,td->pt", state.entered, self.vectors[entry.row])

    def entered(self, state: VectorState, chosen: Chosen, t: Array, entry: Entry) -> VectorState:
        own = jnp.arange(state.open.shape[1]) == entry.place[:, None]
        is_open = state.open & ~(own & (entry.on & (entry.slot < 0))[:, None])
        entered = state.entered.at[t].set(jnp.where(entry.on[:, None], self.vectors[entry.row], 0))
        if not self.forest.widest:
            return state._replace(open=is_open, entered=entered)
        children = state.children.with_those_of(entry, t, self.forest)
        below = state.of_children.at[t].set(self.vectors[children.rows[t].T])
        return VectorState(is_open, children, entered, below)

    def _residual(self, state: VectorState, chosen: Chosen) -> Float[Array, "tokens embed"]:
        """What the rows that are in leave of the token."""
        if self.picks > WRITTEN_OUT:
            return self.x - dot("pt,ptd->td", chosen.values, state.entered)
        terms = (rounded(chosen.values[s])[:, None] * state.entered[s].astype(jnp.float32) for s in range(self.picks))
        return self.x - reduce(jnp.add, terms)
