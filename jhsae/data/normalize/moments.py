"""Means, variances and covariances of stored rows, in float64, for normalisers that need more than the manifest.

At most a given number of rows is read, in blocks spread evenly over the store, whose rows are shuffled already. Rows
are shifted by the store's mean before they are squared, against cancellation.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Float64, Shaped
from tqdm import tqdm

from jhsae.data.manifest import Manifest
from jhsae.data.statistics import Running, Statistics
from jhsae.errors import UserError

BLOCK = 1024  # rows: one chunk of a store as `Writer` makes it


@runtime_checkable
class RowSource(Protocol):
    """Rows to fit a normaliser on: a `Store`, or an array in memory as `ArrayRows`."""

    @property
    def manifest(self) -> Manifest | Statistics:
        """Mean, norms and total variance of the rows."""

    @property
    def rows(self) -> int:
        """Number of rows."""

    def read(self, start: int, stop: int) -> Float[np.ndarray, "rows embed"]:
        """Rows `start` to `stop`."""


@dataclass(frozen=True, eq=False)
class ArrayRows:
    """An array in memory as a `RowSource`: ``CenterScale().fit(ArrayRows(x))``.

    Args:
        x: activations, [rows, embed].
    """

    x: Shaped[np.ndarray, "rows embed"] = field(repr=False)

    def __post_init__(self) -> None:
        if not len(self.x):
            raise UserError("a normaliser is to be fitted on 0 rows; give it at least 1")

    @cached_property
    def manifest(self) -> Statistics:
        """Mean, norms and total variance of the rows."""
        running = Running.empty(self.x.shape[1])
        for start in range(0, self.rows, BLOCK):
            running = running.merge(Running.of(self.x[start : start + BLOCK]))
        return running.summary()

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.x)

    def read(self, start: int, stop: int) -> Float[np.ndarray, "rows embed"]:
        """Rows `start` to `stop`."""
        return self.x[start:stop].astype(np.float32)


def mean_and_variance(store: RowSource, rows: int) -> tuple[Float64[np.ndarray, "embed"], Float64[np.ndarray, "embed"]]:
    """Mean and variance (divided by n) of every dimension, over at most `rows` rows. `UserError` for no rows."""
    if min(rows, store.rows) < 1:
        raise UserError(f"variances were asked of {min(rows, store.rows)} rows; fit on a store of 1 row or more")
    shift, count, mean, square = _moments(store, rows, "variances", lambda x: np.einsum("re,re->e", x, x))
    return shift + mean, np.maximum(square / count - mean**2, 0)


def mean_and_covariance(
    store: RowSource, rows: int
) -> tuple[Float64[np.ndarray, "embed"], Float64[np.ndarray, "embed embed"]]:
    """Mean and covariance (divided by n - 1), over at most `rows` rows. `UserError` for fewer than 2 rows."""
    if min(rows, store.rows) < 2:
        raise UserError(f"a covariance was asked of {min(rows, store.rows)} row; fit on a store of 2 rows or more")
    shift, count, mean, square = _moments(store, rows, "covariance", lambda x: x.T @ x)
    return shift + mean, (square - count * np.outer(mean, mean)) / (count - 1)


def _moments(
    store: RowSource, rows: int, what: str, second: Callable[[np.ndarray], np.ndarray]
) -> tuple[np.ndarray, int, np.ndarray, np.ndarray]:
    """(shift, n, mean of x - shift, sum of `second` of x - shift)."""
    shift = np.asarray(store.manifest.mean, np.float64)
    count, total, square = 0, np.zeros_like(shift), np.zeros(())
    for block in _blocks(store, rows, what):
        x = block.astype(np.float64) - shift
        count, total, square = count + len(x), total + x.sum(axis=0), square + second(x)
    return shift, count, total / count, square


def _blocks(store: RowSource, rows: int, what: str) -> Iterator[np.ndarray]:
    """Blocks of at most `rows` rows in all, evenly spread."""
    blocks = -(-store.rows // BLOCK)
    chosen = np.linspace(0, blocks - 1, min(blocks, -(-rows // BLOCK))).round().astype(int)
    left = rows
    for block in tqdm(chosen.tolist(), desc=f"estimating {what}", unit="block", dynamic_ncols=True, disable=None):
        start = block * BLOCK
        x = store.read(start, min(start + min(BLOCK, left), store.rows))
        left -= len(x)
        yield x
