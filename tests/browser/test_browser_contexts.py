"""Contexts: the strongest firings, each passage once, and the firings around them, in their own sequence alone."""

import numpy as np

from jhsae.browser import contexts


def test_windows_never_reach_into_another_sequence():
    index = np.asarray([[s, p, 0] for s in range(2) for p in range(4)], np.int32)
    reader = contexts.Reader(index, 4, contexts.Window(3, 3))
    rows, values = np.arange(8, dtype=np.int32), np.asarray([1, 2, 3, 4, 9, 5, 6, 7], np.float32)
    first, below = reader.read(rows, values, 5, 0)
    assert [(c.sequence, c.position, c.value) for c in first] == [(1, 0, 9.0), (0, 3, 4.0)] and below == []
    assert first[0].around == [(0, 9.0), (1, 5.0), (2, 6.0), (3, 7.0)]
    assert first[1].around == [(-3, 1.0), (-2, 2.0), (-1, 3.0), (0, 4.0)]


def test_weaker_contexts_go_down_to_the_weakest_and_only_positive_ones_are_shown():
    index = np.asarray([[s, 0, 0] for s in range(12)], np.int32)
    reader = contexts.Reader(index, 1, contexts.Window(0, 0))
    values = np.asarray([12, 11, 10, 9, 8, 7, 6, 5, 4, 3, -2, -1], np.float32)
    first, below = reader.read(np.arange(12, dtype=np.int32), values, 3, 3)
    assert [c.value for c in first] == [12, 11, 10]
    assert [c.value for c in below] == [7, 5, 3]
    assert reader.read(np.arange(2, dtype=np.int32), -np.ones(2, np.float32), 3, 3) == ([], [])
