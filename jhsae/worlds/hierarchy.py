"""The hierarchy of a world: a forest, or any directed acyclic graph, over features 0 to size - 1."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Int

from jhsae.errors import UserError


@dataclass(frozen=True)
class Hierarchy:
    """Features and the pairs of parent and child among them.

    Args:
        size: the number of features.
        edges: (parent, child) pairs, none twice. A feature without a parent is a root; of several, a graph.
        exclusive: the parents of whose children at most one fires on a token.
        scaled: the parents whose magnitude scales that of their children.

    Raises:
        UserError: an edge outside of the features, one that is there twice, or a cycle.
    """

    size: int
    edges: tuple[tuple[int, int], ...] = ()
    exclusive: frozenset[int] = frozenset()
    scaled: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        for edge in (*self.edges, *((p, p) for p in self.exclusive | self.scaled)):
            if not all(0 <= i < self.size for i in edge):
                raise UserError(f"the hierarchy names feature {max(edge)}, but the world has {self.size} features")
        if len(set(self.edges)) < len(self.edges):
            twice = next(e for e in self.edges if self.edges.count(e) > 1)
            raise UserError(f"the hierarchy has the pair of parent and child {twice} twice; write it once")
        if len(self.order) < self.size:
            stuck = min(set(range(self.size)) - set(self.order))
            raise UserError(f"the hierarchy has a cycle at or above feature {stuck}; a parent can not be below itself")

    @classmethod
    def of_parents(
        cls, parents: Sequence[int], exclusive: frozenset[int] = frozenset(), scaled: frozenset[int] = frozenset()
    ) -> "Hierarchy":
        """A forest, from the parent of each feature; -1 for a root."""
        edges = tuple((int(p), i) for i, p in enumerate(parents) if p >= 0)
        return cls(len(parents), edges, exclusive, scaled)

    @cached_property
    def above(self) -> tuple[tuple[int, ...], ...]:
        """The direct parents of each feature."""
        return self._grouped([(child, parent) for parent, child in self.edges])

    @cached_property
    def below(self) -> tuple[tuple[int, ...], ...]:
        """The direct children of each feature."""
        return self._grouped(self.edges)

    @cached_property
    def order(self) -> tuple[int, ...]:
        """Every feature after all of its parents; those on a cycle, and below one, are left out."""
        missing = [len(parents) for parents in self.above]
        order = [i for i, n in enumerate(missing) if n == 0]
        for i in order:
            for child in self.below[i]:
                missing[child] -= 1
                if missing[child] == 0:
                    order.append(child)
        return tuple(order)

    @cached_property
    def levels(self) -> Int[np.ndarray, "features"]:
        """How far below a root each feature is, by the longest way; 0 for a root."""
        level = np.zeros(self.size, np.int64)
        for i in self.order:
            for child in self.below[i]:
                level[child] = max(level[child], level[i] + 1)
        return level

    @property
    def roots(self) -> Int[np.ndarray, "roots"]:
        """The features without a parent, ascending."""
        return np.flatnonzero([not parents for parents in self.above])

    @property
    def is_forest(self) -> bool:
        """Whether no feature has two parents."""
        return all(len(parents) <= 1 for parents in self.above)

    @cached_property
    def ancestors(self) -> Bool[np.ndarray, "features features"]:
        """``[i, j]``: feature j lies above feature i, at any distance."""
        found = np.zeros((self.size, self.size), bool)
        for i in self.order:
            for parent in self.above[i]:
                found[i] |= found[parent]
                found[i, parent] = True
        return found

    def _grouped(self, pairs: Sequence[tuple[int, int]]) -> tuple[tuple[int, ...], ...]:
        groups: list[list[int]] = [[] for _ in range(self.size)]
        for key, value in pairs:
            groups[key].append(value)
        return tuple(map(tuple, groups))
