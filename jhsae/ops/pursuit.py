"""Frontier pursuit: sparse codes of a forest of rows (`Forest`) without an encoder.

At every pick the roots and the children of rows that are in compete; the open row with the largest score, its product
with the residual, enters while its score exceeds the threshold. Rows are of norm 1, so a row that enters explains the
square of its score. After each pick one sweep of non-negative Gauss-Seidel moves the values of the rows that are in, at
the end `sweeps` more; a sweep goes from the row that entered last to the first. Nothing is differentiated here: the
gradient of the rows is that of decoding at the codes held fixed, which is exact where the values solve least squares.

All open rows compete at every pick (`pursue`), with the products of all pairs of rows in a table: for up to a few
thousand rows. `screened` is for more: candidates among the roots are chosen a few times.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jhsae.ops.chunks import chunk_size, map_chunks
from jhsae.ops.forest import Forest
from jhsae.ops.pool import AbstractPool, TablePool, VectorPool
from jhsae.ops.precision import dot, operand
from jhsae.ops.refit import Chosen, Entry, enter, prune, refit, refit_some, sweep
from jhsae.ops.sharding import ShardingKind, shard_mapped


class Pursued(NamedTuple):
    """The codes of a batch; a slot of value 0 is empty."""

    indices: Int[Array, "batch picks"]
    values: Float[Array, "batch picks"]
    scores: Float[Array, "batch scores"]
    """The threshold below which each slot is in use: the least score up to its pick, 0 for an empty slot; last, the
    score at which the token was left, 0 where no slot was left."""
    prefixes: Float[Array, "batch prefixes picks"]
    """The values where only the rows down to a level are kept and refitted, for every level but the last."""


class Search(NamedTuple):
    """How a pursuit searches.

    Args:
        forest: the shape of the rows.
        picks: how many rows may enter for a token.
        keep: how many of them stay: the smallest leaves leave again; None for all.
        sweeps: joint sweeps at the end.
        most_children: how many children of one row may enter; None for all.
    """

    forest: Forest
    picks: int
    keep: int | None = None
    sweeps: int = 3
    most_children: int | None = None


def pursue(
    x: Float[Array, "batch embed"],
    rows: Float[Array, "features embed"],
    threshold: Float[Array, ""] | float,
    search: Search,
    chunk: int | None = None,
) -> Pursued:
    """The pursuit in which all open rows compete at every pick.

    Args:
        x: the input, centred.
        rows: of norm 1, or 0 in an empty slot.
        threshold: a row enters while its score is above it.
        search: how to search.
        chunk: how many tokens at a time; None for a size that suits the machine.
    """
    forest, picks = search.forest, search.picks
    held = forest.size + 3 * forest.roots + picks * (picks * (forest.widest + 1) + 4 * forest.widest)

    def on_device(x: Array, rows: Array, threshold: Array) -> Pursued:
        table = dot("nd,md->nm", rows, rows)

        def of_chunk(x: Array) -> Pursued:
            pool = TablePool(dot("bd,nd->bn", x, rows), table, forest, picks)
            state = pool.start(), Chosen.nothing(picks, len(x))
            return _finished(_picked(pool, *state, 0, picks, threshold, search)[1], search)

        return map_chunks(of_chunk, chunk or chunk_size(len(x), 4 * held), x)

    return _on_devices(on_device, x, rows, threshold)


def screened(
    x: Float[Array, "batch embed"],
    rows: Float[Array, "features embed"],
    threshold: Float[Array, ""] | float,
    search: Search,
    rounds: int,
    candidates: int,
    chunk: int | None = None,
) -> Pursued:
    """The pursuit in which, of the roots, only candidates compete: the largest scores, chosen anew in every round.

    One choice by the scores of the token alone misses what matters after the first picks, so that it needs ever more
    candidates with the number of rows; a few choices on the residual do not. A round without a row above the threshold
    does not end the token. No array of features x features exists, and none of batch x features outlives a chunk.

    Args:
        x: the input, centred.
        rows: of norm 1, or 0 in an empty slot.
        threshold: a row enters while its score is above it.
        search: how to search.
        rounds: how often candidates are chosen.
        candidates: how many roots each time; at least the picks of every round.
        chunk: how many tokens at a time; None for a size that suits the machine.
    """
    forest, picks = search.forest, search.picks
    candidates = min(candidates, forest.roots)
    held = 2 * forest.roots + (candidates + picks * (1 + forest.widest)) * x.shape[1] + picks * picks

    def on_device(x: Array, rows: Array, threshold: Array) -> Pursued:
        def of_chunk(x: Array) -> Pursued:
            pool = VectorPool(x, operand(rows), forest, picks)
            state, chosen, start = pool.start(), Chosen.nothing(picks, len(x)), 0
            for count in schedule(picks, rounds):
                state = pool.screen(state, chosen, candidates)
                state, chosen = _picked(pool, state, chosen, start, start + count, threshold, search)
                start += count
            return _finished(chosen, search)

        return map_chunks(of_chunk, chunk or chunk_size(len(x), 4 * held), x)

    return _on_devices(on_device, x, rows, threshold)


def schedule(picks: int, rounds: int) -> tuple[int, ...]:
    """The picks of each round, growing, because the first picks change the scores most: 32 in 3 rounds are 4, 10, 18.

    Args:
        picks: of all rounds.
        rounds: how many; at most `picks`.
    """
    ends = [0, *(max(i, round(picks * (i / rounds) ** 2)) for i in range(1, rounds + 1))]
    return tuple(end - start for start, end in pairwise(ends))


def _on_devices(function: Callable[..., Pursued], x: Array, rows: Array, threshold: Array | float) -> Pursued:
    """Every device pursues its tokens among all rows."""
    tokens, whole = ShardingKind.TOKENS, ShardingKind.WHOLE
    fixed = jax.lax.stop_gradient((x, rows, jnp.asarray(threshold, x.dtype)))
    return shard_mapped(function, (tokens, whole, whole), tokens, len(rows))(*fixed)


def _picked(
    pool: AbstractPool, state: Any, chosen: Chosen, start: int, end: int, threshold: Array, search: Search
) -> tuple[Any, Chosen]:
    """The picks from `start` to before `end`; it ends early where no token picks any more."""

    def pick(carry: tuple[Array, Array, Any, Chosen]) -> tuple[Array, Array, Any, Chosen]:
        t, _, state, chosen = carry
        entry = _best(pool, state, chosen, threshold, search.most_children)
        chosen = sweep(enter(chosen, t, entry, pool.products(state, chosen, entry)), t, entry.on)
        return t + 1, jnp.any(entry.on), pool.entered(state, chosen, t, entry), chosen

    def goes_on(carry: tuple[Array, Array, Any, Chosen]) -> Array:
        return (carry[0] < end) & carry[1]

    first = jnp.asarray(start, jnp.int32), jnp.asarray(True), state, chosen
    return jax.lax.while_loop(goes_on, pick, first)[2:]


def _best(pool: AbstractPool, state: Any, chosen: Chosen, threshold: Array, most_children: int | None) -> Entry:
    """The open row with the largest score of each token."""
    of_roots, of_children = pool.scores(state, chosen)
    place, best = first_largest(of_roots)
    slot = jnp.full(best.shape, -1, jnp.int32)
    row = pool.rows(state, place)
    if of_children.size:
        if most_children is not None:
            slots = jnp.arange(chosen.rows.shape[0], dtype=jnp.int32)
            counts = jnp.sum((chosen.parent[None] == slots[:, None, None]) & chosen.there, axis=1)
            of_children = jnp.where((counts >= most_children)[:, None], -jnp.inf, of_children)
        widest = of_children.shape[1]
        flat = of_children.reshape(-1, of_children.shape[2])
        highest = jnp.max(flat, axis=0)
        at = jnp.arange(len(flat), dtype=jnp.int32)[:, None]
        child = jnp.min(jnp.where(flat == highest, at, len(flat) - 1), axis=0)
        ids = jnp.take_along_axis(pool.children(state).reshape(flat.shape), child[None], axis=0)[0]
        lower = highest > best
        best, row = jnp.maximum(best, highest), jnp.where(lower, ids, row)
        slot, place = jnp.where(lower, child // widest, -1), jnp.where(lower, child, place)
    return Entry(row.astype(jnp.int32), best, best > threshold, slot, place)


BLOCK = 32  # entries of a row that are compared as one number each: XLA's argmax of a whole row is slow on a CPU


def first_largest(scores: Float[Array, "tokens n"]) -> tuple[Int[Array, "tokens"], Float[Array, "tokens"]]:
    """The place of the first largest entry of each row, and the entry.

    Args:
        scores: rows.
    """
    tokens, n = scores.shape
    width = BLOCK if n >= 4 * BLOCK else n
    padded = jnp.pad(scores, ((0, 0), (0, -n % width)), constant_values=-jnp.inf).reshape(tokens, -1, width)
    highest = jnp.max(padded, axis=2)
    block = jnp.argmax(highest, axis=1)
    inside = jnp.take_along_axis(padded, block[:, None, None], axis=1)[:, 0]
    place = (block * width + jnp.argmax(inside, axis=1)).astype(jnp.int32)
    return place, jnp.max(highest, axis=1)


def _finished(chosen: Chosen, search: Search) -> Pursued:
    """The values after the joint sweeps, and those of every prefix of the levels; tokens first."""
    chosen = refit(chosen, search.sweeps)
    if search.keep is not None:
        chosen = refit(prune(chosen, search.keep), search.sweeps)
    levels = jnp.asarray(search.forest.level_of)[chosen.rows]
    prefixes = [refit_some(chosen, levels <= level, search.sweeps) for level in range(len(search.forest.levels) - 1)]
    stacked = jnp.stack(prefixes, axis=0) if prefixes else jnp.zeros((0, *chosen.values.shape))
    scores = jnp.concatenate([jnp.where(chosen.values > 0, chosen.scores[:-1], 0.0), chosen.scores[-1:]])
    return Pursued(chosen.rows.T, chosen.values.T, scores.T, jnp.moveaxis(stacked, -1, 0))
