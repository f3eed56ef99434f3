"""Multiplications of an encoder per token.

Only those that the token needs count: an expert that is not active costs nothing beyond its score, and an
implementation that computes more at once, because that is faster on its device, makes more. Decoding and training are
not in it, but for the reconstruction from the parents that `child_input` may read.
"""

from itertools import accumulate
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jhsae.ops.pursuit import schedule

Number = Any  # a float, or an array of one entry per token


class EncoderMacs(NamedTuple):
    """Multiplications per token.

    Args:
        tables: where the products of pairs of rows are looked up in a table, which is derived from the dictionary.
        plain: where they are computed from the rows.
    """

    tables: Number
    plain: Number


class Pool(NamedTuple):
    """Which rows a pursuit scores.

    Args:
        roots: how many roots there are.
        competing: how many of them compete at a pick.
        screens: how often the scores of all roots are computed to choose those; 0 where all compete.
        by_round: whether children are chosen so too, in place of competing at every pick.
    """

    roots: int
    competing: int
    screens: int
    by_round: bool = False


def pursuit_macs(
    embed: int,
    pool: Pool,
    children: tuple[int, ...],
    active: tuple[Number, ...],
    sweeps: int,
    after: tuple[bool, ...],
    extra: int = 0,
) -> EncoderMacs:
    """The multiplications of `ops.pursue` and `ops.screened`.

    With t rows in, from none to all of them, the open rows are scored: the competing roots, and the children of those
    rows. A score is the row's product with the token less ``sum_s values[s] products[s]``: by table t multiplications
    after a sweep and one after a pick without a sweep; or else `embed`, with the residual, which takes ``t * embed`` or
    `embed`. The products of the next row with those in take ``t * embed`` without a table. Children that are candidates
    by round are scored when a round is chosen. A sweep over t rows is ``t^2``: after some picks, `sweeps` at the end,
    and where `extra` rows leave one after each and `sweeps` again.

    Args:
        embed: the size of the vectors.
        pool: the roots that are scored.
        children: the slots below a row of each level, 0 for the last.
        active: how many rows of each level are in; between two whole numbers the costs are interpolated.
        sweeps: at the end.
        after: whether a sweep follows each pick (`ops.swept`).
        extra: how many rows more than `active` enter, counted as roots.
    """
    n = sum(active) + extra
    opened = sum(count * below for count, below in zip(active, children, strict=True))  # as evenly as rows enter
    array = np if isinstance(n, int | float) else jnp
    pick, swept = np.arange(1, len(after) + 1), np.asarray(after)
    made = array.clip(array.asarray(n)[..., None] - pick + 1, 0, 1)  # the share of each pick that a token makes
    terms = np.where(swept, pick, 1)  # products that change a score after a pick, or rows that change the residual
    first, new, second = (array.sum(made * times, axis=-1) for times in (pick, terms, np.where(swept, pick**2, 0)))
    each = opened / array.maximum(n, 1e-9)  # as many rows open with every pick
    refit = second + sweeps * n**2 + (sweeps * sum(active) ** 2 if extra else 0)
    refit += sum((n - gone) ** 2 for gone in range(1, extra + 1))
    later = max(pool.screens - 1, 0)  # a screen after the first is a score of all roots on the residual
    below, looked_up = first, array.sum(made * terms * pick, axis=-1)
    if pool.by_round:
        starts = np.array([0, *accumulate(schedule(len(after), pool.screens))][:-1])
        there = array.minimum(starts, array.asarray(n)[..., None])
        below, looked_up = array.sum(there, axis=-1), array.sum(there * starts, axis=-1)
        opened = each * there[..., -1]
    by_table = pool.competing * new + each * looked_up
    by_rows = pool.screens * pool.roots + (n + 1) * pool.competing + each * below
    return EncoderMacs(
        embed * (pool.roots + opened) + later * pool.roots * n / 2 + by_table + refit,
        embed * (by_rows + new + first - n) + refit,
    )
