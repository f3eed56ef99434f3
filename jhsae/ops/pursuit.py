"""Frontier pursuit: sparse codes of a forest of rows (`Forest`) without an encoder.

At every pick the roots and the children of rows that are in compete; the open row with the largest score, its product
with the residual, enters while its score exceeds the threshold. Rows are of norm 1, so a row that enters explains the
square of its score. After some picks (`swept`) one sweep of non-negative Gauss-Seidel moves the values of the rows that
are in, at the end `sweeps` more; a sweep goes from the row that entered last to the first. Nothing is differentiated
here: the gradient of the rows is that of decoding at the codes held fixed, which is exact where the values solve least
squares.

All open rows compete at every pick (`pursue`), or candidates among the roots, which are chosen a few times
(`screened`). Products of rows are looked up in a table of all pairs, or, for many rows, taken of gathered rows.
"""

from collections.abc import Callable
from functools import partial
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jhsae.ops.chunks import chunk_size, map_chunks, on_cpu
from jhsae.ops.forest import Forest
from jhsae.ops.pool import AbstractPool, AllRoots, SomeRows, most_promising, without_taken
from jhsae.ops.precision import dot, once, operand
from jhsae.ops.refit import Chosen, Entry, enter, kept, prune, refit, sweep
from jhsae.ops.sharding import ShardingKind, shard_mapped, token_kind
from jhsae.ops.topk import METHODS
from jhsae.ops.vector_pool import EveryRoot, Gathered, NearRoots, NearRows, near_rows

TABLE = 4096  # rows: a screened pursuit of more has no table of the products of all pairs
LARGEST = 2**14  # rows: no pursuit of more has one; its table takes 1 GiB
READ_AGAIN = 8  # cost of a product with a gathered row, in those of the table: a guess (experiments/LOG.md)
BLOCK = 128  # tokens that are pursued at a time once some of the chunk have ended


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
        growth: how far apart the picks are after which values are moved (`swept`); 1: after every pick.
        by_round: children are candidates of the round after that of their parent, as roots are, in place of competing
            at every pick; of a screened pursuit.
    """

    forest: Forest
    picks: int
    keep: int | None = None
    sweeps: int = 3
    most_children: int | None = None
    growth: float = 1.0
    by_round: bool = False


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
    if not has_table(search, len(x)):
        return _on_devices(partial(_pursued_by_rows, search, chunk), x, rows, threshold)
    held = forest.size + 2 * forest.roots + stage_ends(picks)[0] ** 2 * (forest.widest + 1)

    def on_device(x: Array, rows: Array, threshold: Array) -> Pursued:
        table = dot("nd,md->nm", rows, rows)

        def of_chunk(x: Array) -> Pursued:
            scores = dot("bd,nd->bn", x, rows)

            def picked(tokens: Array | None, chosen: Chosen, start: int) -> Chosen:
                pool = AllRoots(scores, tokens, table, forest)
                end = len(chosen.rows)
                state = pool.start(chosen.first(start), end)
                return _picked(pool, state, chosen, start, end, threshold, search)[1]

            return _finished(_in_stages(picked, len(x), picks), search)

        return map_chunks(of_chunk, chunk or chunk_size(len(x), 4 * held, 4 * BLOCK), x)

    return _on_devices(on_device, x, rows, threshold)


def has_table(search: Search, tokens: int) -> bool:
    """Whether a pursuit of all rows has a table: for few rows, and for more where a table of all pairs costs less.

    On an accelerator, whose products cost little beside gathered rows, up to the largest.

    Args:
        search: how to search.
        tokens: of the batch.
    """
    size, picks = search.forest.size, search.picks
    gathered = tokens * picks * (search.forest.roots + picks * search.forest.widest)
    cheap = size <= TABLE or not on_cpu() or size**2 <= READ_AGAIN * gathered
    return size <= LARGEST and cheap


def _pursued_by_rows(search: Search, chunk: int | None, x: Array, rows: Array, threshold: Array) -> Pursued:
    """`pursue` on one device, without a table."""
    forest, picks, vectors = search.forest, search.picks, operand(rows)
    held = 3 * forest.roots + picks * (1 + forest.widest) * x.shape[1] + picks * picks

    def of_chunk(x: Array) -> Pursued:
        pool, chosen, start = EveryRoot(x, vectors, forest), Chosen.nothing(len(x)), 0
        for end in stage_ends(picks):
            chosen = _picked(pool, pool.start(chosen, end), chosen.grown(end), start, end, threshold, search)[1]
            start = end
        return _finished(chosen, search)

    return map_chunks(of_chunk, chunk or chunk_size(len(x), 4 * held, BLOCK if on_cpu() else 1), x)


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
    does not end the token. No array of batch x features outlives a chunk; one of features x features exists for up to
    `TABLE` rows, where looking products up is faster than computing them.

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
    if forest.size <= TABLE:
        return _on_devices(partial(_screened_by_table, search, rounds, candidates, chunk), x, rows, threshold)
    held = 2 * forest.roots + (candidates + picks * (1 + forest.widest)) * x.shape[1] + picks * picks

    def on_device(x: Array, rows: Array, threshold: Array) -> Pursued:
        vectors = operand(rows)
        roots = once(vectors[: forest.roots])  # not anew in every chunk

        def near(gathered: Gathered, chosen: Chosen) -> AbstractPool:
            numbers = near_rows(gathered, roots, chosen, candidates, search.by_round)
            return (NearRows if search.by_round else NearRoots)(numbers, gathered.x, vectors, forest)

        def of_chunk(x: Array) -> Pursued:
            chosen = Chosen.nothing(len(x))
            gathered = Gathered(x, vectors, forest)
            for end in accumulate(schedule(picks, rounds)):
                start, pool = len(chosen.rows), near(gathered, chosen)
                chosen = _picked(pool, pool.start(chosen, end), chosen.grown(end), start, end, threshold, search)[1]
            return _finished(chosen, search)

        return map_chunks(of_chunk, chunk or chunk_size(len(x), 4 * held, BLOCK if on_cpu() else 1), x)

    return _on_devices(on_device, x, rows, threshold)


def _screened_by_table(
    search: Search, rounds: int, candidates: int, chunk: int | None, x: Array, rows: Array, threshold: Array
) -> Pursued:
    """`screened` on one device, with the products of all pairs of rows."""
    forest, table = search.forest, dot("nd,md->nm", rows, rows)
    held = forest.size + 2 * forest.roots

    def of_chunk(x: Array) -> Pursued:
        scores, chosen = dot("bd,nd->bn", x, rows), Chosen.nothing(len(x))
        for end in accumulate(schedule(search.picks, rounds)):
            start, every = len(chosen.rows), AllRoots(scores, None, table, forest)
            now = without_taken(every.of_roots - every.lost(chosen), chosen) if start else every.of_roots
            near = METHODS["auto"](now, candidates)  # not `topk`: this device has all rows
            numbers = near.T
            if search.by_round and start and forest.widest:
                children = every.below(chosen)
                of_roots = jnp.take_along_axis(now, near, axis=1).T
                both = jnp.concatenate([numbers, children.rows]), jnp.concatenate([of_roots, children.scores])
                numbers = most_promising(*both, candidates)
            pool = SomeRows(numbers, scores, None, table, forest, 0 if search.by_round else None)
            state = pool.start(chosen, end)
            chosen = _picked(pool, state, chosen.grown(end), start, end, threshold, search)[1]
        return _finished(chosen, search)

    return map_chunks(of_chunk, chunk or chunk_size(len(x), 4 * held, 2 * BLOCK), x)


def stage_ends(picks: int) -> tuple[int, ...]:
    """The picks after which a pursuit leaves out the tokens that have ended: 8, 16, 24 and 32 of 32.

    Args:
        picks: how many rows may enter.
    """
    step = max(8, -(-picks // 4))
    return (*range(step, picks, step), picks)


def block_size(tokens: int) -> int:
    """How many tokens of a chunk are pursued at a time once some have ended: a divisor, or all of them."""
    divisor = next(size for size in range(min(BLOCK, tokens), 0, -1) if tokens % size == 0)
    return divisor if 2 * divisor > BLOCK else tokens


def swept(picks: int, growth: float) -> tuple[bool, ...]:
    """Whether a sweep follows each pick: after picks whose numbers grow by a factor of at least `growth`.

    A sweep moves all values, so that all scores are computed again; a pick alone changes them by one product each. The
    first rows that enter take most of each other's values, hence sweeps are close together at first.

    Args:
        picks: how many rows may enter.
        growth: 1 for every pick; 1.5 for 1, 2, 3, 5, 8, 12, 18, 27.
    """
    last, after = 0, [False] * picks
    for pick in range(1, picks + 1):
        if pick >= last * growth:
            after[pick - 1], last = True, pick
    return tuple(after)


def schedule(picks: int, rounds: int) -> tuple[int, ...]:
    """The picks of each round, growing, because the first picks change the scores most: 32 in 3 rounds are 4, 10, 18.

    Args:
        picks: of all rounds.
        rounds: how many; at most `picks`.
    """
    ends = [0, *(max(i, round(picks * (i / rounds) ** 2)) for i in range(1, rounds + 1))]
    return tuple(end - start for start, end in pairwise(ends))


def _on_devices(function: Callable[..., Pursued], x: Array, rows: Array, threshold: Array | float) -> Pursued:
    """Every device has all rows and tokens of its own: those that share the experts of a token share its tokens too.

    Splitting the roots instead would exchange candidates and their rows in every round, for as many products.
    """
    tokens, whole = token_kind(len(x)), ShardingKind.WHOLE
    fixed = jax.lax.stop_gradient((x, rows, jnp.asarray(threshold, x.dtype)))
    return shard_mapped(function, (tokens, whole, whole), tokens, len(rows))(*fixed)


def _in_stages(picked: Callable[[Array | None, Chosen, int], Chosen], tokens: int, picks: int) -> Chosen:
    """The picks of a chunk, in stages: before each the tokens that picked to the end of the last one are sorted first.

    Only blocks with such a token are pursued further. So the last picks, which few tokens make, cost little, and what
    is held for a token grows with its picks.

    Args:
        picked: the picks from a slot on, of some tokens of the chunk, or, for None, of all.
        tokens: how many the chunk has.
        picks: how many rows may enter.
    """
    first, *later = stage_ends(picks) if tokens else (picks,)
    order, chosen = jnp.arange(tokens, dtype=jnp.int32), picked(None, Chosen.nothing(tokens).grown(first), 0)
    for end in later:
        order, chosen = _next_stage(picked, order, chosen, end)
    return chosen.of(jnp.argsort(order)) if later else chosen


def _next_stage(
    picked: Callable[[Array | None, Chosen, int], Chosen], order: Array, chosen: Chosen, end: int
) -> tuple[Array, Chosen]:
    """The tokens in their new order, and what is chosen after the picks up to `end`."""
    goes_on, start, block = chosen.there[-1], len(chosen.rows), block_size(len(order))
    by_use = jnp.argsort(~goes_on)
    order, chosen = order[by_use], chosen.of(by_use)

    def of_block(i: Array, chosen: Chosen) -> Chosen:
        tokens, part = jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, i * block, block, -1), (order, chosen))
        part = picked(tokens, part, start)
        return jax.tree.map(lambda a, b: jax.lax.dynamic_update_slice_in_dim(a, b, i * block, -1), chosen, part)

    return order, jax.lax.fori_loop(0, (jnp.sum(goes_on) + block - 1) // block, of_block, chosen.grown(end))


def _picked(
    pool: AbstractPool, state: Any, chosen: Chosen, start: int, end: int, threshold: Array, search: Search
) -> tuple[Any, Chosen]:
    """The picks from `start` to before `end`; it ends early where no token picks any more."""
    after = swept(search.picks, search.growth)

    def pick(carry: tuple[Array, Array, Any, Chosen]) -> tuple[Array, Array, Any, Chosen]:
        t, _, state, chosen = carry
        entry = _best(pool, state, chosen, threshold, search)
        state = pool.stored(state, t, entry)
        chosen = enter(chosen, t, entry, pool.products(state, chosen, entry))
        state = pool.entered(state, chosen, t, entry)

        def moved(state: Any, chosen: Chosen) -> tuple[Any, Chosen]:
            chosen = sweep(chosen, t, entry.on)
            return pool.rescored(state, chosen), chosen

        if all(after):  # no branch in the loop
            state, chosen = moved(state, chosen)
        else:
            state, chosen = jax.lax.cond(jnp.asarray(after)[t], moved, lambda *same: same, state, chosen)
        return t + 1, jnp.any(entry.on), state, chosen

    def goes_on(carry: tuple[Array, Array, Any, Chosen]) -> Array:
        return (carry[0] < end) & carry[1]

    first = jnp.asarray(start, jnp.int32), jnp.asarray(True), state, chosen
    return jax.lax.while_loop(goes_on, pick, first)[2:]


def _best(pool: AbstractPool, state: Any, chosen: Chosen, threshold: Array, search: Search) -> Entry:
    """The open row with the largest score of each token."""
    score, row, place = pool.best_root(state, chosen)
    slot = jnp.full(score.shape, -1, jnp.int32)
    if pool.widest:
        closed = None
        if search.most_children is not None:
            slots = jnp.arange(len(chosen.rows), dtype=jnp.int32)
            counts = jnp.sum((chosen.parent[None] == slots[:, None, None]) & chosen.there, axis=1)
            closed = counts >= search.most_children
        highest, child, at = pool.best_child(state, chosen, closed)
        lower = highest > score
        score, row, place = (jnp.where(lower, a, b) for a, b in ((highest, score), (child, row), (at, place)))
        slot = jnp.where(lower, place // pool.widest, -1)
    elif search.forest.widest:
        slot = _slot_of_parent(chosen, row, search.forest)
    return Entry(row.astype(jnp.int32), score, score > threshold, slot, place)


def _slot_of_parent(chosen: Chosen, row: Array, forest: Forest) -> Int[Array, "tokens"]:
    """The slot of the parent of each token's row; -1 for a root."""
    parent = jnp.asarray(forest.parents)[jnp.minimum(row, forest.size - 1)]
    is_parent = (chosen.rows == parent) & chosen.there
    return jnp.where(parent < 0, -1, jnp.argmax(is_parent, axis=0)).astype(jnp.int32)


def _finished(chosen: Chosen, search: Search) -> Pursued:
    """The values after the joint sweeps, and those of every prefix of the levels; tokens first."""
    chosen = refit(chosen, search.sweeps)
    if search.keep is not None:
        chosen = refit(prune(chosen, search.keep), search.sweeps)
    levels = jnp.asarray(search.forest.level_of)[chosen.rows]
    above = [kept(chosen, levels <= level) for level in range(len(search.forest.levels) - 1)]
    prefixes = [refit(some, search.sweeps).values for some in above]
    stacked = jnp.stack(prefixes, axis=0) if prefixes else jnp.zeros((0, *chosen.values.shape))
    scores = jnp.concatenate([jnp.where(chosen.values > 0, chosen.scores, 0.0), chosen.left_at[None]])
    return Pursued(chosen.rows.T, chosen.values.T, scores.T, jnp.moveaxis(stacked, -1, 0))
