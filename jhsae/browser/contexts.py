"""Contexts of a latent: its strongest firings, and some at lower ranks, each with the tokens around it.

A shown window is not shown again for a firing inside it, so that one passage does not fill the list. Values of all
tokens of a window are kept, because a reader wants to see where a latent starts and stops.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int32, Int64


class Context(NamedTuple):
    """One firing: its row of the store, its place, its value, and (offset, value) of all firings in its window."""

    row: int
    sequence: int
    position: int
    value: float
    around: list[tuple[int, float]]


class Window(NamedTuple):
    """How many tokens are shown on either side."""

    before: int
    after: int


class Reader:
    """Finds contexts in the rows of a store, of which row r stands at ``index[r]`` = (sequence, position, token)."""

    def __init__(self, index: Int32[np.ndarray, "rows 3"], length: int, window: Window):
        """`length` is that of a sequence."""
        self._index, self._window = index, window
        # A gap of one window between sequences: a stretch of places never reaches into the next sequence.
        self._stride = length + window.before + window.after
        self._places = index[:, 0].astype(np.int64) * self._stride + index[:, 1]

    def read(
        self, rows: Int32[np.ndarray, " n"], values: Float32[np.ndarray, " n"], strongest: int, spread: int
    ) -> tuple[list[Context], list[Context]]:
        """The `strongest` firings of a latent, and `spread` more at evenly spaced ranks below them.

        Firings that are not positive (a leaky activation has such) are not shown.
        """
        places = self._places[rows]
        ranked = np.argsort(-values, kind="stable")
        ranked = ranked[values[ranked] > 0]
        taken: set[int] = set()
        first = self._choose(ranked, places, taken, strongest)
        rest = ranked[np.searchsorted(-values[ranked], -values[first[-1]], side="right") :] if first else ranked
        steps = np.linspace(0, len(rest) - 1, spread + 1)[1:].astype(int) if len(rest) else np.zeros(0, int)
        below = self._choose(rest[np.unique(steps)], places, taken, spread)
        by_place = np.argsort(places, kind="stable")
        around = places[by_place], values[by_place]
        return [self._context(rows[i], values[i], *around) for i in first], [
            self._context(rows[i], values[i], *around) for i in below
        ]

    def _choose(self, ranked: Int64[np.ndarray, " m"], places: np.ndarray, taken: set[int], count: int) -> list[int]:
        """The first `count` of `ranked` whose place is not in a window chosen before."""
        chosen: list[int] = []
        for i in ranked:
            if len(chosen) == count:
                break
            place = int(places[i])
            if place not in taken:
                chosen.append(int(i))
                taken.update(range(place - self._window.before, place + self._window.after + 1))
        return chosen

    def _context(self, row: np.int32, value: np.float32, places: np.ndarray, values: np.ndarray) -> Context:
        here = self._places[row]
        span = slice(*np.searchsorted(places, [here - self._window.before, here + self._window.after + 1]))
        around = [(int(p - here), float(v)) for p, v in zip(places[span], values[span], strict=True)]
        sequence, position, _ = self._index[row].tolist()
        return Context(int(row), sequence, position, float(value), around)
