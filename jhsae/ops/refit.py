"""The values of the rows that a pursuit has chosen: non-negative least squares by Gauss-Seidel on their products.

Arrays have the tokens last: the picks of a token are few, and one after the other.
"""

from functools import reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

WRITTEN_OUT = 64  # summands: a longer sum takes long to compile


class Entry(NamedTuple):
    """The best open row of each token.

    Args:
        row: its number.
        score: its product with the residual.
        on: whether it enters.
        slot: the slot of its parent; -1 for a root.
        place: where it stood among the open roots, or among the open children of all slots.
    """

    row: Int[Array, "tokens"]
    score: Float[Array, "tokens"]
    on: Bool[Array, "tokens"]
    slot: Int[Array, "tokens"]
    place: Int[Array, "tokens"]


class Chosen(NamedTuple):
    """The rows that are in, by slot.

    Args:
        rows: their numbers; 0 in an empty slot.
        values: 0 in an empty slot.
        of_token: the product of each with the token.
        products: of each with each.
        there: whether the slot is in use.
        parent: the slot of the parent; -1 for a root.
        scores: the least score up to each pick.
        left_at: the score at which the token was left, 0 where it was not.
    """

    rows: Int[Array, "picks tokens"]
    values: Float[Array, "picks tokens"]
    of_token: Float[Array, "picks tokens"]
    products: Float[Array, "picks picks tokens"]
    there: Bool[Array, "picks tokens"]
    parent: Int[Array, "picks tokens"]
    scores: Float[Array, "picks tokens"]
    left_at: Float[Array, "tokens"]

    @classmethod
    def nothing(cls, tokens: int) -> "Chosen":
        """Before the first pick, without a slot."""
        none = jnp.zeros((0, tokens))
        slots = jnp.zeros((0, tokens), jnp.int32)
        return cls(slots, none, none, jnp.zeros((0, 0, tokens)), none > 0, slots, none, jnp.zeros(tokens))

    def of(self, tokens: Int[Array, "some"]) -> "Chosen":
        """The same of some tokens, in this order."""
        return jax.tree.map(lambda a: a[..., tokens], self)

    def first(self, picks: int) -> "Chosen":
        """The first `picks` slots."""
        return jax.tree.map(lambda a: a[(slice(picks),) * (a.ndim - 1)], self)

    def grown(self, picks: int) -> "Chosen":
        """The same with `picks` slots."""
        return jax.tree.map(lambda a: grown(a, *(picks,) * (a.ndim - 1)), self)


def grown(a: Shaped[Array, "*some tokens"], *sizes: int) -> Shaped[Array, "*sizes tokens"]:
    """An array whose first axes have these sizes, with zeros behind what there is.

    Args:
        a: the array.
        sizes: of its first axes.
    """
    return jnp.pad(a, [*((0, size - have) for size, have in zip(sizes, a.shape, strict=False)), (0, 0)])


def enter(chosen: Chosen, t: Int[Array, ""], entry: Entry, products: Float[Array, "picks tokens"]) -> Chosen:
    """The row of `entry` in slot t, with its score as its value.

    Args:
        chosen: the rows before.
        t: the slot.
        entry: the row.
        products: of the row with those that are in.
    """
    on, value = entry.on, jnp.where(entry.on, entry.score, 0.0)
    products = jnp.where(chosen.there & on, products, 0.0)
    whole = chosen.products.at[:, t].set(products).at[t].set(products).at[t, t].set(on.astype(value.dtype))
    least = jnp.min(jnp.where(chosen.there, chosen.scores, jnp.inf), axis=0)
    score = jnp.maximum(jnp.minimum(least, entry.score), 0.0)
    return Chosen(
        chosen.rows.at[t].set(jnp.where(on, entry.row, 0)),
        chosen.values.at[t].set(value),
        chosen.of_token.at[t].set(value + weighted(chosen.values, products)),
        whole,
        chosen.there.at[t].set(on),
        chosen.parent.at[t].set(jnp.where(on, entry.slot, -1)),
        chosen.scores.at[t].set(jnp.where(on, score, 0.0)),
        jnp.where(on, 0.0, score),
    )


def sweep(chosen: Chosen, end: Int[Array, ""] | int, moves: Bool[Array, "tokens"] | bool = True) -> Chosen:
    """One sweep over the slots from before `end` down to the first, of the tokens that `moves` marks.

    A value becomes that of the best row of norm 1 with the others held: its product with the token less theirs.
    """

    def move(state: tuple[Array, Array]) -> tuple[Array, Array]:
        s, values = state
        old = values[s]
        of_others = jnp.sum(values * chosen.products[s], axis=0) - old
        new = jnp.maximum(chosen.of_token[s] - of_others, 0.0)
        return s - 1, values.at[s].set(jnp.where(chosen.there[s] & moves, new, old))

    # counted down: the TPU compiler aborts where a `fori_loop` to a changing end is inside of another loop
    first = jnp.asarray(end, jnp.int32) - 1
    return chosen._replace(values=jax.lax.while_loop(lambda state: state[0] >= 0, move, (first, chosen.values))[1])


def refit(chosen: Chosen, sweeps: int) -> Chosen:
    """`sweeps` sweeps over all slots."""
    return jax.lax.fori_loop(0, sweeps, lambda _, c: sweep(c, len(chosen.rows)), chosen)


def prune(chosen: Chosen, keep: int) -> Chosen:
    """Leaves of the smallest value leave one by one, until at most `keep` values of a token are above 0.

    A leaf is a row none of whose children has a value. After each, one sweep moves the values that stay, so that the
    next is chosen by values that explain the token without the last one.
    """
    slots = jnp.arange(len(chosen.rows), dtype=jnp.int32)[:, None]

    def drop(_: Int[Array, ""], chosen: Chosen) -> Chosen:
        live = chosen.values > 0
        parent = jnp.any((chosen.parent[None] == slots[:, None]) & live, axis=1)
        leaves = jnp.where(live & ~parent, chosen.values, jnp.inf)
        over = jnp.sum(live, axis=0) > keep
        gone = (slots == jnp.argmin(leaves, axis=0)) & over & live
        return sweep(kept(chosen, ~gone), len(chosen.rows), over)

    return jax.lax.fori_loop(0, max(len(chosen.rows) - keep, 0), drop, kept(chosen, chosen.values > 0))


def kept(chosen: Chosen, some: Bool[Array, "picks tokens"]) -> Chosen:
    """Only the slots of `some` that have a value; the values are not moved.

    Args:
        chosen: the rows with all of their values.
        some: the slots that stay.
    """
    stay = some & (chosen.values > 0)
    return chosen._replace(values=jnp.where(stay, chosen.values, 0.0), there=stay)


def weighted(values: Float[Array, "picks tokens"], products: Float[Array, "picks *rest tokens"]) -> Float[Array, "..."]:
    """``sum_s values[s] products[s]``, each token by itself, as one loop over the numbers where it is not too long."""
    if len(values) > WRITTEN_OUT:
        return jnp.einsum("pt,p...t->...t", values, products)
    terms = (value * product for value, product in zip(values, products, strict=True))
    return reduce(jnp.add, terms) if len(values) else jnp.zeros(products.shape[1:])
