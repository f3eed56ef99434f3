"""The open rows of a pursuit and their scores: the roots, or candidates among them, and the children of what is in.

The score of an open row is its product with the residual, ``row . x - sum_s values[s] row . row_s``. A row that enters
changes it by one product; where values have moved it is computed again. Products of rows are looked up in a table
(`TablePool`) or taken of gathered rows (`vector_pool`). Arrays have the tokens last, but for scores of roots,
[tokens, roots], and rows, [..., tokens, embed].
"""

import abc
from functools import reduce
from typing import Any, Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jhsae.ops.forest import Forest
from jhsae.ops.refit import WRITTEN_OUT, Chosen, Entry, grown, weighted
from jhsae.ops.topk import METHODS

S = TypeVar("S")
NOWHERE = jnp.iinfo(jnp.int32).max  # a place beyond every list
BLOCK = 32  # entries of a row that are compared as one number each: XLA's argmax of a whole row is slow on a CPU


Best = tuple[Float[Array, "tokens"], Int[Array, "tokens"], Int[Array, "tokens"]]
"""The largest score of each token, the number of its row, and its place."""


class Listed(NamedTuple):
    """Open rows that are listed for each token by itself.

    Args:
        rows: their numbers.
        of_token: the product of each with the token; -inf where there is none, or where it has entered.
        products: of the rows that are in with each.
        scores: the product of each with the residual.
    """

    rows: Int[Array, "open tokens"]
    of_token: Float[Array, "open tokens"]
    products: Float[Array, "picks open tokens"]
    scores: Float[Array, "open tokens"]

    def best(self, closed: Array | None = None) -> Best:
        """The largest score of each token, the number of its row and its place in the list.

        Args:
            closed: which places do not compete; None where all do.
        """
        scores = self.scores if closed is None else jnp.where(closed, -jnp.inf, self.scores)
        return best_listed(scores, self.rows)

    def entered(
        self, t: Int[Array, ""], value: Float[Array, "tokens"], products: Array, place: Int[Array, "tokens"]
    ) -> "Listed":
        """The list after a row has entered in slot t.

        Args:
            t: the slot.
            value: of the row.
            products: of the row with those that are listed.
            place: where it stood in the list; a place beyond the list if it did not.
        """
        where = (place, jnp.arange(len(place), dtype=jnp.int32))
        of_token = self.of_token.at[where].set(-jnp.inf, mode="drop")
        scores = (self.scores - value * products).at[where].set(-jnp.inf, mode="drop")
        return Listed(self.rows, of_token, self.products.at[t].set(products), scores)

    def rescored(self, values: Float[Array, "picks tokens"]) -> "Listed":
        """The list with the scores at these values of the rows that are in."""
        return self._replace(scores=self.of_token - weighted(values, self.products))

    def with_rows(self, added: "Listed", first: Int[Array, ""]) -> "Listed":
        """The list with other rows from a place on."""
        put = jax.lax.dynamic_update_slice_in_dim
        parts = zip(self, added, (0, 0, 1, 0), strict=True)  # the axis of the open rows
        return Listed(*(put(whole, own, first, axis) for whole, own, axis in parts))

    def without(self, chosen: Chosen) -> "Listed":
        """The list in which the rows that are in are not open."""
        there = is_in(self.rows, chosen)
        of_token, scores = (jnp.where(there, -jnp.inf, a) for a in (self.of_token, self.scores))
        return self._replace(of_token=of_token, scores=scores)

    def grown(self, picks: int, size: int, nothing: int) -> "Listed":
        """The list with `size` places, for `picks` slots.

        Args:
            picks: slots of the rows that will be in.
            size: places of the list.
            nothing: the number that stands for no row.
        """
        more = ((0, size - len(self.rows)), (0, 0))
        return Listed(
            jnp.pad(self.rows, more, constant_values=nothing),
            jnp.pad(self.of_token, more, constant_values=-jnp.inf),
            grown(self.products, picks, size),
            jnp.pad(self.scores, more, constant_values=-jnp.inf),
        )


class AbstractPool(abc.ABC, Generic[S]):
    """The open rows of some tokens; the state, which `entered` changes, is a value of its own."""

    forest: Forest
    widest: int
    """How many rows open below a row that enters; 0 where children wait for the next round."""

    @abc.abstractmethod
    def start(self, chosen: Chosen, picks: int) -> S:
        """The state where the slots of `chosen` are filled and those up to `picks` will be."""

    @abc.abstractmethod
    def best_root(self, state: S, chosen: Chosen) -> Best:
        """The best open root."""

    @abc.abstractmethod
    def best_child(self, state: S, chosen: Chosen, closed: Bool[Array, "picks tokens"] | None) -> Best:
        """The best open child, none of the slots that are `closed`; its place is ``slot * widest`` and its number."""

    def stored(self, state: S, t: Int[Array, ""], entry: Entry) -> S:
        """The state with the row of `entry` in slot t, before anything is computed of it."""
        return state

    @abc.abstractmethod
    def products(self, state: S, chosen: Chosen, entry: Entry) -> Float[Array, "picks tokens"]:
        """The products of a row with those that are in."""

    @abc.abstractmethod
    def entered(self, state: S, chosen: Chosen, t: Int[Array, ""], entry: Entry) -> S:
        """The state after the row of `entry` has entered in slot t; `chosen` has it already, no other value moved."""

    @abc.abstractmethod
    def rescored(self, state: S, chosen: Chosen) -> S:
        """The state after values have moved."""

    def from_roots(self, entry: Entry) -> Bool[Array, "tokens"]:
        """Whether a row stood among the open roots, where candidates below rows stand too if none open."""
        return entry.slot < 0 if self.widest else jnp.ones_like(entry.on)


class TableState(NamedTuple):
    """What changes in a `TablePool`.

    Args:
        roots: the open roots.
        children: those of the rows that are in.
    """

    roots: Any
    children: Listed


class TablePool(AbstractPool[TableState]):
    """Products are looked up in a table of all pairs of rows.

    Args:
        scores: the product of each row with each token of a chunk.
        tokens: which of them these are; None for all.
        table: the products.
        forest: the shape of the rows.
        widest: how many rows open below a row that enters; None for all of its children.
    """

    def __init__(
        self,
        scores: Float[Array, "chunk rows"],
        tokens: Int[Array, "tokens"] | None,
        table: Float[Array, "rows rows"],
        forest: Forest,
        widest: int | None = None,
    ):
        self.of_rows, self.table, self.forest = scores, table, forest
        self.widest = forest.widest if widest is None else widest
        self.tokens = jnp.arange(len(scores), dtype=jnp.int32) if tokens is None else tokens
        self.of_roots = scores[:, : forest.roots] if tokens is None else scores[:, : forest.roots][tokens]
        self.root_table = table[:, : forest.roots]

    def start(self, chosen: Chosen, picks: int) -> TableState:
        below = self.forest.below(chosen.rows, chosen.there) if self.widest else chosen.rows[:0]
        children = self.listed(below, chosen, picks, picks * self.widest)
        return TableState(self.open_roots(chosen, picks), children)

    def best_child(self, state: TableState, chosen: Chosen, closed: Array | None) -> Best:
        below = None if closed is None else jnp.repeat(closed, self.widest, axis=0)
        return state.children.best(below)

    def products(self, state: TableState, chosen: Chosen, entry: Entry) -> Array:
        return self.between(chosen.rows, entry.row[None])[:, 0]

    def entered(self, state: TableState, chosen: Chosen, t: Array, entry: Entry) -> TableState:
        is_root, widest, value = self.from_roots(entry), self.widest, chosen.values[t]
        place = jnp.where(entry.on & is_root, entry.place, NOWHERE)
        roots = self.root_entered(state.roots, t, value, entry, place)
        if not widest:
            return TableState(roots, state.children)
        new = jnp.where(entry.on, self.forest.children(entry.row).T, self.forest.size)
        of_token, products = self._of_token(new), self.between(chosen.rows, new)
        child = jnp.where(entry.on & ~is_root, entry.place, NOWHERE)
        old = state.children.entered(t, value, self.between(entry.row[None], state.children.rows)[0], child)
        added = Listed(new, of_token, products, of_token - weighted(chosen.values, products))
        return TableState(roots, old.with_rows(added, t * widest))

    def rescored(self, state: TableState, chosen: Chosen) -> TableState:
        return TableState(self.roots_rescored(state.roots, chosen), state.children.rescored(chosen.values))

    def between(self, a: Int[Array, "a tokens"], b: Int[Array, "b tokens"]) -> Float[Array, "a b tokens"]:
        """The products of all pairs of a token's rows."""
        return self.table.at[a[:, None], b[None]].get(mode="clip")

    def lost(self, chosen: Chosen) -> Float[Array, "tokens roots"]:
        """What the rows that are in take of the score of each root."""
        table, values = self.root_table, chosen.values
        if len(values) > WRITTEN_OUT:
            return jnp.einsum("pt,ptn->tn", values, table[chosen.rows])
        # one loop over the numbers, without gathered rows in between
        return reduce(jnp.add, (value[:, None] * table[row] for value, row in zip(values, chosen.rows, strict=True)))

    @abc.abstractmethod
    def open_roots(self, chosen: Chosen, picks: int) -> Any:
        """The roots that compete with what is in."""

    @abc.abstractmethod
    def root_entered(
        self, roots: Any, t: Int[Array, ""], value: Float[Array, "tokens"], entry: Entry, place: Int[Array, "tokens"]
    ) -> Any:
        """The roots after `entry` has entered in slot t at a value; it is a root if its `place` is one."""

    @abc.abstractmethod
    def roots_rescored(self, roots: Any, chosen: Chosen) -> Any:
        """The roots after values have moved."""

    def below(self, chosen: Chosen) -> Listed:
        """The children of the rows that are in."""
        below = self.forest.below(chosen.rows, chosen.there)
        return self.listed(below, chosen, len(chosen.rows), len(below))

    def _of_token(self, rows: Int[Array, "some tokens"]) -> Float[Array, "some tokens"]:
        """The product of each with the token; -inf where there is none."""
        scores = self.of_rows.at[self.tokens, rows].get(mode="clip")
        return jnp.where(rows < self.forest.size, scores, -jnp.inf)

    def listed(self, rows: Int[Array, "open tokens"], chosen: Chosen, picks: int, size: int) -> Listed:
        """A list of these rows, of which those that are in are not open, with `size` places."""
        of_token, products = self._of_token(rows), self.between(chosen.rows, rows)
        found = Listed(rows, of_token, products, of_token - weighted(chosen.values, products))
        return found.without(chosen).grown(picks, size, self.forest.size)


class AllRoots(TablePool):
    """All roots compete; their scores are the state."""

    def open_roots(self, chosen: Chosen, picks: int) -> Array:
        return without_taken(self.of_roots - self.lost(chosen), chosen) if len(chosen.rows) else self.of_roots

    def best_root(self, state: TableState, chosen: Chosen) -> Best:
        place, score = first_largest(state.roots)
        return score, place, place

    def root_entered(self, roots: Array, t: Array, value: Array, entry: Entry, place: Array) -> Array:
        now = roots - value[:, None] * self.root_table[entry.row]
        return now.at[jnp.arange(len(place)), place].set(-jnp.inf, mode="drop")

    def roots_rescored(self, roots: Array, chosen: Chosen) -> Array:
        return jnp.where(roots > -jnp.inf, self.of_roots - self.lost(chosen), -jnp.inf)


class SomeRows(TablePool):
    """Candidates compete: roots, and children where they are chosen by round.

    Args:
        candidates: their numbers.
        rest: the arguments of a `TablePool`.
    """

    def __init__(self, candidates: Int[Array, "candidates tokens"], *rest: Any):
        super().__init__(*rest)
        self.candidates = candidates

    def open_roots(self, chosen: Chosen, picks: int) -> Listed:
        return self.listed(self.candidates, chosen, picks, len(self.candidates))

    def best_root(self, state: TableState, chosen: Chosen) -> Best:
        return state.roots.best()

    def root_entered(self, roots: Listed, t: Array, value: Array, entry: Entry, place: Array) -> Listed:
        return roots.entered(t, value, self.between(entry.row[None], roots.rows)[0], place)

    def roots_rescored(self, roots: Listed, chosen: Chosen) -> Listed:
        return roots.rescored(chosen.values)


def is_in(rows: Int[Array, "some tokens"], chosen: Chosen) -> Bool[Array, "some tokens"]:
    """Whether rows have entered.

    Args:
        rows: their numbers.
        chosen: the rows that are in.
    """
    return jnp.any((rows[None] == chosen.rows[:, None]) & chosen.there[:, None], axis=0)


def most_promising(
    numbers: Int[Array, "some tokens"], scores: Float[Array, "some tokens"], count: int
) -> Int[Array, "count tokens"]:
    """The numbers of the `count` rows with the largest scores.

    Args:
        numbers: of rows.
        scores: their products with the residual.
        count: how many.
    """
    best = METHODS["auto"](scores.T, count)  # not `topk`: this device has all rows
    return jnp.take_along_axis(numbers, best.T, axis=0)


def without_taken(scores: Float[Array, "tokens roots"], chosen: Chosen) -> Float[Array, "tokens roots"]:
    """Scores of all roots; -inf for those that are in.

    Args:
        scores: of each token's roots.
        chosen: the rows that are in.
    """
    taken = jnp.where(chosen.there, chosen.rows, scores.shape[1]).T
    return scores.at[jnp.arange(len(taken), dtype=jnp.int32)[:, None], taken].set(-jnp.inf, mode="drop")


def first_largest(scores: Float[Array, "tokens n"]) -> tuple[Int[Array, "tokens"], Float[Array, "tokens"]]:
    """The place of the first largest entry of each row, and the entry.

    Args:
        scores: rows.
    """
    tokens, n = scores.shape
    width = BLOCK if n >= 4 * BLOCK else n
    padded = jnp.pad(scores, ((0, 0), (0, -n % width)), constant_values=-jnp.inf).reshape(tokens, -(-n // width), width)
    highest = jnp.max(padded, axis=2)
    block = jnp.argmax(highest, axis=1)
    inside = jnp.take_along_axis(padded, block[:, None, None], axis=1)[:, 0]
    place = (block * width + jnp.argmax(inside, axis=1)).astype(jnp.int32)
    return place, jnp.max(highest, axis=1)


def best_listed(scores: Float[Array, "open tokens"], rows: Int[Array, "open tokens"]) -> Best:
    """The largest score of each token, the number of its row, and the first place where it stands.

    Args:
        scores: of listed rows.
        rows: their numbers.
    """
    highest = jnp.max(scores, axis=0)
    at = jnp.arange(len(scores), dtype=jnp.int32)[:, None]
    place = jnp.min(jnp.where(scores == highest, at, len(scores) - 1), axis=0)
    return highest, jnp.take_along_axis(rows, place[None], axis=0)[0], place
