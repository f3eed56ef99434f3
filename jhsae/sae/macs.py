"""Multiplications of an encoder per token.

Only those that the token needs count: an expert that is not active costs nothing beyond its score, and an
implementation that computes more at once, because that is faster on its device, makes more. Decoding and training are
not in it, but for the reconstruction from the parents that `child_input` may read.
"""

from typing import Any, NamedTuple

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
    """

    roots: int
    competing: int
    screens: int


def pursuit_macs(
    embed: int, pool: Pool, children: tuple[int, ...], active: tuple[Number, ...], sweeps: int, extra: int = 0
) -> EncoderMacs:
    """The multiplications of `ops.pursue` and `ops.screened`.

    With t rows in, from none to all of them, the open rows are scored: the competing roots, and the children of those
    rows. A score is the row's product with the token less ``sum_s values[s] products[s]``: t multiplications by table,
    or else `embed`, with the residual, which takes ``t * embed``, as do the products of the next row with those in. A
    sweep over t rows is ``t^2``: one after every pick, `sweeps` at the end, and again where `extra` rows leave.

    Args:
        embed: the size of the vectors.
        pool: the roots that are scored.
        children: the slots below a row of each level, 0 for the last.
        active: how many rows of each level are in.
        sweeps: at the end.
        extra: how many rows more than `active` enter, counted as roots.
    """
    n = sum(active) + extra
    opened = sum(count * below for count, below in zip(active, children, strict=True))  # as evenly as rows enter
    first, second = n * (n + 1) / 2, n * (n + 1) * (2 * n + 1) / 6  # sum t, sum t^2
    at_looks, by_table = opened * (n + 1) / 2, opened * (n + 1) * (2 * n + 1) / 6  # opened * t / n are open
    refit = second + sweeps * n**2 + (sweeps * sum(active) ** 2 if extra else 0)
    later = max(pool.screens - 1, 0)  # a screen after the first is a score of all roots on the residual
    return EncoderMacs(
        embed * (pool.roots + opened) + later * pool.roots * n / 2 + pool.competing * first + by_table + refit,
        embed * (pool.screens * pool.roots + (n + 1) * pool.competing + at_looks + 2 * first - n) + refit,
    )
